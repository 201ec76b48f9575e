"""Algorithm 1 whole: a low-quality face through IRM-1, IRM-2 and TEM.

`Cascade.restore` reads like the algorithm: a full start at low resolution, a truncated start at N_1 from the enlarged result, and a
truncated start at N_2 that polishes the texture. Mode `faithful` is the paper's 2000 + 1000 + 100 evaluations, `fast` (the default) the
solvers of `diffbfr.samplers` with 20 + 10 + 8.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from diffbfr.checkpoint import file_sha256, load_stage, read_stage_spec
from diffbfr.denoiser import Denoiser, upsample
from diffbfr.errors import UsageError
from diffbfr.samplers import keyed_noise, log_snr_grid, p_sample_loop, solve, start_from
from diffbfr.stages import STAGE_NAMES, StageSpec

Mode = Literal["fast", "faithful"]
RECORD: Final = "cascade.json"


@dataclass(frozen=True)
class Restoration:
    """Every intermediate of Algorithm 1, in [-1, 1]."""

    irm1: Float[Tensor, "b 3 low low"]
    """x'_0, the identity at low resolution."""
    irm2: Float[Tensor, "b 3 high high"]
    """y'_0, restored at full resolution."""
    tem: Float[Tensor, "b 3 high high"]
    """y_0, with its texture polished: the result."""


class Cascade:
    """The three trained stages, ready to restore."""

    def __init__(self, irm1: Denoiser, irm2: Denoiser, tem: Denoiser, digest: str = "") -> None:
        check_triple(irm1.spec, irm2.spec, tem.spec)
        self.irm1, self.irm2, self.tem = irm1, irm2, tem
        self.digest = digest
        """Sha256 over the three weight files and specifications; empty for a cascade that was not loaded from a folder."""

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Load a cascade folder: `cascade.json` and three stages."""
        digest = cascade_digest(folder)
        stages = [load_stage(folder, name).to(device, memory_format=torch.channels_last) for name in STAGE_NAMES]  # type: ignore[call-overload]
        irm1, irm2, tem = stages
        return cls(irm1, irm2, tem, digest=digest)

    @property
    def lq_px(self) -> int:
        """Side length of the input x_0."""
        return self.irm1.spec.px

    @property
    def hq_px(self) -> int:
        """Side length of the result."""
        return self.tem.spec.px

    @cached_property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.irm1.parameters()).device

    def restore(self, x_0: Float[Tensor, "b 3 low low"], noise_keys: Sequence[str], mode: Mode = "fast") -> Restoration:
        """Restore a batch of aligned faces in [-1, 1]; one noise key a face, and equal keys give equal results in any batch."""
        if len(noise_keys) != len(x_0):
            raise ValueError(f"{len(noise_keys)} noise keys for {len(x_0)} faces; expected one each")
        if x_0.shape[1:] != (3, self.lq_px, self.lq_px):
            raise ValueError(
                f"faces are {tuple(x_0.shape[1:])}; expected (3, {self.lq_px}, {self.lq_px}); resize them to the cascade's input"
            )
        low = self.identity(x_0, noise_keys, mode)
        enlarged = upsample(low, self.irm2.spec.px)
        high = sample(self.irm2, noise_keys, mode, start_image=enlarged, condition=enlarged)
        polished = sample(self.tem, noise_keys, mode, start_image=high, condition=None)
        return Restoration(low, high, polished)

    def identity(self, x_0: Float[Tensor, "b 3 low low"], noise_keys: Sequence[str], mode: Mode = "fast") -> Float[Tensor, "b 3 low low"]:
        """Run IRM-1 alone."""
        return sample(self.irm1, noise_keys, mode, start_image=None, condition=x_0.to(self.device))


@torch.no_grad()
def sample(
    stage: Denoiser,
    noise_keys: Sequence[str],
    mode: Mode,
    *,
    start_image: Float[Tensor, "b 3 h w"] | None,
    condition: Float[Tensor, "b 3 h w"] | None,
) -> Float[Tensor, "b 3 h w"]:
    """One stage of Algorithm 1 from its start: pure noise when there is no start image, else the image diffused to step N."""
    spec, schedule = stage.spec, stage.schedule
    device = next(stage.parameters()).device
    noise = keyed_noise(noise_keys, spec.name, spec.px, device)
    y_start = start_from(start_image, spec.start, schedule, noise)

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        return stage.epsilon(y_t.contiguous(memory_format=torch.channels_last), t, condition)

    if mode == "faithful":
        return p_sample_loop(epsilon, y_start, spec.start, schedule, noise).clamp(-1, 1)
    return solve(epsilon, y_start, log_snr_grid(schedule, spec.start, spec.fast), schedule, spec.fast, noise)


def check_triple(irm1: StageSpec, irm2: StageSpec, tem: StageSpec) -> None:
    """Refuse three stages that do not make a cascade, naming the field."""
    for spec, name in zip((irm1, irm2, tem), STAGE_NAMES, strict=True):
        if spec.name != name:
            raise UsageError(f"the cascade has a {spec.name} in the place of {name}; expected irm1, irm2, tem")
    if irm2.px != tem.px:
        raise UsageError(f"irm2 makes {irm2.px} px and tem works at {tem.px} px; expected the same px")
    if irm2.px % irm1.px:
        raise UsageError(f"irm2 makes {irm2.px} px from irm1's {irm1.px} px; expected a whole multiple")
    if irm1.start != irm1.schedule.num_steps:
        raise UsageError(f"irm1 has start={irm1.start}; expected a full start, {irm1.schedule.num_steps}")


def cascade_digest(folder: Path) -> str:
    """Identity of a cascade folder: its three specifications and weight files."""
    if not (folder / RECORD).is_file():
        raise UsageError(
            f"{folder} holds no {RECORD}; expected a cascade folder, a model name like diffbfr-cascade@champion, or `packaged`"
        )
    check_triple(*(read_stage_spec(folder, name) for name in STAGE_NAMES))
    total = hashlib.sha256()
    for name in STAGE_NAMES:
        for file in (folder / f"{name}.json", folder / f"{name}.safetensors"):
            if not file.is_file():
                raise UsageError(f"{folder} holds no {file.name}; expected all three stages; register the cascade again")
            total.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return total.hexdigest()


def write_record(folder: Path, record: dict[str, object]) -> None:
    """Write `cascade.json`, the folder's record of where the three stages come from; last, when the stages are there."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def packaged_cascade() -> Path:
    """Folder of the tiny cascade that ships with the package (32 -> 128 px, trained on procedural faces)."""
    return Path(__file__).parent / "weights" / "tiny"
