"""MLflow runs of a pipeline run: a parent, and a child per step. No pipeline needs them to resume.

A run is found again by its identity (plan and root of a parent; step, artifact and root of a child), so a
command that was killed and started again continues its runs and logs no point of a curve twice. Passwords in
addresses are masked in what is logged (`without_secrets`).
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffbfr.errors import DiffBFRError, one_line
from diffbfr.text import without_secrets
from pipelines.tracking.connection import Registry

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_BATCH = 1000
_PARAM_BATCH = 100
_PARAM_CHARACTERS = 6000
_PLAN = "diffbfr.plan"
_STEP = "diffbfr.step"
_PARENT = "mlflow.parentRunId"
_ARTIFACT = "diffbfr.artifact"
_ROOT = "diffbfr.root"
_OPENING = threading.Lock()
"""A step, and the mirror on its own thread, may open the same run at once."""

Status = Literal["RUNNING", "FINISHED", "FAILED"]


@dataclass(frozen=True)
class Point:
    """A value of a metric; `step` is the number of samples seen, `time_ms` (since 1970) its first report."""

    name: str
    step: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class Run:
    """A handle of an MLflow run."""

    registry: Registry
    run_id: str

    @property
    def artifact_uri(self) -> str:
        """URI below which the run's files are stored."""
        return str(self.registry.client.get_run(self.run_id).info.artifact_uri)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; a value is cut at 6,000 characters, MLflow's limit."""
        from mlflow.entities import Param

        entities = [
            Param(name, without_secrets(str(value))[:_PARAM_CHARACTERS]) for name, value in params.items()
        ]
        for i in range(0, len(entities), _PARAM_BATCH):
            self.registry.client.log_batch(self.run_id, params=entities[i : i + _PARAM_BATCH])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final values at step 0; a metric that has one already keeps it."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in metrics.items() if 0 not in self.steps_of(name)}
        self.log_points([Point(name, 0, value, now) for name, value in new.items()])

    def log_points(self, points: Sequence[Point]) -> None:
        """Log points in batches; MLflow stores a point once if it comes again with the same time."""
        from mlflow.entities import Metric

        entities = [Metric(point.name, point.value, point.time_ms, point.step) for point in points]
        for i in range(0, len(entities), _BATCH):
            self.registry.client.log_batch(self.run_id, metrics=entities[i : i + _BATCH])

    def steps_of(self, name: str) -> set[int]:
        """Steps at which a metric has a value."""
        return {metric.step for metric in self.registry.client.get_metric_history(self.run_id, name)}

    def log_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        safe = masked(tags)
        self.registry.client.log_batch(
            self.run_id, tags=[RunTag(name, value) for name, value in safe.items()]
        )

    def log_bytes(self, name: str, data: bytes) -> None:
        """Store bytes as a file of the run; `name` may contain folders."""
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
                place = download_artifacts(
                    f"{self.artifact_uri}/{name}", dst_path=folder, tracking_uri=self.registry.uri
                )
                return Path(place).read_bytes()
            except Exception as error:
                # Every artifact store raises errors of its own, and each means the same to the user.
                raise DiffBFRError(
                    f"run {self.run_id} has no file {name} ({one_line(error)}); expected one; run the step "
                    "again"
                ) from error


def masked(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they are written to MLflow: without passwords."""
    return {name: without_secrets(value) for name, value in tags.items()}


def search_runs(
    registry: Registry,
    wanted: str,
    order: str = "attributes.start_time DESC",
    at_most: int | None = None,
    everywhere: bool = False,
) -> list["MlflowRun"]:
    """Runs that match a filter, at most `at_most`; of the registry's experiment, or of all experiments."""
    found: list[MlflowRun] = []
    places = (
        [it.experiment_id for it in registry.client.search_experiments()]
        if everywhere
        else [registry.experiment_id]
    )
    token = None
    while True:
        page = registry.client.search_runs(
            places, filter_string=wanted, order_by=[order], max_results=at_most or _BATCH, page_token=token
        )
        found += page
        token = page.token
        if at_most is not None or not token:
            return found


def begin_pipeline(registry: Registry, name: str, plan_id: str, tags: Mapping[str, str] | None = None) -> Run:
    """Open the parent run of a pipeline run.

    An unfinished run of the same plan and root, which a killed command left, is continued.
    """
    wanted = f"tags.`{_PLAN}` = '{plan_id}' and attributes.status != 'FINISHED'{_of_root(tags or {})}"
    return _begin(registry, name, {**(tags or {}), _PLAN: plan_id}, wanted)


def begin_step(parent: Run, step: str, artifact_id: str, tags: Mapping[str, str] | None = None) -> Run:
    """Open the child run of a step. An artifact of a root has one run, under whichever plans it is built."""
    return _begin_step(parent.registry, step, artifact_id, {**(tags or {}), _PARENT: parent.run_id})


def find_step(registry: Registry, root: str, step: str, artifact_id: str) -> Run | None:
    """The run of a step, of any status; None if there is none."""
    found = search_runs(registry, _of_step({_ROOT: root}, step, artifact_id), at_most=1)
    return Run(registry, found[0].info.run_id) if found else None


def unfinished_runs(registry: Registry, root: str) -> list[tuple[Run, Mapping[str, str]]]:
    """Runs of a root whose status is RUNNING, with their tags."""
    wanted = f"tags.`{_ROOT}` {_equals(without_secrets(root))} and attributes.status = 'RUNNING'"
    found = search_runs(registry, wanted)
    return [(Run(registry, run.info.run_id), run.data.tags) for run in found]


def run_status(run: Run) -> str:
    """Status of a run, as MLflow names it."""
    return str(run.registry.client.get_run(run.run_id).info.status)


def end_run(run: Run, status: Status) -> None:
    run.registry.client.set_terminated(run.run_id, status)


def is_refused(error: Exception) -> bool:
    """Whether a server refused a request for good, so that a retry would not help."""
    if isinstance(error, DiffBFRError | OSError):
        return False
    from mlflow.exceptions import MlflowException

    transient = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    return isinstance(error, MlflowException) and error.error_code not in transient


@contextmanager
def step_run(
    registry: Registry, step: str, artifact_id: str, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Open the run of a step, the one that `begin_step` opens too, and set its status at the end.

    It has no parent until `begin_step` is called for it.
    """
    run = _begin_step(registry, step, artifact_id, tags or {})
    try:
        yield run
    except BaseException:
        end_run(run, "FAILED")
        raise
    end_run(run, "FINISHED")


def _begin_step(registry: Registry, step: str, artifact_id: str, tags: Mapping[str, str]) -> Run:
    return _begin(
        registry, step, {**tags, _STEP: step, _ARTIFACT: artifact_id}, _of_step(tags, step, artifact_id)
    )


def _of_step(tags: Mapping[str, str], step: str, artifact_id: str) -> str:
    return f"tags.`{_STEP}` = '{step}' and tags.`{_ARTIFACT}` = '{artifact_id}'{_of_root(tags)}"


def _of_root(tags: Mapping[str, str]) -> str:
    return f" and tags.`{_ROOT}` {_equals(without_secrets(tags[_ROOT]))}" if tags.get(_ROOT) else ""


def _begin(registry: Registry, name: str, tags: Mapping[str, str], wanted: str) -> Run:
    client = registry.client
    with _OPENING:
        found = search_runs(registry, wanted, at_most=1)
        if not found:
            return Run(
                registry,
                client.create_run(registry.experiment_id, run_name=name, tags=masked(tags)).info.run_id,
            )
    run = Run(registry, found[0].info.run_id)
    client.update_run(run.run_id, status="RUNNING")
    run.log_tags(tags)
    return run


def _equals(text: str) -> str:
    """A comparison with `text` in a filter.

    MLflow's filters have no escape for quotation marks. In a text with both, `_` matches the single one.
    """
    if "'" not in text:
        return f"= '{text}'"
    return f'= "{text}"' if '"' not in text else f"LIKE '{text.replace(chr(39), '_')}'"
