"""The chunks of a PNG: those that make pixels are checked, and those that describe them may be left out.

A wrong checksum in IHDR, PLTE or IDAT refuses the file. An ancillary chunk with a wrong checksum is left out,
as is a colour profile or text that unfolds to more than `MAX_UNFOLDED_BYTES`: neither says anything about the
pixels, and both would otherwise refuse a sound picture or take the memory that its author chooses.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from diffbfr.images.errors import ImageRefused

MAX_UNFOLDED_BYTES: Final = 1 << 20
"""Of one colour profile or one text; Pillow, which reads our own outputs, takes no more."""
MAX_TEXT_BYTES: Final = 16 << 20
"""Of all texts of a file together."""

_SIGNATURE_BYTES: Final = 8
_PIXEL_CHUNKS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_TEXT_CHUNKS: Final = frozenset((b"tEXt", b"zTXt", b"iTXt"))


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    """Where its length stands, in bytes from the start of the file."""
    end: int

    @property
    def is_ancillary(self) -> bool:
        return bool(self.kind[0] & 0x20)


def without_bad_chunks(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the file without the ancillary chunks that cannot be used, and a note about them.

    `ImageRefused` if a chunk that holds pixels has a wrong checksum. The same `data` where all is well.
    """
    bad: list[_Chunk] = []
    reasons: Counter[str] = Counter()
    text_bytes = 0
    for chunk in _chunks(data):
        fault = _fault(data, chunk)
        if chunk.kind in _TEXT_CHUNKS and fault is None:
            text_bytes += min(chunk.end - chunk.start, MAX_UNFOLDED_BYTES)
            fault = "over 16 MiB with the others" if text_bytes > MAX_TEXT_BYTES else None
        if fault is not None:
            bad.append(chunk)
            reasons[f"{chunk.kind.decode()} ({fault})"] += 1
    if not bad:
        return data, ()
    named = ", ".join(reason if count == 1 else f"{count} x {reason}" for reason, count in reasons.items())
    return _without(data, bad), (f"unusable PNG chunks were left out: {named}",)


def only_pixels(data: bytes) -> bytes:
    """Return the file with no ancillary chunk except transparency, which is part of the pixels."""
    return _without(data, [chunk for chunk in _chunks(data) if chunk.kind not in _PIXEL_CHUNKS])


def without_kinds(data: bytes, kinds: Collection[bytes]) -> bytes:
    """Return a sound file without the chunks of these kinds."""
    return _without(data, [chunk for chunk in _chunks(data) if chunk.kind in kinds])


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The complete chunks up to the end mark; a damaged or cut one ends the iteration."""
    at = _SIGNATURE_BYTES
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or not kind.isalpha():
            return
        yield _Chunk(kind, at, end)
        if kind == b"IEND":
            return
        at = end


def _fault(data: bytes, chunk: _Chunk) -> str | None:
    """Why a chunk cannot be used; `ImageRefused` if the picture is none without it."""
    body = memoryview(data)[chunk.start + 8 : chunk.end - 4]
    (promised,) = struct.unpack_from(">I", data, chunk.end - 4)
    if zlib.crc32(body, zlib.crc32(chunk.kind)) != promised:
        if not chunk.is_ancillary:
            raise ImageRefused(
                "corrupt", f"the checksum of the PNG chunk {chunk.kind.decode()} is wrong; its bytes changed"
            )
        return "wrong checksum"
    if chunk.kind == b"tEXt":
        return "over 1 MiB" if len(body) > MAX_UNFOLDED_BYTES else None
    if chunk.kind in (b"iCCP", b"zTXt", b"iTXt"):
        return _unfolding_fault(chunk.kind, bytes(body))
    return None


def _unfolding_fault(kind: bytes, body: bytes) -> str | None:
    compressed = _compressed_part(kind, body)
    if compressed is None:  # a text that is stored as it is
        return "over 1 MiB" if len(body) > MAX_UNFOLDED_BYTES else None
    unfolding = zlib.decompressobj()
    try:
        unfolding.decompress(compressed, MAX_UNFOLDED_BYTES)
    except zlib.error:
        return "damaged"
    # one byte more shows whether the limit cut it
    return "over 1 MiB" if unfolding.unconsumed_tail else None


def _compressed_part(kind: bytes, body: bytes) -> bytes | None:
    """The deflated part of an iCCP, zTXt or iTXt chunk; None if an iTXt chunk is not compressed."""
    _, _, rest = body.partition(b"\0")
    if kind != b"iTXt":
        return rest[1:]  # after the method
    if rest[:1] != b"\1":
        return None
    return rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # after language and translated keyword


def _without(data: bytes, left_out: list[_Chunk]) -> bytes:
    kept = bytearray()
    at = 0
    for chunk in left_out:
        kept += memoryview(data)[at : chunk.start]
        at = chunk.end
    kept += memoryview(data)[at:]
    return bytes(kept)
