"""dlib's face network: its block against plain functions, its crop, and the vectors of dlib itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import avg_pool2d, conv2d

from diffbfr.errors import UsageError
from diffbfr.images import to_tensor
from diffbfr.metrics.crop import FFHQ_POINTS
from diffbfr.metrics.face_resnet import (
    EYES_IN_CROP,
    FaceCosine,
    FaceEmbedding,
    FaceResNet,
    ResidualBlock,
    degrees,
    dlib_crop,
)
from diffbfr.metrics.weights import load_weights
from tests.diffbfr.metrics.pictures import cached, faces

OF_DLIB = (
    (-0.11321321874856949, 0.0797065868973732, 0.1753232479095459, 0.07085505872964859),
    (-0.0938902422785759, 0.09928618371486664, 0.16228289902210236, 0.05024045705795288),
)
"""Numbers 0, 1, 64 and 127 of the crops of `faces`, rounded to 8 bits, by dlib 20.0.1."""


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dlib") / "random.safetensors"
    save_file(FaceResNet().state_dict(), path)
    return path


def pictures(seed: int, px: int = 128) -> torch.Tensor:
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("in_channels", "halve", "px"), [(8, False, 7), (4, True, 7), (4, True, 8)])
@torch.inference_mode()
def test_a_block_pads_the_smaller_of_its_branches(in_channels: int, halve: bool, px: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(in_channels, 8, halve)
    for affine in (block.affine1, block.affine2):
        torch.nn.init.normal_(affine.gamma)
        torch.nn.init.normal_(affine.beta)
    x = torch.randn(1, in_channels, px, px)
    w = block.state_dict()
    stride, padding = (2, 0) if halve else (1, 1)
    inner = conv2d(x, w["conv1.weight"], w["conv1.bias"], stride, padding) * w["affine1.gamma"]
    inner = (inner + w["affine1.beta"]).clamp(min=0)
    inner = conv2d(inner, w["conv2.weight"], w["conv2.bias"], 1, 1) * w["affine2.gamma"] + w["affine2.beta"]
    shortcut = avg_pool2d(x, 2) if halve else x
    side = max(inner.shape[2], shortcut.shape[2])
    wanted = torch.zeros(1, 8, side, side)
    for branch in (inner, shortcut):
        wanted[:, : branch.shape[1], : branch.shape[2], : branch.shape[3]] += branch
    torch.testing.assert_close(block(x), wanted.clamp(min=0), rtol=0, atol=1e-5)


def test_the_network_has_the_parameters_of_the_file() -> None:
    assert sum(tensor.numel() for tensor in FaceResNet().state_dict().values()) == 5_614_592


@pytest.mark.parametrize("px", [512, 256, 128])
def test_the_eyes_of_the_frame_are_at_the_places_of_the_crop(px: int) -> None:
    grid = torch.arange(px) + 0.5
    scale = px / 512
    for (at_x, at_y), (to_x, to_y) in zip(FFHQ_POINTS, EYES_IN_CROP, strict=False):
        x, y = (at_x + 0.5) * scale, (at_y + 0.5) * scale
        distance = ((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2) / (12 * scale) ** 2
        spot = dlib_crop(torch.exp(-distance).expand(1, 3, px, px))[0, 0]
        row, column = divmod(int(spot.argmax()), 150)
        assert abs(column - to_x) <= 1
        assert abs(row - to_y) <= 1


def test_equal_pictures_are_one_person_at_an_angle_of_zero(random_weights: Path) -> None:
    cosine = FaceCosine(FaceEmbedding(random_weights))
    same = cosine(pictures(0), pictures(0))
    torch.testing.assert_close(same, torch.ones(2, dtype=torch.float64))
    assert (degrees(same) < 1e-4).all()
    with pytest.raises(UsageError, match="both must have one shape"):
        cosine(pictures(0), pictures(0, 64))


def test_an_angle_is_that_of_its_cosine() -> None:
    found = degrees(torch.tensor([1.0, 0.5, 0.0, -1.0, 1.0000001], dtype=torch.float64))
    np.testing.assert_allclose(found, [0, 60, 90, 180, 0], atol=1e-9)


def test_the_vectors_are_those_of_dlib() -> None:
    network = load_weights(FaceResNet(), cached("dlib-face-resnet"), "dlib's face ResNet")
    crops = ((dlib_crop(to_tensor(faces())) + 1) * 127.5).round().clamp(0, 255)
    with torch.inference_mode():
        found = network(crops)
    torch.testing.assert_close(found[:, [0, 1, 64, 127]], torch.tensor(OF_DLIB), rtol=0, atol=1e-4)
