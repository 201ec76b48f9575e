"""The index at the end of a zip, an entry at a time: `zipfile` would hold all of it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final
from zipfile import BadZipFile

_END: Final = struct.Struct("<4s4H2LH")  # magic, disk, its disk, entries here, entries, bytes of the index, its place, bytes of the comment
_END_64: Final = struct.Struct("<4sQ2H2L4Q")  # magic, bytes, versions, disks, entries here, entries, bytes of the index, its place
_LOCATOR_64: Final = struct.Struct("<4sLQL")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END_MAGIC, _END_64_MAGIC, _LOCATOR_64_MAGIC, _ENTRY_MAGIC = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_MAX_COMMENT: Final = (1 << 16) - 1
_UTF8_FLAG: Final = 0x800
_IN_EXTRA: Final = (1 << 32) - 1  # a size of 4 GiB or more stands in the extra field
_EXTRA_64: Final = 1


@dataclass(frozen=True)
class ZipEntry:
    """One member: its number in the index, name, size, CRC-32."""

    number: int
    name: str
    num_bytes: int
    crc: int


def entries(file: IO[bytes]) -> Iterator[ZipEntry]:
    """Yield the members in the order of the index, numbered as `zipfile` numbers them; BadZipFile if it cannot be read."""
    place, num_bytes = _find(file)
    file.seek(place)
    number = done = 0
    while done < num_bytes:
        head = file.read(_ENTRY.size)
        if len(head) < _ENTRY.size or head[:4] != _ENTRY_MAGIC:
            raise BadZipFile(f"entry {number} of its index is damaged")
        _, _, _, flags, _, _, _, crc, _, size, name_bytes, extra_bytes, comment_bytes, *_ = _ENTRY.unpack(head)
        rest_bytes = name_bytes + extra_bytes + comment_bytes
        rest = file.read(rest_bytes)
        if len(rest) < rest_bytes:
            raise BadZipFile(f"entry {number} of its index is cut")
        if size == _IN_EXTRA:
            size = _size_64(rest[name_bytes : name_bytes + extra_bytes])
        yield ZipEntry(number, _name(rest[:name_bytes], flags), size, crc)
        number, done = number + 1, done + _ENTRY.size + rest_bytes


def _find(file: IO[bytes]) -> tuple[int, int]:
    """Return place and size of the index. It ends where the end records begin, so what is glued before the zip moves nothing."""
    end = file.seek(0, 2)
    start = max(0, end - _END.size - _MAX_COMMENT)
    file.seek(start)
    tail = file.read(end - start)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) - at < _END.size:
        raise BadZipFile("File is not a zip file")
    *_, num_bytes, _, _ = _END.unpack_from(tail, at)
    index_end = start + at
    locator = index_end - _LOCATOR_64.size
    if locator >= _END_64.size:
        file.seek(locator - _END_64.size)
        before = file.read(_END_64.size + _LOCATOR_64.size)
        if before[-_LOCATOR_64.size :].startswith(_LOCATOR_64_MAGIC) and before.startswith(_END_64_MAGIC):
            *_, num_bytes, _ = _END_64.unpack_from(before)
            index_end = locator - _END_64.size
    if num_bytes > index_end:
        raise BadZipFile("its index is larger than the file")
    return index_end - num_bytes, num_bytes


def _size_64(extra: bytes) -> int:
    at = 0
    while at + 4 <= len(extra):
        kind, num_bytes = struct.unpack_from("<HH", extra, at)
        if kind == _EXTRA_64 and num_bytes >= 8:
            return int(struct.unpack_from("<Q", extra, at + 4)[0])
        at += 4 + num_bytes
    raise BadZipFile("a size is missing in its index")


def _name(raw: bytes, flags: int) -> str:
    """Decode a member's name: UTF-8 where flagged or where it happens to be valid (macOS sets no flag), else cp437 as the format says."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        if flags & _UTF8_FLAG:
            raise
        name = raw.decode("cp437")
    return name.partition("\0")[0]
