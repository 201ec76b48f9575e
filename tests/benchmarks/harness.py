"""Compare the speed of arms: one process, interleaved rounds in random order, and ratios of medians."""

import ctypes
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Run = Callable[[], object]
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16 matrix products (TFLOP/s) by the makers' data sheets."""


@dataclass(frozen=True)
class Ratio:
    """Ratio of the medians of two arms, with its 95 % bootstrap interval over rounds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def measure(
    arms: Mapping[str, Run], rounds: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each arm in each round.

    Every round runs every arm once, in a new random order, so that a slow minute of the machine affects all
    alike.
    """
    for run in arms.values():
        for _ in range(warm_up):
            run()
    order, seconds = random.Random(0), {name: [0.0] * rounds for name in arms}
    for number in range(rounds):
        for name in order.sample(list(arms), len(arms)):
            _wait(device)
            started = time.perf_counter()
            arms[name]()
            _wait(device)
            seconds[name][number] = time.perf_counter() - started
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float], draws: int = 2000) -> Ratio:
    """Median of one arm over that of the other; rounds are resampled in pairs, as they were run."""
    if len(slower) != len(faster) or not slower:
        raise ValueError(f"{len(slower)} and {len(faster)} rounds; expected as many of each, at least one")
    generator, rounds = random.Random(0), range(len(slower))
    found = []
    for _ in range(draws):
        chosen = generator.choices(rounds, k=len(rounds))
        found.append(
            statistics.median(slower[i] for i in chosen) / statistics.median(faster[i] for i in chosen)
        )
    found.sort()
    value = statistics.median(slower) / statistics.median(faster)
    return Ratio(value, found[int(0.025 * draws)], found[int(0.975 * draws)])


def peak_bytes(run: Run, device: torch.device) -> int:
    """The peak of the memory that one call takes beyond what was taken before it.

    It is the allocator's on a GPU and the resident set on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # glibc keeps freed memory; a call that reuses it would seem to need none.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set starts anew
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def utilisation(flop_per_s: float, dtype: str, device: torch.device, peak_tflops: float | None = None) -> str:
    """The fraction of the device's peak that is used, as text; empty where no peak is known."""
    if peak_tflops is None and device.type == "cuda" and dtype == "bfloat16":
        name = torch.cuda.get_device_name(device)
        peak_tflops = next((peak for card, peak in PEAK_TFLOPS.items() if card in name), None)
    return "" if peak_tflops is None else f"  {flop_per_s / peak_tflops / 1e12:6.1%} of the peak"


def environment(device: torch.device) -> str:
    """The machine and torch version of the figures."""
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "CPU",
    )
    return f"torch {torch.__version__}, {model}, {torch.get_num_threads()} threads"


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
