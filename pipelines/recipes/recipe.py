"""The complete, typed configuration of a run (`presets`: the named recipes; `overrides`: `path=value`).

Everything that changes a run is a field here. A value from a file or from `--set` is validated against the
type of its field.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffbfr.degradation import DegradationSpec
from diffbfr.documents import check_whole
from diffbfr.errors import UsageError
from diffbfr.images import Codec
from diffbfr.stages import SAMPLING, Mode, StageName, StageSpec
from diffbfr.training.config import TrainingConfig, check_training
from pipelines.cluster import ClusterConfig

if TYPE_CHECKING:
    from pipelines.dataset.samples import ShardConfig

MAX_HQ_PX, MAX_VARIANTS, MAX_SHARD_SIZE = 4096, 10_000, 100_000
_MAX_AT_ONCE = 10_000
SCRATCH = "scratch"
"""With `PACKAGED` the values of `Recipe.init`; anything else names a cascade or a stage."""


@dataclass(frozen=True)
class DataConfig:
    """The photos and the dataset made from them.

    `faces` is what `sources.open_source` opens: a folder, a zip, `photos/*.zip`. Each face is stored with
    `variants` degradations by Eq. 13; the ranges of `degradation` are given at the size that it names and are
    scaled to `hq_px`. The fractions of held-out faces are by content; `val` is used during development,
    `test` for the final figures only. `hq_codec` is the lossless format of the ground truths. More than
    `max_bad` unusable photos end the run (None: any number, but not all).

    With `align` the photos are whole ones, and every usable face of each is found and aligned to the FFHQ
    frame. One whose frame would have to be enlarged more than `max_enlargement` is left out. `detector` is
    the file of the detector's weights; None is `DIFFBFR_FACE_DETECTOR`, or what `diffbfr setup faces`
    brought.
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
    align: bool = False
    max_enlargement: float = 1.1
    detector: str | None = None

    def __post_init__(self) -> None:
        check_whole("data", "hq_px", self.hq_px, 2, MAX_HQ_PX)
        check_whole("data", "variants", self.variants, 1, MAX_VARIANTS)
        check_whole("data", "shard_size", self.shard_size, 1, MAX_SHARD_SIZE)

    @property
    def shard_config(self) -> "ShardConfig":
        """The fields that the content of the dataset depends on."""
        from pipelines.dataset.samples import ShardConfig
        from pipelines.storage import digest

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(ShardConfig)}
        if self.align:
            return ShardConfig(**values | {"detector": digest(self.find_detector())})
        # what only concerns aligned faces must not make other datasets again
        return ShardConfig(**values | {"detector": "", "max_enlargement": ShardConfig.max_enlargement})

    def find_detector(self) -> Path:
        """The weights of the face detector on this machine; `UsageError` if there are none."""
        from pipelines.packages.face_detectors import detector_weights

        return detector_weights(self.detector)


@dataclass(frozen=True)
class StageConfig:
    """One stage: its specification (a column of Table 6) and its training.

    `init` is the origin of its initial weights: "" takes those of the recipe's `init`; "scratch", "packaged",
    NAME@ALIAS of the registry or a folder with the stage, alone or in a cascade, are its own.
    """

    stage: StageSpec
    training: TrainingConfig
    init: str = ""

    def __post_init__(self) -> None:
        check_training(self.stage, self.training)


@dataclass(frozen=True)
class SamplingConfig:
    """How the cascade is sampled: `faithful` is Algorithm 1 step by step, `fast` the few-step solvers."""

    mode: Mode = "fast"


@dataclass(frozen=True)
class ColumnConfig:
    """The column of IRM-1's images that IRM-2 is trained on.

    The run ends if more than `max_bad_share` of the images are degenerate.
    """

    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(
                f"column.max_bad_share is {self.max_bad_share}; expected a share of the images in [0, 1]"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """The evaluation: the first `max_faces` held-out faces (None: all) of a split, one sample for each seed.

    `variant` is the number of the stored degradation. `squeezenet` and `identity` are the files of the
    weights for the perceptual distance and for the identity cosine; a metric without weights is left out.
    """

    split: Literal["val", "test"] = "test"
    max_faces: int | None = None
    variant: int = 0
    seeds: tuple[int, ...] = (0,)
    batch: int = 8
    num_panels: int = 4
    squeezenet: str | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        check_whole("evaluate", "batch", self.batch, 1, _MAX_AT_ONCE)
        check_whole("evaluate", "num_panels", self.num_panels, 0, _MAX_AT_ONCE)
        check_whole("evaluate", "entries in seeds", len(self.seeds), 1, _MAX_AT_ONCE)


@dataclass(frozen=True)
class RestoreConfig:
    """How archives are restored; the sample archive of a run holds `num_photos` degraded held-out faces.

    `unit_size` photos are committed at a time. `batch_faces` go through the cascade at once: a GPU wants more
    than a CPU, and larger units with them. Kernels round differently at another size, so it is part of an
    output's request.
    """

    num_photos: int = 12
    unit_size: int = 16
    seed: int = 0
    batch_faces: int = 4

    def __post_init__(self) -> None:
        check_whole("restore", "num_photos", self.num_photos, 1, _MAX_AT_ONCE)
        check_whole("restore", "unit_size", self.unit_size, 1, _MAX_AT_ONCE)
        check_whole("restore", "batch_faces", self.batch_faces, 1, _MAX_AT_ONCE)


@dataclass(frozen=True)
class TrackingConfig:
    """The MLflow tracking server; `uri=None` is SQLite under the root."""

    uri: str | None = None
    experiment: str = "diffbfr"


@dataclass(frozen=True)
class Recipe:
    """The configuration of a run.

    `init` is the origin of the initial weights: "scratch", "packaged" (the small cascade in the package),
    NAME@ALIAS of the registry or the folder of a cascade; a stage may have its own (`irm1.init`).
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
        for name, setting, px in (
            ("irm1", "lq_px", self.data.lq_px),
            ("irm2", "hq_px", self.data.hq_px),
            ("tem", "hq_px", self.data.hq_px),
        ):
            found = self.stage(name).stage  # type: ignore[arg-type]
            if found.name != name or found.px != px:
                raise UsageError(
                    f"{name} is set to stage {found.name} at {found.px} px, data.{setting} is {px}; "
                    f"expected the same size; set {name}.stage.unet.image_px or data.{setting}"
                )
        # variants count from 0
        if self.evaluate.variant >= self.data.variants:
            raise UsageError(
                f"evaluate.variant is {self.evaluate.variant}, data.variants {self.data.variants}; expected "
                "a smaller one"
            )

    def init_of(self, name: StageName | None) -> str:
        """The origin of a stage's initial weights; of the recipe's for None."""
        return self.init if name is None else self.stage(name).init or self.init

    def stage(self, name: StageName) -> StageConfig:
        """The configuration of one stage."""
        return {"irm1": self.irm1, "irm2": self.irm2, "tem": self.tem}[name]


def sampling_settings(recipe: Recipe, name: StageName) -> dict[str, Any]:
    """The fields of a stage that its sampling depends on, by dotted path (`irm1.stage.start`)."""
    from pipelines.execution.artifact_store import flatten

    spec = recipe.stage(name).stage
    return flatten({field: getattr(spec, field) for field in SAMPLING}, f"{name}.stage")
