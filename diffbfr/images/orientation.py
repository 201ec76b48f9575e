"""Turn pixels by an EXIF orientation, 1 to 8, and back."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SWAPS_AXES: Final = frozenset((5, 6, 7, 8))
"""Orientations whose files have the rows and columns of the picture exchanged."""
_BACK: Final = {6: 8, 8: 6}
"""The others are their own inverse."""


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return the pixels [h, w, ...] of a file with this orientation upright."""
    found = pixels.swapaxes(0, 1) if orientation in SWAPS_AXES else pixels
    if orientation in (3, 4, 7, 8):
        found = found[::-1]
    return np.ascontiguousarray(found[:, ::-1] if orientation in (2, 3, 6, 7) else found)


def turned_back(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return upright pixels as a file with this orientation stores them."""
    return turned(pixels, _BACK.get(orientation, orientation))
