"""Open and load a file with Pillow; whatever it raises becomes an `ImageRefused` with the right reason.

Three things are kept apart: a file that was cut, one that is damaged, and a sound one of a kind that Pillow
does not read.
"""

import io
import struct
from collections.abc import Callable
from typing import Final

from PIL import Image, features

from diffbfr.images.errors import ImageRefused

_OPTIONAL: Final = {"WEBP": "webp", "AVIF": "avif", "JPEG 2000": "jpg_2000"}
"""Formats for which Pillow may have been built without their library."""
_APART: Final = 2
"""Planar configuration of a TIFF whose channels follow each other."""
_PLANES: Final = frozenset("RGBA")
_UNSUPPORTED: Final = (
    "unsupported",
    "not supported",
    "not yet supported",
    "cannot handle",
    "unknown pixel mode",
    "unknown data organization",
    "unknown tga mode",
    "unable to determine j2k image mode",
    "not available",
)


def open_image(data: bytes, file_format: str) -> Image.Image:
    """Read the header of a file as the one format that it was found to be."""
    library = _OPTIONAL.get(file_format)
    if library is not None and not features.check(library):
        raise ImageRefused(
            "unsupported_format",
            f"the file is {file_format}, which this Pillow does not read; convert it first",
        )
    opener = _opener(file_format)
    try:
        return opener(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageRefused("too_many_pixels", f"the header claims too many pixels ({error})") from error
    except MemoryError:
        raise
    except Exception as error:
        # A parser of damaged bytes may raise anything, and one bad file must not end a shard.
        raise _unopened(error, data, file_format) from error


def turn_to(image: Image.Image, page: int, data: bytes, file_format: str) -> None:
    """Read the header of another page of an opened file."""
    try:
        image.seek(page)
    except MemoryError:
        raise
    except Exception as error:  # as in open_image
        raise _unopened(error, data, file_format) from error


def mend_planes(image: Image.Image) -> None:
    """Have an opened TIFF of 16 bits whose channels lie apart, uncompressed, decoded as such.

    Pillow 13 takes their bytes for pixels of 8 bits, which gives a picture of noise.
    """
    from PIL import TiffImagePlugin

    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    is_apart = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _APART and len(image.getbands()) > 1
    if is_apart and set(tags.get(TiffImagePlugin.BITSPERSAMPLE, ())) == {16}:
        depth = ";16L" if image.tag_v2.prefix == b"II" else ";16B"
        image.tile = [
            tile._replace(args=(tile.args[0] + depth, *tile.args[1:]))
            if tile.codec_name == "raw" and isinstance(tile.args, tuple) and tile.args[0] in _PLANES
            else tile
            for tile in image.tile
        ]


def load_image(image: Image.Image, data: bytes, file_format: str) -> None:
    """Decode the pixels of an opened file."""
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageRefused("too_many_pixels", f"the picture unfolds to too many pixels ({error})") from error
    except MemoryError:
        raise
    except Exception as error:  # as in open_image
        if _is_unsupported(error):
            raise ImageRefused(
                "unsupported_pixels",
                f"the {file_format} file is of a kind that is not read ({error}); convert it",
            ) from error
        if _says_truncated(error) or _ends_early(data, file_format):
            raise ImageRefused(
                "truncated", f"the {file_format} file ends early, after {len(data)} bytes ({error})"
            ) from error
        raise ImageRefused(
            "corrupt", f"the pixels of the {file_format} file cannot be decoded ({error})"
        ) from error


def _opener(file_format: str) -> Callable[[io.BytesIO], Image.Image]:
    """The one plugin of Pillow that reads a format; each is imported when it is first needed."""
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TgaImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    openers: dict[str, Callable[[io.BytesIO], Image.Image]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.jpeg_factory,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
        "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "PNM": PpmImagePlugin.PpmImageFile,
        "TGA": TgaImagePlugin.TgaImageFile,
    }
    return openers[file_format]


def _unopened(error: Exception, data: bytes, file_format: str) -> ImageRefused:
    """The refusal of a file whose header Pillow does not accept."""
    if _is_unsupported(error):
        return ImageRefused(
            "unsupported_pixels",
            f"the {file_format} file is of a kind that is not read ({error}); convert it",
        )
    if _ends_early(data, file_format):
        return ImageRefused("truncated", f"the {file_format} file ends early, after {len(data)} bytes")
    if file_format in ("AVIF", "JPEG 2000"):
        # their containers hold much else, and what a library does not know it reports like damage
        return ImageRefused(
            "unsupported_format",
            f"the file is {file_format} of a kind that is not read ({error}); convert it first",
        )
    return ImageRefused(
        "corrupt", f"the header of the {file_format} file is damaged; the picture cannot be opened"
    )


def _is_unsupported(error: Exception) -> bool:
    """Whether Pillow says that it does not read this kind of file, and not that the file is damaged."""
    text = str(error).lower()
    return any(phrase in text for phrase in _UNSUPPORTED)


def _says_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return "truncated" in text or "not enough image data" in text or "reached eof" in text


def _ends_early(data: bytes, file_format: str) -> bool:
    """Whether the end mark is missing from a file that failed to decode: it was cut, not damaged."""
    if file_format == "TIFF" and len(data) >= 8:
        directory = struct.unpack_from("<I" if data[:2] == b"II" else ">I", data, 4)[0]
        return bool(directory >= len(data))
    if file_format == "AVIF":
        return _box_is_cut(data)
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";", "JPEG 2000": b"\xff\xd9"}
    if file_format == "JPEG 2000" and b"\xff\x4f\xff\x51" not in data[:4096]:
        return False  # it has not begun
    tail = data.rstrip(b"\0")[-12:] if file_format == "PNG" else data.rstrip(b"\0")[-2:]
    return file_format in ends and ends[file_format] not in tail


def _box_is_cut(data: bytes) -> bool:
    """Whether an ISO media file ends within one of its boxes after the first, which names the format."""
    at, num = 0, 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1 and at + 16 <= len(data):
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length < 8:  # 0: up to the end of the file
            return False
        at, num = at + length, num + 1
    return num > 1 and at > len(data)
