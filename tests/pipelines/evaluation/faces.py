"""Small folders of procedural faces to evaluate."""

from pathlib import Path

from diffbfr.images import encode_png, resize
from diffbfr.synthetic import render_face


def make_folders(folder: Path, count: int = 5, px: int = 64) -> None:
    """`reference`, `lq` at a fourth of the side, and two methods: `bilinear` and `bicubic` enlargements."""
    for seed in range(count):
        face = render_face(seed, px).pixels
        low = resize(face, px // 4, "bilinear")
        pictures = {
            "reference": face,
            "lq": low,
            "bilinear": resize(low, px, "bilinear"),
            "bicubic": resize(low, px, "bicubic"),
        }
        for name, pixels in pictures.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"face{seed}.png").write_bytes(encode_png(pixels))
