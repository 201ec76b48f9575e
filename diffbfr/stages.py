"""Table 6 as three constants, and small stages of the same structure.

A stage is a network, a noise schedule and the way it is sampled. Where the paper is silent or contradicts
itself the choice is a field here; `diffbfr/README.md` lists each with its source. Nothing here imports torch,
so a plan is cheap.

TEM's "Attention resolutions [32, 16, 8]" are read as pixels, like IRM's: 378.3 GFLOP per evaluation and
159,788,454 parameters, those of the public network that Table 6 shows. Read as down-sampling rates (64, 32
and 16 px) they would give 473.7 GFLOP and 151,642,022.
"""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Literal

from diffbfr.documents import check_whole
from diffbfr.errors import UsageError
from diffbfr.spec import LATER
from diffbfr.unet_spec import UNetSpec

StageName = Literal["irm1", "irm2", "tem"]
Mode = Literal["fast", "faithful"]
"""How a cascade samples: Algorithm 1 step by step (`faithful`), or by few-step solvers."""
STAGE_NAMES: tuple[StageName, ...] = ("irm1", "irm2", "tem")
PACKAGED = "packaged"
"""The name of the cascade that comes with the package, wherever a cascade is named."""
LossKind = Literal["l1", "l2"]
Solver = Literal["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m"]
ReverseVariance = Literal["beta", "posterior", "learned"]
ResizeKernel = Literal["bicubic", "bilinear"]
MAX_STEPS, MAX_PRIOR_STD = 10_000, 100.0
"""Bounds of a specification, some times what Table 6 has: specifications come from others too."""
PAPER_FIDELITY = 0.5
"""The fidelity at which the truncated starts are those of Table 6 (`StageSpec.start_at`)."""
DISTILLED_SOLVERS: tuple[Solver, ...] = ("ddim", "ancestral")
"""Solvers of one evaluation a step, for which a student can be trained step by step."""
SAMPLING = ("start", "fast", "reverse_variance", "reverse_clamp")
"""Fields of a stage that only sampling uses: the same weights serve any values of them."""


@dataclass(frozen=True)
class ScheduleSpec:
    """A linear variance schedule: beta from `beta_1` to `beta_T` over `num_steps` steps (Table 6)."""

    num_steps: int
    beta_1: float
    beta_T: float

    def __post_init__(self) -> None:
        check_whole("schedule", "num_steps", self.num_steps, 2, MAX_STEPS)
        if not 0 < self.beta_1 <= self.beta_T < 1:
            raise UsageError(
                f"schedule has beta from {self.beta_1} to {self.beta_T}; expected 0 < beta_1 <= beta_T < 1"
            )


@dataclass(frozen=True)
class SamplerSpec:
    """How a stage is sampled in mode `fast`."""

    solver: Solver
    num_evaluations: int
    """Evaluations of the network, the last of which gives y_0."""
    end_half_log_snr: float = 4.0
    """Position of the last evaluation: log(sqrt(gamma) / sqrt(1 - gamma)), about sigma = 0.02."""
    grid: Literal["log_snr", "t"] = "log_snr"
    """Quantity in which the evaluations are evenly spaced from the start to there."""
    ancestral_variance: Literal["beta", "posterior"] = "posterior"
    """sigma^2 of solver `ancestral`, in the process of the grid's steps alone; Algorithm 1 has `beta`."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.end_half_log_snr):
            raise UsageError(
                f"sampler has end_half_log_snr={self.end_half_log_snr}; expected a finite number"
            )


@dataclass(frozen=True)
class StageSpec:
    """One column of Table 6."""

    name: StageName
    unet: UNetSpec
    schedule: ScheduleSpec
    start: int
    """Sampler time step started (Table 6): T for IRM-1, N_1 for IRM-2, N_2 for TEM."""
    fast: SamplerSpec
    loss: LossKind = "l1"
    predicts: Literal["noise", "velocity"] = "noise"
    """Output of the network: the noise (Eq. 8, 9, 11), or the velocity of the whitened image.

    At high noise y_0 = (y_t - sigma epsilon) / sqrt(gamma) multiplies an error of the noise by up to 150, but
    an error of the velocity (Salimans & Ho 2022) by at most 1. The velocity is that of (y_0 - mean) /
    `prior_std`, where the mean is the condition, or mid grey without one. This is the preconditioning of
    Karras et al. (2022, Table 1) about the condition: an untrained network already returns the condition, and
    one too small to represent the noise need not. The small stages use it.
    """
    prior_std: float = 1.0
    """Standard deviation of y_0 about that mean, in [-1, 1]; only the velocity uses it."""
    reverse_variance: ReverseVariance = "beta"
    """sigma_t^2 of mode `faithful`.

    It is 1 - alpha_t (Algorithm 1), the variance of q(y_{t-1} | y_t, y_0) (SR3's code), or what TEM learned.
    """
    reverse_clamp: bool = False
    """Whether mode `faithful` clamps each prediction of y_0 to [-1, 1] (SR3's code), and so the result.

    Algorithm 1 clamps neither, and then neither does the mode: values outside are cut when they become 8-bit
    pixels.
    """
    resize_kernel: ResizeKernel = "bicubic"
    """Kernel of resize(x'_0) in Algorithm 1, which the paper does not name; only IRM-2 uses it."""
    resize_clamp: bool = True
    """Whether resize(x'_0) is clamped to [-1, 1], as libraries for 8-bit images do; only IRM-2 uses it.

    Algorithm 1 is silent. A bicubic kernel overshoots at edges; IRM-2 gets the same input in training and
    sampling either way.
    """
    distilled: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether the network was trained for the evaluations of `fast` alone, from a teacher that needs more.

    Its `start` and `fast` belong to the training then (`diffbfr.training.distillation`), and mode `faithful`
    is refused: the network has seen no step between.
    """

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.schedule.num_steps:
            raise UsageError(
                f"{self.name} has start={self.start}; expected a step in 1..{self.schedule.num_steps}"
            )
        if not 1 <= self.fast.num_evaluations <= self.start:
            raise UsageError(
                f"{self.name} has fast.num_evaluations={self.fast.num_evaluations}; expected "
                f"1..start={self.start}"
            )
        inputs = {"irm1": (6,), "irm2": (6, 9), "tem": (3,)}[self.name]
        if not 0 < self.prior_std <= MAX_PRIOR_STD:
            raise UsageError(
                f"{self.name} has prior_std={self.prior_std}; expected a positive number, at most "
                f"{MAX_PRIOR_STD}"
            )
        if self.unet.in_channels not in inputs:
            raise UsageError(
                f"{self.name} has unet.in_channels={self.unet.in_channels}; expected "
                f"{' or '.join(map(str, inputs))}, y_t with its condition if any"
            )
        if self.reverse_variance == "learned" and not self.learns_range:
            raise UsageError(
                f"{self.name} has reverse_variance=learned with unet.out_channels=3; expected 6, with a "
                "range; take beta"
            )
        outputs = (3, 6) if self.unet.time == "step" else (3,)
        if self.unet.out_channels not in outputs:
            raise UsageError(
                f"{self.name} has unet.out_channels={self.unet.out_channels}; expected "
                f"{' or '.join(map(str, outputs))}"
            )
        if self.distilled and self.fast.solver not in DISTILLED_SOLVERS:
            raise UsageError(
                f"{self.name} is distilled and has fast.solver={self.fast.solver}; expected "
                f"{' or '.join(DISTILLED_SOLVERS)}, which need no earlier evaluation; set "
                f"{self.name}.stage.fast.solver"
            )

    @property
    def px(self) -> int:
        """Side length (px) of the images that the stage makes."""
        return self.unet.image_px

    @property
    def conditional(self) -> bool:
        """Whether the network takes an image beside y_t (Table 6): x_0 in IRM-1, x'_0 in IRM-2."""
        return self.name != "tem"

    @property
    def sees_input(self) -> bool:
        """Whether IRM-2 takes the enlarged x_0 beside x'_0, for what IRM-1 is too small to keep."""
        return self.name == "irm2" and self.unet.in_channels == 9

    def start_at(self, fidelity: float) -> int:
        """The truncated start N(f) = N 2^(1 - 2f), at most T and at least the evaluations of mode `fast`.

        `fidelity` f in [0, 1]: 0.5 is the paper's N, 1 halves it, so that more of the start image stays, and
        0 doubles it, so that more is drawn anew.
        """
        if not 0 <= fidelity <= 1:
            raise UsageError(f"fidelity is {fidelity}; expected a number from 0 to 1")
        moved = round(self.start * math.exp2(1 - 2 * fidelity))
        return min(max(moved, self.fast.num_evaluations), self.schedule.num_steps)

    @property
    def trained(self) -> "StageSpec":
        """What a training depends on: this stage with its sampling fields (`SAMPLING`) at fixed values.

        A distilled stage is trained for its own start and evaluations, so it keeps them.
        """
        if self.distilled:
            return replace(self, reverse_variance="beta", reverse_clamp=False)
        return replace(
            self,
            start=self.schedule.num_steps,
            fast=SamplerSpec("ddim", 1),
            reverse_variance="beta",
            reverse_clamp=False,
        )

    @property
    def learns_range(self) -> bool:
        """Whether the network has a second half of outputs, the variance range (TEM)."""
        return self.unet.out_channels == 6


SR3_SCHEDULE = ScheduleSpec(num_steps=2000, beta_1=1e-6, beta_T=1e-2)
TEM_SCHEDULE = ScheduleSpec(num_steps=1000, beta_1=1e-4, beta_T=2e-2)

IRM1 = StageSpec(
    name="irm1",
    unet=UNetSpec(
        image_px=128,
        in_channels=6,
        out_channels=3,
        inner_channels=64,
        channel_multipliers=(1, 2, 4, 8, 8),
        res_blocks=(2, 2, 2, 2, 2),
        attention_px=(16,),
        norm_groups=32,
        dropout=0.2,
    ),
    schedule=SR3_SCHEDULE,
    start=2000,
    fast=SamplerSpec("dpmpp_2m", 20),
)

IRM2 = StageSpec(
    name="irm2",
    unet=UNetSpec(
        image_px=512,
        in_channels=6,
        out_channels=3,
        inner_channels=64,
        channel_multipliers=(1, 2, 4, 8, 8, 16, 16),
        res_blocks=(2, 2, 2, 2, 2, 2, 2),
        attention_px=(16,),
        norm_groups=16,
    ),
    schedule=SR3_SCHEDULE,
    start=1000,
    fast=SamplerSpec("dpmpp_2m", 10),
)

TEM = StageSpec(
    name="tem",
    unet=UNetSpec(
        image_px=512,
        in_channels=3,
        out_channels=6,
        inner_channels=32,
        channel_multipliers=(1, 2, 4, 8, 8, 16, 16),
        res_blocks=(1, 2, 2, 2, 2, 3, 4),
        attention_px=(32, 16, 8),
        norm_groups=32,
        time="step",
        scale_shift=True,
        head_channels=64,
    ),
    schedule=TEM_SCHEDULE,
    start=100,
    fast=SamplerSpec("sde_dpmpp_2m", 8),
)

IRM2_SR3 = replace(
    IRM2,
    unet=replace(
        IRM2.unet,
        channel_multipliers=(1, 2, 4, 8, 16),
        res_blocks=(1, 1, 1, 1, 1),
        attention_px=(),
    ),
)
"""SR3 from 64 to 512 px as its public checkpoint has it: five levels, attention in the middle alone."""

TEM_DIFFACE = replace(TEM, unet=replace(TEM.unet, first_step=0))
"""DifFace's prior of faces at 512 px: the network of Table 6, which counts its steps from 0."""

IRM1_TINY = replace(
    IRM1,
    unet=UNetSpec(
        image_px=32,
        in_channels=6,
        out_channels=3,
        inner_channels=24,
        channel_multipliers=(1, 2, 3),
        res_blocks=(1, 1, 1),
        attention_px=(8,),
        norm_groups=8,
        time="step",
    ),
    predicts="velocity",
    prior_std=0.125,
)
IRM2_TINY = replace(
    IRM2,
    unet=UNetSpec(
        image_px=128,
        in_channels=6,
        out_channels=3,
        inner_channels=32,
        channel_multipliers=(1, 1, 2, 2),
        res_blocks=(1, 1, 1, 1),
        attention_px=(8,),
        norm_groups=8,
        time="step",
        patch_px=2,
    ),
    start=600,
    fast=SamplerSpec("sde_dpmpp_2m", 10),
    predicts="velocity",
    prior_std=0.125,
)
TEM_TINY = replace(
    TEM,
    unet=UNetSpec(
        image_px=128,
        in_channels=3,
        out_channels=6,
        inner_channels=32,
        channel_multipliers=(1, 1, 1),
        res_blocks=(1, 1, 1),
        attention_px=(),
        norm_groups=8,
        time="step",
        scale_shift=True,
        patch_px=2,
        head_channels=32,
    ),
    start=30,
    predicts="velocity",
    prior_std=0.5,
)
"""The small stages make 128 px, where the same noise hides more than at 512 px, so they start lower.

Averaged to one size, the noise of TEM's N_2 = 100 (sigma 0.34 of the signal) at 512 px is that of t = 23 at
128 px; `start` rounds it up. IRM-2's 600 is the better of the two that the paper's Table 3 tries, and so low
a start needs the stochastic solver (`diffbfr/README.md`). A stem of 32 channels over 2 x 2 blocks can pass
the 12 values of a block through a SiLU (two channels per value); one of 16 cannot.
"""
