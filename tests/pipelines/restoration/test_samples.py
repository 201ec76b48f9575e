"""Several restorations of one photo: names that cannot collide, and a spread that is a standard pixel_std."""

import numpy as np
import pytest

from pipelines.restoration.samples import first_prefix, other_outputs, pixel_std, std_heatmap


def test_one_restoration_is_the_mirror_itself() -> None:
    assert (first_prefix(1), other_outputs("trip/a.png", 1)) == ("", ())


def test_each_sample_and_the_spread_have_a_mirror_of_their_own() -> None:
    assert other_outputs(f"{first_prefix(3)}trip/a.png", 3) == (
        "sample-1/trip/a.png",
        "sample-2/trip/a.png",
        "spread/trip/a.png",
    )
    assert other_outputs(f"{first_prefix(2)}sample-0/a.png", 2) == (
        "sample-1/sample-0/a.png",
        "spread/sample-0/a.png",
    )


def test_the_spread_is_the_deviation_over_samples_of_a_pixels_channels() -> None:
    samples = [np.full((1, 2, 3), level, np.uint8) for level in (10, 14)]
    samples[1][0, 1] = (10, 10, 16)
    assert pixel_std(samples).tolist() == [[pytest.approx(8**0.5), pytest.approx((18 / 3) ** 0.5)]]
    assert std_heatmap(np.array([[0.0, 1.1, 63.9, 80.0]])).tolist() == [
        [[0] * 3, [4] * 3, [255] * 3, [255] * 3]
    ]
