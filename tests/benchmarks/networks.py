"""Forward pass and training step against diffusers' `UNet2DModel` at equal operations, and the memory that
each takes.

    python -m tests.benchmarks.networks --shrink 4 --width 2                     # two cores, a minute or two a stage
    python -m tests.benchmarks.networks --device cuda --batch 16 --layouts nhwc --dtypes bfloat16 --compile

Layouts, data types and numbers of threads are arms of their own: the fastest of ours is set against the
fastest of diffusers', and all are printed. A training step is forward, L1, backward and Adam; data and
weights are random. Adam is fused, as in our trainings, on both sides; diffusers is run with torch's default
one too, which is what its own examples train with. In a forward pass the weights are frozen, as a loaded
network's are. Operations are Table 6's on both sides, although ours runs fewer, also in the share of the
device's peak. On a CPU the process keeps freed memory (`diffbfr.cost.malloc`), for both sides.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffbfr.cost.flops import evaluation_flops
from diffbfr.cost.malloc import tune_malloc
from diffbfr.models.unet import UNet
from diffbfr.stages import IRM1, IRM2, TEM, StageSpec
from diffbfr.training.batches import Batch
from diffbfr.training.config import TrainingConfig
from diffbfr.training.train_step import TrainStep
from diffbfr.unet_spec import UNetSpec
from tests.benchmarks.diffusers_unet import DiffusersUNet, shrunk
from tests.benchmarks.harness import Run, environment, measure, peak_bytes, ratio, utilisation

STAGES = {"irm1": IRM1, "irm2": IRM2, "tem": TEM}
MAKERS = {"ours": UNet, "diffusers": DiffusersUNet}
FUSED, DEFAULT = ", fused Adam", ", torch's default Adam"
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def arms(spec: UNetSpec, task: str, given: argparse.Namespace) -> Iterator[tuple[str, Run]]:
    """Every way to run a task, by name; a network for each layout, its weights laid out before any clock
    runs.
    """
    device = torch.device(given.device)
    for (name, maker), layout in itertools.product(MAKERS.items(), given.layouts):
        eager = (
            _drawn(maker(spec))
            .to(device)
            .train(task == "train")
            .requires_grad_(task == "train")
            .to(memory_format=FORMATS[layout])
        )
        if isinstance(eager, UNet):
            eager.recompute_px = given.recompute
        nets = {name: eager} | (
            {f"{name} compiled": torch.compile(eager, mode="max-autotune")} if given.compile else {}
        )
        kinds = [""] if task == "forward" else [FUSED] if name == "ours" else [FUSED, DEFAULT]
        for adam in kinds:
            optimizer = (
                torch.optim.Adam(eager.parameters(), lr=1e-6, fused=adam == FUSED or None) if adam else None
            )
            for (kind, net), dtype, threads in itertools.product(nets.items(), given.dtypes, given.threads):
                run = _run(net, spec, optimizer, FORMATS[layout], dtype, threads, given.batch, device)
                yield f"{kind} {layout} {dtype} {threads} threads{adam}", run


def trainers(stage: StageSpec, given: argparse.Namespace) -> Iterator[tuple[str, Run]]:
    """Our training step whole, as a training takes it: loss, gradient's norm, Adam and the average; in the
    layout of the device.
    """
    generator, spec = torch.Generator().manual_seed(0), stage.unet
    images = torch.rand(3, given.batch, 3, spec.image_px, spec.image_px, generator=generator) * 2 - 1
    zeros = torch.zeros(given.batch, dtype=torch.long)
    batch = Batch(
        images[0],
        images[1] if stage.conditional else None,
        images[2],
        zeros + stage.start // 2,
        torch.rand(given.batch),
        zeros,
    )
    for dtype, threads in itertools.product(given.dtypes, given.threads):
        config = TrainingConfig(1000, given.batch, 1e-6, precision=dtype)
        train_step = TrainStep(
            stage, config, device=given.device, recompute_px=given.recompute, compiled=given.compile
        )
        _drawn(train_step.denoiser.net)

        def run(train_step: TrainStep = train_step, threads: int = threads) -> None:
            torch.set_num_threads(threads)
            train_step.step(batch, 0)

        yield f"trainer {dtype} {threads} threads", run


def _drawn(net: nn.Module) -> nn.Module:
    """Ours starts branches at zero; the gradients behind them would be too small for the processor's fast
    arithmetic, and Adam slow.
    """
    for p in net.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.02)
    return net


def _run(
    net: nn.Module,
    spec: UNetSpec,
    optimizer: torch.optim.Optimizer | None,
    form: torch.memory_format,
    dtype: str,
    threads: int,
    batch: int,
    device: torch.device,
) -> Run:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, spec.in_channels, spec.image_px, spec.image_px)
    y = torch.randn(shape, generator=generator).to(device, memory_format=form)
    target = torch.randn(batch, spec.out_channels, *shape[2:], generator=generator).to(
        device, memory_format=form
    )
    time = torch.rand(batch, generator=generator).to(device)

    def forward() -> Tensor:
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            output: Tensor = net(y, time)
        return output

    def run() -> None:
        torch.set_num_threads(threads)
        if optimizer is None:
            with torch.no_grad():
                forward()
            return
        optimizer.zero_grad(set_to_none=True)
        F.l1_loss(forward().float(), target).backward()
        optimizer.step()

    return run


def compare(stage: str, task: str, given: argparse.Namespace) -> None:
    """Measure one stage and task, and print its table."""
    spec, device = shrunk(STAGES[stage].unet, given.shrink, given.width), torch.device(given.device)
    work = evaluation_flops(spec) * given.batch * (3 if task == "train" else 1)
    runs = dict(arms(spec, task, given))
    if given.trainer and task == "train":
        runs |= trainers(replace(STAGES[stage], unet=spec), given)
    seconds = measure(runs, given.rounds, device)
    print(
        f"\n{stage} {task}: {spec.image_px} px, {spec.inner_channels} channels, batch {given.batch}, "
        f"{work / 1e9:.1f} GFLOP"
    )
    for name, found in seconds.items():
        median = statistics.median(found)
        peak = peak_bytes(runs[name], device) / 2**20
        used = utilisation(
            work / median, next(dtype for dtype in given.dtypes if dtype in name), device, given.peak_tflops
        )
        print(
            f"  {name:40} {1000 * median:9.1f} ms  {work / median / 1e12:8.3f} TFLOP/s{used}  peak "
            f"{peak:8.0f} MiB"
        )
    for adam in ("",) if task == "forward" else (FUSED, DEFAULT):
        ours = _fastest(seconds, "ours", "" if task == "forward" else FUSED)
        theirs = _fastest(seconds, "diffusers", adam)
        print(f"  {theirs} over {ours}: {ratio(seconds[theirs], seconds[ours])}")


def _fastest(seconds: dict[str, list[float]], who: str, adam: str) -> str:
    return min(
        (name for name in seconds if name.startswith(who) and name.endswith(adam)),
        key=lambda name: statistics.median(seconds[name]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Forward pass and training step against diffusers at equal operations."
    )
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--tasks", nargs="+", choices=("forward", "train"), default=("forward", "train"))
    parser.add_argument("--shrink", type=int, default=1, help="divide the sides of Table 6 by this")
    parser.add_argument("--width", type=int, default=1, help="divide the channels of Table 6 by this")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layouts", nargs="+", choices=("nchw", "nhwc"), default=("nchw", "nhwc"))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32",))
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--recompute", type=int, help="run blocks at least this wide again, in ours")
    parser.add_argument("--trainer", action="store_true", help="also the whole step of our trainer")
    parser.add_argument(
        "--peak-tflops", type=float, help="what the device can do at most; known for some cards in bfloat16"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile(mode='max-autotune') of both"
    )
    given = parser.parse_args()
    if given.device == "cpu":
        tune_malloc()  # for both sides
    print(environment(torch.device(given.device)))
    for stage, task in itertools.product(given.stages, given.tasks):
        compare(stage, task, given)


if __name__ == "__main__":
    main()
