"""What surrounds the head: backdrop, shoulders and clothes."""

import numpy as np

from diffbfr.synthetic.attributes import FaceAttributes, RandomStream
from diffbfr.synthetic.canvas import Canvas, Colour, linear, mix, scaled, smooth, wave
from diffbfr.synthetic.layout import Layout

_WALLS = (
    linear(214, 208, 198),
    linear(150, 160, 168),
    linear(96, 110, 126),
    linear(70, 92, 82),
    linear(180, 150, 120),
    linear(52, 50, 58),
    linear(128, 92, 84),
    linear(164, 190, 204),
    linear(206, 184, 150),
    linear(88, 74, 104),
)
_CLOTH = (
    linear(34, 38, 52),
    linear(232, 230, 226),
    linear(150, 40, 44),
    linear(46, 84, 128),
    linear(60, 100, 74),
    linear(196, 160, 80),
    linear(108, 100, 98),
    linear(180, 110, 130),
    linear(24, 24, 26),
    linear(92, 66, 52),
)


def paint_backdrop(canvas: Canvas, face: FaceAttributes, layout: Layout, stream: RandomStream) -> None:
    """A wall, a gradient, blurred lights and shapes, or a window: soft, so that the head stands out sharp."""
    full = canvas.full
    first, second = _pick(_WALLS, stream), _pick(_WALLS, stream)
    if face.backdrop == "plain":
        second = mix(first, second, 0.2)
    slant_x, slant_y = stream.span(-1.0, 1.0), stream.span(0.2, 1.0)
    share = smooth((full.x - 256.0) * slant_x + (full.y - 256.0) * slant_y, -340.0, 340.0)
    for channel in range(3):
        full.image[channel] = first[channel] + (second[channel] - first[channel]) * share
    if face.backdrop == "blobs":
        for _ in range(9):
            x, y, radius = stream.span(-40.0, 552.0), stream.span(-40.0, 480.0), stream.span(40.0, 130.0)
            colour = scaled(_pick(_WALLS, stream), stream.span(0.6, 1.3))
            window = canvas.window(x - radius, y - radius, x + radius, y + radius)
            window.paint(stream.span(0.3, 0.8) * smooth(window.hill(x, y, radius, radius), 0.0, 0.45), colour)
    if face.backdrop == "window":
        bright, frame = scaled(linear(226, 234, 240), stream.span(0.7, 1.0)), scaled(first, 0.5)
        x, width = stream.span(-60.0, 380.0), stream.span(110.0, 190.0)
        pane = smooth(np.abs(full.x - x - width * 0.5), width * 0.5 + 5.0, width * 0.5 - 5.0) * smooth(
            full.y, 330.0, 318.0
        )
        full.paint(0.85 * pane, bright)
        full.paint(0.7 * smooth(np.abs(full.x - x - width * 0.5), 12.0, 5.0) * pane, frame)
    full.dim(
        0.30
        * smooth(
            (full.x - 256.0) * (full.x - 256.0) + (full.y - 240.0) * (full.y - 240.0), 40000.0, 150000.0
        ),
        (0.45, 0.45, 0.47),
    )


def paint_clothes(canvas: Canvas, face: FaceAttributes, layout: Layout, stream: RandomStream) -> None:
    """Shoulders in a garment with a neckline, lit from the lamp's side."""
    window = canvas.window(-120.0, 400.0, 632.0, 640.0)
    cloth, second = _pick(_CLOTH, stream), _pick(_CLOTH, stream)
    x = window.x - layout.middle - 2.0
    away = np.abs(x)
    sloped = (
        452.0
        + stream.span(-10.0, 12.0)
        + 0.26 * np.maximum(away - 70.0, np.float32(0.0))
        + 0.0011 * away * away
    )
    neck = 0.62 * layout.half_width
    if face.garment == "vneck":
        line = 560.0 - 1.15 * away
    elif face.garment == "crew":
        line = 500.0 - 0.0042 * x * x
    else:
        line = 530.0 - 0.95 * away
    distance = np.maximum(sloped - window.y, (line - window.y) * 0.75)
    folds = wave(x * 0.012 + window.y * 0.006) * 0.5 + wave(x * 0.021 - window.y * 0.013 + 0.3) * 0.3
    light = layout.ambient + (1.0 - layout.ambient) * (0.62 + 0.0016 * layout.light[0] * x + 0.16 * folds)
    light = light * (1.0 - 0.35 * smooth(distance, -16.0, 0.0))
    colour = np.stack([light * channel for channel in cloth])
    if stream.chance(0.25):
        stripe = window.cover(wave(window.y * 0.022 + 0.0002 * x * x) * (1.0 / (6.0 * 0.022)))
        colour = colour + stripe * (np.stack([light * channel for channel in second]) - colour)
    window.paint(window.cover(distance), colour)
    if face.garment in ("collar", "jacket"):
        flap = np.maximum(line - 2.0 - window.y, window.y - line - 34.0 + 0.25 * away)
        flap = np.maximum(np.maximum(flap, away - neck - 34.0), sloped - 10.0 - window.y)
        tone = mix(cloth, linear(240, 238, 234), 0.7) if face.garment == "collar" else scaled(cloth, 0.6)
        window.dim(0.5 * smooth(flap, 9.0, 0.0), (0.4, 0.4, 0.42))
        window.paint(window.cover(flap), np.stack([(light + 0.08) * channel for channel in tone]))
    else:
        window.dim(0.35 * window.stroke(distance + 9.0, 1.4), (0.4, 0.4, 0.42))


def _pick(colours: tuple[Colour, ...], stream: RandomStream) -> Colour:
    return scaled(colours[int(stream.unit() * len(colours))], stream.span(0.8, 1.1))
