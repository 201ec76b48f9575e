"""Members are read by exact name, once, within a size, and never written to a place of the archive's choice."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.packages.members import read_member


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_member_is_read_from_a_wheel_and_from_a_source_distribution(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("p/w.bin", b"x" * 1000)
    tar = tar_of(tmp_path / "a.tar.gz", (tarfile.TarInfo("p/w.bin"), b"y" * 1000))
    assert read_member(tmp_path / "a.whl", "p/w.bin") == b"x" * 1000
    assert read_member(tar, "p/w.bin") == b"y" * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.whl"]


def test_a_missing_or_doubled_member_is_refused(tmp_path: Path) -> None:
    twice = [(tarfile.TarInfo("w"), b"1"), (tarfile.TarInfo("w"), b"2")]
    tar = tar_of(tmp_path / "a.tar.gz", *twice)
    with pytest.raises(UsageError, match="holds v 0 times"):
        read_member(tar, "v")
    with pytest.raises(UsageError, match="holds w 2 times"):
        read_member(tar, "w")


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("w")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(UsageError, match="no regular file"):
        read_member(tar_of(tmp_path / "a.tar.gz", (link, b"")), "w")


def test_a_member_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w", bytes(1 << 20))
    with pytest.raises(UsageError, match="claims 1048576 bytes; at most 1000"):
        read_member(tmp_path / "a.whl", "w", max_bytes=1000)


def test_what_is_no_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"expected a wheel or a \.tar\.gz"):
        read_member(tmp_path / "a.tar.gz", "w")
