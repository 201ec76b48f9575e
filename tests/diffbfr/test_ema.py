"""The moving average in closed form."""

import pytest
import torch
from torch import nn

from diffbfr.ema import Ema


def _net(value: float) -> nn.Module:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)
    return net


def _value(ema: Ema) -> float:
    values = {float(v) for weight in ema.weights.values() for v in weight.flatten()}
    assert len(values) == 1
    return values.pop()


def test_after_one_half_life_an_old_weight_counts_half() -> None:
    ema, net = Ema(_net(1.0), half_life=100), _net(0.0)
    for step in range(10):
        ema.update(net, batch=10, samples=100_000 + 10 * step)
    assert _value(ema) == pytest.approx(0.5, rel=1e-6)


def test_the_batch_size_does_not_change_the_average() -> None:
    averages = []
    for batch in (1, 8, 64):
        ema, net = Ema(_net(1.0), half_life=200), _net(0.0)
        for step in range(192 // batch):
            ema.update(net, batch, samples=100_000 + batch * step)
        averages.append(_value(ema))
    assert averages == pytest.approx([0.5 ** (192 / 200)] * 3, rel=1e-5)


def test_table_6s_decay_of_0_999_a_step_of_64_is_44_339_samples() -> None:
    ema = Ema(_net(1.0), half_life=44_339)
    ema.update(_net(0.0), batch=64, samples=10_000_000)
    assert _value(ema) == pytest.approx(0.999, abs=2e-7)


def test_the_average_is_the_weighted_sum_of_all_weights_so_far() -> None:
    values = [0.3, -1.0, 2.0, 0.7, 0.1]
    ema, expected, samples = Ema(_net(5.0), half_life=50), 5.0, 0
    for value in values:
        samples += 4
        keep = 0.5 ** (4 / min(50, 0.1 * samples))
        expected = keep * expected + (1 - keep) * value
        ema.update(_net(value), batch=4, samples=samples)
    assert _value(ema) == pytest.approx(expected, rel=1e-5)


def test_the_start_is_forgotten_early() -> None:
    ema, counted = Ema(_net(1.0), half_life=50_000), 0.0
    for step in range(1, 6):
        ema.update(_net(0.0), batch=8, samples=8 * step)
        counted += 10 / step  # half-lives: 8 samples of a tenth of those seen
        assert _value(ema) == pytest.approx(0.5**counted, rel=1e-4)
    assert _value(ema) < 1e-6


def test_the_average_is_a_copy_and_can_be_put_into_a_network() -> None:
    net = _net(1.0)
    ema = Ema(net, half_life=1)
    with torch.no_grad():
        net.weight.fill_(7.0)  # type: ignore[operator]
    assert _value(ema) == 1.0
    other = _net(3.0)
    ema.copy_to(other)
    assert all(bool((p == 1).all()) for p in other.parameters())
