"""Decode untrusted bytes to upright 8-bit RGB pixels, or refuse them with a reason.

`loading` says what is taken of a file. Values are taken as stored: an embedded colour profile is returned
(`Decoded.icc`) and never applied. So a face and its low-quality version share their colour space, whichever
it is, and the colour arithmetic of no library changes the bytes of a dataset.

A decoder that is attacked can still crash, hang or exhaust memory, so a pipeline calls this in a process of
its own (`pipelines.sources.sandbox`).
"""

from dataclasses import dataclass

from diffbfr.images.convert import Pixels
from diffbfr.images.loading import Limits, Loaded, load
from diffbfr.images.metadata import kept_density, kept_exif, kept_icc
from diffbfr.images.rgb import AlphaPolicy, is_gray, to_rgb


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded file: upright RGB pixels (uint8 [h, w, 3], maybe read-only) and properties of the file.

    `was_gray`: all three channels are equal everywhere, however the file stored them. `alpha`: the opacity of
    each pixel (uint8 [h, w]) where any is transparent. `icc`: the embedded profile where it describes RGB.
    `exif`: date and camera. `dpi`: pixels per inch across and down. `notes`: a sentence for each thing that
    was left out of the file.
    """

    pixels: Pixels
    format: str
    was_gray: bool
    icc: bytes | None
    alpha: Pixels | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def decode(
    data: bytes, *, max_pixels: int = 100_000_000, min_px: int = 1, alpha: AlphaPolicy = "white"
) -> Decoded:
    """Decode one file to upright 8-bit RGB pixels, or raise `ImageRefused`.

    16-bit gray is scaled (65535 becomes 255), never clipped; palette, gray and CMYK become RGB; transparent
    pixels are laid over white or black, lose their transparency, or are refused. `max_pixels` and `min_px`
    (the shorter side) are checked on the header.
    """
    return load(data, Limits(max_pixels, min_px), lambda loaded: _decoded(loaded, alpha))


def _decoded(loaded: Loaded, alpha: AlphaPolicy) -> Decoded:
    image = loaded.image
    icc, about_icc = kept_icc(image)
    pixels, opacity = to_rgb(image, loaded.format, alpha)
    return Decoded(
        pixels=pixels,
        format=loaded.format,
        was_gray=is_gray(pixels),
        icc=icc,
        alpha=opacity,
        exif=kept_exif(image) if loaded.exif is None else loaded.exif,
        dpi=kept_density(image),
        notes=(*loaded.notes, *about_icc),
    )
