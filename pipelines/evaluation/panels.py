"""Comparison images of an evaluation: LQ | IRM-1 | IRM-2 | TEM | HQ, a row for each face, with titles."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, decode, encode_png, resize
from pipelines.evaluation.types import TITLES, Panel

GAP_PX = 8
TITLE_PX = 34
SMALLEST_PX = 192
INK = (32, 33, 36)
PAPER = (255, 255, 255)


def render_strip(panels: Sequence[Panel]) -> bytes:
    """One PNG of all panels; images smaller than `SMALLEST_PX` are enlarged (bicubic) by a whole factor."""
    if not panels:
        raise UsageError("no panels to draw; expected at least one face; evaluate with num_panels above 0")
    pixels = [_decode_images(panel) for panel in panels]
    side = pixels[0][0].shape[0]
    # a whole factor keeps all images of a strip comparable pixel by pixel
    shown = side * max(1, -(-SMALLEST_PX // side))
    columns, pitch = len(pixels[0]), shown + GAP_PX
    canvas = Image.new("RGB", (columns * pitch + GAP_PX, TITLE_PX + len(panels) * pitch), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=18)
    for column, (name, _) in enumerate(panels[0].images()):
        draw.text(
            (GAP_PX + column * pitch + shown // 2, TITLE_PX // 2),
            TITLES[name],
            fill=INK,
            font=font,
            anchor="mm",
        )
    for row, images in enumerate(pixels):
        for column, image in enumerate(images):
            canvas.paste(
                Image.fromarray(resize(image, shown, "bicubic")),
                (GAP_PX + column * pitch, TITLE_PX + row * pitch),
            )
    return encode_png(np.asarray(canvas))


def _decode_images(panel: Panel) -> list[Pixels]:
    return [decode(png).pixels for _, png in panel.images()]
