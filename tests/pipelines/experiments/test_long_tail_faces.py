"""The long tail on faces: pairs differ in one attribute, rates are met, and what is shown is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.images import resize
from diffbfr.stages import PACKAGED
from diffbfr.synthetic import draw_attributes, render_attributes, render_face
from pipelines.experiments import long_tail_faces
from pipelines.experiments.attributes.faces import (
    PRESENT,
    make_pair,
    visible_pairs,
    with_rate,
    write_training_faces,
)
from pipelines.experiments.attributes.kept import Rate, presence


def test_a_face_with_its_own_attributes_is_the_face_of_its_seed() -> None:
    assert np.array_equal(render_attributes(draw_attributes(5), 48).pixels, render_face(5, 48).pixels)


@pytest.mark.parametrize("attribute", PRESENT)
def test_a_pair_differs_in_one_attribute_alone(attribute: str) -> None:
    pair = make_pair(11, attribute, 128)
    changed = np.abs(pair.present.astype(int) - pair.absent).max(axis=2) > 0
    share = {"mole": (0, 0.005), "freckles": (0.002, 0.12), "glasses": (0.01, 0.25), "gray": (0.5, 1)}
    low, high = share[attribute]
    assert low < changed.mean() <= high
    others = [make_pair(11, name, 128).absent for name in PRESENT]
    assert all(np.array_equal(other, pair.absent) for other in others)


def test_the_rates_are_met_nested_and_independent() -> None:
    low, high = ([with_rate(seed, rate) for seed in range(600)] for rate in (0.1, 0.3))
    for name, values in PRESENT.items():
        ((field, value),) = values.items()
        has_low, has_high = (
            np.array([getattr(face, field) == value for face in faces]) for faces in (low, high)
        )
        assert abs(has_low.mean() - 0.1) < 0.05, name
        assert abs(has_high.mean() - 0.3) < 0.07, name
        assert not (has_low & ~has_high).any()
    glasses, gray = np.array([face.glasses for face in high]), np.array([face.gray for face in high])
    assert abs((glasses & gray).mean() - 0.09) < 0.05
    assert not any(
        face.glasses or face.gray or face.freckles or face.moles for face in map(_never, range(20))
    )


def _never(seed: int) -> object:
    return with_rate(seed, 0.0)


@pytest.mark.parametrize("attribute", PRESENT)
def test_presence_is_1_with_the_attribute_0_without_and_between_when_it_fades(attribute: str) -> None:
    (pair,) = visible_pairs(attribute, 128, 1, 3)
    assert presence(pair.present, pair.present, pair.absent) == 1
    assert presence(pair.absent, pair.present, pair.absent) == 0
    faded = np.round(0.75 * pair.absent + 0.25 * pair.present).astype(np.uint8)
    assert presence(faded, pair.present, pair.absent) == pytest.approx(0.25, abs=0.05)
    blurred = resize(resize(pair.present, 8, "bicubic"), 128, "bicubic")
    if attribute == "mole":  # a mole of two pixels does not survive 8 px
        assert presence(blurred, pair.present, pair.absent) < 0.5
    if attribute == "gray":
        assert presence(blurred, pair.present, pair.absent) > 0.5


def test_equal_faces_have_no_attribute_to_look_for() -> None:
    assert np.array_equal(make_pair(3, "mole", 64).present, make_pair(3, "mole", 64).absent)  # under hair
    face = make_pair(3, "mole", 64).absent
    with pytest.raises(UsageError, match="are equal; expected two that differ"):
        presence(face, face, face)


def test_the_interval_of_a_rate_is_wilsons() -> None:
    low, high = Rate(8, 10).interval
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Rate(0, 10).interval[0] == 0
    assert Rate(10, 10).interval[1] == 1


def test_training_faces_are_written_once(tmp_path: Path) -> None:
    write_training_faces(tmp_path, 3, 100, 32, 0.5)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(times) == 3
    write_training_faces(tmp_path, 3, 100, 32, 0.5)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times
    with pytest.raises(UsageError, match=r"found the rate 1\.5; expected a fraction"):
        write_training_faces(tmp_path, 1, 0, 32, 1.5)


@pytest.mark.slow
def test_the_packaged_cascade_keeps_gray_and_the_command_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_tail_faces.main([str(tmp_path), "--model", PACKAGED, "--pairs", "1", "--workers", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(PRESENT)
    assert "6% (natural)" in lines[4]
    rows = {
        row["rates"][0]["attribute"]: row["rates"]
        for row in json.loads((tmp_path / "long-tail-faces.json").read_text())
    }
    assert all(line["kept"] == {"hits": 1, "count": 1} for line in rows["gray"])
    assert all(line["invented"]["hits"] == 0 for line in rows["gray"])


@pytest.mark.parametrize("rates", ["", "a", "0.1,2", "-1", "nan"])
def test_other_rates_are_refused(tmp_path: Path, rates: str) -> None:
    with pytest.raises(UsageError, match="expected fractions with commas"):
        long_tail_faces.main([str(tmp_path), "--rates", rates])


def test_no_pairs_and_no_cascade_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found 0 pairs; expected at least 1"):
        long_tail_faces.main([str(tmp_path), "--model", PACKAGED, "--pairs", "0"])
    with pytest.raises(UsageError, match=r"holds no cascade\.json"):
        long_tail_faces.main([str(tmp_path), "--model", str(tmp_path)])
