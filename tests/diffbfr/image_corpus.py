"""Ordinary, odd and hostile picture files in families, each with what must come of it: its pixels, or the
reason of its refusal.

Everything is generated, from formulas and by hand where an encoder would refuse to write it. Expected pixels
never pass through the decoder that is tested: they are the array that was encoded, turned or blended by
NumPy.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True, eq=False)
class Case:
    """One file. Exactly one of `pixels` (within `tolerance` levels in the mean) and `reasons` (any of them)
    says what must come of it.

    `suffix` is what its name ends with in a folder, whatever it holds.
    """

    family: str
    name: str
    suffix: str
    data: bytes
    pixels: np.ndarray | None = None
    reasons: tuple[str, ...] = ()
    tolerance: float = 0.0
    either: bool = field(default=False)
    """Nothing in the file says that it is damaged, so other pixels of the same size are as right as a
    refusal.
    """

    @property
    def id(self) -> str:
        return f"{self.family}-{self.name}"


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw a picture without any symmetry, so that every wrong turn shows."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    return np.stack([255 * x // width, 255 * y // height, 255 * x * y // (width * height)], axis=2).astype(
        np.uint8
    )


def file_of(image: Image.Image | np.ndarray, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    opened.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, *between: bytes) -> bytes:
    """A PNG from its raw rows, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), *between, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_claiming(width: int, height: int) -> bytes:
    return png(width, height, bytes(1000))


def webp_claiming(kind: bytes, width: int, height: int) -> bytes:
    if kind == b"VP8X":
        body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(20)
    else:
        body = bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)
    made = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(made) + 4) + b"WEBP" + made


def tiff(order: str, width: int, height: int, photometric: int, bits: int, strip: bytes) -> bytes:
    """A gray TIFF of one strip."""
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(strip)),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return (
        magic
        + struct.pack(f"{order}I", 8 + len(strip))
        + strip
        + struct.pack(f"{order}H", len(tags))
        + entries
        + bytes(4)
    )


def bmp_claiming(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + header + bytes(50)


def gif_claiming(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\0\0\0,"
        + struct.pack("<HHHH", 0, 0, width, height)
        + b"\0\x08\x01\0\0;"
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size than its data."""
    data = bytearray(file_of(picture(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def wide_gamut_profile() -> bytes:
    """An ICC profile by hand: the primaries of Display P3 (adapted to D50) with gamma 2.2."""

    def numbers(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = b"wide gamut\0"
    gamma = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    bodies = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0" + bytes(3),
        b"wtpt": numbers(0.9642, 1.0, 0.8249),
        b"rXYZ": numbers(0.51512, 0.24120, -0.00105),
        b"gXYZ": numbers(0.29198, 0.69225, 0.04189),
        b"bXYZ": numbers(0.15710, 0.06657, 0.78407),
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, data, start = struct.pack(">I", len(bodies)), b"", 132 + 12 * len(bodies)
    for tag, body in bodies.items():
        table += tag + struct.pack(">II", start + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    header = (
        struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
        + bytes(12)
        + b"acsp"
    )
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + data


def corpus() -> list[Case]:
    """Every case, each with a name of its own."""
    makers = (
        _formats,
        _jpegs,
        _truncated,
        _flipped,
        _empty,
        _misnamed,
        _deep,
        _palettes,
        _gray,
        _transparent,
        _cmyk,
        _oriented,
        _profiles,
        _animated,
        _extreme_sizes,
        _bombs,
        _polyglots,
        _foreign,
        _metadata,
    )
    return [case for maker in makers for case in maker()]


_SUFFIX = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "MPO": ".jpg",
}


def _formats() -> Iterator[Case]:
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "png": ("PNG", {}),
        "png-stored": ("PNG", {"compress_level": 0}),
        "webp-lossless": ("WEBP", {"lossless": True}),
        "bmp": ("BMP", {}),
        "tiff": ("TIFF", {}),
        "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": ("TIFF", {"compression": "tiff_deflate"}),
        "tiff-packbits": ("TIFF", {"compression": "packbits"}),
    }
    for name, (image_format, chosen) in options.items():
        yield Case(
            "lossless", name, _SUFFIX[image_format], file_of(picture(), image_format, **chosen), picture()
        )
    rows = b"".join(b"\0" + row.tobytes() for row in picture())
    yield Case("lossless", "png-by-hand", ".png", png(WIDTH, HEIGHT, rows), picture())


def _jpegs() -> Iterator[Case]:
    for name, chosen in {
        "baseline": {"quality": 98, "subsampling": 0},
        "420": {"quality": 95},
        "progressive": {"quality": 95, "progressive": True},
        "optimized": {"quality": 95, "optimize": True},
        "restarts": {"quality": 95, "restart_marker_rows": 1},
    }.items():
        yield Case(
            "lossy", f"jpeg-{name}", ".jpg", file_of(picture(), "JPEG", **chosen), picture(), tolerance=6
        )
    yield Case("lossy", "webp", ".webp", file_of(picture(), "WEBP", quality=95), picture(), tolerance=6)
    twice = file_of(
        Image.fromarray(picture()),
        "MPO",
        save_all=True,
        append_images=[Image.fromarray(picture())],
        quality=95,
    )
    yield Case("lossy", "mpo", ".jpg", twice, picture(), tolerance=6)


def _truncated() -> Iterator[Case]:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        image = Image.fromarray(noise).quantize(200) if image_format == "GIF" else noise
        data = file_of(image, image_format, **({"compression": "tiff_lzw"} if image_format == "TIFF" else {}))
        for kept in (0.3, 0.6, 0.9):
            cut = data[: int(len(data) * kept)]
            yield Case(
                "truncated",
                f"{image_format.lower()}-{kept}",
                _SUFFIX[image_format],
                cut,
                reasons=("truncated",),
            )
    for name, data in {
        "png": b"\x89PNG\r\n\x1a\n",
        "jpeg": b"\xff\xd8\xff\xe0",
        "tiff": b"II*\0\xff\0\0\0",
    }.items():
        yield Case("truncated", f"{name}-signature", _SUFFIX[name.upper()], data, reasons=("truncated",))


def _flipped() -> Iterator[Case]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def flip(data: bytes, place: int, bit: int = 0) -> bytes:
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    data = file_of(noise, "PNG")
    yield Case("bit-flipped", "png-pixels", ".png", flip(data, len(data) // 2), reasons=("corrupt",))
    yield Case("bit-flipped", "png-width", ".png", flip(data, 19), reasons=("corrupt",))
    yield Case("bit-flipped", "png-checksum-of-header", ".png", flip(data, 30), reasons=("corrupt",))
    yield Case("bit-flipped", "png-signature", ".png", flip(data, 3), reasons=("not_an_image",))
    for image_format in ("JPEG", "WEBP", "GIF"):
        image = Image.fromarray(noise).quantize(200) if image_format == "GIF" else noise
        data = file_of(image, image_format)
        for part in (2, 3, 5):
            flipped = flip(data, len(data) - len(data) // part, bit=part)
            yield Case(
                "bit-flipped",
                f"{image_format.lower()}-{part}",
                _SUFFIX[image_format],
                flipped,
                noise,
                ("corrupt", "truncated"),
                either=True,
            )


def _empty() -> Iterator[Case]:
    for suffix in (".png", ".jpg", ".webp"):
        yield Case("empty", suffix[1:], suffix, b"", reasons=("empty",))
    yield Case("empty", "zeros", ".png", bytes(5000), reasons=("not_an_image",))


def _misnamed() -> Iterator[Case]:
    for name, suffix, data in (
        ("jpeg-as-png", ".png", file_of(picture(), "JPEG", quality=98, subsampling=0)),
        ("webp-as-jpg", ".jpg", file_of(picture(), "WEBP", lossless=True)),
        ("png-as-tif", ".tif", file_of(picture(), "PNG")),
        ("bmp-as-webp", ".webp", file_of(picture(), "BMP")),
        ("tiff-as-gif", ".gif", file_of(picture(), "TIFF")),
    ):
        yield Case("wrong-extension", name, suffix, data, picture(), tolerance=2)
    yield Case(
        "wrong-extension", "text-as-png", ".png", b"hello, this is a text file\n", reasons=("not_an_image",)
    )
    yield Case(
        "wrong-extension",
        "wave-as-webp",
        ".webp",
        b"RIFF\x10\0\0\0WAVEfmt 0123456789",
        reasons=("not_an_image",),
    )


def _deep() -> Iterator[Case]:
    levels = np.linspace(0, 65535, WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    gray = np.round(levels.astype(float) * 255 / 65535).astype(np.uint8)[..., None].repeat(3, axis=2)
    yield Case("16-bit", "png-gray", ".png", file_of(levels, "PNG"), gray)
    yield Case(
        "16-bit",
        "tiff-little-endian",
        ".tif",
        tiff("<", WIDTH, HEIGHT, 1, 16, levels.astype("<u2").tobytes()),
        gray,
    )
    yield Case(
        "16-bit",
        "tiff-big-endian",
        ".tif",
        tiff(">", WIDTH, HEIGHT, 1, 16, levels.astype(">u2").tobytes()),
        gray,
    )
    yield Case(
        "16-bit",
        "tiff-white-is-zero",
        ".tif",
        tiff("<", WIDTH, HEIGHT, 0, 16, levels.astype("<u2").tobytes()),
        255 - gray,
    )
    colour = np.stack([levels, levels[::-1], levels[:, ::-1]], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    yield Case(
        "16-bit",
        "png-colour",
        ".png",
        png(WIDTH, HEIGHT, rows, 16),
        np.round(colour / 257).astype(np.uint8),
        tolerance=1,
    )
    for mode in ("I", "F"):
        yield Case(
            "16-bit",
            f"tiff-32-bit-{mode}",
            ".tif",
            file_of(Image.new(mode, (4, 4)), "TIFF"),
            reasons=("unsupported_pixels",),
        )


def _palettes() -> Iterator[Case]:
    paletted = Image.fromarray(picture()).quantize(64)
    expected = np.array(paletted.getpalette(), np.uint8).reshape(-1, 3)[np.array(paletted)]
    for image_format in ("PNG", "GIF", "BMP", "TIFF"):
        yield Case(
            "palette", image_format.lower(), _SUFFIX[image_format], file_of(paletted, image_format), expected
        )
    checks = (np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255).astype(np.uint8)
    bilevel = Image.fromarray(checks).convert("1")
    for image_format in ("PNG", "BMP", "TIFF"):
        data = file_of(bilevel, image_format)
        yield Case(
            "palette",
            f"bilevel-{image_format.lower()}",
            _SUFFIX[image_format],
            data,
            checks[..., None].repeat(3, axis=2),
        )
    four = png(4, 1, b"\0\x1b", 2, 3, chunk(b"PLTE", bytes(range(12))))
    yield Case("palette", "png-two-bits", ".png", four, np.arange(12, dtype=np.uint8).reshape(1, 4, 3))
    crowded = chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(300))
    yield Case(
        "palette",
        "png-300-opacities",
        ".png",
        png(WIDTH, HEIGHT, bytes((WIDTH + 1) * HEIGHT), 8, 3, *crowded),
        reasons=("corrupt",),
    )


def _gray() -> Iterator[Case]:
    gray = picture()[..., 0]
    for image_format in ("PNG", "TIFF", "BMP"):
        data = file_of(gray, image_format)
        yield Case(
            "gray", image_format.lower(), _SUFFIX[image_format], data, gray[..., None].repeat(3, axis=2)
        )
    yield Case(
        "gray",
        "jpeg",
        ".jpg",
        file_of(gray, "JPEG", quality=98),
        gray[..., None].repeat(3, axis=2),
        tolerance=2,
    )


def _transparent() -> Iterator[Case]:
    alpha = np.tile(np.arange(WIDTH, dtype=np.uint8) * 5, (HEIGHT, 1))
    share = alpha[..., None].astype(float) / 255
    over_white = np.round(picture() * share + 255 * (1 - share)).astype(np.uint8)
    for image_format, chosen in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = file_of(np.dstack([picture(), alpha]), image_format, **chosen)
        yield Case("alpha", image_format.lower(), _SUFFIX[image_format], data, over_white, tolerance=0.5)
    opaque = file_of(np.dstack([picture(), np.full((HEIGHT, WIDTH), 255, np.uint8)]), "PNG")
    yield Case("alpha", "opaque", ".png", opaque, picture())
    white = np.full((4, 4, 3), 255, np.uint8)
    paletted = Image.new("RGB", (4, 4), (9, 8, 7)).quantize(2)
    entry = paletted.getpixel((0, 0))
    yield Case("alpha", "gif-entry", ".gif", file_of(paletted, "GIF", transparency=entry), white)
    yield Case("alpha", "png-entry", ".png", file_of(paletted, "PNG", transparency=entry), white)
    yield Case(
        "alpha",
        "png-colour",
        ".png",
        file_of(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        white,
    )
    yield Case("alpha", "png-gray", ".png", file_of(Image.new("L", (4, 4), 7), "PNG", transparency=7), white)


def _cmyk() -> Iterator[Case]:
    cmyk = Image.fromarray(picture()).convert("CMYK")
    yield Case("cmyk", "jpeg", ".jpg", file_of(cmyk, "JPEG", quality=98), picture(), tolerance=5)
    yield Case("cmyk", "tiff", ".tif", file_of(cmyk, "TIFF"), picture(), tolerance=5)
    inks = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    inks[..., 3] = picture()[..., 0]
    black = 255 - picture()[..., 0][..., None].repeat(3, axis=2)
    yield Case(
        "cmyk", "black-only", ".tif", file_of(Image.fromarray(inks, "CMYK"), "TIFF"), black, tolerance=1
    )


def _oriented() -> Iterator[Case]:
    upright = picture()
    stored = {  # how a camera stores the upright picture under each orientation
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for image_format, chosen, tolerance in (
        ("JPEG", {"quality": 98, "subsampling": 0}, 2),
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
    ):
        for orientation, pixels in stored.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            data = file_of(np.ascontiguousarray(pixels), image_format, exif=exif, **chosen)
            yield Case(
                "exif",
                f"{image_format.lower()}-{orientation}",
                _SUFFIX[image_format],
                data,
                upright,
                tolerance=tolerance,
            )
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        yield Case("exif", f"senseless-{value}", ".png", file_of(upright, "PNG", exif=exif), upright)


def _profiles() -> Iterator[Case]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for image_format, tolerance in (("PNG", 0), ("TIFF", 0), ("JPEG", 4)):
        data = file_of(picture(), image_format, icc_profile=srgb)
        yield Case("icc", image_format.lower(), _SUFFIX[image_format], data, picture(), tolerance=tolerance)
        data = file_of(picture(), image_format, icc_profile=wide_gamut_profile())
        yield Case(
            "icc",
            f"wide-gamut-{image_format.lower()}",
            _SUFFIX[image_format],
            data,
            picture(),
            tolerance=tolerance,
        )
    yield Case("icc", "damaged", ".png", file_of(picture(), "PNG", icc_profile=srgb[:60]), picture())
    yield Case(
        "icc",
        "of-gray",
        ".png",
        file_of(picture(), "PNG", icc_profile=srgb[:16] + b"GRAY" + srgb[20:]),
        picture(),
    )


def _animated() -> Iterator[Case]:
    first, second = Image.fromarray(picture()), Image.fromarray(255 - picture())
    for image_format, chosen, tolerance in (
        ("GIF", {}, 8),
        ("WEBP", {"lossless": True}, 0),
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
    ):
        data = file_of(first, image_format, save_all=True, append_images=[second, first], **chosen)
        yield Case(
            "animated", image_format.lower(), _SUFFIX[image_format], data, picture(), tolerance=tolerance
        )


def _extreme_sizes() -> Iterator[Case]:
    dot = np.array([[[77, 88, 99]]], np.uint8)
    for image_format in ("PNG", "BMP", "TIFF"):
        yield Case(
            "extreme-size",
            f"dot-{image_format.lower()}",
            _SUFFIX[image_format],
            file_of(dot, image_format),
            dot,
        )
    line = np.arange(65_535 * 3, dtype=np.uint32).reshape(1, 65_535, 3).astype(np.uint8)
    for image_format in ("PNG", "BMP", "TIFF"):
        yield Case(
            "extreme-size",
            f"wide-{image_format.lower()}",
            _SUFFIX[image_format],
            file_of(line, image_format),
            line,
        )
        tall = np.ascontiguousarray(line.transpose(1, 0, 2))
        yield Case(
            "extreme-size",
            f"tall-{image_format.lower()}",
            _SUFFIX[image_format],
            file_of(tall, image_format),
            tall,
        )
    yield Case(
        "extreme-size", "wide-jpeg", ".jpg", jpeg_claiming(65_535, 1), reasons=("corrupt", "truncated")
    )
    yield Case("extreme-size", "nothing-png", ".png", png_claiming(0, 0), reasons=("corrupt", "too_small"))
    yield Case(
        "extreme-size",
        "nothing-gif",
        ".gif",
        gif_claiming(0, 0),
        reasons=("corrupt", "too_small", "truncated"),
    )


def _bombs() -> Iterator[Case]:
    side = 30_000
    for name, suffix, data in (
        ("png", ".png", png_claiming(side, side)),
        ("jpeg", ".jpg", jpeg_claiming(side, side)),
        ("gif", ".gif", gif_claiming(side, side)),
        ("bmp", ".bmp", bmp_claiming(side, side)),
        ("tiff", ".tif", tiff("<", side, side, 1, 8, bytes(100))),
        ("webp", ".webp", webp_claiming(b"VP8X", side, side)),
        ("webp-lossless", ".webp", webp_claiming(b"VP8L", 16_384, 16_384)),
        ("webp-lossy", ".webp", webp_claiming(b"VP8 ", 16_383, 16_383)),
        ("png-largest", ".png", png_claiming(2**31 - 1, 2**31 - 1)),
        ("png-just-over", ".png", png_claiming(10_001, 10_000)),
    ):
        yield Case("bomb", name, suffix, data, reasons=("too_many_pixels",))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26)))
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 26)))
    rows = b"".join(b"\0" + row.tobytes() for row in picture())
    for name, extra in (("profile", profile), ("text", text)):
        yield Case("bomb", f"png-{name}", ".png", png(WIDTH, HEIGHT, rows, 8, 2, extra), picture())


def _polyglots() -> Iterator[Case]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as inner:
        inner.writestr("inside.png", file_of(255 - picture(), "PNG"))
    whole = {"png": file_of(picture(), "PNG"), "jpeg": file_of(picture(), "JPEG", quality=98, subsampling=0)}
    for name, data in whole.items():
        suffix = _SUFFIX[name.upper()]
        yield Case("polyglot", f"{name}-and-zip", suffix, data + archive.getvalue(), picture(), tolerance=2)
        yield Case(
            "polyglot",
            f"{name}-and-html",
            suffix,
            data + b"<html><script>alert(1)</script></html>",
            picture(),
            tolerance=2,
        )
        yield Case(
            "polyglot",
            f"{name}-and-another",
            suffix,
            data + file_of(255 - picture(), "PNG"),
            picture(),
            tolerance=2,
        )
    yield Case(
        "polyglot", "pdf-before-jpeg", ".jpg", b"%PDF-1.4\n" + whole["jpeg"], reasons=("unsupported_format",)
    )
    yield Case("polyglot", "html-before-png", ".png", b"<html>" + whole["png"], reasons=("not_an_image",))
    yield Case(
        "polyglot", "zip-before-png", ".png", archive.getvalue() + whole["png"], reasons=("not_an_image",)
    )
    script = b"GIF89a=1;alert(1)//" + bytes(20)
    yield Case(
        "polyglot", "gif-and-script", ".gif", script, reasons=("corrupt", "truncated", "too_many_pixels")
    )


def _foreign() -> Iterator[Case]:
    for name, suffix, data in (
        ("heic", ".heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("avif", ".avif", b"\0\0\0\x1cftypavif\0\0\0\0mif1avif"),
        ("psd", ".png", b"8BPS\0\1" + bytes(40)),
        ("pdf", ".jpg", b"%PDF-1.7 ..."),
        ("postscript", ".jpg", b"%!PS-Adobe-3.0 EPSF-3.0"),
        ("jpeg-2000", ".jp2", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("jpeg-xl", ".jxl", b"\xff\x0a" + bytes(20)),
        ("svg", ".png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("icon", ".png", b"\0\0\1\0\1\0" + bytes(20)),
        ("qoi", ".png", b"qoif" + bytes(20)),
    ):
        yield Case("foreign-format", name, suffix, data, reasons=("unsupported_format",))


def _metadata() -> Iterator[Case]:
    garbage = b"Exif\0\0II*\0\xff\xff\xff\xff"
    yield Case("metadata", "exif-garbage", ".png", file_of(picture(), "PNG", exif=garbage), picture())
    data = file_of(picture(), "JPEG", quality=98, subsampling=0, exif=garbage)
    yield Case("metadata", "exif-garbage-jpeg", ".jpg", data, picture(), tolerance=2)
    notes = PngImagePlugin.PngInfo()
    for number in range(200):
        notes.add_text(f"key {number}", "ü" * 50)
    yield Case("metadata", "png-200-notes", ".png", file_of(picture(), "PNG", pnginfo=notes), picture())
    comment = file_of(picture(), "JPEG", quality=98, subsampling=0, comment=b"\0\xff" * 3000)
    yield Case("metadata", "jpeg-comment", ".jpg", comment, picture(), tolerance=2)
    rows = b"".join(b"\0" + row.tobytes() for row in picture())
    yield Case(
        "metadata",
        "png-gamma-zero",
        ".png",
        png(WIDTH, HEIGHT, rows, 8, 2, chunk(b"gAMA", bytes(4))),
        picture(),
    )
