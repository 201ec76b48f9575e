"""A probe measures what its metric's function measures."""

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.faces import detect
from diffbfr.faces import weights as face_weights
from pipelines.evaluation.metric_table import MetricFiles
from pipelines.evaluation.probes import PairBatch, Readings, make_probes, measure


class FirstPixel:
    """A detector that finds a face whose points are all at the level of the first pixel; none in black."""

    name, sizes, min_score = "first pixel", (1.0, 512.0), 0.5

    def detect(self, pixels: NDArray[np.uint8], min_score: float | None = None) -> list[detect.Face]:
        level = float(pixels[0, 0, 0])
        points = detect.as_points(np.full((5, 2), level))
        return [detect.Face((0.0, 0.0, 1.0, 1.0), points, 1.0)] if level else []


def flat(level: int) -> NDArray[np.uint8]:
    return np.full((256, 256, 3), level, np.uint8)


def test_landmarks_are_those_of_the_best_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_weights, "load_detector", lambda path: FirstPixel())
    probes = make_probes(["landmark_distance"], MetricFiles(detector="any"))
    readings = Readings()
    batch = PairBatch([flat(10), flat(0)], [flat(13), flat(13)], [None, None])
    measure(probes, batch, readings)
    found = readings.values["landmark_distance"]
    assert abs(found[0] - 2 * 3 * 2**0.5) < 1e-9
    assert np.isnan(found[1])
    assert list(readings.seconds) == ["landmark_distance"]


def test_only_what_is_wanted_is_loaded_and_measured() -> None:
    probes = make_probes(["psnr", "ssim_y"], MetricFiles())
    assert list(probes) == ["psnr", "ssim_y"]
    readings = Readings()
    measure(probes, PairBatch([flat(10)], [flat(10)], [None]), readings)
    assert readings.values == {"psnr": [float("inf")], "ssim_y": [pytest.approx(1.0)]}
