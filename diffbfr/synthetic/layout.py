"""Where the parts of one face sit and what colours they have, worked out once from its attributes."""

from dataclasses import dataclass
from math import sqrt

from diffbfr.synthetic.attributes import FaceAttributes, Point, from_frame
from diffbfr.synthetic.canvas import Colour, linear, mix, scaled

_SKIN = (
    linear(244, 214, 198),
    linear(238, 198, 174),
    linear(226, 178, 146),
    linear(200, 147, 110),
    linear(160, 108, 76),
    linear(118, 78, 55),
    linear(82, 54, 40),
)
_HAIR = {
    "black": linear(34, 29, 29),
    "dark_brown": linear(58, 41, 32),
    "brown": linear(94, 64, 44),
    "auburn": linear(112, 58, 38),
    "red": linear(158, 80, 42),
    "dark_blond": linear(142, 110, 72),
    "blond": linear(202, 168, 112),
    "silver": linear(186, 184, 182),
}
_DYES = (linear(150, 60, 110), linear(60, 90, 150), linear(60, 130, 120), linear(180, 60, 60))
_IRIS = {
    "dark_brown": linear(58, 36, 24),
    "brown": linear(104, 64, 36),
    "hazel": linear(130, 100, 52),
    "green": linear(98, 126, 84),
    "blue": linear(92, 138, 182),
    "grey": linear(134, 148, 156),
}


@dataclass(frozen=True)
class Layout:
    """Upright face coordinates (512 px frame) and linear colours."""

    eyes: tuple[Point, Point]
    nose: Point
    mouth: tuple[Point, Point]
    middle: float  # x of the head's centre line
    half_width: float  # of the head at the cheekbones
    top: float  # of the skull
    chin: float
    taper: float  # how much narrower the jaw is
    square: float  # 0 round .. 1 square jaw
    light: tuple[float, float, float]  # unit vector towards the lamp
    ambient: float
    lamp: Colour  # white point of the light
    skin: Colour
    shadow: Colour  # multiplies skin in soft shadow
    blood: Colour  # redder skin: cheeks, nose tip, ears
    lips: Colour
    hair: Colour
    brows: Colour
    beard: Colour
    iris: Colour


def lay_out(face: FaceAttributes) -> Layout:
    """Turn attributes into places and colours."""
    points = [from_frame(point, face.roll, face.scale, face.shift) for point in face.landmarks]
    tone = face.skin_tone * (len(_SKIN) - 1.001)
    step = int(tone)
    skin = mix(_SKIN[step], _SKIN[step + 1], tone - step)
    skin = (skin[0] * (1.0 + 0.03 * face.undertone), skin[1], skin[2] * (1.0 - 0.10 * face.undertone))
    blood = (skin[0] * 0.98, skin[1] * 0.72, skin[2] * 0.70)
    dye = _DYES[int(face.accent * len(_DYES))]
    natural = _HAIR["dark_brown" if face.hair_colour == "dyed" else face.hair_colour]
    hair = dye if face.hair_colour == "dyed" else natural
    bare = mix(skin, (skin[0] * 0.80, skin[1] * 0.42, skin[2] * 0.44), 0.85)
    lipstick = (linear(176, 44, 58), linear(196, 84, 92), linear(140, 40, 70))[int(face.accent * 3.0)]
    side, up = face.light
    return Layout(
        eyes=(points[0], points[1]),
        nose=points[2],
        mouth=(points[3], points[4]),
        middle=256.0 - 12.0 * face.yaw,
        half_width=140.0 + 15.0 * face.face_width,
        top=76.0,
        chin=468.0 + 12.0 * face.jaw,
        taper=0.22 - 0.13 * face.jaw,
        square=0.30 + 0.28 * face.jaw,
        light=(side, up, sqrt(max(0.1, 1.0 - side * side - up * up))),
        ambient=0.60 - 0.38 * face.contrast,
        lamp=(1.0 + 0.06 * face.warmth, 1.0, 1.0 - 0.10 * face.warmth),
        skin=skin,
        shadow=(0.62, 0.50, 0.46),
        blood=blood,
        lips=mix(bare, lipstick, 0.65 * face.makeup),
        hair=hair,
        brows=mix(scaled(natural, 0.55), _HAIR["dark_brown"], 0.45),
        beard=mix(scaled(natural, 0.85), _HAIR["dark_brown"], 0.2),
        iris=_IRIS[face.eye_colour],
    )
