"""An archive as archives are: 20 inputs of many formats, with the troubles that real ones have, and the
status that each must get.
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from diffbfr.images import resize
from diffbfr.synthetic import render_face

EXIF_ORIENTATION = 0x0112
TURNED_RIGHT = (
    6  # the camera was turned: to be shown upright the stored picture is turned by 90 degrees clockwise
)

EXPECTED = {
    "album/cut short.jpg": "quarantined",
    "album/letter.png": "quarantined",
    "album/twin.png": "restored",
    "album/Zoë 写真.png": "restored",
    "cmyk.jpg": "restored",
    "deep/er/gray16.png": "restored",
    "deep/er/twin again.png": "duplicate",
    "deep/rotated.jpg": "restored",
    "deep/upright.png": "restored",
    "same name.jpg": "restored",
    "same name.png": "restored",
    **{
        f"scans/{number:02d}.{suffix}": "restored"
        for number, suffix in enumerate(["png", "jpg", "webp", "bmp", "tif"] * 2)
        if number < 9
    },
}


@lru_cache
def face(number: int, px: int = 40) -> np.ndarray:
    """A small procedural face."""
    return resize(render_face(number, 128).pixels, px, "bilinear")


def encode(pixels: np.ndarray, file_format: str, **options: object) -> bytes:
    """Encode as any file format."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def build(folder: Path) -> None:
    """Write the archive's 20 files."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED_RIGHT
    cmyk = io.BytesIO()
    Image.fromarray(face(5)).convert("CMYK").save(cmyk, "JPEG", quality=95)
    gray16 = io.BytesIO()
    Image.fromarray(face(6).mean(axis=2).astype(np.uint16) * 257).save(gray16, "PNG")
    twin = encode(face(3), "PNG")
    files = {
        "album/cut short.jpg": encode(face(1), "JPEG", quality=95)[:900],
        "album/letter.png": b"Dear archive,\n" * 40,
        "album/twin.png": twin,
        "album/Zoë 写真.png": encode(face(4), "PNG"),
        "cmyk.jpg": cmyk.getvalue(),
        "deep/er/gray16.png": gray16.getvalue(),
        "deep/er/twin again.png": twin,
        "deep/rotated.jpg": encode(np.rot90(face(7)), "JPEG", quality=98, exif=exif),
        "deep/upright.png": encode(face(7), "PNG"),
        "same name.jpg": encode(face(8), "JPEG", quality=95),
        "same name.png": encode(face(9), "PNG"),
    }
    formats = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
    for name in EXPECTED:
        if name.startswith("scans/"):
            files[name] = encode(face(10 + int(name[6:8])), formats[name.rpartition(".")[2]])
    assert files.keys() == EXPECTED.keys()
    assert len(files) == 20
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
