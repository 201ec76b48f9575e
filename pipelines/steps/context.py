"""The context of one run: recipe, artifacts, cluster, and the steps that were added so far."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbfr.errors import UsageError
from diffbfr.packaged import packaged_folder, packaged_names
from diffbfr.stages import STAGE_NAMES, StageName
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.dataset import commits
from pipelines.execution.artifact_store import ArtifactStore, Identity, OutputRef, Record
from pipelines.execution.dag import Step
from pipelines.execution.fingerprint import code_fingerprint
from pipelines.execution.staging import stage_models
from pipelines.recipes.recipe import SCRATCH, Recipe
from pipelines.steps.definition import StepDef
from pipelines.tracking.metrics_log import MetricRecord

if TYPE_CHECKING:
    from pipelines.execution.model_ref import ModelRef


def _no_registry(ref: str) -> str:
    raise UsageError(f"no weights at {ref}; expected a folder; correct init")


class RunContext:
    """Given to the `build` of every step.

    `given_model` is a cascade that exists already and is only evaluated. `find_model` gives the folder of a
    registered model by NAME@ALIAS. `on_metrics(step, records)` receives the metrics of a training once they
    are on disk, `on_panel(step, name, png)` each of its panels.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: ArtifactStore,
        cluster: Cluster,
        given_model: "ModelRef | None" = None,
        *,
        find_model: Callable[[str], str] = _no_registry,
        on_metrics: Callable[[str, Sequence[MetricRecord]], None] = lambda step, records: None,
        on_panel: Callable[[str, str, bytes], None] = lambda step, name, data: None,
    ) -> None:
        self.recipe = recipe
        self.store = store
        self.cluster = cluster
        self.given_model = given_model
        self.find_model = find_model
        self.on_metrics = on_metrics
        self.on_panel = on_panel
        self.steps: dict[str, Step] = {}

    def add(self, definition: StepDef, **inputs: str) -> Step:
        """Add a step whose inputs are artifact ids or digests ("" for one that this run does not have)."""
        given = {name: source for name, source in inputs.items() if source}
        config, code = definition.config(self.recipe), code_fingerprint(definition.code)
        step = Step(
            identity=Identity(definition.name, config, given, code),
            build=lambda folder: definition.build(self, folder),
            estimate=lambda: definition.estimate(self.recipe),
            share=partial(self.cluster.fraction_needed, definition.num_parallel),
        )
        self.steps[step.name] = step
        return step

    def artifact_dir(self, name: str) -> str:
        """The folder of a step's artifact, whether it exists yet or not."""
        return self.store.artifact_dir(self.steps[name].identity)

    def record(self, name: str) -> Record | None:
        """The record of a step; None if it is not finished."""
        return self.store.find(self.steps[name].identity)

    def metadata(self, name: str) -> dict[str, Any]:
        """The metadata that a step recorded; empty if it is not finished."""
        record = self.record(name)
        return dict(record.metadata) if record is not None else {}

    @cache  # noqa: B019 - one context a process
    def photos_digest(self) -> str:
        """Digest of the listing of the photos: names, sizes and times, or the archive's own checksums."""
        from pipelines.sources import open_source

        return open_source(self.recipe.data.faces).digest()

    @cache  # noqa: B019 - one context a process
    def initial_folder(self, name: StageName | None = None) -> str:
        """The folder of the weights that a stage starts from, of the recipe's for None; "" for nothing."""
        init = self.recipe.init_of(name)
        if init == SCRATCH:
            return ""
        if init in packaged_names():
            return str(packaged_folder(init))
        if "@" in init and not storage.is_remote(init) and not storage.exists(init):
            return self.find_model(init)
        return storage.absolute(init)

    def initial_role(self, name: StageName) -> str:
        """What those weights are to a stage: its beginning, or the teacher of a distilled one."""
        return "teacher" if self.recipe.stage(name).stage.distilled else "init"

    def initial_for_workers(self, name: StageName) -> str:
        """The same folder for a task: where workers may be on other machines, a copy under the root."""
        folder = self.initial_folder(name)
        if not folder or storage.is_remote(folder) or not self.cluster.is_joined:
            return folder
        return stage_models(folder, self.initial_digest(name), self.store.root)

    @cache  # noqa: B019 - one context a process
    def initial_digest(self, name: StageName | None = None) -> str:
        """Digest of those weights, of one stage where it has its own `init`; "" for nothing."""
        from diffbfr.digests import model_digest

        folder = self.initial_folder(name)
        own = name is not None and self.recipe.init_of(name) != self.recipe.init
        return (
            model_digest(fetch_artifact(folder), (name,) if own and name else STAGE_NAMES) if folder else ""
        )


def fetch_artifact(folder: str) -> Path:
    """A folder of models on this machine: itself, or a cached copy of the model files of one on S3."""
    from diffbfr.digests import is_model_file

    return storage.fetch_tree(folder, storage.cache_folder("artifacts"), is_model_file)


def committed_outputs(
    dataset: str, folder: str, num_shards: int, index: Sequence[str], prefix: str = ""
) -> dict[str, str | OutputRef]:
    """List the tars that shards committed under `folder`, with their digests, and the files that index them.

    `prefix` leads from the artifact's folder to the dataset's.
    """
    files: dict[str, str | OutputRef] = {}
    for number in range(num_shards):
        commit = commits.read(dataset, folder, number)
        for tar in commit.tars if commit is not None else ():
            files[tar.tar] = OutputRef(f"{prefix}{tar.tar}", tar.num_bytes, tar.sha256)
    return files | {name: f"{prefix}{name}" for name in index}
