"""Frozen weights in a kernel's order give the same maps, are noticed when they change, and stay out of a
checkpoint.
"""

import copy

import pytest
import torch
from torch import Tensor

from diffbfr.models.convolution import Conv, UpsampleConv
from tests.diffbfr.tiny import wake

CONVS = pytest.mark.parametrize(
    "conv",
    [Conv(6, 10), Conv(6, 10, 1), Conv(6, 10, stride=2), UpsampleConv(6)],
    ids=["three", "one", "halving", "enlarging"],
)


def _map(px: int = 20, batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, px, px, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )


def _frozen(conv: Conv) -> Conv:
    return wake(copy.deepcopy(conv)).requires_grad_(False)


@CONVS
@pytest.mark.parametrize("px", [4, 20])
@torch.no_grad()
def test_frozen_weights_give_the_maps_of_plain_ones(conv: Conv, px: int) -> None:
    h, frozen = _map(px), _frozen(conv)
    plain = copy.deepcopy(frozen).requires_grad_(True)
    for _ in range(2):
        assert torch.allclose(frozen(h), plain(h), atol=1e-5)
    assert frozen._reordered
    assert not plain._reordered


@CONVS
@torch.no_grad()
def test_other_weights_are_noticed_and_a_used_network_can_be_copied_and_saved(conv: Conv) -> None:
    h, frozen, other = _map(), _frozen(conv), wake(copy.deepcopy(conv), seed=1)
    first = frozen(h)
    copied = copy.deepcopy(frozen)
    assert set(frozen.state_dict()) == {"weight", "bias"}
    frozen.load_state_dict(other.state_dict())
    assert torch.allclose(frozen(h), other(h), atol=1e-5)
    assert torch.equal(copied(h), first)
    assert torch.allclose(frozen.double()(h.double()).float(), other(h), atol=1e-5)


def test_frozen_weights_pass_gradients_on() -> None:
    h = _map().requires_grad_()
    _frozen(Conv(6, 6))(h).square().sum().backward()
    assert h.grad is not None
    assert bool(h.grad.any())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_enlarged_map_and_its_gradient_keep_the_layout(layout: torch.memory_format) -> None:
    h = _map(20).contiguous(memory_format=layout).requires_grad_()
    conv = UpsampleConv(6).to(memory_format=layout)  # type: ignore[call-overload]
    large = conv(h)
    assert large.is_contiguous(memory_format=layout)
    large.square().sum().backward()
    assert h.grad is not None
    assert h.grad.is_contiguous(memory_format=layout)
