"""Algorithm 1 whole: a low-quality face through IRM-1, IRM-2 and TEM.

`Cascade.restore` reads like the algorithm: a full start at low resolution, a truncated start at N_1 from the
enlarged result, and a truncated start at N_2 that polishes the texture. Mode `faithful` is the paper's 2000 +
1000 + 100 evaluations, `fast` (the default) the solvers of `diffbfr.samplers` with 20 + 10 + 8.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffbfr.checkpoint import load_stage, read_stage_spec
from diffbfr.digests import model_digest
from diffbfr.errors import UsageError
from diffbfr.models.denoiser import Denoiser, Precision, upsample
from diffbfr.packaged import RECORD as RECORD
from diffbfr.packaged import packaged_folder
from diffbfr.samplers import keyed_noise, p_sample_loop, solve, start_from
from diffbfr.stages import PACKAGED, PAPER_FIDELITY, STAGE_NAMES, Mode, StageSpec
from diffbfr.step_grid import step_grid


@dataclass(frozen=True)
class Restoration:
    """Every intermediate of Algorithm 1, in [-1, 1].

    Mode `faithful` may leave values a little outside (`StageSpec.reverse_clamp`).
    """

    irm1: Float[Tensor, "b 3 low low"]
    """x'_0, the identity at low resolution."""
    irm2: Float[Tensor, "b 3 high high"]
    """y'_0, restored at full resolution."""
    tem: Float[Tensor, "b 3 high high"]
    """y_0, with its texture polished: the result."""


@dataclass(frozen=True)
class Samples:
    """Several restorations of each face, in [-1, 1]; they differ where the photo leaves the face open."""

    draws: Float[Tensor, "b n 3 high high"]
    """y_0 of each draw."""
    mean: Float[Tensor, "b 3 high high"]
    spread: Float[Tensor, "b 3 high high"]
    """Standard deviation of the draws at each pixel and channel, unbiased in its square (n - 1)."""


class Cascade:
    """The three trained stages, ready to restore."""

    def __init__(self, irm1: Denoiser, irm2: Denoiser, tem: Denoiser, digest: str = "") -> None:
        check_triple(irm1.spec, irm2.spec, tem.spec)
        self.irm1 = irm1
        self.irm2 = irm2
        self.tem = tem
        self.digest = digest
        """Sha256 over the weight files and specifications; "" for a cascade that was not loaded."""

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", precision: Precision = "float32", *, compiled: bool = False
    ) -> Self:
        """Load a cascade folder: `cascade.json` and three stages; see `Denoiser.ready`."""
        digest = cascade_digest(folder)
        irm1, irm2, tem = (
            load_stage(folder, name).ready(device, precision, compiled=compiled) for name in STAGE_NAMES
        )
        return cls(irm1, irm2, tem, digest=digest)

    @property
    def lq_px(self) -> int:
        """Side (px) of the input x_0: IRM-1's, or IRM-2's if that sees the input too."""
        return self.irm2.spec.px if self.irm2.spec.sees_input else self.irm1.spec.px

    @property
    def hq_px(self) -> int:
        """Side (px) of the result."""
        return self.tem.spec.px

    @cached_property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.irm1.parameters()).device

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a face is restored to the same bits in a batch of any size.

        That holds on the CPU, where the networks run on one image at a time.
        """
        return self.device.type == "cpu"

    def restore(
        self,
        x_0: Float[Tensor, "b 3 lq lq"],
        noise_keys: Sequence[str],
        mode: Mode = "fast",
        fidelity: Sequence[float] | None = None,
    ) -> Restoration:
        """Restore a batch of aligned faces in [-1, 1], with one noise key per face.

        `fidelity` in [0, 1] moves the truncated starts of each face (`StageSpec.start_at`); None is the
        paper's 0.5 for all.

        This is Algorithm 1, a draw from Eq. 7b (which approximates Eq. 7a, a cascade in the sense of Eq. 6).
        A face with its key is restored to the same image alone and in any batch: bitwise on the CPU, where
        the networks run on one image at a time, and to float32's rounding elsewhere.
        """
        return self.enhance(self.identity(x_0, noise_keys, mode), x_0, noise_keys, mode, fidelity)

    def enhance(
        self,
        low: Float[Tensor, "b 3 low low"],
        x_0: Float[Tensor, "b 3 lq lq"],
        noise_keys: Sequence[str],
        mode: Mode = "fast",
        fidelity: Sequence[float] | None = None,
    ) -> Restoration:
        """Run IRM-2 and TEM on what IRM-1 made of `x_0`: the second half of `restore`."""
        fidelity = [PAPER_FIDELITY] * len(noise_keys) if fidelity is None else fidelity
        second = self.irm2.spec
        n_1 = [self.irm2.spec.start_at(f) for f in fidelity]
        n_2 = [self.tem.spec.start_at(f) for f in fidelity]
        enlarged = upsample(low, second.px, second.resize_kernel, clamp=second.resize_clamp)
        seen = torch.cat([enlarged, x_0.to(self.device)], 1) if second.sees_input else enlarged
        high = sample(self.irm2, noise_keys, mode, start_image=enlarged, condition=seen, starts=n_1)
        polished = sample(self.tem, noise_keys, mode, start_image=high, condition=None, starts=n_2)
        return Restoration(low, high, polished)

    def identity(
        self, x_0: Float[Tensor, "b 3 lq lq"], noise_keys: Sequence[str], mode: Mode = "fast"
    ) -> Float[Tensor, "b 3 low low"]:
        """Run IRM-1 alone."""
        if x_0.shape[1:] != (3, self.lq_px, self.lq_px):
            raise UsageError(
                f"faces are {tuple(x_0.shape[1:])}; expected (3, {self.lq_px}, {self.lq_px}); resize them to "
                "the cascade's input"
            )
        if self.lq_px != self.irm1.spec.px:
            x_0 = F.interpolate(
                x_0, size=self.irm1.spec.px, mode="bilinear", antialias=True, align_corners=False
            )
        return sample(self.irm1, noise_keys, mode, start_image=None, condition=x_0.to(self.device))

    def restore_samples(
        self, x_0: Float[Tensor, "b 3 lq lq"], noise_keys: Sequence[Sequence[str]], mode: Mode = "fast"
    ) -> Samples:
        """Draw several restorations of each face: `noise_keys` has a row per face with a key per draw.

        Keys come from `diffbfr.keys.draw_keys`. One batch holds all draws of all faces. They share no noise
        in any stage, so each is what `restore` gives for its key.
        """
        if len(noise_keys) != len(x_0):
            raise UsageError(f"{len(noise_keys)} rows of noise keys for {len(x_0)} faces; expected one each")
        counts = sorted({len(row) for row in noise_keys})
        if len(counts) != 1 or counts[0] < 2:
            raise UsageError(
                f"the faces have {' and '.join(map(str, counts))} noise keys; expected one number of draws, "
                "at least 2"
            )
        (draws,) = counts
        shared = x_0[:, None].expand(-1, draws, -1, -1, -1).flatten(0, 1)
        restored = self.restore(shared, list(chain.from_iterable(noise_keys)), mode)
        tem = restored.tem.view(len(x_0), draws, *restored.tem.shape[1:])
        return Samples(tem, tem.mean(1), tem.std(1, correction=1))


@torch.no_grad()
def sample(
    stage: Denoiser,
    noise_keys: Sequence[str],
    mode: Mode,
    *,
    start_image: Float[Tensor, "b 3 h w"] | None,
    condition: Float[Tensor, "b conditions h w"] | None,
    starts: Sequence[int] | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Run one stage of Algorithm 1 from its start: pure noise, or the start image diffused to step N.

    `starts` gives each face its own N; None takes the stage's for all.
    """
    spec = stage.spec
    schedule = stage.schedule
    if spec.conditional != (condition is not None):
        raise UsageError(
            f"{spec.name} was given {'no' if spec.conditional else 'a'} condition; expected "
            f"{'one' if spec.conditional else 'none'}"
        )
    if spec.distilled and mode == "faithful":
        raise UsageError(
            f"{spec.name} was distilled to {spec.fast.num_evaluations} evaluations; expected mode fast, it "
            "knows no step between; take its teacher for mode faithful"
        )
    _check_batch(spec, start_image, len(noise_keys), 3)
    _check_batch(spec, condition, len(noise_keys), spec.unet.in_channels - 3)
    starts = [spec.start] * len(noise_keys) if starts is None else starts
    noise = keyed_noise(noise_keys, spec.name, spec.px, next(stage.parameters()).device)
    y_start = start_from(start_image, starts, schedule, noise)

    with_range = mode == "faithful" and spec.reverse_variance == "learned"

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        # Faces that have reached t = 0 wait for the others, and are not evaluated.
        active = t > 0
        evaluate = stage.estimate if with_range else stage.epsilon
        if bool(active.all()):
            return evaluate(y_t, t, condition)
        partial = evaluate(y_t[active], t[active], None if condition is None else condition[active])
        estimate = y_t.new_zeros(len(y_t), *partial.shape[1:])
        estimate[active] = partial
        return estimate

    if mode == "faithful":
        return p_sample_loop(
            epsilon,
            y_start,
            starts,
            schedule,
            noise,
            variance=spec.reverse_variance,
            clamp=spec.reverse_clamp,
        )
    grids = [step_grid(schedule, start, spec.fast) for start in starts]
    return solve(epsilon, y_start, grids, schedule, spec.fast, noise)


def _check_batch(spec: StageSpec, image: Tensor | None, faces: int, channels: int) -> None:
    """Refuse an empty batch, images of another size than the stage's, and a wrong number of them."""
    if not faces:
        raise UsageError(f"{spec.name} was given no face; expected at least one")
    if image is None:
        return
    if len(image) != faces:
        raise UsageError(f"{faces} noise keys for {len(image)} faces; expected one each")
    if image.shape[1:] != (channels, spec.px, spec.px):
        raise UsageError(
            f"{spec.name} was given {tuple(image.shape[1:])}; expected ({channels}, {spec.px}, {spec.px})"
        )


def check_triple(irm1: StageSpec, irm2: StageSpec, tem: StageSpec) -> None:
    """Refuse three stages that do not form a cascade; the error names the field."""
    for spec, name in zip((irm1, irm2, tem), STAGE_NAMES, strict=True):
        if spec.name != name:
            raise UsageError(
                f"the cascade has a {spec.name} in the place of {name}; expected irm1, irm2, tem"
            )
    if irm2.px != tem.px:
        raise UsageError(f"irm2 makes {irm2.px} px and tem works at {tem.px} px; expected the same px")
    if irm2.px % irm1.px:
        raise UsageError(f"irm2 makes {irm2.px} px from irm1's {irm1.px} px; expected a whole multiple")
    if irm1.start != irm1.schedule.num_steps:
        raise UsageError(f"irm1 has start={irm1.start}; expected a full start, {irm1.schedule.num_steps}")


def cascade_digest(folder: Path) -> str:
    """Digest of a cascade folder: its three specifications and weight files."""
    if not (folder / RECORD).is_file():
        raise UsageError(
            f"{folder} holds no {RECORD}; expected a cascade folder, a model name like "
            "diffbfr-cascade@champion, or `packaged`"
        )
    check_triple(*(read_stage_spec(folder, name) for name in STAGE_NAMES))
    return model_digest(folder, STAGE_NAMES)


def write_record(folder: Path, record: dict[str, object]) -> None:
    """Write `cascade.json`, the record of where the three stages come from, after the stages."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def packaged_cascade() -> Path:
    """Folder of the tiny cascade that ships with the package (32 -> 128 px, trained on procedural faces)."""
    return packaged_folder(PACKAGED)
