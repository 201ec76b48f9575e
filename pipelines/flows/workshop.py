"""What the making of every step needs, and how a step gets its identity: the workshop of a run."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbfr.stages import STAGE_NAMES
from pipelines import storage
from pipelines.artifacts import ArtifactStore, Identity, code_digests
from pipelines.cluster import Cluster
from pipelines.flows.graph import Made, Step
from pipelines.flows.journal import Post
from pipelines.flows.prediction import predicted_work
from pipelines.recipes import PACKAGED, SCRATCH, Recipe
from pipelines.registry import model_digest

if TYPE_CHECKING:
    from pipelines.steps.pinned_cascade import PinnedCascade

_CODE: Mapping[str, tuple[str, ...]] = {
    "shard": ("pipelines.steps.shard",),
    "train-irm1": ("pipelines.steps.train",),
    "train-tem": ("pipelines.steps.train",),
    "condition-irm1": ("pipelines.steps.condition",),
    "train-irm2": ("pipelines.steps.train",),
    "cascade": ("pipelines.steps.assemble",),
    "evaluate": ("diffbfr.cascade", "pipelines.flows.measuring", "pipelines.steps.pinned_cascade"),
    "register": (),
    "restore": ("diffbfr.cascade", "pipelines.flows.restore_archive", "pipelines.steps.held_out", "pipelines.steps.pinned_cascade"),
}
"""Where the code of each step begins; what only a worker loads (the cascade, which its tasks carry) is named too."""
_SIDE_BY_SIDE = ("train-irm1", "train-tem")
"""Trainings that become ready together: where a machine's cores are shared out, each takes its part of them."""


class Workshop:
    """What the making of every step needs: the recipe, the artifacts, the cluster, and where the other steps' folders are."""

    def __init__(self, recipe: Recipe, store: ArtifactStore, cluster: Cluster, given: "PinnedCascade | None" = None) -> None:
        self.recipe, self.store, self.cluster, self.given = recipe, store, cluster, given
        self.steps: dict[str, Step] = {}
        self.on_posts: Callable[[str, Sequence[Post]], None] = lambda step, posts: None
        """Hears what the training of that step posts; the diary's, while one is kept."""
        self.on_panel: Callable[[str, str, bytes], None] = lambda step, name, data: None
        """Is shown what a stage makes along its training."""

    def step(self, name: str, config: Mapping[str, Any], inputs: Mapping[str, str], make: Callable[["Workshop", str], Made]) -> Step:
        """Add a step; its identity is known at once."""
        identity = Identity(name, config, {key: value for key, value in inputs.items() if value}, code_digests(_CODE[name]))
        share = partial(self.cluster.share, num_side_by_side(name))
        self.steps[name] = Step(identity, lambda folder: make(self, folder), lambda: predicted_work(self.recipe, name), share)
        return self.steps[name]

    def folder(self, name: str) -> str:
        """Where a step's artifact lies, or will."""
        return self.store.folder(self.steps[name].identity)

    def facts(self, name: str) -> Mapping[str, Any]:
        """What a finished step recorded."""
        record = self.store.find(self.steps[name].identity)
        return record.facts if record is not None else {}

    @cache  # noqa: B019 - one workshop a process
    def photos_digest(self) -> str:
        """Digest of the listing of the photos: names, sizes and times, or the archive's own checksums."""
        from pipelines.sources import open_source

        return open_source(self.recipe.data.faces).digest()

    def initial_folder(self) -> str:
        """The cascade whose weights are the start; "" to start from nothing."""
        if self.recipe.init == SCRATCH:
            return ""
        if self.recipe.init == PACKAGED:
            import diffbfr

            return str(Path(diffbfr.__file__).parent / "weights" / "tiny")
        return storage.absolute(self.recipe.init)

    @cache  # noqa: B019 - one workshop a process
    def initial_digest(self) -> str:
        """Identity of the start; "" for nothing."""
        folder = self.initial_folder()
        return model_digest(local(folder), STAGE_NAMES) if folder else ""

    def metric_digests(self) -> dict[str, str]:
        """Digests of the weights that metrics need, by the name of their setting; "" where none are given."""
        from pipelines.steps.evaluate import identity_weights, squeezenet_weights

        config = self.recipe.evaluate
        given = {"squeezenet": squeezenet_weights(config.squeezenet), "identity": identity_weights(config.identity)}
        return {name: storage.digest(path) if path else "" for name, path in given.items()}


def local(folder: str) -> Path:
    """A folder on this machine: itself, or a copy of one on S3."""
    return storage.fetch_tree(folder, storage.cache_folder("artifacts"))


def num_side_by_side(name: str) -> int:
    """How many steps share the cores with this one, itself counted: the same however a run was cut, for threads decide the last bits."""
    return len(_SIDE_BY_SIDE) if name in _SIDE_BY_SIDE else 1
