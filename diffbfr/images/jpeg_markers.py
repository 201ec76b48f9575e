"""The markers of a JPEG: its coding process, and whether a file without end marker holds every row."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_SOS, _EOI, _JPEG_LS = 0xDA, 0xD9, 0xF7
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS: Final = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_AFTER_SCAN: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_NUM_COEFFICIENTS: Final = 64
_END: Final = b"\xff\xd9"


def _padding(pattern: bytes) -> bytes:
    """Bytes that a decoder takes for more of an unfinished scan, also where it waits for a restart marker."""
    # longer than the longest unit of a scan: parts of it may lie outside the picture, and change no pixel
    more = pattern * 4096
    return more + b"".join(b"\xff" + bytes([0xD0 + number]) + more for number in range(8)) * 2


_PADDINGS: Final = (b"", _padding(b"\x55"), _padding(b"\xaa"), _padding(b"\x33"))


@dataclass(frozen=True)
class JpegFrame:
    """The frame header: the marker that names the process, bits a sample, and the components' numbers."""

    marker: int
    bits: int
    components: bytes

    @property
    def kind(self) -> str | None:
        """What the frame is if no 8-bit Huffman or arithmetic decoder reads it, else None."""
        if self.marker == _JPEG_LS:
            return "JPEG-LS"
        if self.marker in _LOSSLESS:
            return "a lossless JPEG"
        if self.bits != 8:
            return f"a JPEG of {self.bits} bits"
        return (
            f"a JPEG of {len(self.components)} components" if len(self.components) not in (1, 3, 4) else None
        )


def read_frame(data: bytes) -> JpegFrame | None:
    """Return the first frame header, None if there is none before the pixels."""
    for marker, body in _segments(data):
        if marker in _FRAME_MARKERS:
            return _frame(marker, body)
        if marker == _SOS:
            return None
    return None


def has_end(data: bytes) -> bool:
    """Whether an end marker follows the pixels."""
    if data.rstrip(b"\0").endswith(_END):
        return True
    return any(marker == _EOI for marker, _ in _segments(data))


def end_variants(data: bytes) -> tuple[bytes, ...]:
    """Return a file without end marker with several ends; () if a pass over its rows is missing.

    A decoder fills what is missing without saying so. But where every row is there, it skips what follows
    them, so all variants have the same pixels; where one is missing, it takes the added bytes for that row.
    """
    body = data.rstrip(b"\0")
    # half of an end marker is cut off; and a scan may end in zeros, but hardly in more than two
    body = body.removesuffix(b"\xff") if len(body) == len(data) else data[: len(body) + 2]
    return tuple(body + padding + _END for padding in _PADDINGS) if _has_every_scan(body) else ()


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans cover every coefficient of every component down to its last bit."""
    missing: set[tuple[int, int]] | None = None
    progressive = False
    for marker, body in _segments(data):
        if marker in _FRAME_MARKERS and (frame := _frame(marker, body)) is not None:
            progressive = marker in _PROGRESSIVE
            missing = set()
            for component in frame.components:
                missing.update((component, k) for k in range(_NUM_COEFFICIENTS))
        elif marker == _SOS and missing is not None and body:
            num = body[0]
            if len(body) < 4 + 2 * num:
                return False
            first, last, bits = body[1 + 2 * num : 4 + 2 * num]
            covered = range(first, last + 1) if progressive else range(_NUM_COEFFICIENTS)
            if not progressive or bits & 0x0F == 0:
                for component in body[1 : 1 + 2 * num : 2]:
                    missing.difference_update((component, k) for k in covered)
    return missing is not None and not missing


def _frame(marker: int, body: bytes) -> JpegFrame | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    return JpegFrame(marker, body[0], body[6 : 6 + 3 * body[5] : 3])


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker with its segment, up to the end marker or the end of the file; scans' data is skipped."""
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _EOI:
            yield marker, b""
            return
        if marker in _STANDALONE:
            at += 2
            continue
        if at + 4 > len(data):
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == _SOS:
            found = _AFTER_SCAN.search(data, at)
            if found is None:
                return
            at = found.start()
