"""Attributes of a procedural face, drawn from its seed before anything is painted.

Every number comes from raw Philox words and plain float arithmetic, so a seed gives the same attributes on
every machine and with every NumPy. Lengths are in pixels of the 512 px FFHQ frame; unitless traits lie in [0,
1] or about [-1, 1], as their comments say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from diffbfr.errors import UsageError

Point = tuple[float, float]

FFHQ_LANDMARKS: tuple[Point, ...] = (
    (192.98, 239.95),
    (318.90, 240.19),
    (256.63, 314.02),
    (201.26, 371.41),
    (313.09, 371.15),
)
"""Left eye, right eye, nose tip, left and right mouth corner as seen in the image; 512 px frame."""

ATTRIBUTE_RATES: Mapping[str, float] = MappingProxyType(
    {
        "moles": 0.25,  # at least one
        "freckles": 0.12,
        "glasses": 0.18,
        "fringe": 0.20,
        "gray": 0.06,
        "teeth": 0.35,
        "beard": 0.20,  # other than "none"
        "earrings": 0.10,
    }
)
"""Probability of each long-tail attribute, independent of the others unless `draw_attributes` says so."""

HAIR_STYLES = ("bald", "buzz", "short", "side_part", "curly", "bob", "long", "wavy", "bun")
HAIR_COLOURS = ("black", "dark_brown", "brown", "auburn", "red", "dark_blond", "blond", "silver", "dyed")
EYE_COLOURS = ("dark_brown", "brown", "hazel", "green", "blue", "grey")
BACKDROPS = ("plain", "gradient", "blobs", "window")
GARMENTS = ("crew", "vneck", "collar", "jacket")

_ATTRIBUTE_STREAM = 1
_DETAIL_STREAM = 2


@dataclass(frozen=True)
class FaceAttributes:
    """One face as names and numbers; `dataclasses.asdict` gives simple types only."""

    seed: int
    # long tail, rates in ATTRIBUTE_RATES
    moles: int
    freckles: bool
    glasses: bool
    fringe: bool
    gray: bool
    teeth: bool
    beard: str  # none, stubble, moustache, full
    earrings: bool
    # colours
    skin_tone: float  # 0 light .. 1 dark
    undertone: float  # -1 cool .. 1 warm
    hair_style: str
    hair_colour: str
    eye_colour: str
    makeup: float  # 0 none .. 1 strong lips and lashes
    age: float  # 0 young .. 1 old
    # shape, each -1 .. 1 around the mean
    face_width: float
    jaw: float
    eye_size: float
    eye_tilt: float
    brow_weight: float
    brow_arch: float
    nose_width: float
    lip_fullness: float
    smile: float  # 0 .. 1
    gaze: float
    part: float
    accent: float  # 0 .. 1, picks dye, lipstick and metal
    # pose: similarity around the frame's centre, and a turn of the head
    yaw: float  # -1 .. 1
    roll: float  # tangent of half the angle
    scale: float
    shift: Point
    # light: direction towards the lamp (unit vector's x and y) and how much of it is direct
    light: Point
    contrast: float  # 0 flat .. 1 hard
    warmth: float  # -1 .. 1
    # surroundings
    backdrop: str
    garment: str
    landmarks: tuple[Point, ...]  # five points as in FFHQ_LANDMARKS


class RandomStream:
    """Numbers from one Philox stream, mapped by shifts and exact products only."""

    def __init__(self, seed: int, stream: int) -> None:
        self._source = np.random.Philox(key=(stream << 64) | seed)
        self._block: list[int] = []

    def unit(self) -> float:
        """One number in [0, 1), a multiple of 2**-53."""
        if not self._block:
            self._block = self._source.random_raw(64).tolist()[::-1]
        return (self._block.pop() >> 11) * 2.0**-53

    def span(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def bell(self) -> float:
        """Bell-shaped in (-1, 1), standard deviation 1/3: the mean of three uniforms."""
        return (self.unit() + self.unit() + self.unit()) * (2.0 / 3.0) - 1.0

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def choice(self, names: Sequence[str], weights: Sequence[float]) -> str:
        """One of `names`, in proportion to `weights`."""
        total = 0.0
        for weight in weights:
            total += weight
        level = self.unit() * total
        for name, weight in zip(names, weights, strict=True):
            level -= weight
            if level < 0.0:
                return name
        return names[-1]


def check_seed(seed: int) -> int:
    """Return the seed, or raise UsageError when it is not an integer in [0, 2**64)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
        raise UsageError(
            f"face seed is {seed!r}; expected an integer from 0 to 2**64 - 1; choose another seed"
        )
    return int(seed)


def detail_stream(seed: int) -> RandomStream:
    """The random stream for details that no attribute names, such as where moles and hair strands lie."""
    return RandomStream(seed, _DETAIL_STREAM)


def draw_attributes(seed: int) -> FaceAttributes:
    """Draw the attributes of face `seed`; cheap, nothing is rendered."""
    stream = RandomStream(check_seed(seed), _ATTRIBUTE_STREAM)
    rate = ATTRIBUTE_RATES
    moles = 1 + int(stream.unit() * stream.unit() * 5.0) if stream.chance(rate["moles"]) else 0
    flags = {
        name: stream.chance(rate[name])
        for name in ("freckles", "glasses", "fringe", "gray", "teeth", "earrings")
    }
    beard = (
        stream.choice(("stubble", "moustache", "full"), (0.4, 0.2, 0.4))
        if stream.chance(rate["beard"])
        else "none"
    )
    age = stream.unit()
    skin_tone = stream.unit()
    skin_tone = skin_tone * (0.6 + 0.4 * skin_tone)
    smile = stream.span(0.45, 1.0) if flags["teeth"] else stream.span(0.0, 0.75)
    yaw, roll = stream.bell(), stream.bell() * 0.02
    scale = 1.0 + 0.03 * stream.bell()
    shift = (5.0 * stream.bell(), 5.0 * stream.bell())
    light = (stream.span(-0.72, 0.72), stream.span(-0.62, -0.12))
    makeup = 0.0 if beard != "none" else max(0.0, stream.span(-0.7, 1.0))
    return FaceAttributes(
        seed=int(seed),
        moles=moles,
        freckles=flags["freckles"],
        glasses=flags["glasses"],
        fringe=flags["fringe"],
        gray=flags["gray"],
        teeth=flags["teeth"],
        beard=beard,
        earrings=flags["earrings"],
        skin_tone=skin_tone,
        undertone=stream.bell(),
        hair_style=_hair_style(stream, flags["fringe"], beard != "none"),
        hair_colour=_hair_colour(stream, skin_tone, age),
        eye_colour=stream.choice(
            EYE_COLOURS,
            (0.3, 0.3, 0.1, 0.1, 0.15, 0.1) if skin_tone < 0.55 else (0.7, 0.25, 0.05, 0.0, 0.0, 0.0),
        ),
        makeup=makeup,
        age=age,
        face_width=stream.bell(),
        jaw=stream.bell(),
        eye_size=stream.bell(),
        eye_tilt=stream.bell(),
        brow_weight=stream.bell(),
        brow_arch=stream.bell(),
        nose_width=stream.bell() + 0.5 * (skin_tone - 0.5),
        lip_fullness=stream.bell() + 0.6 * (skin_tone - 0.5) + 0.2 * makeup,
        smile=smile,
        gaze=stream.bell(),
        part=stream.bell(),
        yaw=yaw,
        roll=roll,
        scale=scale,
        shift=shift,
        light=light,
        contrast=stream.unit(),
        warmth=stream.bell(),
        backdrop=stream.choice(BACKDROPS, (0.15, 0.35, 0.35, 0.15)),
        garment=stream.choice(GARMENTS, (0.35, 0.25, 0.2, 0.2)),
        landmarks=_landmarks(stream, yaw, roll, scale, shift),
        accent=stream.unit(),
    )


def to_frame(point: Point, roll: float, scale: float, shift: Point) -> Point:
    """Map a point of the upright face to the 512 px image.

    `roll` is the tangent of half the angle, so no sine is needed.
    """
    cosine, sine = (1.0 - roll * roll) / (1.0 + roll * roll), 2.0 * roll / (1.0 + roll * roll)
    x, y = point[0] - 256.0, point[1] - 306.0
    return (
        256.0 + shift[0] + scale * (cosine * x - sine * y),
        306.0 + shift[1] + scale * (sine * x + cosine * y),
    )


def from_frame(point: Point, roll: float, scale: float, shift: Point) -> Point:
    """Undo `to_frame`."""
    cosine, sine = (1.0 - roll * roll) / (1.0 + roll * roll), 2.0 * roll / (1.0 + roll * roll)
    x, y = (point[0] - 256.0 - shift[0]) / scale, (point[1] - 306.0 - shift[1]) / scale
    return (256.0 + cosine * x + sine * y, 306.0 - sine * x + cosine * y)


def _landmarks(
    stream: RandomStream, yaw: float, roll: float, scale: float, shift: Point
) -> tuple[Point, ...]:
    """The five landmarks: the mean FFHQ ones with individual proportions, turn of the head, and pose."""
    eyes, nose, wide, high = (
        3.0 * stream.bell(),
        5.0 * stream.bell(),
        6.0 * stream.bell(),
        4.0 * stream.bell(),
    )
    left_eye, right_eye, tip, left_mouth, right_mouth = FFHQ_LANDMARKS
    upright = (
        (left_eye[0] - eyes, left_eye[1]),
        (right_eye[0] + eyes, right_eye[1]),
        (tip[0] + 13.0 * yaw, tip[1] + nose),
        (left_mouth[0] - wide + 2.0 * yaw, left_mouth[1] + high),
        (right_mouth[0] + wide + 2.0 * yaw, right_mouth[1] + high),
    )
    return tuple(to_frame(point, roll, scale, shift) for point in upright)


def _hair_style(stream: RandomStream, fringe: bool, bearded: bool) -> str:
    """A style that fits the fringe, if there is one; beards go with short hair more often."""
    if fringe:
        return stream.choice(
            ("short", "curly", "bob", "long", "wavy", "bun"), (0.2, 0.1, 0.25, 0.2, 0.15, 0.1)
        )
    if bearded:
        return stream.choice(HAIR_STYLES, (0.15, 0.2, 0.25, 0.2, 0.1, 0.0, 0.05, 0.05, 0.0))
    return stream.choice(HAIR_STYLES, (0.04, 0.08, 0.17, 0.17, 0.12, 0.12, 0.13, 0.12, 0.05))


def _hair_colour(stream: RandomStream, skin_tone: float, age: float) -> str:
    """A natural colour for the skin tone, silver with age, sometimes dyed."""
    silver = 0.9 * max(0.0, age - 0.72) / 0.28
    light = (0.12, 0.2, 0.2, 0.1, 0.06, 0.14, 0.14, silver, 0.03)
    dark = (0.65, 0.25, 0.06, 0.01, 0.0, 0.0, 0.01, silver, 0.02)
    return stream.choice(HAIR_COLOURS, light if skin_tone < 0.55 else dark)
