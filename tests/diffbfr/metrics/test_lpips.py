"""LPIPS: the networks against a reference in plain functions, and the distances of the package lpips."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from diffbfr.errors import UsageError
from diffbfr.images import to_tensor
from diffbfr.metrics.lpips import AlexTrunk, Lpips, LpipsNetwork, Trunk, VggTrunk
from tests.diffbfr.metrics.pictures import blurred_faces, cached, faces

OF_THE_PACKAGE = {
    "alex": (0.1945522576570511, 0.2925529181957245),
    "vgg": (0.1663498729467392, 0.1947203129529953),
}
"""lpips 0.1.4's own forward pass over `blurred_faces` and `faces`."""


@pytest.fixture(scope="module", params=["alex", "vgg"])
def random_weights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trunk, Path]:
    torch.manual_seed(0)
    network = LpipsNetwork(request.param)
    for weight in network.linear:
        torch.nn.init.uniform_(weight)
    path = tmp_path_factory.mktemp("lpips") / "random.safetensors"
    save_file(network.state_dict(), path)
    return request.param, path


def pictures(seed: int, px: int = 64) -> Tensor:
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_alexnet_has_the_features_of_its_layers_in_plain_functions() -> None:
    trunk, x = AlexTrunk(), pictures(0)
    w = trunk.state_dict()

    def layer(x: Tensor, i: int, stride: int, padding: int) -> Tensor:
        return conv2d(x, w[f"convs.{i}.weight"], w[f"convs.{i}.bias"], stride, padding).clamp(min=0)

    a = layer(x, 0, 4, 2)
    b = layer(max_pool2d(a, 3, 2), 1, 1, 2)
    c = layer(max_pool2d(b, 3, 2), 2, 1, 1)
    d = layer(c, 3, 1, 1)
    for found, wanted in zip(trunk(x), (a, b, c, d, layer(d, 4, 1, 1)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_vgg_has_the_features_of_its_blocks_in_plain_functions() -> None:
    trunk, x = VggTrunk(), pictures(0, 32)
    w = trunk.state_dict()
    features = trunk(x)
    for block, count in enumerate((2, 2, 3, 3, 3)):
        x = max_pool2d(x, 2) if block else x
        for i in range(count):
            name = f"blocks.{block}.{i}"
            x = conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1).clamp(min=0)
        torch.testing.assert_close(features[block], x, rtol=0, atol=1e-5)


def test_equal_pictures_are_at_zero_and_order_does_not_matter(random_weights: tuple[Trunk, Path]) -> None:
    lpips = Lpips(*random_weights)
    assert lpips(pictures(0), pictures(0)).tolist() == [0.0, 0.0]
    there, back = lpips(pictures(0), pictures(1)), lpips(pictures(1), pictures(0))
    torch.testing.assert_close(there, back)
    assert (there > 0).all()


def test_one_picture_alone_equals_the_same_picture_in_a_batch(random_weights: tuple[Trunk, Path]) -> None:
    lpips = Lpips(*random_weights)
    batch, alone = lpips(pictures(0), pictures(1)), lpips(pictures(0)[1:], pictures(1)[1:])
    torch.testing.assert_close(batch[1:], alone, rtol=0, atol=1e-6)


def test_pictures_of_other_sizes_and_small_ones_are_refused(random_weights: tuple[Trunk, Path]) -> None:
    lpips = Lpips(*random_weights)
    with pytest.raises(UsageError, match="both must have one shape"):
        lpips(pictures(0), pictures(0, 32))
    with pytest.raises(UsageError, match="needs 32 px a side"):
        lpips(pictures(0, 31), pictures(0, 31))


def test_the_weights_of_another_network_are_refused(
    random_weights: tuple[Trunk, Path], tmp_path: Path
) -> None:
    trunk, path = random_weights
    other: Trunk = "vgg" if trunk == "alex" else "alex"
    with pytest.raises(UsageError, match=r"differ in trunk.*run `diffbfr setup metrics`"):
        Lpips(other, path)
    with pytest.raises(UsageError, match=r"no file .*run `diffbfr setup metrics`"):
        Lpips(trunk, tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be read"):
        Lpips(trunk, tmp_path / "cut.safetensors")


@pytest.mark.parametrize("trunk", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_the_distances_are_those_of_the_package(trunk: Trunk) -> None:
    lpips = Lpips(trunk, cached(f"lpips-{trunk}"))
    found = lpips(to_tensor(blurred_faces()), to_tensor(faces()))
    torch.testing.assert_close(found, torch.tensor(OF_THE_PACKAGE[trunk]), rtol=0, atol=1e-5)
