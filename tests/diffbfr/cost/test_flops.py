"""Cost is counted, and counted right: a network of one convolution is known by hand."""

from dataclasses import replace

from diffbfr.cost.flops import evaluation_flops, num_parameters, training_flops
from diffbfr.models.unet import UNet
from diffbfr.stages import IRM1_TINY, TEM_TINY
from diffbfr.unet_spec import UNetSpec

PLAIN = UNetSpec(
    image_px=16,
    in_channels=6,
    out_channels=3,
    inner_channels=8,
    channel_multipliers=(1,),
    res_blocks=(1,),
    attention_px=(),
    norm_groups=4,
)


def test_the_flops_of_a_small_network_are_those_counted_by_hand() -> None:
    pixels, width = 16 * 16, 8
    stem, head = 2 * 9 * 6 * width * pixels, 2 * 9 * width * 3 * pixels
    block = (
        2 * (2 * 9 * width * width * pixels) + 2 * width * width
    )  # two convolutions and the time's linear layer
    wide_block = (
        2 * 9 * 2 * width * width * pixels
        + 2 * 9 * width * width * pixels
        + 2 * width * width
        + 2 * 2 * width * width * pixels
    )
    attention = (
        2 * width * 3 * width * pixels + 2 * (2 * pixels * pixels * width) + 2 * width * width * pixels
    )
    time = 2 * width * 4 * width + 2 * 4 * width * width
    down, middle, up = block, 2 * block + attention, 2 * wide_block
    assert evaluation_flops(PLAIN) == stem + head + time + down + middle + up


def test_parameters_are_those_of_the_network() -> None:
    for spec in (PLAIN, IRM1_TINY.unet, TEM_TINY.unet):
        assert num_parameters(spec) == sum(p.numel() for p in UNet(spec).parameters())


def test_twice_the_side_costs_four_times_the_convolutions() -> None:
    without = replace(PLAIN, image_px=32)
    attention = [2 * (2 * pixels * pixels * 8) for pixels in (16 * 16, 32 * 32)]
    time = 2 * 8 * 32 * 2 + 5 * 2 * 8 * 8
    assert evaluation_flops(without) - attention[1] - time == 4 * (
        evaluation_flops(PLAIN) - attention[0] - time
    )


def test_training_is_three_evaluations_a_sample() -> None:
    assert training_flops(PLAIN, 1_000) == 3_000 * evaluation_flops(PLAIN)
