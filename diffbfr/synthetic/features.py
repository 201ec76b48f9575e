"""Eyes, brows, nose and mouth: the sharp parts of a face."""

import numpy as np

from diffbfr.synthetic.attributes import FaceAttributes
from diffbfr.synthetic.canvas import Canvas, Plane, Window, clip01, linear, mix, scaled, smooth, wave
from diffbfr.synthetic.layout import Layout


def paint_eyes(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Both eyes with their brows."""
    for sign, (x, y) in zip((-1.0, 1.0), layout.eyes, strict=True):
        half = (32.0 + 5.0 * face.eye_size) * (1.0 - 0.07 * sign * face.yaw)
        window = canvas.window(x - 56.0, y - 40.0, x + 56.0, y + 36.0)
        _paint_eye(window, face, layout, (x, y, half, sign))
        _paint_brow(canvas.window(x - 64.0, y - 80.0, x + 64.0, y - 10.0), face, layout, (x, y, half, sign))


def _lids(
    window: Window, face: FaceAttributes, eye: tuple[float, float, float, float]
) -> tuple[Plane, Plane, Plane, Plane]:
    """Eye coordinates and the heights of both lids.

    The coordinates are u (-1 inner corner .. 1 outer corner) and v, in half widths.
    """
    x, y, half, sign = eye
    u = (window.x - x) * (sign / half)
    v = (window.y - y) * (1.0 / half) + (0.06 + 0.12 * face.eye_tilt) * u
    arch = 1.0 - u * u
    upper = (
        -(0.44 + 0.08 * face.eye_size - 0.07 * face.smile - 0.05 * face.age)
        * arch
        * (1.0 + 0.10 * u - 0.25 * u * u * arch)
    )
    lower = (0.27 - 0.06 * face.smile) * arch * (1.0 + 0.18 * u)
    return u, v, upper, lower


def _paint_eye(
    window: Window, face: FaceAttributes, layout: Layout, eye: tuple[float, float, float, float]
) -> None:
    x, y, half, _ = eye
    u, v, upper, lower = _lids(window, face, eye)
    slope = half / np.sqrt(1.0 + 0.7 * u * u)
    inside = np.maximum(np.maximum(upper - v, v - lower) * slope, (np.abs(u) - 1.0) * half)
    opening = window.cover(inside)
    dark = scaled(layout.skin, 0.16)
    crease = window.stroke((v - upper * 1.15 + 0.15) * slope, 1.3 + 0.6 * clip01(u)) * smooth(
        np.abs(u), 1.15, 0.7
    )
    window.dim(
        0.22 * smooth(v - upper, -0.50, -0.05) * smooth(np.abs(u), 1.25, 0.6) * (v < upper), layout.shadow
    )
    window.paint(0.55 * crease, dark)

    shade = 0.74 + 0.26 * smooth(v - upper, 0.02, 0.36)
    white = (shade * (1.0 - 0.32 * u * u)) * (0.55 + 0.45 * layout.ambient + 0.10)
    ball = np.stack([white * 0.86, white * 0.82, white * 0.80])
    eyeball = Window(window.x, window.y, ball, window.pixel)
    eyeball.paint(0.8 * smooth(u, -0.78, -0.98), linear(196, 120, 110))
    ix, iy, radius = x + 4.0 * face.gaze, y - 0.055 * half, 14.2 + 0.8 * face.eye_size
    _paint_iris(eyeball, layout, (ix, iy, radius))
    eyeball.dim(0.55 * smooth(v - upper, 0.20, 0.02), (0.30, 0.28, 0.28))
    spot_x, spot_y = ix + 0.42 * radius * (1.0 if layout.light[0] > 0 else -1.0), iy - 0.40 * radius
    eyeball.paint(
        eyeball.cover(eyeball.ellipse(spot_x, spot_y, 0.24 * radius, 0.26 * radius)), (0.97, 0.98, 1.0)
    )
    window.paint(opening, ball)

    outer = clip01(0.5 + 0.5 * u)
    lash = linear(28, 20, 18)
    reach = smooth(np.abs(u), 1.10, 0.95)
    weight = 1.2 + 1.6 * outer * (1.0 + 0.8 * face.makeup)
    window.paint((0.86 + 0.14 * face.makeup) * reach * window.stroke((v - upper) * slope, weight), lash)
    window.paint(
        (0.40 + 0.35 * face.makeup) * reach * outer * window.stroke((v - lower) * slope, 1.1),
        mix(dark, lash, 0.5),
    )
    if face.makeup > 0.25:
        flick = (
            window.stroke((v + 0.42 * (u - 0.86)) * half * 0.92, 2.6 * smooth(u, 1.28, 0.9))
            * smooth(u, 0.86, 0.95)
            * smooth(u, 1.3, 1.2)
        )
        window.paint(0.9 * flick, lash)
    rim = window.stroke((v - lower - 0.06) * slope, 1.2) * reach
    window.glow(0.10 * rim, layout.skin)


def _paint_iris(ball: Window, layout: Layout, iris: tuple[float, float, float]) -> None:
    """Iris with a bright lower crescent, a dark limbal ring, the pupil."""
    x, y, radius = iris
    distance = ball.ellipse(x, y, radius, radius)
    depth = clip01(-distance * (1.0 / radius))
    dx, dy = (ball.x - x) * (1.0 / radius), (ball.y - y) * (1.0 / radius)
    lit = (
        0.55
        + 0.55 * clip01(0.5 + 0.5 * dy - 0.35 * dx * layout.light[0])
        + 0.35 * smooth(depth, 0.2, 0.55) * clip01(dy + 0.3)
    )
    limbal = 0.35 + 0.65 * smooth(depth, 0.0, 0.22)
    colour = np.stack([lit * limbal * channel * 1.15 for channel in layout.iris])
    ball.paint(ball.cover(distance), colour)
    ball.paint(ball.cover(ball.ellipse(x, y, 0.43 * radius, 0.43 * radius)), (0.006, 0.005, 0.005))


def _paint_brow(
    window: Window, face: FaceAttributes, layout: Layout, eye: tuple[float, float, float, float]
) -> None:
    """A brow: thick inside, tapered outside, with a few slanted hairs along its edge."""
    x, y, half, sign = eye
    u = (window.x - x) * (sign / half)
    arch = 0.17 + 0.16 * face.brow_arch
    bend = np.where(u < 0.35, np.float32(0.55), np.float32(1.0)) * (u - 0.35) * (u - 0.35)
    height = (
        -1.02 - 0.10 * face.brow_arch - 0.06 * face.smile - arch * (1.0 - bend) - 0.05 * face.eye_tilt * u
    )
    v = (window.y - y) * (1.0 / half)
    thick = (0.125 + 0.08 * face.brow_weight - 0.02 * face.makeup) * half
    taper = smooth(u, 1.42, 0.25) * (0.70 + 0.30 * smooth(u, -1.25, -0.7))
    hairs = wave(u * 5.5 + v * 2.6)
    away = np.abs(v - height) * half
    body = (
        smooth(away - thick * taper * (1.0 + 0.10 * hairs), 1.6, -1.6)
        * smooth(u, -1.22, -0.98)
        * smooth(u, 1.44, 1.25)
    )
    tone = np.stack([(1.0 + 0.22 * hairs) * channel for channel in layout.brows])
    window.paint((0.80 + 0.12 * face.brow_weight) * body, tone)


def paint_nose(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Nostrils and wings; the ridge and tip come from the relief."""
    x, y = layout.nose
    wide = 1.0 + 0.26 * face.nose_width
    window = canvas.window(x - 46.0, y - 30.0, x + 46.0, y + 30.0)
    dark = (layout.skin[0] * 0.10, layout.skin[1] * 0.055, layout.skin[2] * 0.05)
    window.dim(0.45 * window.hill(x, y + 12.0, 32.0 * wide, 10.0), layout.shadow)
    for sign in (-1.0, 1.0):
        nostril = window.ellipse(x + sign * 12.5 * wide, y + 8.5, 7.2 * wide, 3.3)
        tilt = 0.22 * (window.x - x - sign * 12.5 * wide) * sign
        window.paint(0.9 * smooth(nostril + tilt * 0.6, 1.2, -1.2), dark)
        wing = window.stroke(window.ellipse(x + sign * 18.0 * wide, y + 1.0, 12.5 * wide, 12.0), 1.5)
        outer = smooth((window.x - x) * sign, 19.0 * wide, 27.0 * wide) * smooth(window.y, y - 12.0, y - 2.0)
        window.dim(0.75 * wing * outer, (0.42, 0.30, 0.27))
    window.glow(
        (0.05 + 0.05 * face.contrast) * window.hill(x + 5.0 * layout.light[0], y - 10.0, 9.0, 8.0),
        layout.lamp,
    )


def paint_mouth(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Lips with volume; closed, or open over a row of teeth."""
    (left, left_y), (right, right_y) = layout.mouth
    x, y, half = (left + right) * 0.5, (left_y + right_y) * 0.5, (right - left) * 0.5
    window = canvas.window(left - 24.0, y - 30.0, right + 24.0, y + 52.0)
    u = (window.x - x) * (1.0 / half)
    v = window.y - y
    arch = np.maximum(1.0 - u * u, np.float32(0.0))
    sag = (3.0 + 13.0 * face.smile) * arch
    full = 1.0 + 0.42 * face.lip_fullness
    bow = 1.0 - 0.30 * np.maximum(1.0 - 14.0 * u * u, np.float32(0.0)) - 0.12 * u * u
    gap = (9.0 + 8.0 * face.smile) * arch if face.teeth else np.zeros_like(u)
    inner_top = sag - 0.35 * gap
    inner_bottom = sag + 0.65 * gap
    thin = 1.0 - 0.25 * face.smile
    top = inner_top - 11.5 * full * thin * arch * bow
    bottom = inner_bottom + 15.0 * full * thin * arch * (0.55 + 0.45 * arch)
    within = smooth(np.abs(u), 1.03, 0.97)
    upper_lip = window.cover(np.maximum(top - v, v - inner_top - 0.5)) * within
    lower_lip = window.cover(np.maximum(inner_bottom - 0.5 - v, v - bottom)) * within

    light = layout.ambient + (1.0 - layout.ambient) * (0.72 + 0.35 * layout.light[0] * u)
    rise = clip01((v - inner_bottom) / (bottom - inner_bottom + 1e-3))
    lower = light * (0.80 + 0.35 * (4.0 * rise * (1.0 - rise)))
    upper = light * (0.66 + 0.14 * clip01((inner_top - v) * 0.1))
    window.paint(0.92 * upper_lip, np.stack([upper * channel for channel in layout.lips]))
    window.paint(0.92 * lower_lip, np.stack([lower * channel for channel in layout.lips]))
    lower_edge = 3.0 + 13.0 * face.smile + (0.65 * (9.0 + 8.0 * face.smile) if face.teeth else 0.0)
    gloss = (0.10 + 0.16 * face.makeup) * window.hill(
        x + 16.0 * layout.light[0], y + lower_edge + 7.0, 22.0, 4.5
    )
    window.glow(gloss * lower_lip, layout.lamp)
    if face.teeth:
        _paint_teeth(window, (u, v, inner_top, inner_bottom), within, light)
    line = linear(70, 28, 26)
    closed = 0.80 if not face.teeth else 0.55
    window.paint(
        closed * within * window.stroke(v - inner_top, 1.5), mix(scaled(layout.lips, 0.15), line, 0.3)
    )
    for corner in (left, right):
        window.dim(0.6 * window.hill(corner, y, 8.0, 6.0), (0.35, 0.24, 0.22))


def _paint_teeth(
    window: Window, mouth: tuple[Plane, Plane, Plane, Plane], within: Plane, light: Plane
) -> None:
    """The open mouth: dark inside, upper teeth in front with thin gaps, less light towards the corners."""
    u, v, inner_top, inner_bottom = mouth
    hole = window.cover(np.maximum(inner_top - v, v - inner_bottom)) * within
    window.paint(hole, linear(64, 22, 22))
    depth = (v - inner_top) / (inner_bottom - inner_top + 1e-3)
    teeth = hole * smooth(depth, 0.92, 0.78)
    gaps = 1.0 - 0.16 * smooth(np.abs(wave(u * 2.9)), 0.35, 0.0)
    tone = light * gaps * (1.0 - 0.55 * u * u) * (0.75 + 0.25 * smooth(depth, 0.0, 0.25))
    window.paint(teeth, np.stack([tone * 0.90, tone * 0.86, tone * 0.79]))
