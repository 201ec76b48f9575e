"""What the benchmarks compute, on clocks and memory that are known; and that the peer is a peer."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pytest
import torch

from diffbfr.cost.flops import evaluation_flops, num_parameters
from diffbfr.stages import IRM1, IRM1_TINY, IRM2, TEM, StageSpec
from tests.benchmarks.harness import environment, measure, peak_bytes, ratio, utilisation

CPU = torch.device("cpu")


@pytest.fixture
def peers() -> ModuleType:
    """Imported by the tests that want diffusers, which takes seconds."""
    return import_module("tests.benchmarks.diffusers_unet")


def test_every_round_runs_every_arm_once_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[int] = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    calls: list[str] = []
    seconds = measure(
        {name: (lambda name=name: calls.append(name)) for name in "abc"}, rounds=20, device=CPU, warm_up=2
    )
    assert sorted(calls[:6]) == list("aabbcc")
    rounds = [calls[i : i + 3] for i in range(6, len(calls), 3)]
    assert [sorted(order) for order in rounds] == [list("abc")] * 20
    assert len({tuple(order) for order in rounds}) > 3
    assert seconds == {name: [1.0] * 20 for name in "abc"}


def test_the_ratio_is_of_medians_and_its_interval_holds_the_true_one() -> None:
    generator = torch.Generator().manual_seed(0)
    faster = (1 + 0.1 * torch.rand(40, generator=generator)).tolist()
    slower = (3 + 0.3 * torch.rand(40, generator=generator)).tolist()
    slower[0] = 1000.0  # a disturbed round
    found = ratio(slower, faster)
    assert found.low < 3 < found.high
    assert found.high - found.low < 0.2
    assert str(ratio([2.0], [1.0])) == "2.00 [2.00, 2.00]"
    with pytest.raises(ValueError, match="1 and 2 rounds"):
        ratio([1.0], [1.0, 2.0])


def test_the_peak_is_what_a_call_takes_and_gives_back() -> None:
    def run() -> float:
        return float(torch.ones(16, 1024, 1024).sum())  # 64 MiB

    run()
    assert 60 * 2**20 < peak_bytes(run, CPU) < 100 * 2**20
    assert peak_bytes(lambda: None, CPU) < 8 * 2**20


def test_the_share_of_a_peak_is_of_the_known_cards_or_the_given_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    cuda = torch.device("cuda")
    assert utilisation(494.5e12, "bfloat16", cuda) == "   50.0% of the peak"
    assert utilisation(50e12, "bfloat16", cuda, peak_tflops=100) == "   50.0% of the peak"
    assert utilisation(1e12, "float32", cuda) == utilisation(1e12, "bfloat16", CPU) == ""


def test_the_environment_is_named() -> None:
    assert torch.__version__ in environment(CPU)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [IRM1, IRM2, TEM], ids=lambda stage: stage.name)
def test_diffusers_network_has_the_same_operations_within_two_in_ten_thousand(
    peers: ModuleType, stage: StageSpec
) -> None:
    with torch.device("meta"):
        peer = peers.DiffusersUNet(stage.unet)
    assert peers.flops(peer, stage.unet) == pytest.approx(evaluation_flops(stage.unet), rel=2e-4)
    assert sum(p.numel() for p in peer.parameters()) == pytest.approx(num_parameters(stage.unet), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [IRM1, IRM2, TEM], ids=lambda stage: stage.name)
def test_a_shrunk_table_runs_in_both(peers: ModuleType, stage: StageSpec) -> None:
    spec = peers.shrunk(stage.unet, 8, 8)
    with torch.device("meta"):
        peer = peers.DiffusersUNet(spec)
        assert peer(torch.empty(2, spec.in_channels, spec.image_px, spec.image_px), torch.ones(2)).shape == (
            2,
            spec.out_channels,
            spec.image_px,
            spec.image_px,
        )
    assert peers.flops(peer, spec) == pytest.approx(evaluation_flops(spec), rel=2e-3)


def test_folded_blocks_have_no_diffusers_network(peers: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected patch_px=1"):
        peers.DiffusersUNet(replace(IRM1_TINY.unet, patch_px=2))
