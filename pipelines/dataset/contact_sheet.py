"""Contact sheet of a dataset: LQ | HQ pairs in one PNG, each with its parameters of Eq. 13.

Of an aligned face the edges of its photo are drawn over the ground truth: no training learns what is beyond.
"""

from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffbfr.degradation import DegradationParams
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, encode_png, lq_to_model
from diffbfr.shards import FaceFrame, ShardedDataset
from diffbfr.shards.valid_area import quad_at

TILE_PX: Final = 160
PAIRS_A_ROW: Final = 4
_MARGIN_PX: Final = 12
_LINE_PX: Final = 17
_TITLE_PX: Final = 40
_INK, _FAINT, _PAPER, _EDGE = (32, 33, 36), (110, 112, 118), (255, 255, 255), (255, 0, 200)


def contact_sheet(dataset: ShardedDataset, num_pairs: int = 32) -> bytes:
    """A PNG of LQ | HQ pairs, of faces spread evenly over the dataset and of its variants in turn.

    The low-quality face is first resized to the ground truth's size, as a model sees it, then to `TILE_PX`.
    """
    num_pairs = min(num_pairs, len(dataset) * dataset.info.variants)
    if num_pairs < 1:
        raise UsageError(f"a sheet of {num_pairs} pairs was asked for; expected at least one; ask for more")
    pitch_x, pitch_y = 2 * TILE_PX + 2 * _MARGIN_PX, TILE_PX + 2 * _LINE_PX + _MARGIN_PX
    columns = min(PAIRS_A_ROW, num_pairs)
    rows = -(-num_pairs // columns)
    canvas = Image.new("RGB", (columns * pitch_x + _MARGIN_PX, _TITLE_PX + rows * pitch_y), _PAPER)
    draw = ImageDraw.Draw(canvas)
    info = dataset.info
    counted = f"{num_pairs} of {len(dataset) * info.variants} pairs"
    title = f"LQ | HQ   {counted}   {info.lq_px} -> {info.hq_px} px   content {info.content_id[:12]}"
    draw.text(
        (_MARGIN_PX, _TITLE_PX // 2), title, fill=_INK, font=ImageFont.load_default(size=16), anchor="lm"
    )
    small = ImageFont.load_default(size=12)
    for place in range(num_pairs):
        row, variant = place * len(dataset) // num_pairs, place % info.variants
        sample = dataset.samples[row]
        left, top = _MARGIN_PX + place % columns * pitch_x, _TITLE_PX + place // columns * pitch_y
        low = lq_to_model(dataset.lq(sample.key, variant), info.hq_px)
        truth = _tile(dataset.hq(sample.key, variant))
        if sample.face is not None:
            _draw_edges(truth, sample.face, sample.variants[variant].flip)
        canvas.paste(_tile(low), (left, top))
        canvas.paste(truth, (left + TILE_PX, top))
        draw.text(
            (left, top + TILE_PX + _LINE_PX // 2),
            caption(sample.variants[variant]),
            fill=_INK,
            font=small,
            anchor="lm",
        )
        name = f"{sample.key}.{variant}  {sample.split}"
        draw.text((left, top + TILE_PX + _LINE_PX * 3 // 2), name, fill=_FAINT, font=small, anchor="lm")
    return encode_png(np.asarray(canvas))


def caption(params: DegradationParams) -> str:
    """One set of parameters of Eq. 13 as a line of text."""
    marks = [name for name, on in (("gray", params.gray), ("flip", params.flip)) if on]
    return "  ".join(
        [f"blur {params.sigma:.2f}  r {params.r:.1f}  noise {params.delta:.1f}  q {params.q}", *marks]
    )


def _draw_edges(tile: Image.Image, face: FaceFrame, flip: bool) -> None:
    """Draw the edges of the photo where they lie in the frame."""
    corners = [(float(x), float(y)) for x, y in quad_at(face, TILE_PX)]
    if flip:
        corners = [(TILE_PX - 1 - x, y) for x, y in corners]
    ImageDraw.Draw(tile).line([*corners, corners[0]], fill=_EDGE, width=2)


def _tile(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    kernel = Image.Resampling.BICUBIC if pixels.shape[0] < TILE_PX else Image.Resampling.LANCZOS
    return image.resize((TILE_PX, TILE_PX), kernel)
