"""A zip's index read an entry at a time says what `zipfile` says."""

import zipfile
from pathlib import Path

import pytest

from pipelines.sources import zip_index


@pytest.mark.parametrize("before", [b"", b"glued before"])
@pytest.mark.parametrize("comment", [b"", b"a comment"])
@pytest.mark.parametrize("large", [False, True])
def test_the_index_of_a_zip_is_the_one_that_zipfile_reads(
    tmp_path: Path, before: bytes, comment: bytes, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = tmp_path / "a.zip"
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a") as archive:
        for number, name in enumerate(["a.png", "b/", "b/é.png", "b/ü.jpg"]):
            archive.writestr(name, bytes(number * 20))
        archive.comment = comment
    with path.open("rb") as file, zipfile.ZipFile(path) as archive:
        assert [(entry.name, entry.num_bytes, entry.crc) for entry in zip_index.entries(file)] == [
            (member.filename, member.file_size, member.CRC) for member in archive.infolist()
        ]
