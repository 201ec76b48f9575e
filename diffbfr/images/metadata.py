"""What a restored picture keeps of its input's metadata: colour profile, density, date and camera.

The rule is a list of what is kept, so that nothing else passes: no position, no serial number, no owner, no
thumbnail (it shows the photo before it was cropped) and no maker's note (it may hold any of them).
"""

import math
from typing import Final, Literal

from PIL import ExifTags, Image

MAX_ICC_BYTES: Final = 1 << 20
"""Pillow reads no larger profile from a PNG, which is what restored pictures are."""

_CAMERA: Final[tuple[int, ...]] = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime)
_SHOT: Final[tuple[int, ...]] = (
    ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.DateTimeDigitized,
    ExifTags.Base.OffsetTime,
    ExifTags.Base.OffsetTimeOriginal,
    ExifTags.Base.OffsetTimeDigitized,
    ExifTags.Base.SubsecTime,
    ExifTags.Base.SubsecTimeOriginal,
    ExifTags.Base.SubsecTimeDigitized,
    ExifTags.Base.LensMake,
    ExifTags.Base.LensModel,
)
_DESCRIPTIVE: Final[tuple[int, ...]] = (
    *_CAMERA,
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Software,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Copyright,
    ExifTags.Base.Rating,
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
)
_OF_THE_SIZE: Final = frozenset(
    (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, ExifTags.IFD.Interop)
)
MAX_EXIF_BYTES: Final = 65_000
"""A segment of a JPEG holds little more; an orientation may be added."""
_MAX_CHARACTERS: Final = 128
MAX_DPI: Final = 100_000.0
_NO_DENSITY: Final[tuple[float, float]] = (72.0, 72.0)
"""What Pillow says of a JPEG with EXIF but without a density."""


def kept_exif(image: Image.Image) -> bytes | None:
    """Return an EXIF block of date and camera alone; None if the file names neither."""
    try:
        found = image.getexif()
        shot = found.get_ifd(ExifTags.IFD.Exif)
        # some programs write the time of the shot beside the camera
        camera = {tag: text for tag in (*_CAMERA, *_SHOT) if (text := _text(found.get(tag)))}
        taken = {tag: text for tag in _SHOT if (text := _text(shot.get(tag)))}
        if not camera and not taken:
            return None
        kept = Image.Exif()
        kept.update(camera)
        if taken:
            kept.get_ifd(ExifTags.IFD.Exif).update(taken)
        return kept.tobytes()
    except Exception:
        # A damaged EXIF block says nothing about the pixels, and has no date that could be kept.
        return None


def whole_exif(image: Image.Image) -> tuple[bytes | None, tuple[str, ...]]:
    """Return an EXIF block with position, author, camera and maker's note, and a note if it is too long.

    Its orientation, sizes and thumbnail describe another picture than the restored one, and stay out.
    """
    try:
        found = image.getexif()
        kept = Image.Exif()
        kept.update({tag: found[tag] for tag in _DESCRIPTIVE if tag in found})
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            tags = {tag: value for tag, value in found.get_ifd(ifd).items() if tag not in _OF_THE_SIZE}
            if tags:
                kept.get_ifd(ifd).update(tags)
                kept[ifd] = tags
        block = kept.tobytes() if dict(kept) else None
    except Exception:  # as in kept_exif
        return kept_exif(image), ("its EXIF is damaged; only date and camera were kept",)
    if block is not None and len(block) > MAX_EXIF_BYTES:
        reason = f"its EXIF of {len(block)} bytes is longer than 64 kB; only date and camera were kept"
        return kept_exif(image), (reason,)
    return block, ()


def oriented_exif(exif: bytes | None, orientation: int) -> bytes:
    """Return an EXIF block of ours with the orientation of a file's pixels."""
    block = Image.Exif()
    if exif is not None:
        block.load(exif)
    block[ExifTags.Base.Orientation] = orientation
    return block.tobytes()


def kept_icc(image: Image.Image) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the colour profile if it describes RGB, and a note if it is too large to be kept."""
    return profile_of(image, "rgb")


def profile_of(image: Image.Image, channels: Literal["rgb", "gray"]) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the colour profile if pixels of these channels may carry it, as `kept_icc`."""
    icc = image.info.get("icc_profile")
    # many programs put the profile of a colour photo beside gray pixels, and readers take it
    spaces = (b"RGB ", b"GRAY") if channels == "gray" else (b"RGB ",)
    if not isinstance(icc, bytes) or icc[16:20] not in spaces or image.mode == "CMYK":
        return None, ()
    if len(icc) > MAX_ICC_BYTES:
        return None, (f"its colour profile of {len(icc)} bytes was left out; at most 1 MiB is kept",)
    return icc, ()


def kept_density(image: Image.Image) -> tuple[float, float] | None:
    """Return the pixels per inch across and down; None if the file does not say."""
    try:
        across, down = (float(value) for value in image.info["dpi"])
        guessed = (across, down) == _NO_DENSITY and "exif" in image.info and not _says_density(image)
    except Exception:  # absent, or numbers that are none
        return None
    valid = all(math.isfinite(value) and 0 < value <= MAX_DPI for value in (across, down))
    return (across, down) if valid and not guessed else None


def _says_density(image: Image.Image) -> bool:
    return bool(image.info.get("jfif_unit")) or ExifTags.Base.XResolution in image.getexif()


def _text(value: object) -> str:
    """A value as short printable ASCII, "" if it is no text."""
    if not isinstance(value, str):
        return ""
    text = value.strip("\0 ")
    return text if text.isascii() and text.isprintable() and len(text) <= _MAX_CHARACTERS else ""
