"""A user's albumentations pipeline runs before Eq. 13, keyed by content, and is refused when it cannot."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffbfr.degradation import PRESETS, degrade, draw
from diffbfr.errors import UsageError
from tests.diffbfr.degradation.test_degradation import CLEAN, PAPER, instruction_sets, picture, without

ROOT = Path(__file__).parents[3]
SHORT: list[Any] = [
    {"MotionBlur": {"blur_limit": [5, 9], "p": 1.0}},
    {"OneOf": {"p": 0.5, "transforms": [{"ISONoise": None}, {"Solarize": {}}]}},
]
pytestmark = pytest.mark.slow  # albumentations takes seconds to import


@pytest.fixture(scope="module")
def describe() -> Callable[[Any], str]:
    from diffbfr.degradation.pre_augment import describe_pipeline

    return describe_pipeline


def test_the_pipeline_runs_on_the_face_and_eq_13_on_what_it_made(describe: Callable[[Any], str]) -> None:
    text = describe([{"Solarize": {"threshold_range": [0.5, 0.5], "p": 1.0}}])
    face = picture(128)
    solarized = np.where(face >= 128, 255 - face, face).astype(np.uint8)
    for params in (CLEAN, replace(CLEAN, flip=True, gray=True, delta=9.0, r=3.0, sigma=1.0)):
        assert degrade(face, params, replace(PAPER.at(128), before=text)) == degrade(
            solarized, params, PAPER.at(128)
        )


def test_the_same_seed_gives_the_same_face_and_another_seed_another(describe: Callable[[Any], str]) -> None:
    from diffbfr.degradation.pre_augment import run_pipeline

    text, face = describe(SHORT), picture(64)
    assert (run_pipeline(text, face, 7) == run_pipeline(text, face, 7)).all()
    assert len({run_pipeline(text, face, seed).tobytes() for seed in range(8)}) > 4
    first = run_pipeline(text, face, 3)
    for seed in range(5):  # what ran before leaves no trace
        run_pipeline(text, face, seed)
    assert (run_pipeline(text, face, 3) == first).all()


def test_another_process_with_other_instructions_makes_the_same_bytes_of_parts_that_do(
    describe: Callable[[Any], str],
) -> None:
    spec = replace(PAPER, before=describe([{"ISONoise": {"p": 1.0}}, *SHORT[1:], {"PixelDropout": None}]))
    program = f"""
import hashlib, sys
from dataclasses import replace
from diffbfr.degradation import degrade, draw
from tests.diffbfr.degradation.test_degradation import PAPER, picture
spec = replace(PAPER, before={spec.before!r})
print(hashlib.sha256(b"".join(degrade(picture(512), draw(spec, seed), spec) for seed in range(4))).hexdigest())
"""
    switches = {name: value for each in without(*instruction_sets()).values() for name, value in each.items()}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **switches},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert (
        done.stdout.strip()
        == hashlib.sha256(
            b"".join(degrade(picture(512), draw(spec, seed), spec) for seed in range(4))
        ).hexdigest()
    )


def test_parts_of_one_pipeline_draw_from_one_stream(describe: Callable[[Any], str]) -> None:
    from diffbfr.degradation.pre_augment import run_pipeline

    gray = np.full((64, 64, 3), 128, np.uint8)
    noise = {"GaussNoise": {"std_range": [0.1, 0.1], "p": 1.0}}
    once, twice = (run_pipeline(describe([noise] * count), gray, 5).astype(float) - 128 for count in (1, 2))
    assert (
        np.corrcoef(once.ravel(), (twice - once).ravel())[0, 1] < 0.1
    )  # two transforms seeded alike would add the same noise twice


def test_what_albumentations_saved_is_the_same_pipeline(describe: Callable[[Any], str]) -> None:
    import albumentations as A

    from diffbfr.degradation.pre_augment import run_pipeline

    saved = A.to_dict(A.Compose([A.MotionBlur(blur_limit=(5, 9), p=1.0)]))
    short = describe(SHORT[:1])
    for seed in range(4):
        assert (
            run_pipeline(describe(json.loads(json.dumps(saved))), picture(64), seed)
            == run_pipeline(short, picture(64), seed)
        ).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"MotionBlurr": {}}], r"no transform 'MotionBlurr'; did you mean MotionBlur\?"),
        ([{"Rotate": {"limit": 10}}], "Rotate is a geometric transform"),
        (
            [{"OneOf": {"transforms": [{"Blur": {}}, {"CenterCrop": {"height": 8, "width": 8}}]}}],
            "CenterCrop is a geometric transform",
        ),
        ([{"RandomGridShuffle": {}}], "RandomGridShuffle is a geometric transform"),
        ([{"OneOf": {"transforms": [{"Blur": {}}, {"FDA": {}}]}}], "FDA needs fda_metadata beside the image"),
        ([{"MotionBlur": {"blur_limit": "far"}}], "albumentations refuses the pipeline"),
        ([{"MotionBlur": {}, "Blur": {}}], "expected one name with its arguments"),
        (["MotionBlur"], "expected one name with its arguments"),
        ({"MotionBlur": {}}, "expected a list of transforms"),
        ("MotionBlur", "expected a list of transforms"),
        ([{"Lambda": {}}], "no transform 'Lambda'"),
    ],
)
def test_a_pipeline_that_cannot_be_used_is_refused_in_one_line(
    describe: Callable[[Any], str], values: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        describe(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "transform",
    [
        {"PixelDropout": {"dropout_prob": 0.1}},
        {"CoarseDropout": {"fill": 0}},
        {"GridDropout": {}},
        {"Erasing": {}},
        {"Morphological": {}},
        {"NoOp": {}},
    ],
    ids=lambda transform: next(iter(transform)),
)
def test_what_covers_pixels_and_moves_none_runs(
    describe: Callable[[Any], str], transform: dict[str, dict[str, Any]]
) -> None:
    from diffbfr.degradation.pre_augment import run_pipeline

    ((name, arguments),) = transform.items()
    face = picture(64)
    made = run_pipeline(describe([{name: {**arguments, "p": 1.0}}]), face, 3)
    changed = (made != face).any(axis=2)
    assert changed.any() == (name != "NoOp")
    if (
        name == "Morphological"
    ):  # the least or the largest of a neighbourhood, each of which holds its own pixel
        assert (made >= face).all() or (made <= face).all()
    else:
        assert not changed.all()  # what was not covered is where it was


def test_a_pipeline_that_makes_another_kind_of_picture_is_refused(describe: Callable[[Any], str]) -> None:
    from diffbfr.degradation.pre_augment import run_pipeline

    with pytest.raises(UsageError, match="made float32"):
        run_pipeline(describe([{"ToFloat": {"p": 1.0}}]), picture(16), 0)


def test_the_digest_covers_the_pipeline_and_marks_the_dataset_as_not_portable(
    describe: Callable[[Any], str],
) -> None:
    specs = [PRESETS["paper"], *(replace(PRESETS["paper"], before=describe(SHORT[:n])) for n in (1, 2))]
    assert len({spec.digest for spec in specs}) == 3
    assert [spec.portable for spec in specs] == [True, False, False]
