"""A zip's index read an entry at a time says what `zipfile` says, and each entry leads to what `zipfile`
reads.
"""

import itertools
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.sources import PhotoUnreadableError, open_source, zip_index
from pipelines.sources import archive as zips

METHODS = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@pytest.mark.parametrize("before", [b"", b"glued before"])
@pytest.mark.parametrize("glued", [b"", b"glued later"])
@pytest.mark.parametrize("comment", [b"", b"a comment"])
@pytest.mark.parametrize("large", [False, True])
def test_the_index_of_a_zip_is_the_one_that_zipfile_reads(
    tmp_path: Path, before: bytes, glued: bytes, comment: bytes, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = tmp_path / "a.zip"
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a") as archive:
        for number, (name, method) in enumerate(
            zip(["a.png", "b/", "b/é.png", "b/ü.jpg"], itertools.cycle(METHODS), strict=False)
        ):
            archive.writestr(name, bytes(number * 20), method)
        archive.comment = comment
    path.write_bytes(glued + path.read_bytes())
    with path.open("rb") as file, zipfile.ZipFile(path) as archive:
        entries = list(zip_index.entries(file))
        assert [
            (e.name, e.num_bytes, e.crc, e.header, e.packed_bytes, e.method, e.flags) for e in entries
        ] == [
            (m.filename, m.file_size, m.CRC, m.header_offset, m.compress_size, m.compress_type, m.flag_bits)
            for m in archive.infolist()
        ]
        shift = zip_index.find_index(file)[2]
        assert [zip_index.entry_at(file, entry.place, shift) for entry in reversed(entries)] == entries[::-1]
        contents = {
            member.filename: archive.read(member) for member in archive.infolist() if not member.is_dir()
        }
    source = open_source(path)
    assert {ref.name: source.read(ref) for ref in source.refs()} == contents


@pytest.mark.parametrize("method", METHODS)
def test_a_member_is_read_however_it_is_packed_and_without_the_rest_of_the_index(
    method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:03d}.png" for number in range(100)]
    with (tmp_path / "a.zip").open("wb") as file:
        pipe = SimpleNamespace(
            write=file.write, flush=file.flush
        )  # headers tell no size and no CRC where nobody can seek
        with zipfile.ZipFile(pipe, "w", method) as archive:  # type: ignore[arg-type]
            for name in names:
                archive.writestr(name, name.encode() * 400)
    source = open_source(tmp_path / "a.zip")
    refs = list(source.refs())
    for whole in ((zipfile, "ZipFile"), (zips, "entries")):
        monkeypatch.delattr(*whole)
    assert [source.read(ref) for ref in refs[::-7]] == [ref.name.encode() * 400 for ref in refs[::-7]]


def test_a_packing_that_nobody_knows_is_a_photo_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"x")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 10] = 99
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(PhotoUnreadableError, match=r"1\.png in .* cannot be read \(.*compression"):
        source.read(next(source.refs()))
