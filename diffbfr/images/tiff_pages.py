"""The pages of a TIFF by their tags, to choose the photo among them before anything is decoded."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS = 254, 255, 256, 257, 258
_PHOTOMETRIC, _SUBIFDS, _SAMPLE_FORMAT, _DNG_VERSION = 262, 330, 339, 50706
_WANTED: Final = frozenset(
    (_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SUBIFDS, _SAMPLE_FORMAT, _DNG_VERSION)
)
_CODES: Final[Mapping[int, str]] = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Unsigned integers, by the type that a tag names."""
_MAX_PAGES: Final = 256
_MAX_TAGS: Final = 4096
_MAX_VALUES: Final = 16
_REDUCED, _MASK = 1, 4
_RAW_PHOTOMETRICS: Final = frozenset((32803, 34892))
_FLOAT: Final = 3


@dataclass(frozen=True)
class TiffPage:
    """One page: its size in pixels, and whether it is a smaller version, a mask, or of floating point."""

    width: int
    height: int
    is_reduced: bool
    is_mask: bool
    is_float: bool
    is_raw: bool
    """Whether it, or a page inside it, holds the mosaic of a camera's sensor."""


def read_pages(data: bytes) -> tuple[TiffPage, ...]:
    """Return the pages in their order, at most 256, without those that the file does not hold."""
    layout = _Layout(data)
    canon_raw = data[8:10] == b"CR"
    return tuple(_page(layout, tags, canon_raw) for tags in layout.directories())


def main_page(pages: Sequence[TiffPage]) -> int:
    """Return the number of the largest page that is neither a reduced version nor a mask."""
    photos = [i for i, page in enumerate(pages) if not (page.is_reduced or page.is_mask)]
    chosen = photos or range(len(pages))
    return max(chosen, key=lambda i: (pages[i].width * pages[i].height, -i))


def _page(layout: "_Layout", tags: Mapping[int, Sequence[int]], canon_raw: bool) -> TiffPage:
    def first(tag: int) -> int:
        return next(iter(tags.get(tag, ())), 0)

    inner = [layout.directory(offset)[0] for offset in tags.get(_SUBIFDS, ())]
    photometrics = {first(_PHOTOMETRIC), *(next(iter(it.get(_PHOTOMETRIC, ())), 0) for it in inner)}
    subfile = first(_SUBFILE)
    return TiffPage(
        width=first(_WIDTH),
        height=first(_HEIGHT),
        is_reduced=bool(subfile & _REDUCED) or first(_OLD_SUBFILE) == 2,
        is_mask=bool(subfile & _MASK),
        is_float=_FLOAT in tags.get(_SAMPLE_FORMAT, ()),
        is_raw=canon_raw or _DNG_VERSION in tags or bool(photometrics & _RAW_PHOTOMETRICS),
    )


class _Layout:
    """Byte order and widths of a TIFF (offsets of 4 bytes) or BigTIFF (8)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = b"+" in data[2:4]

    def directories(self) -> Iterator[Mapping[int, Sequence[int]]]:
        """The wanted tags of each directory of the chain; a loop ends it."""
        place = self._numbers("Q" if self._big else "I", 8 if self._big else 4)
        seen: set[int] = set()
        while place and place[0] and place[0] not in seen and len(seen) < _MAX_PAGES:
            seen.add(place[0])
            tags, place = self.directory(place[0])
            if tags or place:
                yield tags

    def directory(self, at: int) -> tuple[Mapping[int, Sequence[int]], Sequence[int]]:
        """The wanted tags of the directory at an offset, and the offset of the next one, () if it is cut."""
        count = self._numbers("Q" if self._big else "H", at)
        if not count or count[0] > _MAX_TAGS:
            return {}, ()
        head, size = (8, 20) if self._big else (2, 12)
        tags: dict[int, Sequence[int]] = {}
        for entry in range(at + head, at + head + size * count[0], size):
            tag_and_kind = self._numbers("HH", entry)
            if not tag_and_kind:
                return tags, ()
            if tag_and_kind[0] in _WANTED:
                tags[tag_and_kind[0]] = self._values(entry, tag_and_kind[1])
        return tags, self._numbers("Q" if self._big else "I", at + head + size * count[0])

    def _values(self, entry: int, kind: int) -> Sequence[int]:
        word, field = ("Q", 8) if self._big else ("I", 4)
        length, code = self._numbers(word, entry + 4), _CODES.get(kind)
        if not length or code is None:
            return ()
        codes = code * min(length[0], _MAX_VALUES)
        at = entry + 4 + field
        if struct.calcsize(self._order + code) * length[0] > field:
            pointer = self._numbers(word, at)
            if not pointer:
                return ()
            at = pointer[0]
        return self._numbers(codes, at)

    def _numbers(self, codes: str, at: int) -> Sequence[int]:
        """Unpack integers at an offset; () where the file ends before."""
        form = self._order + codes
        if at + struct.calcsize(form) > len(self._data):
            return ()
        found: Sequence[int] = struct.unpack_from(form, self._data, at)
        return found
