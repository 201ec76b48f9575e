"""Deterministic tars that `tarfile`, `webdataset` and `tar` read: the same entries give the same bytes.

Members are USTAR entries in the order given, with mtime 0, uid and gid 0 and mode 0444. Every reader takes a
tar that was cut at the end of a member for a shorter tar, without an error, so a published tar is always
checked against a count and a digest that are stored elsewhere.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.shards.schema import ShardDamagedError

_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK  # the size of a tar is a multiple of this
_MAX_NAME: Final = 100
_MAX_BYTES: Final = 8**11 - 1


@dataclass(frozen=True)
class TarMember:
    """One file in a tar: `offset` (bytes) is where its content starts."""

    name: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, eq=False)
class BuiltTar:
    """A finished tar in memory with its index."""

    data: bytes
    sha256: str
    members: tuple[TarMember, ...]


class TarBuilder:
    """A tar in memory to which members are appended; it holds each content once."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._writer = _Writer(self._buffer.write)

    def add(self, name: str, content: bytes) -> None:
        """Append a member."""
        self._writer.add(name, content)

    def build(self) -> BuiltTar:
        """End the tar and check it with the standard library's reader."""
        self._writer.end()
        data = self._buffer.getvalue()  # the buffer's own bytes, not a copy
        check_tar(data, len(self._writer.members))
        return BuiltTar(
            data=data, sha256=hashlib.sha256(data).hexdigest(), members=tuple(self._writer.members)
        )


def build_tar(entries: Iterable[tuple[str, bytes]]) -> BuiltTar:
    """Build a tar in memory from (name, content) entries."""
    builder = TarBuilder()
    for name, content in entries:
        builder.add(name, content)
    return builder.build()


def write_tar(path: Path, entries: Iterable[tuple[str, bytes]]) -> list[TarMember]:
    """Write (name, content) entries as a tar at `path`, one at a time; return the index of its members."""
    with path.open("wb") as stream:
        writer = _Writer(stream.write)
        for name, content in entries:
            writer.add(name, content)
        writer.end()
    return writer.members


def check_tar(data: bytes, count: int) -> None:
    """Raise `ShardDamagedError` unless the standard library's reader finds `count` members in these bytes."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            found = sum(1 for _ in tar)
    except tarfile.TarError as error:
        raise ShardDamagedError(
            f"a tar of {len(data)} bytes cannot be read ({error}); expected {count} members; make the shard "
            "again"
        ) from error
    if found != count:
        raise ShardDamagedError(
            f"a tar of {len(data)} bytes holds {found} members; expected {count}; make the shard again"
        )


class _Writer:
    """Writes a tar to a stream and indexes its members."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.members: list[TarMember] = []
        self._write = write
        self._position = 0

    def add(self, name: str, content: bytes) -> None:
        self._write(_header(name, len(content)))
        self._write(content)
        padding = -len(content) % _BLOCK
        self._write(bytes(padding))
        self.members.append(
            TarMember(name, self._position + _BLOCK, len(content), hashlib.sha256(content).hexdigest())
        )
        self._position += _BLOCK + len(content) + padding

    def end(self) -> None:
        end = 2 * _BLOCK
        self._write(bytes(end + -(self._position + end) % _RECORD))


def _header(name: str, num_bytes: int) -> bytes:
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _MAX_NAME:
        raise ValueError(f"member name {name!r} has {len(encoded)} bytes; expected 1..{_MAX_NAME}")
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"member {name!r} has {num_bytes} bytes; USTAR holds at most {_MAX_BYTES}")
    header = bytearray(_BLOCK)
    for offset, field in (
        (0, encoded),
        (100, b"0000444\0"),  # mode
        (108, b"0000000\0"),  # uid
        (116, b"0000000\0"),  # gid
        (124, b"%011o\0" % num_bytes),
        (136, b"%011o\0" % 0),  # mtime
        (148, b" " * 8),  # the checksum counts itself as spaces
        (156, b"0"),  # a regular file
        (257, b"ustar\x0000"),
        (329, b"0000000\0"),  # device numbers
        (337, b"0000000\0"),
    ):
        header[offset : offset + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
