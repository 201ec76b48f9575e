"""The format of a file by its first bytes; no name and no declared type is believed."""

import re
from typing import Final

from diffbfr.images.errors import ImageRefused

FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG 2000", "BMP", "TIFF", "GIF", "PNM", "TGA")
"""The formats that are decoded, by the names that refusals and `Decoded.format` use."""

_SIGNATURES: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBPVP8", "WEBP"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"BM", "BMP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
)
_TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FOREIGN_SIGNATURES: Final = (
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (0, b"IIU\0", "a camera's raw file"),
    (0, b"IIRO", "a camera's raw file"),
    (0, b"IIRS", "a camera's raw file"),
    (0, b"MMOR", "a camera's raw file"),
    (0, b"FOVb", "a camera's raw file"),
    (0, b"\0MRM", "a camera's raw file"),
    (0, b"qoif", "QOI"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"P7\n", "PAM"),
    (0, b"PF\n", "a PNM of floats"),
    (0, b"Pf\n", "a PNM of floats"),
    (0, b"\0\0\x01\0", "an icon"),
    (0, b"icns", "an icon"),
    (0, b"DDS ", "DDS"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (0, b"BA", "an OS/2 bitmap array"),
)
_PNM: Final = re.compile(rb"P[1-6](?:[ \t\r\n]|#[^\r\n]{0,1000}[\r\n])+[0-9]")
_SVG: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg", re.DOTALL
)
_SVG_BYTES: Final = 4096
_MAX_BRANDS: Final = 64


def format_of(data: bytes) -> str:
    """Return one of `FORMATS`; `ImageRefused` names what the file is instead, where that is known."""
    if not data:
        raise ImageRefused("empty", "the file holds 0 bytes; expected a picture")
    wanted = f"expected {', '.join(FORMATS)}"
    found = _readable(data)
    if found is not None:
        return found
    foreign = _foreign(data)
    if foreign is not None:
        raise ImageRefused("unsupported_format", f"the file is {foreign}; {wanted}; convert it first")
    if _looks_like_tga(data):  # last: a TGA file has no mark at its beginning
        return "TGA"
    raise ImageRefused("not_an_image", f"the file starts with {data[:8]!r}, which is no picture; {wanted}")


def _readable(data: bytes) -> str | None:
    for offset, magic, name in _SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return name
    if data.startswith(_TIFF_SIGNATURES):
        return "TIFF"
    if _PNM.match(data[:_SVG_BYTES]):
        return "PNM"
    return "AVIF" if {b"avif", b"avis"} & _brands(data) else None


def _foreign(data: bytes) -> str | None:
    brands = _brands(data)
    if b"crx " in brands:
        return "a camera's raw file"
    if any(brand[:3] in (b"hei", b"hev", b"mif", b"msf") for brand in brands):
        return "HEIC"
    if brands:
        return "HEIC or a video"
    for offset, magic, name in _FOREIGN_SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return name
    if data.startswith(b"\0\0\2\0") and any(data[4:6]):  # a TGA has no palette there
        return "a cursor"
    return "SVG" if _SVG.match(data[:_SVG_BYTES]) else None


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file (AVIF, HEIC, MP4), the main one and the compatible ones."""
    if data[4:8] != b"ftyp" or len(data) < 12:
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MAX_BRANDS)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}


def _looks_like_tga(data: bytes) -> bool:
    """Whether the header is one that a TGA file may have, and as many bytes follow as it announces."""
    if data[-26:].endswith(b"TRUEVISION-XFILE.\0") and len(data) > 44:
        return True
    if len(data) < 18:
        return False
    id_bytes, has_map, kind = data[0], data[1], data[2]
    map_length, map_depth = int.from_bytes(data[5:7], "little"), data[7]
    width, height = int.from_bytes(data[12:14], "little"), int.from_bytes(data[14:16], "little")
    depth, flags = data[16], data[17]
    if has_map not in (0, 1) or kind not in (1, 2, 3, 9, 10, 11) or flags & 0xC0 or 0 in (width, height):
        return False
    if (kind & 7 == 1) != bool(has_map) or (has_map == 0 and any(data[3:8])):
        return False
    if depth not in {1: (8,), 2: (16, 24, 32), 3: (8, 16)}[kind & 7]:
        return False
    pixel_bytes = depth // 8
    needed = 18 + id_bytes + map_length * ((map_depth + 7) // 8)
    # a run of the compressed kind takes at most 128 pixels
    needed += width * height * pixel_bytes if kind < 8 else -(-width * height // 128) * (1 + pixel_bytes)
    return needed <= len(data)
