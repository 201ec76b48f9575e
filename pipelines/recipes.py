"""Named, complete, typed configurations of a whole run: `smoke`, `tiny`, `small`, `paper`; and changes to them by `path=value`.

Everything that a run does is a field here, and every field has a type: a value from a file or from `--set` is checked against it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from diffbfr.degradation import DegradationSpec
from diffbfr.errors import UsageError
from diffbfr.images import Codec
from diffbfr.stages import IRM1, IRM1_TINY, IRM2, IRM2_TINY, TEM, TEM_TINY, StageName, StageSpec
from diffbfr.training.config import TrainingConfig, check_training
from pipelines.cluster import ClusterConfig

if TYPE_CHECKING:
    from pipelines.steps.samples import ShardConfig

SCRATCH, PACKAGED = "scratch", "packaged"
"""Values of `Recipe.init`; anything else is the folder of a cascade."""


@dataclass(frozen=True)
class DataConfig:
    """The faces and what they are made into. `faces` is what `sources.open_source` opens: a folder, a zip, `photos/*.zip`.

    `variants` draws of Eq. 13 a face are stored; `degradation` holds at the size that it names and is scaled to `hq_px`. The fractions
    of faces held out are by content; `val` is for looking while developing, `test` only for the final figures. `hq_codec` is how ground
    truths are stored, without loss. More than `max_bad` photos that cannot be used end the run (None: any number, but not all).
    """

    faces: str
    hq_px: int
    lq_px: int
    variants: int = 2
    shard_size: int = 250
    val_fraction: float = 0.05
    test_fraction: float = 0.05
    seed: int = 0
    degradation: DegradationSpec = field(default_factory=DegradationSpec)
    hq_codec: Codec = "webp"
    max_bad: int | None = None

    @property
    def shard(self) -> "ShardConfig":
        """The part that decides what the dataset holds."""
        from pipelines.steps.samples import ShardConfig

        return ShardConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(ShardConfig)})


@dataclass(frozen=True)
class StageConfig:
    """One stage: what it is (a column of Table 6) and how it is trained."""

    stage: StageSpec
    training: TrainingConfig

    def __post_init__(self) -> None:
        check_training(self.stage, self.training)


@dataclass(frozen=True)
class SamplingConfig:
    """How the cascade samples: `faithful` is Algorithm 1 step by step, `fast` the few-step solvers."""

    mode: Literal["fast", "faithful"] = "fast"


@dataclass(frozen=True)
class ColumnConfig:
    """The column of IRM-1's pictures that IRM-2 learns from: with more degenerate ones than this share of all the run ends."""

    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(f"column.max_bad_share is {self.max_bad_share}; expected a share of the pictures in [0, 1]")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured: the first `max_faces` held-out faces (None: all) of a split, one variant, once for each sampling seed.

    `squeezenet` and `identity` are the files of the weights for the perceptual distance and for the identity cosine; a metric without its
    weights is left out.
    """

    split: Literal["val", "test"] = "test"
    max_faces: int | None = None
    variant: int = 0
    seeds: tuple[int, ...] = (0,)
    batch: int = 8
    num_panels: int = 4
    squeezenet: str | None = None
    identity: str | None = None


@dataclass(frozen=True)
class RestoreConfig:
    """How archives are restored, and the sample archive at the end of a run: the degraded photos of `num_photos` held-out faces."""

    num_photos: int = 12
    unit_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow is; None is SQLite under the root."""

    uri: str | None = None
    experiment: str = "diffbfr"


@dataclass(frozen=True)
class Recipe:
    """A whole run. `init` is where the stages start: "scratch", "packaged" (the small cascade in the package) or a cascade's folder."""

    name: str
    init: str
    data: DataConfig
    irm1: StageConfig
    irm2: StageConfig
    tem: StageConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    column: ColumnConfig = field(default_factory=ColumnConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name, place, px in (("irm1", "lq_px", self.data.lq_px), ("irm2", "hq_px", self.data.hq_px), ("tem", "hq_px", self.data.hq_px)):
            found = self.stage(name).stage  # type: ignore[arg-type]
            if found.name != name or found.px != px:
                raise UsageError(
                    f"{name} is set to stage {found.name} at {found.px} px, data.{place} is {px}; "
                    f"expected the same size; set {name}.stage.unet.image_px or data.{place}"
                )
        if self.data.variants < 1:
            raise UsageError(f"data.variants is {self.data.variants}; expected 1 or more low-quality faces of each photo; set it so")
        if self.evaluate.variant >= self.data.variants:
            raise UsageError(f"evaluate.variant is {self.evaluate.variant}, data.variants {self.data.variants}; expected a smaller one")

    def stage(self, name: StageName) -> StageConfig:
        """The configuration of one stage."""
        return {"irm1": self.irm1, "irm2": self.irm2, "tem": self.tem}[name]


def smoke() -> Recipe:
    """Minutes on two cores: 128 px procedural faces, starting from the cascade in the package and training on for a few hundred steps."""
    return Recipe(
        name="smoke",
        init=PACKAGED,
        data=DataConfig(faces="synthetic:count=320,seed=0,px=128", hq_px=128, lq_px=32, shard_size=64, test_fraction=0.1),
        irm1=StageConfig(IRM1_TINY, _training(2400, global_batch=8, learning_rate=5e-5)),
        irm2=StageConfig(IRM2_TINY, _training(1600, global_batch=8, learning_rate=5e-5, t_max=720)),
        tem=StageConfig(TEM_TINY, _training(1600, global_batch=8, learning_rate=5e-5, t_max=36)),
    )


def tiny() -> Recipe:
    """An hour on two cores: the small cascade that the package carries, trained from nothing on procedural faces."""
    return Recipe(
        name="tiny",
        init=SCRATCH,
        data=DataConfig(faces="synthetic:count=4400,seed=1000000,px=128", hq_px=128, lq_px=32, val_fraction=0.03, test_fraction=0.03),
        irm1=StageConfig(IRM1_TINY, _training(100_000)),
        irm2=StageConfig(IRM2_TINY, _training(120_000, t_max=720)),
        tem=StageConfig(TEM_TINY, _training(60_000, t_max=36)),
        evaluate=EvaluateConfig(seeds=(0, 1, 2)),
    )


def small() -> Recipe:
    """An hour and a half on two cores, minutes on a GPU: 256 px faces (give real ones with --faces), stages of 1-2 million parameters.

    TEM starts where 256 px hide as much of the image as N_2 = 100 does at 512 px. Half of the steps of IRM-2 and TEM see patches: at equal
    time they train better than on whole images alone (`diffbfr/README.md`).
    """
    irm1 = replace(IRM1_TINY.unet, image_px=64, channel_multipliers=(1, 2, 3, 4), res_blocks=(1, 1, 1, 1))
    irm2 = replace(IRM2_TINY.unet, image_px=256, channel_multipliers=(1, 1, 2, 2, 3), res_blocks=(1, 1, 1, 1, 1))
    tem = replace(TEM_TINY.unet, image_px=256, channel_multipliers=(1, 1, 1, 1), res_blocks=(1, 1, 1, 1))
    return Recipe(
        name="small",
        init=SCRATCH,
        data=DataConfig(faces="synthetic:count=6000,seed=0,px=256", hq_px=256, lq_px=64),
        irm1=StageConfig(replace(IRM1_TINY, unet=irm1), _training(64_000)),
        irm2=StageConfig(replace(IRM2_TINY, unet=irm2), replace(_training(56_000, t_max=720), patch_px=128)),
        tem=StageConfig(replace(TEM_TINY, unet=tem, start=50), replace(_training(32_000, t_max=60), patch_px=128)),
        evaluate=EvaluateConfig(max_faces=200),
    )


def _training(num_samples: int, *, global_batch: int = 16, learning_rate: float = 1e-3, t_max: int | None = None) -> TrainingConfig:
    """How the small stages are trained: a short warm-up, and a rate that falls over the second half.

    t is restricted to where the sampler goes (1.2 times the start): a net this small has no samples to spare.
    """
    return TrainingConfig(
        num_samples=num_samples,
        global_batch=global_batch,
        learning_rate=learning_rate,
        warmup_samples=min(2_000, num_samples // 8),
        decay_samples=num_samples // 2,
        ema_half_life=min(4_000.0, num_samples / 8),
        t_max=t_max,
        max_gradient_norm=1.0,
        checkpoint_samples=min(4_000, num_samples // 2),
    )


def paper() -> Recipe:
    """Table 6 to the letter at 512 px; give FFHQ's `images1024x1024` with --faces.

    The paper names neither the number of iterations nor the optimisers. Those of the two families that Table 6 shows are taken: Adam
    for the SR3 stages over SR3's million steps, whose last weights are used; AdamW without decay and with an EMA of 0.999 for TEM, over
    half a million. `diffbfr/README.md` lists both among the silences.
    """
    return Recipe(
        name="paper",
        init=SCRATCH,
        data=DataConfig(
            faces="synthetic:count=70000,seed=0,px=512", hq_px=512, lq_px=128, variants=8, val_fraction=0.01, test_fraction=0.01
        ),
        irm1=StageConfig(IRM1, TrainingConfig(num_samples=4_000_000, global_batch=4, learning_rate=1e-4, ema_half_life=None)),
        irm2=StageConfig(IRM2, TrainingConfig(num_samples=4_000_000, global_batch=4, learning_rate=3e-6, ema_half_life=None)),
        tem=StageConfig(
            TEM,
            TrainingConfig(
                num_samples=32_000_000,
                global_batch=64,
                learning_rate=1e-4,
                optimizer="adamw",
                ema_half_life=44_339.0,
                checkpoint_samples=640_000,
            ),
        ),
        sampling=SamplingConfig("faithful"),
        evaluate=EvaluateConfig(batch=4),
        cluster=ClusterConfig(num_workers=2),
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = MappingProxyType({"smoke": smoke, "tiny": tiny, "small": small, "paper": paper})
