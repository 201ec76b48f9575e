"""The float recipe is Eq. 13 as the field computes it: blur, resize, noise and JPEG by an independent
implementation.
"""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from diffbfr.degradation import PRESETS, DegradationParams, DegradationSpec, degrade, draw
from diffbfr.degradation.float_recipe import low_quality_pixels
from diffbfr.degradation.recipe import working_px
from diffbfr.errors import UsageError
from diffbfr.images import decode
from tests.diffbfr.degradation.test_degradation import picture, psnr

FLOAT = replace(PRESETS["paper"].at(128), arithmetic="float")
QUIET = DegradationParams(sigma=1.3, r=2.5, delta=0.0, q=100, gray=False, flip=False, noise_seed=5)


def by_hand(hq: np.ndarray, params: DegradationParams, spec: DegradationSpec) -> np.ndarray:
    """Blur with the whole two-dimensional kernel, resize by numpy's own interpolation, without noise and
    JPEG; in 0..255.
    """
    half = spec.kernel_px // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.exp(-0.5 * (x**2 + y**2) / params.sigma**2)
    padded = np.pad(hq.astype(np.float64), ((half, half), (half, half), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (spec.kernel_px, spec.kernel_px), axis=(0, 1))
    blurred = np.einsum("yxcij,ij->yxc", windows, kernel / kernel.sum())
    px = working_px(params.r, spec)
    place = np.clip((np.arange(px) + 0.5) * hq.shape[0] / px - 0.5, 0, hq.shape[0] - 1)
    low = np.minimum(np.floor(place).astype(int), hq.shape[0] - 2)
    part = place - low
    rows = blurred[low] * (1 - part)[:, None, None] + blurred[low + 1] * part[:, None, None]
    return np.asarray(rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None])


@pytest.mark.parametrize(("sigma", "r"), [(0.3, 1.0), (1.3, 2.5), (2.5, 8.0)])
def test_without_noise_it_is_the_formula(sigma: float, r: float) -> None:
    hq, params = picture(128), replace(QUIET, sigma=sigma, r=r)
    made = low_quality_pixels(hq, sigma, FLOAT.kernel_px, working_px(r, FLOAT), delta=0.0, seed=1).astype(
        float
    )
    exact = by_hand(hq, params, FLOAT)
    assert np.abs(made - exact).max() < 0.501  # rounding to a whole level, and what floats of 32 bits round
    assert (
        degrade(hq, params, FLOAT)
        == cv2.imencode(".jpg", made[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    )


@pytest.mark.parametrize("delta", [3.0, 20.0])
def test_noise_is_gaussian_with_its_spread_in_levels(delta: float) -> None:
    flat = np.full((256, 256, 3), 128, np.uint8)
    added = low_quality_pixels(flat, 0.0, 11, 256, delta, seed=3).astype(float) - 128
    assert added.mean() == pytest.approx(0, abs=5 * delta / 443)
    assert added.std() == pytest.approx((delta**2 + 1 / 12) ** 0.5, rel=0.01)
    assert (low_quality_pixels(flat, 0.0, 11, 256, delta, seed=3).astype(float) - 128 == added).all()
    assert (low_quality_pixels(flat, 0.0, 11, 256, delta, seed=4).astype(float) - 128 != added).any()


def test_it_is_close_to_the_integer_recipe_under_the_same_draw() -> None:
    hq = picture(128)
    for seed in range(12):
        params = replace(draw(FLOAT, seed), delta=0.0, q=100)
        pair = [
            decode(degrade(hq, params, replace(FLOAT, arithmetic=arithmetic))).pixels
            for arithmetic in ("float", "integer")
        ]  # type: ignore[arg-type]
        assert psnr(*pair) > 45


def test_gray_and_flip_are_those_of_the_integer_recipe() -> None:
    hq = picture(64)
    spec = FLOAT.at(64)
    gray = decode(degrade(hq, replace(QUIET, gray=True), spec))
    assert gray.was_gray
    assert (
        psnr(
            gray.pixels,
            decode(degrade(hq, replace(QUIET, gray=True), replace(spec, arithmetic="integer"))).pixels,
        )
        > 45
    )
    assert degrade(hq, replace(QUIET, flip=True), spec) == degrade(
        np.ascontiguousarray(hq[:, ::-1]), QUIET, spec
    )


def test_it_has_a_name_of_its_own_and_says_that_it_is_not_portable() -> None:
    assert (FLOAT.recipe, FLOAT.portable) == ("eq13-float-1", False)
    integer = replace(FLOAT, arithmetic="integer")
    assert (integer.recipe, integer.portable) == ("eq13-integer-1", True)
    assert FLOAT.digest != integer.digest


def test_another_arithmetic_is_refused() -> None:
    with pytest.raises((UsageError, TypeError), match="arithmetic"):
        replace(FLOAT, arithmetic="fixed")  # type: ignore[arg-type]
