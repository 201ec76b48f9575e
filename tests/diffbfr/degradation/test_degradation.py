"""Eq. 13: draws, integer noise, the degraded JPEG, and that other instruction sets give the same bytes."""

import hashlib
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
import pytest

from diffbfr.degradation import (
    PRESETS,
    DegradationParams,
    DegradationSpec,
    apply_target,
    degrade,
    draw,
    sample_seed,
)
from diffbfr.degradation.noise import TABLE_BITS, add_noise, normal_table
from diffbfr.degradation.recipe import working_px
from diffbfr.errors import UsageError
from diffbfr.images import decode, lq_to_model

ROOT = Path(__file__).parents[3]
PAPER = PRESETS["paper"]
PAPER_DIGEST = "9bd2deb434c0744e5d413dfd3d4692d4d7543be07723980a383c603515bd4f43"
CLEAN = DegradationParams(sigma=0.1, r=1.0, delta=0.0, q=100, gray=False, flip=False, noise_seed=1)


def picture(px: int) -> np.ndarray:
    """Draw smooth colour with edges in integers alone, so that every machine tests the same picture."""
    y, x = np.mgrid[0:px, 0:px].astype(np.int64)
    red = 40 + 170 * x // px
    green = 220 - 150 * y // px
    blue = 60 + 120 * (x + y) // (2 * px)
    disc = (2 * x - px) ** 2 + (2 * y - px) ** 2 < (px * 5 // 8) ** 2
    stack = np.stack(
        [np.where(disc, red // 2 + 100, red), np.where(disc, green // 2 + 60, green), blue], axis=2
    )
    return stack.astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255.0**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-12)))


def philox_words(key: int, count: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011) in plain integers; the counter starts at 1, as NumPy's does."""
    mask, words = (1 << 64) - 1, []
    for counter in itertools.count(1):
        state, k0, k1 = [counter, 0, 0, 0], key & mask, key >> 64
        for _ in range(10):
            left, right = state[0] * 0xD2E7470EE14C6C93, state[2] * 0xCA5A826395121157
            state = [(right >> 64) ^ state[1] ^ k0, right & mask, (left >> 64) ^ state[3] ^ k1, left & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += state
        if len(words) >= count:
            return words[:count]
    raise AssertionError


@pytest.fixture(scope="module")
def draws() -> list[DegradationParams]:
    return [
        draw(PAPER, sample_seed(PAPER.digest, hashlib.sha256(b"%d" % index).hexdigest(), 0))
        for index in range(4000)
    ]


def test_paper_preset_is_equation_13() -> None:
    assert (PAPER.sigma, PAPER.r, PAPER.delta, PAPER.q) == ((0.1, 10.0), (0.8, 8.0), (0.0, 20.0), (60, 100))
    assert (PAPER.kernel_px, PAPER.max_working_px, PAPER.gray_probability, PAPER.flip_probability) == (
        41,
        640,
        0.01,
        0.5,
    )


@pytest.mark.parametrize(
    ("name", "sigma", "r", "delta", "q", "gray"),
    [
        ("gfpgan", (0.1, 10.0), (0.8, 8.0), (0.0, 20.0), (60, 100), 0.01),
        ("gpen", (0.1, 10.0), (0.8, 8.0), (0.0, 20.0), (60, 100), 0.2),
        ("codeformer", (1.0, 15.0), (4.0, 30.0), (0.0, 20.0), (30, 80), 0.0),
        ("difface", (0.1, 15.0), (0.8, 32.0), (0.0, 20.0), (30, 100), 0.01),
    ],
)
def test_other_presets_have_the_ranges_of_their_publications(
    name: str,
    sigma: tuple[float, float],
    r: tuple[float, float],
    delta: tuple[float, float],
    q: tuple[int, int],
    gray: float,
) -> None:
    preset = PRESETS[name]
    assert (preset.sigma, preset.r, preset.delta, preset.q, preset.gray_probability) == (
        sigma,
        r,
        delta,
        q,
        gray,
    )
    assert (preset.kernel_px, preset.max_working_px, preset.hq_px, preset.preset, preset.portable) == (
        41,
        640,
        512,
        name,
        True,
    )
    for px in (64, 512):
        for seed in range(20):
            params = draw(preset.at(px), seed)
            low = decode(degrade(picture(px), params, preset.at(px))).pixels
            assert low.shape[0] == working_px(params.r, preset.at(px)) >= 2


def test_the_digests_of_the_presets_never_change() -> None:
    """Published datasets name them; what a spec has gained since does not count where it is not used."""
    assert PAPER.digest == PAPER_DIGEST
    assert (
        len({preset.digest for preset in PRESETS.values()}) == len(PRESETS) - 1
    )  # gfpgan is Eq. 13 under another name


@pytest.mark.parametrize("name", ["sigma", "r", "delta"])
def test_draws_are_uniform_over_their_range(draws: list[DegradationParams], name: str) -> None:
    low, high = getattr(PAPER, name)
    unit = (np.sort([getattr(params, name) for params in draws]) - low) / (high - low)
    assert unit[0] >= 0
    assert unit[-1] <= 1
    steps = np.arange(1, len(unit) + 1) / len(unit)
    kolmogorov_smirnov = max(
        np.abs(unit - steps).max(), np.abs(unit - steps + 1 / len(unit)).max()
    ) * math.sqrt(len(unit))
    assert kolmogorov_smirnov < 1.95  # exceeded once in a thousand


def test_quality_is_a_uniform_integer_with_both_ends(draws: list[DegradationParams]) -> None:
    assert all(type(params.q) is int for params in draws)
    counts = np.bincount([params.q for params in draws], minlength=101)
    assert counts[:60].sum() == 0
    expected = len(draws) / 41
    assert (
        (counts[60:] - expected) ** 2 / expected
    ).sum() < 73.4  # chi-square of 40 degrees of freedom, once in a thousand


def test_gray_and_flip_come_with_their_probabilities(draws: list[DegradationParams]) -> None:
    assert abs(np.mean([params.flip for params in draws]) - 0.5) < 3.3 * 0.5 / math.sqrt(len(draws))
    assert abs(np.mean([params.gray for params in draws]) - 0.01) < 3.3 * math.sqrt(0.01 * 0.99 / len(draws))


def test_draws_are_independent_of_each_other(draws: list[DegradationParams]) -> None:
    correlation = np.corrcoef(np.array([astuple(params) for params in draws], dtype=float).T)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 4 / math.sqrt(len(draws))


def test_draw_reads_one_raw_philox_word_a_parameter() -> None:
    key = int.from_bytes(hashlib.sha256(b"diffbfr draw\0" + b"seed").digest()[:16], "little")
    words = philox_words(key, 7)
    params = draw(PAPER, b"seed")
    assert params.sigma == pytest.approx(0.1 + 9.9 * words[0] / 2**64, rel=1e-12)
    assert params.r == pytest.approx(0.8 + 7.2 * words[1] / 2**64, rel=1e-12)
    assert params.delta == pytest.approx(20 * words[2] / 2**64, rel=1e-12)
    assert params.q == 60 + int(41 * (words[3] / 2**64))
    assert params.noise_seed == words[6] >> 1


def test_one_seed_gives_one_draw_and_every_part_of_it_matters() -> None:
    seed = sample_seed("recipe", "source", 0)
    assert draw(PAPER, seed) == draw(PAPER, seed)
    others = [
        sample_seed("recipe", "source", 1),
        sample_seed("recipe", "other", 0),
        sample_seed("another", "source", 0),
    ]
    drawn = {draw(PAPER, each).sigma for each in [seed, *others, 0, 1, -1, b"0", b"1"]}
    assert len(drawn) == 9


def test_seed_parts_cannot_run_into_each_other() -> None:
    assert sample_seed("a", "b1", 2) != sample_seed("a", "b", 12)
    assert sample_seed("ab", "c", 0) != sample_seed("a", "bc", 0)


def test_changing_one_range_leaves_the_other_draws_alone() -> None:
    narrow = replace(PAPER, r=(0.8, 1.0), preset="narrow")
    for seed in range(20):
        assert replace(draw(narrow, seed), r=0.0) == replace(draw(PAPER, seed), r=0.0)


def test_scaling_the_spec_scales_the_drawn_sigma_only() -> None:
    full, small = draw(PAPER, 5), draw(PAPER.at(128), 5)
    assert small.sigma == pytest.approx(full.sigma / 4, rel=1e-12)
    assert replace(small, sigma=0.0) == replace(full, sigma=0.0)


@pytest.mark.parametrize(
    ("hq_px", "kernel_px", "max_working_px"),
    [(512, 41, 640), (256, 21, 320), (128, 11, 160), (1024, 81, 1280)],
)
def test_pixel_ranges_scale_with_the_face(hq_px: int, kernel_px: int, max_working_px: int) -> None:
    spec = PAPER.at(hq_px)
    assert spec.sigma == pytest.approx((0.1 * hq_px / 512, 10 * hq_px / 512))
    assert (spec.kernel_px, spec.max_working_px, spec.hq_px) == (kernel_px, max_working_px, hq_px)
    assert (spec.r, spec.delta, spec.q) == (PAPER.r, PAPER.delta, PAPER.q)
    assert spec.at(hq_px) is spec
    assert (
        spec.at(512) == pytest.approx(PAPER)
        if hq_px == 512
        else spec.at(512).sigma == pytest.approx(PAPER.sigma)
    )


def test_kernel_is_odd_at_every_size() -> None:
    assert all(PAPER.at(px).kernel_px % 2 == 1 for px in range(1, 700))


def test_digest_follows_what_changes_bytes_and_nothing_else() -> None:
    assert PAPER.digest == replace(PAPER, preset="another name").digest
    changed = [
        PAPER.at(128),
        replace(PAPER, q=(60, 99)),
        replace(PAPER, gray_probability=0.0),
        replace(PAPER, kernel_px=39),
    ]
    assert len({PAPER.digest, *(spec.digest for spec in changed)}) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma": (3.0, 1.0)},
        {"sigma": (-1.0, 1.0)},
        {"sigma": (0.1, float("nan"))},
        {"r": (0.0, 8.0)},
        {"delta": (0.0, 300.0)},
        {"q": (0, 100)},
        {"q": (60, 101)},
        {"gray_probability": 1.5},
        {"flip_probability": -0.1},
        {"kernel_px": 40},
        {"kernel_px": 0},
        {"hq_px": 0},
        {"max_working_px": 0},
    ],
)
def test_impossible_spec_is_refused_in_one_line_naming_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as refused:
        DegradationSpec(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_ranges_written_as_a_saved_file_holds_them_are_the_same_spec() -> None:
    """In a process of its own, without the type checks of the tests: JSON knows neither tuples nor 20.0
    apart from 20.
    """
    program = """
from diffbfr.degradation import DegradationSpec
from diffbfr.errors import UsageError
assert DegradationSpec(sigma=[0.1, 10], delta=[0, 20], q=[60, 100.0]) == DegradationSpec()
odd = [("q", (60.5, 100)), ("q", (60,)), ("sigma", 3.0), ("sigma", "abc"), ("r", (None, 8)), ("delta", (0, 1, 2)), ("delta", (None, 1, 2))]
for wrong in [{name: value} for name, value in odd]:
    try:
        DegradationSpec(**wrong)
    except UsageError as refused:
        assert next(iter(wrong)) in str(refused), refused
    else:
        raise AssertionError(wrong)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_face_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 px"):
        PAPER.at(0)


def test_noise_table_is_the_standard_normal() -> None:
    z = normal_table() / (1 << TABLE_BITS)
    assert z.shape == (65536,)
    assert (z == -z[::-1]).all()
    assert (np.diff(z) >= 0).all()
    assert abs(z.var() - 1) < 2e-4
    assert abs((z**4).mean() - 3) < 5e-3
    cdf = np.array([NormalDist().cdf(value) for value in z[::16]])
    assert np.abs(cdf - (np.arange(0, 65536, 16) + 0.5) / 65536).max() < 0.4 / (1 << TABLE_BITS)


def test_no_table_entry_is_near_a_rounding_tie() -> None:
    """An error of 1e-7 in another platform's logarithm would give the same table; real ones are below
    1e-12.
    """
    exact = [NormalDist().inv_cdf((index + 0.5) / 65536) * (1 << TABLE_BITS) for index in range(32768, 65536)]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-7


@pytest.mark.parametrize("delta", [1.5, 5.0, 20.0])
def test_noise_has_the_asked_spread_in_every_channel(delta: float) -> None:
    added = add_noise(np.full((256, 256, 3), 128, np.uint8), delta, seed=7).astype(float) - 128
    assert added.mean() == pytest.approx(0, abs=5 * delta / 443)
    assert added.std() == pytest.approx(
        math.sqrt(delta**2 + 1 / 12), rel=0.01
    )  # 1/12: rounding to whole levels
    channels = np.corrcoef(added.reshape(-1, 3).T)
    assert np.abs(channels - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(added[:, :-1].ravel(), added[:, 1:].ravel())[0, 1]) < 0.02


def test_noise_is_the_table_read_by_raw_philox_words() -> None:
    seed, shape = 0x1234_5678_9ABC_DEF0, (3, 5, 3)
    words = philox_words(seed, 12)
    index = [word >> (16 * part) & 0xFFFF for word in words for part in range(4)][:45]
    expected = [math.floor(100 + normal_table()[i] / 4096 * 6.5 + 0.5) for i in index]
    assert add_noise(np.full(shape, 100, np.uint8), 6.5, seed).ravel().tolist() == expected


def test_noise_clips_at_black_and_white_and_is_nothing_at_delta_zero() -> None:
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert add_noise(black, 20.0, 1).max() < 120
    assert add_noise(white, 20.0, 1).min() > 135
    assert (add_noise(black, 20.0, 1) == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert add_noise(white, 0.0, 1) is white


def test_the_largest_noise_does_not_overflow() -> None:
    noisy = add_noise(np.full((256, 256), 128, np.uint8), 255.0, 3)
    expected = 2 * NormalDist().cdf(-127.5 / 255)
    assert np.isin(noisy, (0, 255)).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("px", [128, 512])
def test_the_gentlest_degradation_is_nearly_the_identity(px: int) -> None:
    hq = picture(px)
    low = decode(degrade(hq, replace(CLEAN, sigma=0.1 * px / 512), PAPER.at(px))).pixels
    assert low.shape == hq.shape
    assert psnr(low, hq) > 38  # chroma is stored at half size
    assert psnr(low[..., 1], hq[..., 1]) > 42


def test_sigma_zero_means_no_blur_and_not_opencvs_automatic_sigma() -> None:
    hq, spec = picture(128), PAPER.at(128)
    assert degrade(hq, replace(CLEAN, sigma=0.0), spec) == degrade(hq, replace(CLEAN, sigma=0.025), spec)


@pytest.mark.parametrize(
    ("sigma", "r", "floor_db"),
    [(0.3, 1.0, 45), (1.0, 2.7, 45), (2.5, 4.0, 45), (2.5, 8.0, 45), (0.6, 0.8, 45)],
)
def test_integer_recipe_stays_close_to_a_float_one(sigma: float, r: float, floor_db: float) -> None:
    hq, spec = picture(128), PAPER.at(128)
    px = working_px(r, spec)
    blurred = cv2.GaussianBlur(hq.astype(np.float64), (spec.kernel_px, spec.kernel_px), sigma)
    reference = cv2.resize(blurred, (px, px), interpolation=cv2.INTER_LINEAR)
    luma = reference @ [0.299, 0.587, 0.114]
    low = decode(degrade(hq, replace(CLEAN, sigma=sigma, r=r), spec)).pixels @ np.array([0.299, 0.587, 0.114])
    assert psnr(low, luma) > floor_db


def test_stronger_degradations_lose_more() -> None:
    hq, spec = picture(128), PAPER.at(128)

    def quality(**changes: float) -> float:
        return psnr(lq_to_model(decode(degrade(hq, replace(CLEAN, **changes), spec)).pixels, 128), hq)  # type: ignore[arg-type]

    for name, rising in (
        ("sigma", (0.1, 1.0, 2.5)),
        ("r", (1.0, 3.0, 8.0)),
        ("delta", (0.0, 8.0, 20.0)),
        ("q", (100, 80, 60)),
    ):
        losses = [quality(**{name: value}) for value in rising]
        assert losses == sorted(losses, reverse=True), name


@pytest.mark.parametrize(("r", "side"), [(0.8, 160), (0.5, 160), (1.0, 128), (3.0, 43), (8.0, 16), (64.0, 2)])
def test_low_quality_face_keeps_its_own_resolution(r: float, side: int) -> None:
    spec = replace(PAPER.at(128), r=(0.5, 64.0))
    assert decode(degrade(picture(128), replace(CLEAN, r=r), spec)).pixels.shape == (side, side, 3)


def test_same_parameters_same_bytes_and_another_noise_seed_other_bytes() -> None:
    hq, spec = picture(128), PAPER.at(128)
    params = replace(CLEAN, delta=5.0)
    assert degrade(hq, params, spec) == degrade(hq.copy(), params, spec)
    assert degrade(hq, params, spec) != degrade(hq, replace(params, noise_seed=2), spec)


def test_degrading_leaves_the_face_untouched() -> None:
    hq = picture(128)
    before = hq.copy()
    hq.setflags(write=False)
    for params in (CLEAN, replace(CLEAN, flip=True, gray=True, sigma=2.0, delta=9.0, r=3.0)):
        degrade(hq, params, PAPER.at(128))
        apply_target(hq, params)
    assert (hq == before).all()


def test_flip_mirrors_the_low_quality_face_and_its_target_alike() -> None:
    hq, spec = picture(128), PAPER.at(128)
    params = replace(CLEAN, sigma=1.5, r=3.3, delta=7.0, q=77)
    flipped = replace(params, flip=True)
    assert (apply_target(hq, flipped) == hq[:, ::-1]).all()
    assert apply_target(hq, flipped).flags.c_contiguous
    assert degrade(hq, flipped, spec) == degrade(np.ascontiguousarray(hq[:, ::-1]), params, spec)


def test_gray_makes_the_low_quality_face_and_its_target_gray_alike() -> None:
    hq, spec = picture(128), PAPER.at(128)
    params = replace(CLEAN, gray=True, sigma=0.5, delta=20.0, r=2.0, q=60)
    target, low = apply_target(hq, params), decode(degrade(hq, params, spec))
    assert low.was_gray
    assert (target == target[..., :1]).all()
    assert np.abs(target[..., 0] - hq @ np.array([0.299, 0.587, 0.114])).max() < 1
    clean = decode(degrade(hq, replace(CLEAN, gray=True), spec)).pixels
    assert psnr(clean, target) > 48
    assert degrade(target, replace(params, gray=False, delta=0.0), spec) != degrade(
        hq, replace(params, delta=0.0), spec
    )  # one channel against three
    assert (
        psnr(
            decode(degrade(target, replace(params, gray=False, delta=0.0), spec)).pixels,
            decode(degrade(hq, replace(params, delta=0.0), spec)).pixels,
        )
        > 48
    )


def test_gray_keeps_black_and_white() -> None:
    ends = np.zeros((2, 1, 3), np.uint8)
    ends[0] = 255
    assert (apply_target(ends, replace(CLEAN, gray=True)) == ends).all()


def test_target_without_flip_or_gray_is_the_face() -> None:
    hq = picture(32)
    assert (apply_target(hq, replace(CLEAN, sigma=9.0, delta=9.0)) == hq).all()


@pytest.mark.parametrize("shape", [(64, 64, 3), (128, 96, 3), (512, 512, 3)])
def test_face_of_another_size_than_the_spec_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=r"128 x 128.*spec\.at"):
        degrade(np.zeros(shape, np.uint8), CLEAN, PAPER.at(128))


def test_face_without_three_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8 h w 3"):
        degrade(np.zeros((128, 128), np.uint8), CLEAN, PAPER.at(128))


GOLDEN = "79592cf8169e92f0f38305bad676b41e599ec6b005f3ae939b08bd5f26a5bffd"
GOLDEN_512 = "82f5fef59cb3aae02f96c5b51e985d3b8c4a8d936a2caacf831b0ae4c26bf3f6"
PORTABILITY_PROGRAM = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import cv2
import numpy as np
from test_degradation import digest_of_large, digest_of_many
numpy_features = [name for name, on in np._core._multiarray_umath.__cpu_features__.items() if on]
print(cv2.ipp.useIPP(), cv2.getCPUFeaturesLine(), " ".join(numpy_features), sep="|")
print(digest_of_many())
print(digest_of_large())
"""


def digest_of_many() -> str:
    """Digest the JPEGs of sixty draws, gray and flipped ones among them."""
    spec, hq = replace(PAPER.at(128), gray_probability=0.2), picture(128)
    together = hashlib.sha256()
    for variant in range(60):
        together.update(degrade(hq, draw(spec, sample_seed("portability", "picture", variant)), spec))
    return together.hexdigest()


def digest_of_large() -> str:
    """Digest the JPEGs of draws at the paper's size, where the kernel has 41 taps: its ends, and five at
    random.
    """
    spec, hq = replace(PAPER, gray_probability=0.2), add_noise(picture(512), 20.0, seed=5)
    ends = [
        replace(CLEAN, sigma=sigma, r=r, delta=20.0)
        for sigma, r in ((10.0, 0.8), (10.0, 8.0), (0.1, 0.8), (3.3, 1.0))
    ]
    draws = [draw(spec, sample_seed("portability", "large", variant)) for variant in range(5)]
    return hashlib.sha256(b"".join(degrade(hq, params, spec) for params in ends + draws)).hexdigest()


def test_bytes_have_not_changed_without_a_new_recipe_name() -> None:
    """If this fails, the arithmetic changed: name it anew in `spec.RECIPES`, since data sets written
    before are no longer reproduced.
    """
    assert (PAPER.kernel_px, PAPER.hq_px) == (41, 512)
    assert (digest_of_many(), digest_of_large()) == (GOLDEN, GOLDEN_512)


def instruction_sets() -> tuple[list[str], list[str]]:
    """What OpenCV and NumPy choose from here."""
    opencv = [
        name.strip("*?")
        for name in cv2.getCPUFeaturesLine().split()
        if name.startswith("*") and not name.endswith("?")
    ]
    core = np._core._multiarray_umath
    return opencv, [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]


def without(opencv_features: list[str], numpy_features: list[str]) -> dict[str, dict[str, str]]:
    """The environment that switches each library's instruction sets off."""
    return {
        "opencv-simd": {"OPENCV_CPU_DISABLE": ",".join(opencv_features)},
        "opencv-ipp": {"OPENCV_IPP": "disabled"},
        "numpy-simd": {"NPY_DISABLE_CPU_FEATURES": " ".join(numpy_features)},
        "libjpeg-simd": {"JSIMD_FORCENONE": "1"},
    }


@pytest.mark.parametrize(
    "switched_off", ["opencv-simd", "opencv-ipp", "numpy-simd", "libjpeg-simd", "everything"]
)
def test_other_instruction_sets_give_the_same_bytes(switched_off: str) -> None:
    opencv_features, numpy_features = instruction_sets()
    switches = without(opencv_features, numpy_features)
    chosen = switches.get(switched_off) or {
        name: value for each in switches.values() for name, value in each.items()
    }
    program = PORTABILITY_PROGRAM.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    features, *digests = done.stdout.splitlines()
    ipp, opencv_line, numpy_line = features.split("|")
    if "OPENCV_IPP" in chosen:
        assert ipp == "False"
    if "OPENCV_CPU_DISABLE" in chosen:
        assert not {f"*{name}" for name in opencv_features} & set(opencv_line.split())
    if "NPY_DISABLE_CPU_FEATURES" in chosen:
        assert not set(numpy_features) & set(numpy_line.split())
    assert digests == [GOLDEN, GOLDEN_512]


def test_plain_degradation_imports_neither_albumentations_nor_torch_nor_opencv_before_use() -> None:
    program = (
        "import sys, diffbfr.degradation; print(sorted({'albumentations', 'torch', 'cv2', 'PIL'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def door() -> Any:
    """Import albumentations for the tests of the door alone."""
    return importlib.import_module("diffbfr.degradation.transform")


@pytest.mark.slow
def test_door_degrades_at_the_faces_own_size_and_reports_the_draw(door: Any) -> None:
    pipeline = door.A.Compose([door.BlindFaceDegradation()], seed=3, save_applied_params=True)
    for px in (64, 128):
        out = pipeline(image=picture(px))
        drawn = dict(out["applied_transforms"])["BlindFaceDegradation"]
        params = DegradationParams(
            **{name: drawn[name] for name in ("sigma", "r", "delta", "q", "gray", "flip", "noise_seed")}
        )
        assert (
            out["image"] == lq_to_model(decode(degrade(picture(px), params, PAPER.at(px))).pixels, px)
        ).all()


@pytest.mark.slow
def test_door_follows_the_pipelines_seed(door: Any) -> None:
    def run(seed: int) -> np.ndarray:
        return door.A.Compose([door.BlindFaceDegradation()], seed=seed)(image=picture(64))["image"]  # type: ignore[no-any-return]

    assert (run(1) == run(1)).all()
    assert (run(1) != run(2)).any()


@pytest.mark.slow
def test_door_never_flips_and_leaves_other_targets_alone(door: Any) -> None:
    gentle = DegradationSpec(
        sigma=(0.1, 0.1),
        r=(1.0, 1.0),
        delta=(0.0, 0.0),
        q=(100, 100),
        flip_probability=1.0,
        gray_probability=0.0,
    )
    pipeline = door.A.Compose([door.BlindFaceDegradation(gentle)], seed=1)
    out = pipeline(image=picture(128), mask=picture(128)[..., 0])
    assert psnr(out["image"], picture(128)) > 38
    assert (out["mask"] == picture(128)[..., 0]).all()


@pytest.mark.slow
def test_door_survives_json_and_replays(door: Any) -> None:
    pipeline = door.A.Compose(
        [door.BlindFaceDegradation(replace(PAPER, r=(2.0, 3.0), preset="mild"), p=0.9)], seed=5
    )
    again = door.A.from_dict(json.loads(json.dumps(door.A.to_dict(pipeline))))
    assert again.transforms[0].spec == pipeline.transforms[0].spec
    again.set_random_seed(5)
    assert (again(image=picture(64))["image"] == pipeline(image=picture(64))["image"]).all()
    recorded = door.A.ReplayCompose([door.BlindFaceDegradation(p=1.0)])(image=picture(64))
    assert (
        door.A.ReplayCompose.replay(recorded["replay"], image=picture(64))["image"] == recorded["image"]
    ).all()


@pytest.mark.slow
def test_door_refuses_a_face_that_is_not_square(door: Any) -> None:
    with pytest.raises(UsageError, match="crop the face square"):
        door.BlindFaceDegradation()(image=np.zeros((64, 48, 3), np.uint8))
