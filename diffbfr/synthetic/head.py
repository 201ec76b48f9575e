"""Skin: neck, ears and the head, lit as a relief whose slopes are sums of smooth hills."""

from math import sqrt

import numpy as np

from diffbfr.synthetic.attributes import FaceAttributes
from diffbfr.synthetic.canvas import Canvas, Plane, Window, mix, scaled, smooth
from diffbfr.synthetic.layout import Layout


def face_distance(window: Window, layout: Layout, grow: float = 0.0) -> Plane:
    """Signed distance to the outline of the face, to first order: an egg with a tapered jaw."""
    half = layout.half_width + grow
    centre = 272.0
    above, below = centre - layout.top + grow, layout.chin - centre + grow
    y = window.y - centre
    down = np.maximum(y * (1.0 / below), np.float32(0.0))
    v = np.where(y < 0.0, y * (1.0 / above), down)
    width = 1.0 - layout.taper * down * down
    u = (window.x - layout.middle) / (half * width)
    u2, v2 = u * u, v * v
    q = layout.square
    level = (1.0 - q) * (u2 + v2) + q * (u2 * u2 + v2 * v2) - 1.0
    slope_u = u * (2.0 * (1.0 - q) + 4.0 * q * u2)
    slope_v = v * (2.0 * (1.0 - q) + 4.0 * q * v2)
    along_x = slope_u / (half * width)
    along_y = (
        slope_v * np.where(y < 0.0, np.float32(1.0 / above), np.float32(1.0 / below))
        + slope_u * u * (2.0 * layout.taper / below) * down / width
    )
    distance: Plane = level / (np.sqrt(along_x * along_x + along_y * along_y) + 1e-4)
    return distance


def paint_neck(canvas: Canvas, layout: Layout) -> None:
    """Neck with side shading, and the shadow that the jaw casts on it."""
    window = canvas.window(100.0, 380.0, 412.0, 620.0)
    x = (window.x - layout.middle - 2.0) * (1.0 / (0.60 * layout.half_width))
    flare = smooth(window.y, 440.0, 560.0) * 0.35
    x = x / (1.0 + flare)
    side = np.minimum(x * x, np.float32(1.0))
    lit = layout.ambient * 0.8 + 0.42 * np.maximum(
        layout.light[2] * np.sqrt(1.05 - side) + layout.light[0] * x, np.float32(0.0)
    )
    jaw = smooth(face_distance(window, layout, 6.0) - 14.0 * layout.light[0] * x, 52.0, 0.0)
    shade = lit * (1.0 - 0.55 * jaw)
    colour = np.stack([shade * (layout.skin[channel] * layout.lamp[channel]) for channel in range(3)])
    window.paint(window.cover((np.abs(x) - 1.0) * 0.6 * layout.half_width), colour)
    tendon = window.stroke(window.x - layout.middle - 38.0 + 0.25 * (window.y - 440.0), 5.0) * smooth(
        window.y, 470.0, 500.0
    )
    window.dim(0.12 * tendon, layout.shadow)


def paint_ears(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Ears, the far one hidden by the turn of the head; with earrings when the face wears them."""
    for sign in (-1.0, 1.0):
        x = layout.middle + sign * (layout.half_width - 1.0 + 5.0 * sign * face.yaw)
        y = 268.0
        window = canvas.window(x - 30.0, y - 60.0, x + 30.0, y + 80.0)
        body = window.ellipse(x + sign * 1.0 + sign * 0.10 * (y - window.y), y, 19.0, 41.0)
        lit = layout.ambient + (1.0 - layout.ambient) * max(0.15, 0.55 + 0.6 * sign * layout.light[0])
        tone = scaled(mix(layout.skin, layout.blood, 0.45), lit * 0.85)
        window.paint(window.cover(body), tone)
        window.dim(0.50 * window.cover(window.ellipse(x - sign * 1.0, y + 2.0, 9.0, 26.0)), layout.shadow)
        rim = window.stroke(window.ellipse(x + sign * 1.0, y - 2.0, 14.0, 34.0), 1.6)
        window.glow(0.10 * rim * smooth(window.y, y + 20.0, y - 20.0), layout.skin)
        window.dim(
            0.45 * window.cover(body) * smooth(face_distance(window, layout), 12.0, 0.0), layout.shadow
        )
        if face.earrings:
            drop = window.ellipse(x + sign * 4.0, y + 50.0, 6.5, 7.5)
            window.paint(window.cover(drop), (0.62, 0.50, 0.20) if face.accent < 0.5 else (0.6, 0.62, 0.66))
            window.paint(
                window.cover(window.ellipse(x + sign * 4.0 + 4.0 * layout.light[0], y + 47.5, 2.2, 2.2)),
                (1.0, 0.98, 0.92),
            )


class _Relief:
    """The slopes of the face's surface, gathered hill by hill."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        shape = canvas.full.x.shape
        self.along_x = np.zeros(shape, np.float32)
        self.along_y = np.zeros(shape, np.float32)
        self._slopes = (self.along_x, self.along_y)

    def raise_hill(self, x: float, y: float, a: float, b: float, height: float) -> None:
        """Add a hill (or, below zero, a hollow) with half axes a, b; `height` in face units."""
        rows, columns = self._canvas.slices(x - a, y - b, x + a, y + b)
        full = self._canvas.full
        u, v = (full.x[rows, columns] - x) * (1.0 / a), (full.y[rows, columns] - y) * (1.0 / b)
        fall = np.maximum(1.0 - u * u - v * v, np.float32(0.0)) * (-4.0 * height)
        self.along_x[rows, columns] += fall * u * (1.0 / a)
        self.along_y[rows, columns] += fall * v * (1.0 / b)


def _carve(relief: _Relief, face: FaceAttributes, layout: Layout) -> None:
    """Brow ridge, sockets, nose, cheeks, mouth mound, chin: the hills of a face."""
    middle, (nose_x, nose_y) = layout.middle, layout.nose
    wide = 1.0 + 0.26 * face.nose_width
    mouth_y = (layout.mouth[0][1] + layout.mouth[1][1]) * 0.5
    cheek = 14.0 + 8.0 * face.smile
    for sign, (x, y) in zip((-1.0, 1.0), layout.eyes, strict=True):
        relief.raise_hill(x, y - 30.0, 62.0, 26.0, 7.0)
        relief.raise_hill(x - sign * 6.0, y - 2.0, 54.0, 38.0, -15.0)
        relief.raise_hill(x, y + 3.0, 32.0, 22.0, 9.0)
        relief.raise_hill(x, y + 27.0, 34.0, 9.0, -1.2 - 2.2 * face.age)
        relief.raise_hill(middle + sign * 78.0, 318.0 - 8.0 * face.smile, 62.0, 54.0, cheek)
        relief.raise_hill(middle + sign * 122.0, 205.0, 40.0, 70.0, -7.0)
        relief.raise_hill(middle + sign * 98.0, 388.0, 44.0, 60.0, -7.0 + 3.0 * face.jaw)
        relief.raise_hill(nose_x + sign * 19.0 * wide, nose_y + 1.0, 13.0 * wide, 13.0, 7.0)
        relief.raise_hill(
            layout.mouth[0 if sign < 0 else 1][0] + sign * 4.0,
            mouth_y + 2.0,
            21.0,
            20.0,
            -1.8 - 1.4 * face.smile,
        )
    relief.raise_hill((middle + 256.0) * 0.5, 150.0, 110.0, 80.0, 12.0)
    relief.raise_hill(nose_x * 0.6 + 0.4 * 256.0, nose_y - 44.0, 25.0 * wide, 62.0, 13.0)
    relief.raise_hill(nose_x, nose_y - 4.0, 27.0 * wide, 27.0, 15.0)
    relief.raise_hill(nose_x, nose_y + 30.0, 8.0, 16.0, -2.5)
    relief.raise_hill((middle + 2.0 * nose_x) / 3.0, mouth_y + 2.0, 74.0, 52.0, 12.0)
    relief.raise_hill((middle + nose_x) * 0.5, mouth_y + 34.0, 40.0, 14.0, -5.0)
    relief.raise_hill((middle + nose_x) * 0.5, layout.chin - 34.0, 42.0, 34.0, 12.0)


def _lighting(canvas: Canvas, face: FaceAttributes, layout: Layout) -> tuple[Plane, Plane]:
    """Diffuse light in about [0, 1.1] and the gloss of the skin, over the whole picture."""
    full = canvas.full
    relief = _Relief(canvas)
    _carve(relief, face, layout)
    u = (full.x - layout.middle) * (1.0 / (layout.half_width + 6.0))
    v = (full.y - 268.0) * (1.0 / 212.0)
    rim = np.sqrt(np.maximum(1.0 - u * u - v * v, np.float32(0.0)) + 0.06)
    along_x = relief.along_x - 0.95 * u / rim
    along_y = relief.along_y - 0.60 * v / rim
    upright = 1.0 / np.sqrt(1.0 + along_x * along_x + along_y * along_y)
    lx, ly, lz = layout.light
    facing = np.maximum((lz - lx * along_x - ly * along_y) * upright, np.float32(0.0))
    # half-way vector between the lamp and the viewer (0, 0, 1)
    length = sqrt(lx * lx + ly * ly + (lz + 1.0) * (lz + 1.0))
    gloss = np.maximum(((lz + 1.0) - lx * along_x - ly * along_y) * upright * (1.0 / length), np.float32(0.0))
    for _ in range(3):
        gloss = gloss * gloss
    sky = 0.88 + 0.12 * along_y * upright
    return layout.ambient * sky * (0.55 + 0.45 * upright) + (1.20 - layout.ambient) * facing, gloss * gloss


def paint_head(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """The head's skin under its light, cheeks and nose redder, with the soft shadows that the nose casts."""
    full = canvas.full
    diffuse, gloss = _lighting(canvas, face, layout)
    skin = np.empty_like(full.image)
    for channel in range(3):
        skin[channel] = layout.skin[channel]
    layer = Window(full.x, full.y, skin, full.pixel)
    _flush(canvas, layer, face, layout)
    deep = 1.0 - smooth(diffuse, 0.1, 0.75)
    shine = gloss * (0.05 + 0.03 * face.skin_tone)
    for channel in range(3):
        tint = 1.0 - deep * (0.25 * (1.0 - layout.shadow[channel]))
        skin[channel] = (skin[channel] * diffuse * tint + shine) * layout.lamp[channel]
    full.paint(full.cover(face_distance(full, layout)), skin)


def _flush(canvas: Canvas, layer: Window, face: FaceAttributes, layout: Layout) -> None:
    """Redder cheeks, nose and chin; darker lids and under the eyes."""
    rosy = 0.30 + 0.25 * face.makeup + 0.1 * face.smile
    spots = [
        (layout.nose[0], layout.nose[1], 34.0, 30.0, 0.45),
        (layout.middle, layout.chin - 28.0, 44.0, 30.0, 0.2),
    ]
    for sign, (x, y) in zip((-1.0, 1.0), layout.eyes, strict=True):
        spots.append((layout.middle + sign * 84.0, 326.0, 62.0, 52.0, rosy))
        spots.append((x, y + 24.0, 44.0, 20.0, 0.18 + 0.3 * face.age))
    for x, y, a, b, strength in spots:
        rows, columns = canvas.slices(x - a, y - b, x + a, y + b)
        patch = Window(
            layer.x[rows, columns], layer.y[rows, columns], layer.image[:, rows, columns], layer.pixel
        )
        patch.paint(strength * patch.hill(x, y, a, b), layout.blood)


def paint_soft_shadows(canvas: Canvas, layout: Layout) -> None:
    """Shadows that the nose and the lower lip cast away from the lamp."""
    (x, y), (lx, ly, _) = layout.nose, layout.light
    window = canvas.window(x - 60.0, y - 40.0, x + 60.0, y + 50.0)
    window.dim(0.55 * window.hill(x - 34.0 * lx, y + 12.0 - 10.0 * ly, 32.0, 17.0), layout.shadow)
    window.dim(0.35 * abs(lx) * window.hill(x - 34.0 * lx, y - 26.0, 20.0, 54.0), layout.shadow)
    mouth_y = (layout.mouth[0][1] + layout.mouth[1][1]) * 0.5
    middle = (layout.mouth[0][0] + layout.mouth[1][0]) * 0.5
    window = canvas.window(middle - 50.0, mouth_y, middle + 50.0, mouth_y + 60.0)
    window.dim(0.40 * window.hill(middle - 6.0 * lx, mouth_y + 32.0, 38.0, 13.0), layout.shadow)
