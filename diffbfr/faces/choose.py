"""Choose which faces of a photo are restored; a stated policy, and a reason for each face.

What is asked of a face is asked of its five points, its score and the pixels of its frame. The rules are
tried in the order of `Reason`; the first that a face breaks is its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.align import FRAME_PX, Frame, Photo, align, fit_frame
from diffbfr.faces.detail import LEAST_DETAIL, edges, octaves
from diffbfr.faces.detect import Face

Reason: TypeAlias = Literal[
    "too_small",
    "larger_than_model",
    "cut_off",
    "turned_away",
    "covered",
    "already_sharp",
    "not_center",
    "not_largest",
    "chosen",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Every verdict; tables store them, so none is ever renamed."""

SIZE_SLACK: Final = 1.1
"""The frame may be larger than the model's picture by this: points are placed to a few percent."""
MOST_TURN: Final = 10.0
SECOND_OCTAVE: Final = 0.7
"""Share of the second octave in the third of a sharp photo."""
CONTRAST_PX: Final = 64
FEATURES: Final = (
    (slice(27, 34), slice(20, 29)),
    (slice(27, 34), slice(35, 44)),
    (slice(43, 50), slice(26, 39)),
)
"""Rows and columns of the two eyes and the mouth in a frame of 64 px."""


@dataclass(frozen=True)
class ChoicePolicy:
    """Which faces are restored.

    `model_px` is the side of the model's picture. A face whose eyes are closer than `min_eyes_px` is left
    alone, and one whose frame has more pixels than the model's picture, unless `any_size`. `min_inside` is
    the share of the box that must lie in the photo, `max_turn` how far the nose may be from the middle
    between the eyes, in eye distances, `min_contrast` the contrast of the eyes and the mouth
    (`least_contrast`) below which one of them is covered, and `max_detail` the share of fine detail
    (`fine_detail`) above which a face is sharp already: at the size of the model's picture, so one that is
    enlarged by more than 1.1 never is.
    """

    model_px: int
    min_eyes_px: float = 8.0
    any_size: bool = False
    min_inside: float = 0.6
    max_turn: float = 0.55
    min_contrast: float = 0.2
    max_detail: float = 0.85
    only_center: bool = False
    only_largest: bool = False

    def __post_init__(self) -> None:
        if self.only_center and self.only_largest:
            raise UsageError(
                "only the face at the centre and only the largest face were asked for; choose one"
            )
        if not self.min_eyes_px > 0:
            raise UsageError(
                f"the smallest face is {self.min_eyes_px} px between the eyes; expected more than 0"
            )


@dataclass(frozen=True)
class Verdict:
    """Whether a face is restored and why not, with what was measured; None where it was not."""

    face: Face
    reason: Reason
    eyes_px: float
    turn: float
    contrast: float | None
    detail: float | None

    @property
    def is_chosen(self) -> bool:
        """Whether the face is restored."""
        return self.reason == "chosen"


def choose(photo: Photo, faces: Sequence[Face], policy: ChoicePolicy) -> list[Verdict]:
    """A verdict for each face of a photo, in the order given.

    `only_center` and `only_largest` choose among the faces that pass the other rules.
    """
    height, width = photo.shape[:2]
    verdicts = [_judge(photo, face, policy) for face in faces]
    passed = [verdict for verdict in verdicts if verdict.is_chosen]
    if policy.only_center and passed:
        middle = ((width - 1) / 2, (height - 1) / 2)
        best = min(passed, key=lambda verdict: _distance(verdict.face, middle))
        return [_unless(verdict, best, "not_center") for verdict in verdicts]
    if policy.only_largest and passed:
        best = max(passed, key=lambda verdict: verdict.eyes_px)
        return [_unless(verdict, best, "not_largest") for verdict in verdicts]
    return verdicts


def turned_by(face: Face) -> float:
    """How far a head is turned to the side: 0 from the front, about 0.5 or more in profile.

    The distance of the nose from the middle between the eyes, along the line of the eyes, in eye distances;
    at most `MOST_TURN`.
    """
    left, right, nose = face.points_array[:3]
    axis = right - left
    square = float(axis @ axis)
    shift = abs(float((nose - (left + right) / 2) @ axis))
    return min(shift / square, MOST_TURN) if square else MOST_TURN


def fine_detail(gray: Float32[np.ndarray, "px px"]) -> float:
    """The detail of a gray frame in its finest octave, as a share of that in the second.

    0.87 and more for a sharp photo, 0.78 and less for one whose detail was lost by a factor of 1.5. At most
    the share of the second octave in the third, over 0.7: noise and a JPEG's blocks fill the finest only. Of
    each octave the share that a normal distribution of the same median has is taken off, as noise is
    everywhere and edges are not.
    """
    finest, second, third = map(edges, octaves(gray, 3))
    if min(second, third) < LEAST_DETAIL:
        return 0.0
    return min(finest / second, second / third / SECOND_OCTAVE)


def least_contrast(gray: Float32[np.ndarray, "64 64"]) -> float:
    """The contrast of that of the two eyes and the mouth which has least, as a share of the whole face's.

    0.2 to 1 where all three are seen, 0.05 to 0.2 where something plain covers one of them.
    """
    whole = float(gray[20:54, 14:50].std())
    return min(float(gray[part].std()) for part in FEATURES) / whole if whole else 0.0


def _judge(photo: Photo, face: Face, policy: ChoicePolicy) -> Verdict:
    turn = turned_by(face)
    contrast: float | None = None
    detail: float | None = None
    reason: Reason = "chosen"
    frame = fit_frame(face.points_array)
    if face.eyes_px < policy.min_eyes_px:
        reason = "too_small"
    elif frame.scale * FRAME_PX > policy.model_px * SIZE_SLACK and not policy.any_size:
        reason = "larger_than_model"
    elif _inside(face, *photo.shape[:2]) < policy.min_inside:
        reason = "cut_off"
    elif turn > policy.max_turn:
        reason = "turned_away"
    else:
        contrast = least_contrast(gray_frame(photo, frame, CONTRAST_PX))
        if frame.scale * FRAME_PX * SIZE_SLACK >= policy.model_px:
            detail = fine_detail(gray_frame(photo, frame, policy.model_px))
        if contrast < policy.min_contrast:
            reason = "covered"
        elif detail is not None and detail > policy.max_detail:
            reason = "already_sharp"
    return Verdict(face, reason, face.eyes_px, turn, contrast, detail)


def gray_frame(photo: Photo, frame: Frame, px: int) -> Float32[np.ndarray, "px px"]:
    """The mean of the channels of a face in its frame, in levels of 8 bits."""
    gray: NDArray[np.float32] = align(photo, frame, px).pixels.astype(np.float32).mean(2)
    return gray


def _inside(face: Face, height: int, width: int) -> float:
    """Share of the box that lies in the photo."""
    left, top, right, bottom = face.box
    across = max(0.0, min(right, width - 0.5) - max(left, -0.5))
    down = max(0.0, min(bottom, height - 0.5) - max(top, -0.5))
    return across * down / face.side**2 if face.side else 0.0


def _distance(face: Face, point: tuple[float, float]) -> float:
    left, top, right, bottom = face.box
    return hypot((left + right) / 2 - point[0], (top + bottom) / 2 - point[1])


def _unless(verdict: Verdict, best: Verdict, reason: Reason) -> Verdict:
    """The verdict, with another reason if it would be chosen beside the best."""
    if verdict is best or not verdict.is_chosen:
        return verdict
    return replace(verdict, reason=reason)
