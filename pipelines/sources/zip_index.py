"""The index at the end of a zip, read an entry at a time; `zipfile` would hold all of it in every worker."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final
from zipfile import BadZipFile

# magic, disk, its disk, entries here, entries, bytes of the index, its offset, bytes of the comment
_END: Final = struct.Struct("<4s4H2LH")
# magic, bytes, versions, disks, entries here, entries, bytes of the index, its offset
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64: Final = struct.Struct("<4sLQL")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END_MAGIC, _END_64_MAGIC, _LOCATOR_64_MAGIC, _ENTRY_MAGIC = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_MAX_COMMENT: Final = (1 << 16) - 1
_UTF8_FLAG: Final = 0x800
_IN_EXTRA: Final = (1 << 32) - 1  # a size or an offset of 4 GiB or more is in the extra field
_EXTRA_64: Final = 1


@dataclass(frozen=True)
class ZipEntry:
    """One member: the offsets of its entry (`place`) and header, its name, and how it is compressed.

    `num_bytes` and `crc` (CRC-32) are those of the content, `packed_bytes` is its size in the zip.
    """

    place: int
    header: int
    name: str
    num_bytes: int
    packed_bytes: int
    crc: int
    flags: int
    method: int


def entries(file: IO[bytes]) -> Iterator[ZipEntry]:
    """Yield the members in the order of the index; BadZipFile if it cannot be read."""
    place, num_bytes, shift = find_index(file)
    end = place + num_bytes
    file.seek(place)
    while place < end:
        entry, entry_bytes = _next(file, place, shift)
        yield entry
        place += entry_bytes


def entry_at(file: IO[bytes], place: int, shift: int) -> ZipEntry:
    """Read the entry at an offset; BadZipFile if there is none. `shift` is that of `find_index`."""
    file.seek(place)
    return _next(file, place, shift)[0]


def find_index(file: IO[bytes]) -> tuple[int, int, int]:
    """Return offset and size of the index, and the number of bytes that were put before the zip.

    The index ends where the end records begin, whatever offset they state.
    """
    end = file.seek(0, 2)
    start = max(0, end - _END.size - _MAX_COMMENT)
    file.seek(start)
    tail = file.read(end - start)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) - at < _END.size:
        raise BadZipFile("File is not a zip file")
    *_, num_bytes, stated, _ = _END.unpack_from(tail, at)
    index_end = start + at
    locator = index_end - _LOCATOR_64.size
    if locator >= _END_64.size:
        file.seek(locator - _END_64.size)
        before = file.read(_END_64.size + _LOCATOR_64.size)
        if before[-_LOCATOR_64.size :].startswith(_LOCATOR_64_MAGIC) and before.startswith(_END_64_MAGIC):
            *_, num_bytes, stated = _END_64.unpack_from(before)
            index_end = locator - _END_64.size
    if num_bytes > index_end:
        raise BadZipFile("its index is larger than the file")
    return index_end - num_bytes, num_bytes, index_end - num_bytes - stated


def _next(file: IO[bytes], place: int, shift: int) -> tuple[ZipEntry, int]:
    """Read the entry at the position of the file, which is `place`; returns it and its length in bytes."""
    head = file.read(_ENTRY.size)
    if len(head) < _ENTRY.size or head[:4] != _ENTRY_MAGIC:
        raise BadZipFile(f"its index is damaged at byte {place}")
    (
        _,
        _,
        _,
        flags,
        method,
        _,
        _,
        crc,
        packed,
        size,
        name_bytes,
        extra_bytes,
        comment_bytes,
        _,
        _,
        _,
        header,
    ) = _ENTRY.unpack(head)
    rest_bytes = name_bytes + extra_bytes + comment_bytes
    rest = file.read(rest_bytes)
    if len(rest) < rest_bytes:
        raise BadZipFile(f"its index is cut at byte {place}")
    if _IN_EXTRA in (size, packed, header):
        size, packed, header = _large(rest[name_bytes : name_bytes + extra_bytes], size, packed, header)
    entry = ZipEntry(place, header + shift, _name(rest[:name_bytes], flags), size, packed, crc, flags, method)
    return entry, _ENTRY.size + rest_bytes


def _large(extra: bytes, *values: int) -> list[int]:
    """Return the values with those from the extra field filled in, which holds them in this order.

    Without such a field they stay as they are: no member has that size or place, so reading it fails.
    """
    at = 0
    while at + 4 <= len(extra):
        kind, num_bytes = struct.unpack_from("<HH", extra, at)
        if (
            kind == _EXTRA_64
            and num_bytes >= 8 * values.count(_IN_EXTRA)
            and at + 4 + num_bytes <= len(extra)
        ):
            stored = iter(struct.unpack_from(f"<{num_bytes // 8}Q", extra, at + 4))
            return [next(stored) if value == _IN_EXTRA else value for value in values]
        at += 4 + num_bytes
    return list(values)


def _name(raw: bytes, flags: int) -> str:
    """Decode a member's name: as UTF-8 if flagged or valid (macOS sets no flag), else as cp437.

    Bytes that are no UTF-8 in a flagged name become `%ff`: one bad name must not hide the other members.
    """
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        if flags & _UTF8_FLAG:
            name = raw.decode("utf-8", "backslashreplace").replace("\\x", "%")
        else:
            name = raw.decode("cp437")
    return name.partition("\0")[0]
