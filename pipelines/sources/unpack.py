"""Content of a zip member: never more bytes than its index declares, whatever the compressed bytes say.

`zipfile` reads a member to its end and unpacks bzip2 and LZMA without a limit, so 18 kB can take gigabytes.
"""

import bz2
import importlib
import io
import lzma
import struct
import zlib
from typing import IO, Any, Final, Protocol
from zipfile import BadZipFile

from pipelines.sources.zip_index import ZipEntry

_PIECE_BYTES: Final = 1 << 16
_READ_BYTES: Final = 1 << 20
_FREE_BYTES: Final = 1 << 20  # what may be unpacked from however little
_MAX_RATIO: Final = 2000  # deflate reaches 1032, and no photo comes near it
_STORED, _DEFLATED, _BZIP2, _LZMA, _ZSTD = 0, 8, 12, 14, 93
_LZMA_HEADER: Final = struct.Struct("<2xH")
_LZMA_PROPERTIES: Final = struct.Struct("<BL")
_MIN_DICTIONARY: Final = 4096


class _Unpacker(Protocol):
    """What zlib, bz2 and lzma have in common: unpack at most `max_length` bytes."""

    @property
    def eof(self) -> bool:
        """True once the compressed stream has ended."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return the next bytes of the content."""
        ...


class _Inflater:
    """Deflate with the interface of bz2 and lzma, which keep the input that is not used up."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Copier:
    """No compression."""

    def __init__(self) -> None:
        self.eof = False
        self._waiting = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._waiting += data
        piece, self._waiting = self._waiting[:max_length], self._waiting[max_length:]
        return piece


class MemberReader(io.RawIOBase):
    """The content of one member as a stream, in the memory of a piece.

    BadZipFile at the end unless the content has the declared size and CRC-32. `file` stands at the first
    compressed byte.
    """

    def __init__(self, file: IO[bytes], entry: ZipEntry) -> None:
        self._file = file
        self._entry = entry
        self._unpacker, header_bytes = _unpacker(file, entry)
        self._packed_left = entry.packed_bytes - header_bytes
        self._left = entry.num_bytes
        self._crc = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Fill the target with the next bytes; 0 at the end, after the content was checked."""
        view = memoryview(target).cast("B")
        if not len(view):
            return 0
        data = self._next(min(len(view), self._left + 1))
        if len(data) > self._left:
            raise BadZipFile(f"it unpacks to more than the {self._entry.num_bytes} bytes that its index says")
        self._left -= len(data)
        self._crc = zlib.crc32(data, self._crc)
        if not data and self._left:
            raise BadZipFile(f"it ends {self._left} bytes before the size that its index says")
        if not data and self._crc != self._entry.crc:
            raise BadZipFile("its CRC-32 is not the one in its index")
        view[: len(data)] = data
        return len(data)

    def _next(self, num_bytes: int) -> bytes:
        """Unpack at least one byte; b"" at the end of the compressed bytes."""
        data = b""
        while not self._unpacker.eof:
            piece = self._unpacker.decompress(data, num_bytes)
            if piece or (not data and not self._packed_left):
                return piece
            data = self._file.read(min(_PIECE_BYTES, self._packed_left))
            self._packed_left -= len(data)
            if not data and self._packed_left:
                raise BadZipFile("the archive ends inside of it")
        return b""


def read_member(file: IO[bytes], entry: ZipEntry) -> bytes:
    """Return the whole content of a member; `file` stands at its first compressed byte."""
    reader, content = MemberReader(file, entry), io.BytesIO()
    while piece := reader.read(_READ_BYTES):
        content.write(piece)
    return content.getvalue()


def implausible(entry: ZipEntry, end: int, num_before: int) -> str:
    """Say why an entry of the index cannot be true; "" if it can.

    `end` is the offset where the index begins, `num_before` what the entries before it take: members that
    share their bytes would be a small archive with an endless content. One wrong size may make the sum twice
    as large, and does not count against the others.
    """
    if entry.header < 0 or entry.header + entry.packed_bytes > end:
        return f"its index says {entry.packed_bytes} bytes at {entry.header}, beyond the end of the archive"
    if num_before + entry.packed_bytes > 2 * end:
        return "it overlaps with other members"
    if entry.num_bytes > max(_FREE_BYTES, _MAX_RATIO * entry.packed_bytes):
        return f"its index says {entry.num_bytes} bytes in {entry.packed_bytes}, more than photos compress to"
    return ""


def _unpacker(file: IO[bytes], entry: ZipEntry) -> tuple[_Unpacker, int]:
    """Return what unpacks a member, and the number of bytes that it read from the file already."""
    if entry.method == _STORED:
        return _Copier(), 0
    if entry.method == _DEFLATED:
        return _Inflater(), 0
    if entry.method == _BZIP2:
        return bz2.BZ2Decompressor(), 0
    if entry.method == _LZMA:
        return _lzma_unpacker(file, entry)
    if entry.method == _ZSTD:
        try:
            zstd = importlib.import_module("compression.zstd")  # since Python 3.14
        except ImportError:
            pass
        else:
            return zstd.ZstdDecompressor(), 0
    raise NotImplementedError(f"its compression method {entry.method} is unknown")


def _lzma_unpacker(file: IO[bytes], entry: ZipEntry) -> tuple[_Unpacker, int]:
    """Read the properties of LZMA; its dictionary, of up to 4 GiB, need not be larger than the content."""
    head = file.read(_LZMA_HEADER.size)
    if len(head) < _LZMA_HEADER.size:
        raise BadZipFile("the archive ends inside of it")
    (num_bytes,) = _LZMA_HEADER.unpack(head)
    properties = file.read(num_bytes)
    if num_bytes != _LZMA_PROPERTIES.size or len(properties) != num_bytes:
        raise BadZipFile(f"it has {num_bytes} bytes of LZMA properties, not {_LZMA_PROPERTIES.size}")
    packed, dictionary_bytes = _LZMA_PROPERTIES.unpack(properties)
    size = min(dictionary_bytes, max(entry.num_bytes, _MIN_DICTIONARY))
    rest, lc = divmod(packed, 9)
    pb, lp = divmod(rest, 5)
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": size, "lc": lc, "lp": lp, "pb": pb}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters), _LZMA_HEADER.size + num_bytes
