"""Procedural faces: the embedded default data, aligned to the FFHQ frame and deterministic by seed.

`draw_attributes` draws what a face looks like, `render_face` paints it, `render_attributes` one that was
changed. Start reading in `attributes.py`; `canvas.py` is the raster, `layout.py` places the parts, and
`scene.py`, `head.py`, `features.py`, `marks.py` and `hair.py` paint them from back to front.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.synthetic.attributes import (
    ATTRIBUTE_RATES,
    FFHQ_LANDMARKS,
    FaceAttributes,
    detail_stream,
    draw_attributes,
)
from diffbfr.synthetic.canvas import Canvas
from diffbfr.synthetic.features import paint_eyes, paint_mouth, paint_nose
from diffbfr.synthetic.hair import paint_hair, paint_hair_behind
from diffbfr.synthetic.head import paint_ears, paint_head, paint_neck, paint_soft_shadows
from diffbfr.synthetic.layout import lay_out
from diffbfr.synthetic.marks import paint_beard, paint_freckles, paint_glasses, paint_lines, paint_moles
from diffbfr.synthetic.scene import paint_backdrop, paint_clothes

__all__ = [
    "ATTRIBUTE_RATES",
    "FFHQ_LANDMARKS",
    "MAX_PX",
    "MIN_PX",
    "FaceAttributes",
    "SyntheticFace",
    "draw_attributes",
    "render_attributes",
    "render_face",
]

MIN_PX, MAX_PX = 16, 512
_GRID_PX = 128  # smaller pictures are averaged down from at least this grid, so that thin lines survive


@dataclass(frozen=True)
class SyntheticFace:
    """A painted face: uint8 RGB [px, px, 3] in [0, 255], and its attributes."""

    pixels: NDArray[np.uint8]
    attributes: FaceAttributes


def render_face(seed: int, px: int = 512) -> SyntheticFace:
    """Paint face `seed` on a square of `px` pixels (16 to 512).

    The same seed at another size is the same face.
    """
    return render_attributes(draw_attributes(seed), px)


def render_attributes(face: FaceAttributes, px: int = 512) -> SyntheticFace:
    """Paint a face with these attributes, which may differ from those that its seed draws.

    Freckles, moles and glasses take their places from one stream, in this order: with one of them changed
    the later ones move.
    """
    if isinstance(px, bool) or not isinstance(px, int | np.integer) or not MIN_PX <= px <= MAX_PX:
        raise UsageError(
            f"face size is {px!r} px; expected an integer from {MIN_PX} to {MAX_PX}; choose a size in that "
            "range"
        )
    layout, stream = lay_out(face), detail_stream(face.seed)
    shrink = -(-_GRID_PX // int(px))
    canvas = Canvas(face, int(px) * shrink)
    paint_backdrop(canvas, face, layout, stream)
    paint_hair_behind(canvas, face, layout)
    paint_neck(canvas, layout)
    paint_clothes(canvas, face, layout, stream)
    paint_ears(canvas, face, layout)
    paint_head(canvas, face, layout)
    paint_soft_shadows(canvas, layout)
    paint_freckles(canvas, face, layout, stream)
    paint_moles(canvas, face, layout, stream)
    paint_lines(canvas, face, layout)
    paint_beard(canvas, face, layout)
    paint_nose(canvas, face, layout)
    paint_mouth(canvas, face, layout)
    paint_eyes(canvas, face, layout)
    paint_hair(canvas, face, layout)
    paint_glasses(canvas, face, layout, stream)
    return SyntheticFace(canvas.pixels(shrink, face.gray), face)
