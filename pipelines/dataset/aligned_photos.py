"""One whole photo to samples: every usable face is found, aligned to the FFHQ frame and degraded.

A face is left out if the photo holds too little of it, if it is turned away, or if its frame would have to be
enlarged more than `ShardConfig.max_enlargement`: a blurred ground truth would teach a model to blur. A sharp
face is what a training needs, and a covered one is as good as any, so neither is a reason here. Photos are
looked at upright only: a missed face costs a training little, and the quarter turns three times the time.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from diffbfr.faces.align import FRAME_EYES_PX, FRAME_PX, Frame, align
from diffbfr.faces.choose import ChoicePolicy, Verdict
from diffbfr.faces.photo import find_faces
from diffbfr.faces.similarity import Similarity
from diffbfr.images import Pixels, decode, pixel_digest
from diffbfr.shards import FaceFrame
from pipelines.dataset.samples import Face, GroundTruth, ShardConfig, finish_face

TURNED_EYES: Final = 0.6
"""Eye distance of a head turned as far as the policy allows, as a share of that of its frame."""
_TURN_STEPS, _SHIFT_STEPS = 1 << 16, 1 << 4


@dataclass(frozen=True, eq=False)
class PhotoSamples:
    """The samples of a photo, the best face first; without any, the stable code and the text of why."""

    faces: tuple[Face, ...]
    reason: str = ""
    message: str = ""


def make_aligned_faces(
    config: ShardConfig, key: str, source: str, data: bytes, split_by_bytes: bool, weights: str
) -> PhotoSamples:
    """Decode one photo, find its faces with the detector of a file of weights, and make a sample of each.

    `ImageRefused` if it cannot be decoded.
    """
    photo = decode(data).pixels
    smallest = FRAME_EYES_PX / FRAME_PX * config.hq_px / config.max_enlargement
    policy = ChoicePolicy(
        model_px=config.hq_px,
        min_eyes_px=TURNED_EYES * smallest,
        any_size=True,
        min_contrast=0.0,
        max_detail=float("inf"),
    )
    found = find_faces(photo, weights, policy, config.hq_px, turns=(0,))
    reasons = [
        _reason(config, verdict, aligned.frame)
        for verdict, aligned in zip(found.verdicts, found.aligned, strict=True)
    ]
    if "chosen" not in reasons:
        return _none_usable(reasons)
    photo_sha256, sha256 = pixel_digest(photo), hashlib.sha256(data).hexdigest()
    faces = []
    for index, (verdict, aligned) in enumerate(zip(found.verdicts, found.aligned, strict=True)):
        if reasons[index] != "chosen":
            continue
        frame, hq = _stored_frame(photo, aligned.frame, config.hq_px, index, len(reasons), verdict.face.score)
        truth = GroundTruth.of(config, photo, hq, photo_sha256, frame)
        faces.append(_finish(config, key, source, data, sha256, truth, hq, split_by_bytes))
    return PhotoSamples(tuple(faces))


def face_key(photo_key: str, face: FaceFrame) -> str:
    """The key of one face of a photo; unique, since the number after the last hyphen is the face's."""
    return f"{photo_key}-{face.index:02d}"


def _finish(
    config: ShardConfig,
    key: str,
    source: str,
    data: bytes,
    sha256: str,
    truth: GroundTruth,
    hq: Pixels,
    split_by_bytes: bool,
) -> Face:
    assert truth.face is not None
    own_key = face_key(key, truth.face)
    return finish_face(config, own_key, source, len(data), sha256, truth, lambda: hq, (), split_by_bytes)


def _reason(config: ShardConfig, verdict: Verdict, frame: Frame) -> str:
    """The verdict, or that the face would be enlarged too much."""
    if frame.scale * FRAME_PX * config.max_enlargement < config.hq_px:
        return "too_small"
    return verdict.reason


def _none_usable(reasons: Sequence[str]) -> PhotoSamples:
    if not reasons:
        return PhotoSamples((), "no_face", "no face was found; expected at least one")
    counts = Counter(reasons).most_common()
    named = ", ".join(f"{count} {reason}" for reason, count in counts)
    return PhotoSamples((), counts[0][0], f"{len(reasons)} faces were found and none is usable: {named}")


def _stored_frame(
    photo: Pixels, frame: Frame, px: int, index: int, num_found: int, score: float
) -> tuple[FaceFrame, Pixels]:
    """The frame as it is stored, on a grid, and its pixels.

    Processors differ in the last digits of what a detector computes. On a grid of 1/16 px nearly every face
    is cut out the same by all of them.
    """
    exact = frame.to_photo
    a, b = (round(value * _TURN_STEPS) / _TURN_STEPS for value in (exact.a, exact.b))
    x, y = (round(value * _SHIFT_STEPS) / _SHIFT_STEPS for value in (exact.shift_x, exact.shift_y))
    cut = align(photo, Frame(Similarity(a, b, x, y)), px)
    quad = tuple(float(value) for value in ((cut.quad + 0.5) / px).ravel())
    return FaceFrame(index, num_found, round(score, 3), a, b, x, y, quad), cut.pixels
