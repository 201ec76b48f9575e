"""Dropout keyed by image: unbiased, repeatable, and indifferent to the batch around."""

import pytest
import torch

from diffbfr.models.dropout import KeyedDropout

SEEDS = torch.tensor([3, 2**62 + 5, 17])


def test_it_drops_a_share_p_and_keeps_the_mean() -> None:
    dropped = KeyedDropout(0.2).train()(torch.ones(3, 16, 32, 32), SEEDS)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=4 * (0.16 / dropped.numel()) ** 0.5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_image_drops_the_same_values_alone_in_any_batch_and_again(layout: torch.memory_format) -> None:
    dropout, h = KeyedDropout(0.5).train(), torch.randn(3, 4, 6, 5).to(memory_format=layout)
    together = dropout(h, SEEDS)
    torch.rand(7)
    for i in (2, 0, 1):
        assert torch.equal(dropout(h[i : i + 1], SEEDS[i : i + 1]), together[i : i + 1])
    assert together.is_contiguous(memory_format=layout)


def test_images_and_layers_differ() -> None:
    ones = torch.ones(3, 8, 8, 8)
    first, second = (KeyedDropout(0.5, layer).train()(ones, SEEDS) for layer in (0, 1))
    masks = [*first, *second]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert float((one == other).float().mean()) == pytest.approx(
                0.5, abs=4 * (0.25 / one.numel()) ** 0.5
            )


def test_the_gradient_flows_through_what_was_kept() -> None:
    h = torch.randn(3, 2, 4, 4, requires_grad=True)
    dropped = KeyedDropout(0.5).train()(h, SEEDS)
    dropped.sum().backward()
    assert h.grad is not None
    assert torch.equal(h.grad, torch.where(dropped == 0, 0.0, 2.0))


def test_it_leaves_evaluation_and_p_of_zero_alone() -> None:
    h = torch.randn(3, 2, 4, 4)
    assert KeyedDropout(0.5).eval()(h, SEEDS) is h
    assert KeyedDropout(0.0).train()(h, SEEDS) is h


def test_a_mask_is_what_its_hash_says_in_plain_whole_numbers() -> None:
    def mixed(x: int) -> int:
        for shift, factor in ((31, 0xBF58476D1CE4E5B9), (29, 0x94D049BB133111EB)):
            x ^= (x if x < 2**63 else x - 2**64) >> shift  # torch's shift repeats the sign
            x = (x % 2**64) * factor % 2**64
        return x ^ (x >> 32)

    channels, height, width, layer, golden = 5, 3, 2, 6, 0x9E3779B97F4A7C15
    dropped = KeyedDropout(0.3, layer).train()(torch.ones(3, channels, height, width), SEEDS) == 0
    for image, seed in enumerate(SEEDS.tolist()):
        key = mixed((seed ^ (layer + 1) * golden) % 2**64)
        for place in range(channels * height * width):
            bits = mixed((place // 4 * golden + key) % 2**64) >> 16 * (place % 4) & 0xFFFF
            number = bits if bits < 2**15 else bits - 2**16
            row, column, channel = place // channels // width, place // channels % width, place % channels
            assert bool(dropped[image, channel, row, column]) == (number < round(0.3 * 2**16) - 2**15)


def test_without_seeds_torch_chooses_them() -> None:
    dropout, h = KeyedDropout(0.5).train(), torch.ones(2, 8, 8, 8)
    torch.manual_seed(1)
    first, second = dropout(h), dropout(h)
    torch.manual_seed(1)
    assert torch.equal(dropout(h), first)
    assert not torch.equal(first, second)
