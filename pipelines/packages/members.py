"""Read single members of a wheel or source distribution; nothing is extracted to the disk."""

import tarfile
import zipfile
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError

MAX_MEMBER_BYTES: Final = 1 << 30


def read_member(archive: Path, member: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
    """Return the bytes of the one regular file of that exact name; UsageError otherwise.

    A link, a name that occurs twice and a member that is larger than `max_bytes` are refused. The size is
    that of the archive's record, and no more than that is read.
    """
    try:
        read = _read_from_zip if zipfile.is_zipfile(archive) else _read_from_tar
        return read(archive, member, max_bytes)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(
            f"{archive} cannot be read ({error}); expected a wheel or a .tar.gz; fetch it again"
        ) from error


def _read_from_zip(archive: Path, member: str, max_bytes: int) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        found = [info for info in opened.infolist() if info.filename == member]
        _check_found(archive, member, len(found))
        _check_size(archive, member, found[0].file_size, max_bytes)
        with opened.open(found[0]) as stream:
            return _exactly(archive, member, stream.read(found[0].file_size + 1), found[0].file_size)


def _read_from_tar(archive: Path, member: str, max_bytes: int) -> bytes:
    with tarfile.open(archive, "r:*") as opened:
        found = [info for info in opened if info.name == member]
        _check_found(archive, member, len(found))
        _check_size(archive, member, found[0].size, max_bytes)
        stream = opened.extractfile(found[0]) if found[0].isreg() else None
        if stream is None:
            raise UsageError(f"{member} of {archive} is no regular file; expected one; fetch it again")
        return _exactly(archive, member, stream.read(found[0].size + 1), found[0].size)


def _check_found(archive: Path, member: str, count: int) -> None:
    if count != 1:
        raise UsageError(f"{archive} holds {member} {count} times; expected once; fetch it again")


def _check_size(archive: Path, member: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise UsageError(
            f"{member} of {archive} claims {num_bytes} bytes; at most {max_bytes} are read; fetch it again"
        )


def _exactly(archive: Path, member: str, data: bytes, num_bytes: int) -> bytes:
    if len(data) != num_bytes:
        raise UsageError(f"{member} of {archive} ends early; expected {num_bytes} bytes; fetch it again")
    return data
