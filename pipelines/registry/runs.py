"""Mirror a pipeline run in MLflow: one parent run, a child a step. Nothing here is needed to resume the pipeline itself.

A run is found again by its identity (plan, step, artifact), so a command that was killed and started again continues its runs
and logs no point of a curve twice.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffbfr.errors import DiffBFRError
from pipelines.registry.connection import Registry

_BATCH = 1000
_PARAM_BATCH = 100
_PARAM_CHARACTERS = 6000
_PLAN = "diffbfr.plan"
_STEP = "diffbfr.step"
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Curve:
    """A metric over time: (step, value) with rising steps; a training's step is the number of samples seen."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Run:
    """A run that takes parameters, metrics, pictures and files."""

    registry: Registry
    run_id: str

    @property
    def artifact_uri(self) -> str:
        """Where the run's files lie."""
        return str(self.registry.client.get_run(self.run_id).info.artifact_uri)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the configuration, flat; values longer than MLflow takes are cut."""
        from mlflow.entities import Param

        entities = [Param(name, str(value)[:_PARAM_CHARACTERS]) for name, value in params.items()]
        for i in range(0, len(entities), _PARAM_BATCH):
            self.registry.client.log_batch(self.run_id, params=entities[i : i + _PARAM_BATCH])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final numbers."""
        self.log_curves([Curve(name, ((0, value),)) for name, value in metrics.items()])

    def log_curves(self, curves: Iterable[Curve]) -> None:
        """Log curves in batches; points that are there already are left alone."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = []
        for curve in curves:
            known = {metric.step for metric in self.registry.client.get_metric_history(self.run_id, curve.name)}
            entities += [Metric(curve.name, value, now, step) for step, value in curve.points if step not in known]
        for i in range(0, len(entities), _BATCH):
            self.registry.client.log_batch(self.run_id, metrics=entities[i : i + _BATCH])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.registry.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_bytes(self, name: str, data: bytes) -> None:
        """Keep a picture, page or table as a file of the run; `name` may have folders."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            parent = Path(name).parent.as_posix()
            self.registry.client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

    def read_bytes(self, name: str) -> bytes:
        """Read a file of the run; DiffBFRError if it is not there."""
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as folder:
            try:
                place = download_artifacts(f"{self.artifact_uri}/{name}", dst_path=folder, tracking_uri=self.registry.uri)
                return Path(place).read_bytes()
            except Exception as error:  # every artifact store has errors of its own, and each means the same to the user
                reason = " ".join(str(error).split())
                raise DiffBFRError(f"run {self.run_id} has no file {name} ({reason}); expected one; run the step again") from error


@contextmanager
def pipeline_run(registry: Registry, name: str, plan_id: str, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Enter the parent run of a pipeline run: the unfinished one of the same plan, if a killed command left one, else a new one."""
    with _running(registry, name, {**(tags or {}), _PLAN: plan_id}, identity=(_PLAN,)) as run:
        yield run


@contextmanager
def step_run(parent: Run, step: str, artifact_id: str) -> Iterator[Run]:
    """Enter the child run of a step; the same step of the same parent is one run, however often it is entered."""
    tags = {_PARENT: parent.run_id, _STEP: step, "diffbfr.artifact": artifact_id}
    with _running(parent.registry, step, tags, identity=(_PARENT, _STEP)) as run:
        yield run


@contextmanager
def _running(registry: Registry, name: str, tags: Mapping[str, str], identity: tuple[str, ...]) -> Iterator[Run]:
    client = registry.client
    wanted = " and ".join(f"tags.`{tag}` = '{tags[tag]}'" for tag in identity)
    if _PARENT not in identity:
        wanted += " and attributes.status != 'FINISHED'"
    found = client.search_runs([registry.experiment_id], filter_string=wanted, max_results=1)
    if found:
        run = Run(registry, found[0].info.run_id)
        client.update_run(run.run_id, status="RUNNING")
        run.log_tags(tags)
    else:
        run = Run(registry, client.create_run(registry.experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    try:
        yield run
    except KeyboardInterrupt:
        client.set_terminated(run.run_id, "KILLED")
        raise
    except BaseException:
        client.set_terminated(run.run_id, "FAILED")
        raise
    client.set_terminated(run.run_id, "FINISHED")
