"""The complete, typed configuration of a whole run (`presets`: those with a name; `overrides`: `path=value`).

Everything that a run does is a field here, and every field has a type: a value from a file or from `--set` is
checked against it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diffbfr.degradation import DegradationSpec
from diffbfr.errors import UsageError
from diffbfr.images import Codec
from diffbfr.stages import SAMPLING, Mode, StageName, StageSpec
from diffbfr.training.config import TrainingConfig, check_training
from pipelines.cluster import ClusterConfig

if TYPE_CHECKING:
    from pipelines.dataset.samples import ShardConfig

SCRATCH = "scratch"
"""With `PACKAGED` the values of `Recipe.init`; anything else is the folder of a cascade."""


@dataclass(frozen=True)
class DataConfig:
    """The faces and what they are made into. `faces` is what `sources.open_source` opens: a folder, a zip,
    `photos/*.zip`.

    `variants` draws of Eq. 13 a face are stored; `degradation` holds at the size that it names and is scaled
    to `hq_px`. The fractions of faces held out are by content; `val` is for looking while developing, `test`
    only for the final figures. `hq_codec` is how ground truths are stored, without loss. More than `max_bad`
    photos that cannot be used end the run (None: any number, but not all).
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
    def shard_config(self) -> "ShardConfig":
        """The part that decides what the dataset holds."""
        from pipelines.dataset.samples import ShardConfig

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

    mode: Mode = "fast"


@dataclass(frozen=True)
class ColumnConfig:
    """The column of IRM-1's pictures that IRM-2 learns from: with more degenerate ones than this share of
    all the run ends.
    """

    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(
                f"column.max_bad_share is {self.max_bad_share}; expected a share of the pictures in [0, 1]"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured: the first `max_faces` held-out faces (None: all) of a split, one variant, once for
    each sampling seed.

    `squeezenet` and `identity` are the files of the weights for the perceptual distance and for the identity
    cosine; a metric without its weights is left out.
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
    """How archives are restored, and the sample archive at the end of a run: the degraded photos of
    `num_photos` held-out faces.
    """

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
    """A whole run. `init` is where the stages start: "scratch", "packaged" (the small cascade in the
    package) or a cascade's folder.
    """

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
        for name, place, px in (
            ("irm1", "lq_px", self.data.lq_px),
            ("irm2", "hq_px", self.data.hq_px),
            ("tem", "hq_px", self.data.hq_px),
        ):
            found = self.stage(name).stage  # type: ignore[arg-type]
            if found.name != name or found.px != px:
                raise UsageError(
                    f"{name} is set to stage {found.name} at {found.px} px, data.{place} is {px}; "
                    f"expected the same size; set {name}.stage.unet.image_px or data.{place}"
                )
        if self.data.variants < 1:
            raise UsageError(
                f"data.variants is {self.data.variants}; expected 1 or more low-quality faces of each photo; "
                "set it so"
            )
        if self.evaluate.variant >= self.data.variants:
            raise UsageError(
                f"evaluate.variant is {self.evaluate.variant}, data.variants {self.data.variants}; expected "
                "a smaller one"
            )

    def stage(self, name: StageName) -> StageConfig:
        """The configuration of one stage."""
        return {"irm1": self.irm1, "irm2": self.irm2, "tem": self.tem}[name]


def sampling_settings(recipe: Recipe, name: StageName) -> dict[str, Any]:
    """How a stage is sampled, by dotted path: `irm1.stage.start` and the like."""
    from pipelines.execution.artifact_store import flatten

    spec = recipe.stage(name).stage
    return flatten({field: getattr(spec, field) for field in SAMPLING}, f"{name}.stage")
