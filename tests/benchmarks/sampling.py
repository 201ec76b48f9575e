"""How long a face takes: mode `fast`, mode `faithful` and diffusers' DDPM loop over the same stages, and the
memory that a batch takes.

    python -m tests.benchmarks.sampling --cascade packaged
    python -m tests.benchmarks.sampling --cascade paper --shrink 8 --width 4     # the shapes of Table 6, smaller
    python -m tests.benchmarks.sampling --cascade paper --device cuda --faces 16

Every step of a loop costs the same: of the 3,100 of Algorithm 1 one in `--thin` is run, in each stage, and
its time is multiplied; what is printed as such says so. `fast` runs whole. Weights are random but for the
packaged cascade; time does not depend on them.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffbfr.cascade import Cascade, Restoration, packaged_cascade, sample
from diffbfr.models.denoiser import Denoiser, upsample
from diffbfr.stages import IRM1, IRM2, TEM
from tests.benchmarks.diffusers_unet import DiffusersUNet, shrunk
from tests.benchmarks.exact_score import study
from tests.benchmarks.harness import Run, environment, measure, peak_bytes, ratio


def build(given: argparse.Namespace) -> Cascade:
    """The packaged cascade, or Table 6 at the given size with random weights."""
    if given.cascade == "packaged":
        return Cascade.load(packaged_cascade(), given.device, given.dtype, compiled=given.compile)
    torch.manual_seed(0)
    specs = (
        replace(stage, unet=shrunk(stage.unet, given.shrink, given.width)) for stage in (IRM1, IRM2, TEM)
    )
    stages = [Denoiser(spec).eval().requires_grad_(False) for spec in specs]
    irm1, irm2, tem = (stage.ready(given.device, given.dtype, compiled=given.compile) for stage in stages)
    return Cascade(irm1, irm2, tem)


def thinned(cascade: Cascade, x_0: Tensor, keys: list[str], thin: int) -> Restoration:
    """Algorithm 1 with one in `thin` of each stage's steps, the last ones."""

    def loop(stage: Denoiser, image: Tensor | None, condition: Tensor | None) -> Tensor:
        starts = [max(1, stage.spec.start // thin)] * len(keys)
        return sample(stage, keys, "faithful", start_image=image, condition=condition, starts=starts)

    low = loop(cascade.irm1, None, x_0.to(cascade.device))
    enlarged = upsample(low, cascade.hq_px)
    high = loop(cascade.irm2, enlarged, enlarged)
    return Restoration(low, high, loop(cascade.tem, high, None))


class DiffusersLoop:
    """The three loops with diffusers' network and scheduler, as its DDPM pipeline runs them; thinned
    likewise.
    """

    def __init__(self, cascade: Cascade, *, compiled: bool) -> None:
        self.stages = [
            (stage.spec, DiffusersUNet(stage.spec.unet).eval().to(cascade.device))
            for stage in (cascade.irm1, cascade.irm2, cascade.tem)
        ]
        self.device = cascade.device

        self.precision = cascade.tem.precision
        if compiled:
            for _, net in self.stages:
                net.compile()

    @torch.no_grad()
    def __call__(self, x_0: Tensor, thin: int) -> Tensor:
        """Run the loops; the result has the shape of a restoration and, with these weights, no meaning."""
        known = x_0.to(self.device)
        for spec, net in self.stages:
            schedule = spec.schedule
            scheduler = DDPMScheduler(
                schedule.num_steps,
                schedule.beta_1,
                schedule.beta_T,
                "linear",
                variance_type="fixed_large",
                clip_sample=False,
            )
            known = upsample(known, spec.px)
            y = torch.randn_like(known)
            for t in range(max(1, spec.start // thin) - 1, -1, -1):
                inputs = torch.cat([known, y], 1) if spec.conditional else y
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    epsilon = net(inputs, torch.full((len(y),), float(t), device=self.device))[:, :3].float()
                y = scheduler.step(epsilon, t, y).prev_sample
            known = y
        return known


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Sampling time of mode fast, mode faithful and diffusers' DDPM loop."
    )
    parser.add_argument("--cascade", choices=("packaged", "paper"), default="packaged")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sides of Table 6 by this")
    parser.add_argument("--width", type=int, default=1, help="divide the channels of Table 6 by this")
    parser.add_argument("--faces", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the networks, on both sides"
    )
    parser.add_argument(
        "--compile", action="store_true", help="hand the networks to torch.compile, on both sides"
    )
    given = parser.parse_args()
    device, cascade = torch.device(given.device), build(given)
    x_0 = (
        torch.rand(given.faces, 3, cascade.lq_px, cascade.lq_px, generator=torch.Generator().manual_seed(0))
        * 2
        - 1
    )
    keys = [f"{i}/0/0" for i in range(given.faces)]
    arms: dict[str, Run] = {
        "fast": lambda: cascade.restore(x_0, keys),
        "faithful": lambda: thinned(cascade, x_0, keys, given.thin),
    }
    if given.cascade == "paper":  # diffusers has no network that folds blocks of pixels
        loop = DiffusersLoop(cascade, compiled=given.compile)
        arms["diffusers"] = lambda: loop(x_0, given.thin)
    print(environment(device))
    seconds = measure(arms, given.rounds, device)
    whole = {
        name: [second * (1 if name == "fast" else given.thin) for second in found]
        for name, found in seconds.items()
    }
    for name, found in whole.items():
        scaled = "" if name == "fast" else f" (one step in {given.thin}, times {given.thin})"
        peak = peak_bytes(arms[name], device) / 2**20
        print(
            f"  {name:10} {statistics.median(found) / given.faces:9.3f} s a face, peak {peak:6.0f} MiB for "
            f"{given.faces}{scaled}"
        )
    for name in list(whole)[1:]:
        print(f"  {name} over fast: {ratio(whole[name], whole['fast'])}")
    if given.cascade == "paper":
        print("  what each leaves of error where the score is exact, in 8-bit levels (few_steps):")
        for row in study():
            fast = row.few[row.sampler.solver]
            print(
                f"    {row.name:18} fast {fast:.2f}, Algorithm 1 {row.algorithm_1:.2f}, with the posterior's "
                f"variance {row.posterior:.2f}"
            )


if __name__ == "__main__":
    main()
