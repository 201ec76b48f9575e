"""How a JPEG was encoded: what an encoder needs to write changed pixels of it in the same quality."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

_NUM_COEFFICIENTS: Final = 64
_RGB_IDS: Final = b"RGB"
_MAX_TABLES: Final = 4


@dataclass(frozen=True)
class JpegCoding:
    """Quantisation tables and sampling of a JPEG.

    `tables`: one for each component, rows of 8 x 8 steps from low to high frequencies. `sampling`: pixels
    across and down for one sample of chroma. `rgb`: the components are R, G and B and not Y, Cb and Cr.
    """

    tables: tuple[tuple[int, ...], ...]
    sampling: tuple[int, int] = (1, 1)
    progressive: bool = False
    rgb: bool = False

    def __post_init__(self) -> None:
        steps_are_valid = all(
            len(table) == _NUM_COEFFICIENTS and min(table) >= 0 and max(table) <= 0xFFFF
            for table in self.tables
        )
        if not 1 <= len(self.tables) <= _MAX_TABLES or not steps_are_valid:
            raise ValueError("the quantisation tables are none of a JPEG")


def coding_of(image: Image.Image) -> JpegCoding | None:
    """Return how a JPEG that Pillow opened was encoded; None if its header does not say."""
    found: Any = image  # Pillow declares neither tables nor components for every kind of JPEG
    try:
        ids, across, down, numbers = zip(*found.layer, strict=True)
        return JpegCoding(
            tables=tuple(tuple(map(int, found.quantization[number])) for number in numbers),
            sampling=(max(1, across[0] // max(across[1:])), max(1, down[0] // max(down[1:])))
            if len(ids) > 1
            else (1, 1),
            progressive=bool(image.info.get("progressive") or image.info.get("progression")),
            rgb=_is_rgb(image, ids),
        )
    except Exception:
        # A header that the decoder could make do with; the pixels are sound.
        return None


def _is_rgb(image: Image.Image, ids: Sequence[int]) -> bool:
    """Whether the three components are R, G and B, by the rule of libjpeg."""
    if len(ids) != 3 or "jfif" in image.info:
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    return bytes(ids) == _RGB_IDS
