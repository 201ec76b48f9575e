"""Hair: a silhouette behind the neck and one in front of the face, shaded along strands from the parting."""

from dataclasses import dataclass

import numpy as np

from diffbfr.synthetic.attributes import FaceAttributes
from diffbfr.synthetic.canvas import Canvas, Colour, Plane, Window, bump, clip01, scaled, smooth, wave
from diffbfr.synthetic.head import face_distance
from diffbfr.synthetic.layout import Layout


@dataclass(frozen=True)
class _Cut:
    """The shape of a hair style."""

    volume: float  # how far the hair stands off the skull
    length: float  # y at which it ends
    spread: float  # how much it widens downwards
    hairline: float  # y of the hair's edge on the forehead
    cover: float  # share of the head's half width left free by the hair at the sides
    curl: float  # 0 straight .. 1 curly


_CUTS = {
    "buzz": _Cut(4.0, 266.0, -0.16, 126.0, 0.95, 0.0),
    "short": _Cut(20.0, 284.0, -0.34, 132.0, 0.93, 0.15),
    "side_part": _Cut(26.0, 284.0, -0.40, 126.0, 0.93, 0.0),
    "curly": _Cut(40.0, 330.0, 0.05, 134.0, 0.92, 1.0),
    "bob": _Cut(30.0, 425.0, 0.10, 128.0, 0.86, 0.1),
    "long": _Cut(26.0, 700.0, 0.10, 122.0, 0.87, 0.15),
    "wavy": _Cut(32.0, 700.0, 0.16, 126.0, 0.86, 0.55),
    "bun": _Cut(13.0, 275.0, -0.26, 122.0, 0.95, 0.0),
}
_LOOSE = ("bob", "long", "wavy", "curly")


def paint_hair_behind(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Everything that hangs behind the neck and ears, in shade; the bun."""
    if face.hair_style == "bun":
        window = canvas.window(layout.middle - 90.0, -40.0, layout.middle + 90.0, 110.0)
        body = window.ellipse(layout.middle + 20.0 * face.part, 46.0, 62.0, 46.0)
        strands = wave((window.x - layout.middle) * 0.045 + (window.y - 46.0) * (window.y - 46.0) * 0.0006)
        window.paint(
            window.cover(body + 1.5 * strands),
            _shaded(layout.hair, 0.55 + 0.10 * strands + 0.25 * smooth(window.y, 80.0, 10.0)),
        )
    if face.hair_style not in _LOOSE:
        return
    cut, full = _CUTS[face.hair_style], canvas.full
    strands = wave(full.x * 0.06 + 0.4 * wave(full.y * 0.006))
    window = canvas.full
    window.paint(
        window.cover(_silhouette(window, layout, cut, face)), _shaded(layout.hair, 0.34 + 0.08 * strands)
    )


def paint_hair(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """The hair in front: cap, sides, fringe, with its shadow on the forehead."""
    if face.hair_style == "bald":
        return
    cut, full = _CUTS[face.hair_style], canvas.full
    fringe = _fringe_edge(full, face, layout) if face.fringe else None
    free = _free_face(full, face, layout, cut)
    if fringe is not None:
        free = np.maximum(free, fringe)
    body = np.maximum(_silhouette(full, layout, cut, face), -free)
    inside_face = smooth(face_distance(full, layout), 4.0, -4.0)
    full.dim(0.50 * inside_face * smooth(body, 20.0 - 6.0 * layout.light[1], 0.0), layout.shadow)
    coverage = full.cover(body) if face.hair_style != "buzz" else 0.80 * smooth(body, 8.0, -8.0)
    full.paint(coverage, _shaded(layout.hair, _strand_light(full, face, layout, cut)))


def _silhouette(window: Window, layout: Layout, cut: _Cut, face: FaceAttributes) -> Plane:
    """Signed distance to the outside of the hair: a cap on the skull that continues down both sides."""
    half = layout.half_width + cut.volume
    centre = 250.0
    x = window.x - layout.middle - 6.0 * face.part * (cut.volume > 10.0)
    y = window.y - centre
    down = np.maximum(y, np.float32(0.0))
    sway = cut.curl * 7.0 * wave(window.y * 0.013 + 0.2 * face.part) if cut.length > 400.0 else 0.0
    width = (
        half
        + cut.spread * (down if cut.spread > 0.0 else np.maximum(y + 55.0, np.float32(0.0)))
        + sway * smooth(window.y, 230.0, 300.0)
    )
    u = x / width
    v = np.minimum(y, np.float32(0.0)) * (1.0 / (centre - layout.top + 1.15 * cut.volume))
    u2, v2 = u * u, v * v
    level = 0.75 * (u2 + v2) + 0.25 * (u2 * u2 + v2 * v2) - 1.0
    along_x = (1.5 * u + u2 * u) / half
    along_y = (1.5 * v + v2 * v) * (1.0 / (centre - layout.top + cut.volume))
    distance = level / (np.sqrt(along_x * along_x + along_y * along_y) + 1e-3)
    if cut.curl > 0.8:
        distance = distance + 4.5 * wave(window.x * 0.024 + 0.3 * wave(window.y * 0.011)) * wave(
            window.y * 0.022 + 0.25
        )
    end = cut.length - 0.10 * np.abs(x) + 2.0 * wave(window.x * 0.031) + 1.5 * wave(window.x * 0.083 + 0.3)
    outside: Plane = np.maximum(distance, window.y - end)
    return outside


def _free_face(window: Window, face: FaceAttributes, layout: Layout, cut: _Cut) -> Plane:
    """Signed distance to the opening that leaves the face free, open towards the neck."""
    loose = face.hair_style in ("long", "wavy", "bob")
    half = layout.half_width * cut.cover
    lean = 0.55 * face.part if loose or face.hair_style == "side_part" else 0.05 * face.part
    square = 0.08 if loose else 0.50
    x = window.x - layout.middle
    y = window.y - 268.0
    up = np.minimum(y, np.float32(0.0))
    temple = 5.0 * wave(window.y * 0.016 + 0.1) * (face.hair_style in ("short", "side_part", "buzz"))
    close = (
        1.0 - 0.11 * smooth(window.y, 290.0, 410.0) + 0.05 * wave(window.y * 0.0047 + 0.25 * face.part)
        if loose
        else 1.0
    )
    u = (x + temple * np.where(x > 0.0, np.float32(1.0), np.float32(-1.0))) / (half * close)
    recede = 14.0 * max(0.0, face.age - 0.45) * (face.hair_style not in _LOOSE)
    v = up / (268.0 - cut.hairline + recede - lean * 60.0 * u)
    u2, v2 = u * u, v * v
    level = (1.0 - square) * (u2 + v2) + square * (u2 * u2 + v2 * v2) - 1.0
    along_x = (2.0 * (1.0 - square) * u + 4.0 * square * u2 * u) * (1.0 / half)
    along_y = (2.0 * (1.0 - square) * v + 4.0 * square * v2 * v) * (1.0 / (268.0 - cut.hairline))
    edge = level / (np.sqrt(along_x * along_x + along_y * along_y) + 2e-3)
    if cut.curl > 0.8:
        edge = edge + 4.0 * wave(window.x * 0.030 + window.y * 0.012)
    uneven: Plane = edge + 0.7 * wave(x * 0.031 + 0.2) + 0.4 * wave(x * 0.083)
    return uneven


def _fringe_edge(window: Window, face: FaceAttributes, layout: Layout) -> Plane:
    """Distance below the fringe's lower edge (negative under it): swept locks of different length."""
    x = window.x - layout.middle
    swept = x + 0.5 * face.part * (window.y - 140.0)
    locks = 5.0 * wave(swept * 0.017 + 0.3 * face.part) + 3.0 * wave(swept * 0.043 + 0.3) * wave(
        swept * 0.009 + 0.1
    )
    edge = 200.0 + locks - 0.0009 * x * x + 0.10 * face.part * x
    distance: Plane = (edge - window.y) * 0.85
    return distance


def _strand_light(window: Window, face: FaceAttributes, layout: Layout, cut: _Cut) -> Plane:
    """Light on the hair: round like the skull, striped by strands, glossy, darker at the inner edges."""
    lx, ly, _ = layout.light
    side = 70.0 if face.hair_style == "side_part" else 34.0
    root_x, root_y = layout.middle + side * face.part, layout.top + 6.0 - cut.volume
    dx, dy = window.x - root_x, np.maximum(window.y - root_y, np.float32(0.0)) + 26.0
    reach = np.sqrt(0.55 * dx * dx + dy * dy)
    fan = dx / reach * (1.0 + reach * 0.0012)
    bend = cut.curl * 0.16 * wave(reach * 0.011 + 0.2 * face.part)
    flow = fan + bend
    flow = flow + 0.035 * wave(flow * 2.3 + reach * 0.0021 + face.part)
    uneven = 0.55 + 0.45 * wave(flow * 1.7 + 0.3 + 2.0 * face.part)
    pitch = reach * (
        1.0 / window.pixel
    )  # pixels a turn of the fan; strands finer than the grid fade out before they alias
    medium, fine = smooth(pitch, 1.8 * 8.9, 4.0 * 8.9), smooth(pitch, 1.8 * 17.3, 4.0 * 17.3)
    strands = 0.28 * wave(flow * 3.7 + 0.1) + 0.34 * medium * uneven * wave(flow * 8.9 + 0.4)
    strands = strands + 0.26 * fine * (1.3 - uneven) * wave(flow * 17.3 + 0.15)
    if face.hair_style == "buzz":
        strands = 0.15 * strands
    if cut.curl > 0.8:
        rings = wave(window.x * 0.028 + 0.35 * wave(window.y * 0.019)) * wave(
            window.y * 0.027 + 0.35 * wave(window.x * 0.017)
        )
        strands = 0.85 * rings + 0.25 * wave(window.x * 0.061 + 0.5 * wave(window.y * 0.037))
    u = (window.x - layout.middle) * (1.0 / (layout.half_width + cut.volume + 8.0))
    v = (window.y - 250.0) * (1.0 / 230.0)
    round_off = np.sqrt(np.maximum(1.0 - u * u - np.minimum(v, np.float32(0.0)) * v, np.float32(0.0)) + 0.05)
    facing = clip01(0.42 + 0.50 * round_off * layout.light[2] + 0.40 * lx * u + 0.42 * ly * v)
    band = reach * (1.0 / 88.0) - 1.05 - 0.25 * lx * u + 0.10 * strands
    gloss = bump(band * band * 4.0) * (0.35 + 0.25 * strands)
    fall = 1.0 - 0.30 * smooth(window.y, 260.0, 520.0)
    return np.maximum(
        facing * fall * (0.95 + 0.36 * strands) + 0.75 * gloss * (1.0 - 0.5 * cut.curl), np.float32(0.06)
    )


def _shaded(colour: Colour, light: Plane) -> Plane:
    """A hair colour under this light, with a little grey sheen where it is bright."""
    sheen = 0.035 * np.maximum(light - 0.7, np.float32(0.0))
    return np.stack([light * channel + sheen for channel in scaled(colour, 1.15)])
