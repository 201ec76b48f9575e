"""The averages in closed form, and a length that was chosen afterwards against the same one tracked along
the way.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffbfr.ema import Ema, PowerEma, Snapshot, combination, exponent_of


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


# Averages of power functions


def _walk(
    steps: int, batch: int, *lengths: float
) -> tuple[list[PowerEma], list[tuple[Snapshot, Tensor]], list[float]]:
    """A net that walks at random, its averages at the end, snapshots of them along the way, and where it
    walked.
    """
    net = _net(4.0)
    averages = [PowerEma(net, length) for length in lengths]
    generator = torch.Generator().manual_seed(7)
    kept, path = [], []
    for step in range(1, steps + 1):
        with torch.no_grad():
            net.weight.fill_(net.weight[0, 0] + torch.randn((), generator=generator))  # type: ignore[operator, index]
        path.append(float(net.weight.detach()[0, 0]))  # type: ignore[operator, index]
        for average in averages:
            average.update(net, batch, step * batch)
            if step % (steps // 10) == 0:
                kept.append(
                    (Snapshot(step * batch, average.length), average.weights["weight"][0, 0].double())
                )
    return averages, kept, path


@pytest.mark.parametrize("length", [0.03, 0.05, 0.1, 0.2])
def test_the_length_is_the_relative_deviation_of_the_weights_over_samples(length: float) -> None:
    exponent = exponent_of(length)
    tau = (np.arange(200_000) + 0.5) / 200_000
    weight = tau**exponent / (tau**exponent).sum()
    mean = (weight * tau).sum()
    assert np.sqrt((weight * (tau - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)


def test_the_published_pair_of_lengths_has_the_published_exponents() -> None:
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.01)


def test_a_power_average_weights_each_step_by_the_samples_it_ends_with() -> None:
    (average,), _, path = _walk(200, 8, 0.1)
    ends = np.arange(1, 201) / 200
    exponent = exponent_of(0.1) + 1
    shares = ends**exponent - (ends - 1 / 200) ** exponent  # the integral of the profile over each step
    assert float(average.weights["weight"][0, 0]) == pytest.approx(float(shares @ np.array(path)), rel=0.02)


def test_the_first_step_replaces_the_start() -> None:
    average = PowerEma(_net(9.0), 0.1)
    average.update(_net(2.0), batch=16, samples=16)
    assert {float(v) for weight in average.weights.values() for v in weight.flatten()} == {2.0}


@pytest.mark.parametrize("length", [0.04, 0.07, 0.13, 0.2])
def test_an_average_put_together_afterwards_is_the_one_tracked_along_the_way(length: float) -> None:
    averages, kept, path = _walk(1000, 8, 0.05, 0.1, length)
    basis = [(snapshot, value) for snapshot, value in kept if snapshot.length in (0.05, 0.1)]
    found = combination([snapshot for snapshot, _ in basis], length, 8000)
    together = sum(float(c) * float(value) for c, (_, value) in zip(found.coefficients, basis, strict=True))
    tracked = float(averages[2].weights["weight"][0, 0])
    assert found.error < 0.07
    assert float(found.coefficients.sum()) == pytest.approx(1, abs=1e-9)
    assert abs(together - tracked) < 0.02 * float(np.std(path))
    assert abs(tracked - float(averages[0].weights["weight"][0, 0])) > 0.02 * float(
        np.std(path)
    )  # another length is another average


def test_a_kept_average_is_its_own_reconstruction() -> None:
    snapshots = [Snapshot(samples, length) for samples in (500, 1000) for length in (0.05, 0.1)]
    found = combination(snapshots, 0.1, 1000)
    assert found.coefficients == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert found.error < 1e-6
