"""The long tail on a face: moles, freckles, lines of age, beard, glasses."""

import numpy as np

from diffbfr.synthetic.attributes import FaceAttributes, RandomStream
from diffbfr.synthetic.canvas import Canvas, Plane, Window, clip01, linear, smooth, wave
from diffbfr.synthetic.head import face_distance
from diffbfr.synthetic.layout import Layout

_FRAMES = (
    linear(24, 22, 24),
    linear(92, 58, 34),
    linear(150, 126, 80),
    linear(120, 124, 130),
    linear(120, 30, 40),
)


def paint_moles(canvas: Canvas, face: FaceAttributes, layout: Layout, stream: RandomStream) -> None:
    """Dark round spots on cheeks, chin and forehead, clear of eyes, nose and mouth."""
    for _ in range(face.moles):
        sign = 1.0 if stream.chance(0.5) else -1.0
        place = stream.unit()
        if place < 0.6:
            x, y = layout.middle + sign * stream.span(62.0, 96.0), stream.span(290.0, 360.0)
        elif place < 0.8:
            x, y = layout.middle + sign * stream.span(26.0, 56.0), stream.span(405.0, 430.0)
        else:
            x, y = layout.middle + sign * stream.span(10.0, 70.0), stream.span(158.0, 182.0)
        radius = stream.span(3.6, 5.6)
        window = canvas.window(x - 10.0, y - 10.0, x + 10.0, y + 10.0)
        colour = (layout.skin[0] * 0.20, layout.skin[1] * 0.11, layout.skin[2] * 0.09)
        window.paint(0.88 * window.cover(window.ellipse(x, y, radius, radius * 0.92)), colour)


def paint_freckles(canvas: Canvas, face: FaceAttributes, layout: Layout, stream: RandomStream) -> None:
    """Small warm spots over nose and cheeks."""
    if not face.freckles:
        return
    for _ in range(64):
        across, down = stream.span(-0.85, 0.85), stream.bell()
        x, y = (
            layout.middle + 3.0 * face.yaw + 140.0 * across,
            306.0 + 62.0 * down + 0.0012 * (140.0 * across) * (140.0 * across),
        )
        radius, strength = stream.span(2.0, 3.8), stream.span(0.25, 0.55)
        window = canvas.window(x - 6.0, y - 6.0, x + 6.0, y + 6.0)
        window.dim(strength * window.cover(window.ellipse(x, y, radius, radius)), (0.62, 0.40, 0.30))


def paint_lines(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Folds from the nose to the corners of the mouth, deeper with a smile and with age.

    Forehead lines and crow's feet come late.
    """
    mouth_y = (layout.mouth[0][1] + layout.mouth[1][1]) * 0.5
    fold = 0.16 + 0.32 * face.age * face.age + 0.26 * face.smile
    for sign, corner in zip((-1.0, 1.0), layout.mouth, strict=True):
        start_x, start_y = layout.nose[0] + sign * 30.0, layout.nose[1] - 6.0
        end_x, end_y = corner[0] + sign * 12.0, mouth_y + 8.0
        window = canvas.window(
            min(start_x, end_x) - 24.0, start_y - 8.0, max(start_x, end_x) + 24.0, end_y + 8.0
        )
        t = (window.y - start_y) * (1.0 / (end_y - start_y))
        path = start_x + (end_x - start_x) * t + sign * 13.0 * face.smile * 4.0 * t * (1.0 - t)
        ends = smooth(t, 0.0, 0.3) * smooth(t, 1.05, 0.7)
        window.dim(fold * ends * smooth(np.abs(window.x - path), 7.0, 0.0), layout.shadow)
        window.dim(0.6 * fold * ends * window.stroke((window.x - path) * 0.85, 1.0), (0.45, 0.34, 0.30))
    if face.age < 0.6:
        return
    depth = (face.age - 0.6) * 1.3
    window = canvas.window(layout.middle - 90.0, 130.0, layout.middle + 90.0, 200.0)
    x = window.x - layout.middle
    for level in (152.0, 168.0, 184.0):
        line = window.stroke(window.y - level + 0.0011 * x * x + 1.5 * wave(x * 0.011 + level * 0.013), 1.3)
        window.dim(depth * line * smooth(np.abs(x), 82.0, 40.0), (0.50, 0.40, 0.36))
    for sign, (eye_x, eye_y) in zip((-1.0, 1.0), layout.eyes, strict=True):
        window = canvas.window(eye_x - 70.0, eye_y - 24.0, eye_x + 70.0, eye_y + 34.0)
        u = (window.x - eye_x) * sign
        reach = smooth(u, 36.0, 44.0) * smooth(u, 62.0, 50.0)
        for slope in (-0.35, 0.10, 0.55):
            window.dim(
                0.8 * depth * reach * window.stroke(window.y - eye_y - 2.0 - slope * (u - 28.0), 0.9),
                (0.50, 0.40, 0.36),
            )
        bag = window.stroke(window.y - eye_y - 24.0 + 0.006 * u * u, 1.3) * smooth(np.abs(u), 34.0, 14.0)
        window.dim(0.9 * depth * bag, (0.50, 0.40, 0.36))


def paint_beard(canvas: Canvas, face: FaceAttributes, layout: Layout) -> None:
    """Stubble, a moustache or a full beard that leaves the lips free."""
    if face.beard == "none":
        return
    window = canvas.window(layout.middle - 175.0, 250.0, layout.middle + 175.0, 500.0)
    (left, left_y), (right, right_y) = layout.mouth
    x, y, half = (left + right) * 0.5, (left_y + right_y) * 0.5, (right - left) * 0.5
    u = (window.x - x) * (1.0 / half)
    upper = _moustache(window, layout, (x, y, half))
    away = np.abs(window.x - layout.middle)
    cheek = np.maximum(away - 44.0, np.float32(0.0))
    border = y + 4.0 - 0.0092 * cheek * cheek
    jaw = np.maximum(
        border - window.y,
        -window.ellipse(x, y + 11.0 + 6.0 * face.smile, 1.04 * half, 22.0 + 5.0 * face.smile),
    )
    face_edge = face_distance(window, layout, 5.0 if face.beard == "full" else 1.0)
    strands = 0.6 * wave(u * 2.7 + 0.2 * wave(window.y * 0.02)) + 0.3 * wave(u * 4.9 + window.y * 0.012)
    if face.beard == "moustache":
        area, strength, soft = upper, 0.88, 2.5
    else:
        area = np.maximum(np.minimum(upper, jaw), face_edge)
        strength, soft = (0.90, 5.0) if face.beard == "full" else (0.34, 12.0)
    area = area + 1.6 * strands * (face.beard != "stubble")
    lit = layout.ambient * 0.9 + (1.0 - layout.ambient) * clip01(
        0.45 + 0.55 * layout.light[0] * (window.x - layout.middle) * (1.0 / layout.half_width)
    )
    tone = (0.85 + 0.30 * strands) * (0.35 + 0.75 * lit)
    window.paint(strength * smooth(area, soft, -soft), np.stack([tone * channel for channel in layout.beard]))


def _moustache(window: Window, layout: Layout, mouth: tuple[float, float, float]) -> Plane:
    """Signed distance (negative inside) to the band between nose and upper lip."""
    x, y, half = mouth
    u = (window.x - x) * (1.0 / half)
    top = layout.nose[1] + 21.0 + 20.0 * u * u
    bottom = y - 8.0 + 15.0 * u * u
    band: Plane = np.maximum(np.maximum(top - window.y, window.y - bottom), (np.abs(u) - 1.16) * half)
    return band


def paint_glasses(canvas: Canvas, face: FaceAttributes, layout: Layout, stream: RandomStream) -> None:
    """Spectacles: two rims, bridge and temples, a shadow on the cheeks and a faint reflection."""
    if not face.glasses:
        return
    frame, thick = _FRAMES[int(stream.unit() * len(_FRAMES))], stream.span(2.0, 4.2)
    square, wide, high = stream.unit(), stream.span(50.0, 55.0), stream.span(35.0, 43.0)
    window = canvas.window(layout.middle - 190.0, 170.0, layout.middle + 190.0, 320.0)
    rims: list[Plane] = []
    for x, y in layout.eyes:
        u, v = (window.x - x) * (1.0 / wide), (window.y - y - 7.0) * (1.0 / high)
        u2, v2 = u * u, v * v
        level = (1.0 - square) * (u2 + v2) + square * (u2 * u2 + v2 * v2) - 1.0
        along_x = u * (2.0 * (1.0 - square) + 4.0 * square * u2) * (1.0 / wide)
        along_y = v * (2.0 * (1.0 - square) + 4.0 * square * v2) * (1.0 / high)
        rims.append(level / (np.sqrt(along_x * along_x + along_y * along_y) + 2e-3))
    bridge_y = (layout.eyes[0][1] + layout.eyes[1][1]) * 0.5 - 4.0
    between = np.maximum(layout.eyes[0][0] + wide - window.x, window.x - layout.eyes[1][0] + wide)
    offset = window.x - (layout.eyes[0][0] + layout.eyes[1][0]) * 0.5
    bridge = window.stroke(window.y - bridge_y - 0.03 * offset * offset, thick) * window.cover(between)
    outside = np.maximum(layout.eyes[0][0] - wide - window.x, window.x - layout.eyes[1][0] - wide) * -1.0
    temples = (
        window.stroke(window.y - bridge_y + 4.0, thick)
        * window.cover(outside)
        * window.cover(face_distance(window, layout, 4.0))
    )
    rim = np.maximum(window.stroke(rims[0], thick), window.stroke(rims[1], thick))
    lens = np.maximum(window.cover(rims[0]), window.cover(rims[1]))
    nearest = np.minimum(rims[0], rims[1])
    window.dim(
        0.30 * smooth(np.abs(nearest - 6.0), 9.0, 0.0) * smooth(window.y, 225.0, 285.0) * (nearest > 0),
        layout.shadow,
    )
    glare = smooth(np.abs(window.x + 0.8 * window.y - 0.8 * 230.0 - layout.eyes[0][0] + 12.0), 13.0, 7.0)
    glare = np.maximum(
        glare, smooth(np.abs(window.x + 0.8 * window.y - 0.8 * 230.0 - layout.eyes[1][0] + 12.0), 13.0, 7.0)
    )
    window.glow(0.030 * lens, (0.9, 1.0, 1.05))
    window.glow(0.10 * lens * glare, (0.95, 1.0, 1.05))
    ink = np.maximum(np.maximum(rim, bridge), temples)
    top_light = 0.8 + 0.5 * smooth(window.y, bridge_y + 10.0, bridge_y - 30.0)
    window.paint(0.96 * ink, np.stack([top_light * channel for channel in frame]))
