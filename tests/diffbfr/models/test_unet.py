"""The U-Net's shapes, its time, its fresh start at zero, and that every part of it is used."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffbfr.errors import UsageError
from diffbfr.models.convolution import UpsampleConv
from diffbfr.models.unet import Attention, UNet
from diffbfr.unet_spec import UNetSpec
from tests.diffbfr.tiny import TINY_STAGES, wake

IRM = TINY_STAGES["irm1"].unet
TEM = TINY_STAGES["tem"].unet
SPECS = pytest.mark.parametrize(
    "spec",
    [IRM, TEM, replace(IRM, image_px=16, patch_px=2), replace(TEM, attention_px=(16, 8), head_channels=4)],
    ids=["irm", "tem", "patches", "heads"],
)


def _inputs(spec: UNetSpec, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(batch, spec.in_channels, spec.image_px, spec.image_px, generator=generator)
    time = (
        torch.linspace(0.1, 0.9, batch)
        if spec.time == "noise_level"
        else torch.linspace(1, 900, batch).round()
    )
    return y, time


@SPECS
def test_the_output_has_the_images_size_and_the_stages_channels(spec: UNetSpec) -> None:
    y, time = _inputs(spec)
    assert UNet(spec)(y, time).shape == (3, spec.out_channels, spec.image_px, spec.image_px)


@SPECS
def test_a_fresh_network_says_zero(spec: UNetSpec) -> None:
    assert bool((UNet(spec)(*_inputs(spec)) == 0).all())


@SPECS
def test_each_image_hears_its_own_time(spec: UNetSpec) -> None:
    net = wake(UNet(spec)).eval()
    y, time = _inputs(spec)
    together = net(y, time)
    for i in range(3):
        assert torch.allclose(net(y[i : i + 1], time[i : i + 1])[0], together[i], atol=1e-5)
    moved = net(y, torch.cat([time[:2], time[:1]]))
    assert torch.allclose(moved[:2], together[:2], atol=1e-6)
    assert not torch.allclose(moved[2], together[2], atol=1e-4)


@SPECS
def test_every_parameter_has_a_say(spec: UNetSpec) -> None:
    net = wake(UNet(spec))
    net(*_inputs(spec)).square().sum().backward()
    silent = [
        name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_patches_are_folded_into_channels_and_back() -> None:
    net = UNet(replace(IRM, image_px=16, patch_px=2))
    assert net.stem.in_channels == 4 * IRM.in_channels
    assert net.head.out_channels == 4 * IRM.out_channels
    assert sum(p.numel() for p in net.encoder.parameters()) == sum(
        p.numel() for p in UNet(IRM).encoder.parameters()
    )
    assert net.head.bias is not None
    with torch.no_grad():
        net.head.bias.copy_(torch.arange(4 * IRM.out_channels))
    image = net(*_inputs(replace(IRM, image_px=16)))[0]
    for channel in range(IRM.out_channels):
        block = torch.tensor([[0.0, 1.0], [2.0, 3.0]]) + 4 * channel
        assert torch.equal(image[channel], block.repeat(8, 8))


def test_attention_stands_at_its_sides_and_in_the_middle() -> None:
    def places(spec: UNetSpec) -> set[str]:
        return {
            name
            for name, module in UNet(spec).named_modules()
            if name.endswith("attention") and not isinstance(module, nn.Identity)
        }

    assert places(replace(IRM, attention_px=())) == {"middle.0.attention"}
    assert places(replace(IRM, attention_px=(4,))) == {
        "encoder.1.blocks.0.attention",
        "middle.0.attention",
        "decoder.0.blocks.0.attention",
        "decoder.0.blocks.1.attention",
    }


def test_attention_mixes_pixels_as_softmax_says() -> None:
    c = 16
    attention = wake(Attention(c, replace(TEM, head_channels=4)))
    h = torch.randn(2, c, 3, 3, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.qkv(attention.norm(h)).flatten(2).chunk(3, 1)
    mixed = torch.zeros(2, c, 9)
    for head in range(c // 4):
        rows = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q[:, rows], k[:, rows]) / math.sqrt(4), -1)
        mixed[:, rows] = torch.einsum("bij,bcj->bci", weights, v[:, rows])
    assert torch.allclose(attention(h), h + attention.out(mixed.view_as(h)), atol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="expected a multiple of head_channels=5"):
        UNet(replace(TEM, head_channels=5))


def test_dropout_acts_in_training_only() -> None:
    spec = replace(IRM, dropout=0.5)
    net, (y, time) = wake(UNet(spec)), _inputs(spec)
    assert not torch.equal(net(y, time), net(y, time))
    net.eval()
    assert torch.equal(net(y, time), net(y, time))


_EXPLAINED = """
import torch
from diffbfr.unet_spec import UNetSpec
from diffbfr.models.unet import UNet
spec = UNetSpec(image_px=8, in_channels=6, out_channels=3, inner_channels=8, channel_multipliers=(1, 2), res_blocks=(1, 1),
                attention_px=(4,), norm_groups=4, dropout=0.5)
inputs = torch.randn(2, 6, 8, 8), torch.rand(2), torch.arange(2)
print(torch._dynamo.explain(UNet(spec).train())(*inputs).graph_break_count)
"""


@pytest.mark.slow
def test_training_with_dropout_is_one_graph_for_the_compiler() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _EXPLAINED], capture_output=True, text=True, check=True
    )  # without the tests' shape checks
    assert found.stdout == "0\n"


def test_the_memory_layout_does_not_matter() -> None:
    net, (y, time) = wake(UNet(IRM)).eval(), _inputs(IRM)
    expected = net(y, time)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.allclose(net(y.contiguous(memory_format=torch.channels_last), time), expected, atol=1e-5)


# Recomputing


def _gradients(net: UNet, spec: UNetSpec, recompute_px: int | None) -> list[Tensor]:
    net.recompute_px = recompute_px
    net.zero_grad()
    y, time = _inputs(spec)
    torch.manual_seed(5)
    net(y, time).square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@SPECS
@pytest.mark.parametrize("narrowest", [1, 2])
def test_blocks_that_are_run_again_give_bitwise_the_same_gradients_with_the_same_dropout(
    spec: UNetSpec, narrowest: int
) -> None:
    spec = replace(spec, dropout=0.3)
    net = wake(UNet(spec)).train()
    kept = _gradients(net, spec, None)
    again = _gradients(net, spec, spec.image_px // spec.patch_px // narrowest)
    assert len(kept) == len(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    torch.manual_seed(6)
    net.zero_grad()
    net(*_inputs(spec)).square().sum().backward()
    assert any(
        not torch.equal(a, p.grad) for a, p in zip(kept, net.parameters(), strict=True) if p.grad is not None
    )


def test_only_wide_blocks_are_run_again_and_none_without_gradients() -> None:
    net, calls = wake(UNet(IRM)).train(), dict.fromkeys(range(2), 0)
    for level, stage in enumerate(net.encoder):
        for block in stage["blocks"]:  # type: ignore[index]
            block.register_forward_pre_hook(lambda *_, level=level: calls.update({level: calls[level] + 1}))
    _gradients(net, IRM, 8)
    assert calls == {0: 2, 1: 1}
    with torch.no_grad():
        net(*_inputs(IRM))
    assert calls == {0: 3, 1: 2}


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (1, 3)])
def test_enlarging_and_convolving_in_one_is_both_one_after_the_other(size: tuple[int, int]) -> None:
    conv = UpsampleConv(6).double()
    h = torch.randn(3, 6, *size, dtype=torch.double, requires_grad=True)
    asked = [h, *conv.parameters()]
    towards = torch.randn(3, 6, 2 * size[0], 2 * size[1], dtype=torch.double)
    results = []
    for conv.fold_px in (1, 100):
        large = conv(h)
        results.append([large, *torch.autograd.grad((large * towards).sum(), asked)])
    for folded, plain in zip(*results, strict=True):
        assert torch.allclose(folded, plain, atol=1e-12, rtol=1e-12)
