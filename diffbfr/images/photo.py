"""Decode an untrusted photo so that it can be written back: every bit, channel and setting that it has.

PNG and TIFF keep 16 bits, gray or colour; JPEG 2000 and PNM keep those of gray. Other depths become 8 bits,
palettes and CMYK become RGB. Pixels are turned upright. As in `decode`, values are taken as stored, and a
pipeline calls this in a process of its own.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffbfr.images.depth import deep_colours, stored_bits
from diffbfr.images.jpeg_coding import JpegCoding, coding_of
from diffbfr.images.loading import Limits, Loaded, load
from diffbfr.images.metadata import MAX_DPI, kept_density, kept_exif, profile_of, whole_exif
from diffbfr.images.opening import open_image, turn_to
from diffbfr.images.orientation import SWAPS_AXES, turned
from diffbfr.images.rgb import deep_gray, is_deep_gray, orientation_of, refusing_damage, rgba, unagreed
from diffbfr.images.signature import FORMATS
from diffbfr.images.tiff_pages import read_pages

Metadata: TypeAlias = Literal["date", "all"]
PhotoPixels: TypeAlias = NDArray[Any]
"""Upright uint8 or uint16 pixels: gray [h, w], gray and alpha [h, w, 2], RGB [h, w, 3] or RGBA [h, w, 4]."""


@dataclass(frozen=True, eq=False)
class SourcePhoto:
    """A photo with all that its restored version takes over.

    `icc`: its colour profile, of gray only beside gray pixels. `exif`: date and camera, or more on request.
    `dpi`: pixels per inch across and down. `orientation`: the EXIF number by which its file was turned.
    `jpeg`: how a JPEG was encoded. `compressed`: whether the pixels of a TIFF are.
    `notes`: a sentence for each thing that was left out.
    """

    pixels: PhotoPixels
    format: str
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    orientation: int = 1
    jpeg: JpegCoding | None = None
    compressed: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # it may come from a process that decoded a hostile file, and arrays are rebuilt unchecked
        check_pixels(self.pixels)
        if self.format not in FORMATS:
            raise ValueError("the format is unknown")
        if self.dpi is not None and not all(0 < value <= MAX_DPI for value in self.dpi):
            raise ValueError("the density is out of range")
        if self.orientation not in range(1, 9):
            raise ValueError("the orientation is none of EXIF")

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def is_gray(self) -> bool:
        """Whether the pixels have one channel beside the alpha."""
        return self.pixels.ndim == 2 or self.pixels.shape[2] == 2

    @property
    def alpha(self) -> PhotoPixels | None:
        """The opacity [h, w], a view; None if the photo has none."""
        has_alpha = self.pixels.ndim == 3 and self.pixels.shape[2] in (2, 4)
        return self.pixels[..., -1] if has_alpha else None


def check_pixels(pixels: NDArray[Any]) -> None:
    """TypeError unless the array is a photo of 1 to 4 channels and 8 or 16 bits."""
    is_array = isinstance(pixels, np.ndarray) and pixels.dtype in (np.uint8, np.uint16) and pixels.size
    if not is_array or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (2, 3, 4)):
        raise TypeError("the pixels are not uint8 or uint16 of 1 to 4 channels")


def read_photo(
    data: bytes, *, max_pixels: int = 100_000_000, min_px: int = 1, metadata: Metadata = "date"
) -> SourcePhoto:
    """Decode one file to upright pixels of its own depth and channels, or raise `ImageRefused`.

    `max_pixels` and `min_px` (the shorter side) are checked on the header. `metadata`: of the EXIF, keep date
    and camera alone, or all with the position.
    """
    return load(data, Limits(max_pixels, min_px), lambda loaded: _photo(loaded, metadata))


def _photo(loaded: Loaded, metadata: Metadata) -> SourcePhoto:
    image = loaded.image
    orientation = orientation_of(image)
    with refusing_damage(loaded.format):
        pixels = turned(_as_stored(loaded), orientation)
    icc, about_icc = profile_of(image, "gray" if pixels.ndim == 2 or pixels.shape[2] == 2 else "rgb")
    exif, about_exif = _exif(loaded, metadata)
    dpi = kept_density(image)
    return SourcePhoto(
        pixels=pixels,
        format=loaded.format,
        icc=icc,
        exif=exif,
        dpi=dpi[::-1] if dpi is not None and orientation in SWAPS_AXES else dpi,
        orientation=orientation,
        jpeg=coding_of(image) if loaded.format == "JPEG" else None,
        compressed=loaded.format != "TIFF" or image.info.get("compression") != "raw",
        notes=(
            *loaded.notes,
            *about_icc,
            *about_exif,
            *_reductions(loaded, pixels),
            *_other_pictures(loaded),
        ),
    )


def _exif(loaded: Loaded, metadata: Metadata) -> tuple[bytes | None, tuple[str, ...]]:
    if metadata == "date":
        return kept_exif(loaded.image) if loaded.exif is None else loaded.exif, ()
    if loaded.format != "TIFF":
        return whole_exif(loaded.image)
    header = open_image(loaded.data, "TIFF")  # Pillow closed the file when it had loaded it
    turn_to(header, loaded.page, loaded.data, "TIFF")
    return whole_exif(header)


def _as_stored(loaded: Loaded) -> PhotoPixels:
    """The pixels of a loaded image, not turned, with the channels that its file has."""
    image = loaded.image
    clear = image.info.get("transparency")
    if is_deep_gray(image):
        levels = deep_gray(image)
        if clear is None:
            return levels
        return np.dstack([levels, np.where(levels == clear, 0, 0xFFFF).astype(np.uint16)])
    deep = deep_colours(loaded)
    if deep is not None:
        return deep
    if image.mode in ("LA", "La") or (image.mode == "L" and clear is not None):
        return np.ascontiguousarray(rgba(image)[..., [0, 3]])
    if image.mode in ("PA", "RGBA", "RGBa") or clear is not None:
        return rgba(image)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    raise unagreed(image)


def _reductions(loaded: Loaded, pixels: PhotoPixels) -> tuple[str, ...]:
    """What of the pixels cannot be kept, in sentences."""
    bits, mode = stored_bits(loaded), loaded.image.mode
    reduced = (f"its {bits} bits a channel were reduced to 8",) if bits > 8 and pixels.itemsize == 1 else ()
    return (*reduced, "its CMYK pixels became RGB") if mode == "CMYK" else reduced


def _other_pictures(loaded: Loaded) -> tuple[str, ...]:
    """A note where the file holds other pictures beside the photo, which are not written back."""
    if loaded.format == "TIFF":
        pages = read_pages(loaded.data)
        several = sum(not (page.is_reduced or page.is_mask) for page in pages) > 1 and loaded.page == 0
        return (f"page 1 of {len(pages)} was taken, the largest",) if several else ()
    try:
        animated = bool(getattr(loaded.image, "is_animated", False))
    except Exception:  # what follows the first picture may be damaged, and is not used
        return ()
    return ("the first of its pictures was taken; the others are left out",) if animated else ()
