"""Metrics of all pictures, from parts, are those of all features at once."""

from pathlib import Path

import numpy as np
import pytest

from diffbfr.metrics.frechet import DLIB_EMBEDDING, FID_EMBEDDING, MomentAccumulator, frechet_distance
from diffbfr.metrics.kid import kernel_distance
from pipelines.evaluation.metric_table import metric_table
from pipelines.evaluation.pair_task import PairPart
from pipelines.evaluation.set_scores import FeatureFile, score_sets


def features(seed: int, count: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(seed, 1, size=(count, width)).astype(np.float32)


def parts(restored: np.ndarray, references: np.ndarray, embedding: str) -> list[PairPart]:
    found = []
    for start in range(0, len(restored), 7):
        rows = slice(start, start + 7)
        keys = tuple(str(number) for number in range(len(restored))[rows])
        found.append(PairPart(keys, {}, {embedding: restored[rows]}, {embedding: references[rows]}, {}))
    return found


def distance(a: np.ndarray, b: np.ndarray) -> float:
    sides = []
    for rows in (a, b):
        moments = MomentAccumulator(rows.shape[1])
        moments.add(rows)
        sides.append(moments.statistics("e"))
    return frechet_distance(*sides)


def test_a_frechet_distance_is_that_of_all_features_at_once() -> None:
    x, y = features(0, 50, 8), features(1, 50, 8)
    table = metric_table()
    scores, references = score_sets(
        parts(x, y, DLIB_EMBEDDING), {"frechet_dlib": table["frechet_dlib"]}, None, "these"
    )
    assert abs(scores["frechet_dlib"].value - 1000 * distance(x, y)) < 1e-6
    assert scores["frechet_dlib"].note == ""
    assert (references[DLIB_EMBEDDING].count, references[DLIB_EMBEDDING].source) == (50, "these")


def test_fid_and_kid_come_from_the_same_features_and_few_are_said() -> None:
    x, y = features(0, 6, 8), features(1, 6, 8)
    table = metric_table()
    scores, _ = score_sets(parts(x, y, FID_EMBEDDING), {"fid": table["fid"], "kid": table["kid"]}, None)
    assert abs(scores["fid"].value - distance(x, y)) < 1e-6
    assert "6 pictures give no covariance of full rank (9 would): biased upwards" in scores["fid"].note
    assert abs(scores["kid"].value - 1000 * kernel_distance(x, y).mean) < 1e-9


def test_given_statistics_stand_for_the_references() -> None:
    x, y = features(0, 50, 8), features(1, 60, 8)
    moments = MomentAccumulator(8)
    moments.add(y)
    given = moments.statistics(FID_EMBEDDING)
    alone = [PairPart(part.keys, {}, part.restored, {}, {}) for part in parts(x, x, FID_EMBEDDING)]
    scores, references = score_sets(alone, {"fid": metric_table()["fid"]}, given)
    assert abs(scores["fid"].value - distance(x, y)) < 1e-6
    assert references[FID_EMBEDDING] is given


@pytest.mark.parametrize("numbers", [[0], [2, 5, 9], list(range(10))])
def test_features_in_a_file_are_read_by_their_numbers(numbers: list[int], tmp_path: Path) -> None:
    wanted = features(3, 10, 4)
    with FeatureFile(tmp_path / "f", 4) as file:
        file.append(wanted[:3])
        np.testing.assert_array_equal(file[np.array([1])], wanted[1:2])
        file.append(wanted[3:])
        assert len(file) == 10
        np.testing.assert_array_equal(file[np.array(numbers)], wanted[numbers])
