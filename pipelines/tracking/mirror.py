"""Mirrors a pipeline run to MLflow: a parent run, and a child per step with configuration, curves, images.

Nothing here is needed to resume: artifact records and checkpoints are. Everything is sent from a background
thread. What a server does not take, because it is unreachable or refuses, is sent later in this run, or by
the next run, for which a record under the root is kept until everything is sent (`heartbeat`). An MLflow run
ends FINISHED, or FAILED after an error, Ctrl-C or the death of the driver, which the next run reports.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final, Self

from diffbfr.errors import one_line
from pipelines import storage
from pipelines.evaluation.training_panels import PANELS
from pipelines.execution.artifact_store import ArtifactStore, Identity, Record
from pipelines.execution.dag import Step
from pipelines.recipes.recipe import Recipe
from pipelines.storage.machine import read_system
from pipelines.tracking import runs
from pipelines.tracking.connection import open_registry
from pipelines.tracking.heartbeat import DRIVER, DriverHeartbeat, run_tags
from pipelines.tracking.metrics_log import MetricRecord, read_metrics_log
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.runs import Point, Run, Status

_CLOSE_S: Final = 10.0
_SYSTEM_S: Final = 10.0


@dataclass(eq=False)
class _Entry:
    """A step's MLflow run, points to send, metric -> steps that the server has, and panels that it has."""

    identity: Identity
    folder: str
    run: Run | None = None
    pending: list[Point] = field(default_factory=list)
    known: dict[str, set[int]] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)

    @property
    def step(self) -> str:
        return self.identity.step


class MlflowMirror:
    """Mirrors each step; waits for the server only at the end of the run, and then at most `close_s`."""

    def __init__(self, recipe: Recipe, store: ArtifactStore, close_s: float = _CLOSE_S) -> None:
        self._recipe = recipe
        self._store = store
        self._close_s = close_s
        self._tags = run_tags(store.root)
        self._parent: Run | None = None
        self._current: dict[str, _Entry] = {}

    @contextmanager
    def following(self, steps: Sequence[Step], plan_id: str) -> Iterator[Self]:
        """Mirror a run of these steps: opens the parent run at the start and ends it with the context."""
        self._plan_id = plan_id
        self._heartbeat = DriverHeartbeat(self._store.root, plan_id, {step.name: step.id for step in steps})
        self._outbox = Outbox(runs.is_refused, _report_error, self._sample_system, _SYSTEM_S)
        status: Status = "FAILED"
        # The heartbeat stops before the driver's record is removed; one that could not start removes nothing.
        self._heartbeat.__enter__()
        try:
            self._outbox.enqueue(self._begin)
            yield self
            status = "FINISHED"
        finally:
            self._outbox.enqueue(partial(self._end, status))
            self._outbox.close(self._close_s)
            self._heartbeat.__exit__()
            self._forget_what_was_sent()

    def _forget_what_was_sent(self) -> None:
        """Remove the driver's record once tracking has everything; otherwise the next run reads it."""
        if self._outbox.num_pending:
            sys.stderr.write("tracking is still away; the next run sends what it missed\n")
        elif self._outbox.num_refused:
            sys.stderr.write("tracking refused some of it; the next run sends it again\n")
        else:
            self._heartbeat.remove()

    def track_step(self, step: Step, build: Callable[[], Record], folder: str) -> Record:
        """Build a step inside an MLflow run of its own; steps that run in parallel call this from threads."""
        entry = self._current[step.name] = _Entry(step.identity, folder)
        self._outbox.enqueue(partial(self._open, entry))
        try:
            record = build()
        except BaseException:
            self._outbox.enqueue(partial(self._close, entry, "FAILED", None))
            raise
        finally:
            del self._current[step.name]
        self._outbox.enqueue(partial(self._close, entry, "FINISHED", record))
        return record

    def log_metrics(self, step: str, records: Sequence[MetricRecord]) -> None:
        """Send metrics of a step's training in the background."""
        entry = self._current.get(step)
        if entry is not None:
            entry.pending += _points(records)
            self._outbox.enqueue(partial(self._send_points, entry))

    def log_panel(self, step: str, name: str, data: bytes) -> None:
        """Send a PNG of the present outputs of a step's stage in the background."""
        entry = self._current.get(step)
        if entry is not None:
            self._outbox.enqueue(partial(self._send_panel, entry, name, data))

    def _begin(self) -> Run:
        """Open the parent run, and send what dead drivers left unsent: the steps whose artifact exists."""
        tracking = self._recipe.tracking
        registry = open_registry(self._store.root, tracking.uri, tracking.experiment)
        tags = {"diffbfr.recipe": self._recipe.name, "diffbfr.faces": self._recipe.data.faces, **self._tags}
        self._parent = parent = runs.begin_pipeline(registry, self._recipe.name, self._plan_id, tags)
        self._end_dead_runs(parent)
        left = [record.steps.items() for record in self._heartbeat.left]
        for name, artifact in {*chain.from_iterable(left)}:
            found = runs.find_step(registry, self._store.root, name, artifact)
            record = (
                self._store.by_id(artifact) if found is None or runs.run_status(found) != "FINISHED" else None
            )
            if record is not None and self._store.find(record.identity) is not None:
                entry = _Entry(record.identity, self._store.artifact_dir(record.identity))
                self._open(entry)
                self._close(entry, "FINISHED", record)
        return parent

    def _end_dead_runs(self, parent: Run) -> None:
        """End every run of this root whose driver is dead, as FAILED."""
        for run, tags in runs.unfinished_runs(parent.registry, self._store.root):
            if run.run_id != parent.run_id and self._heartbeat.is_dead(tags.get(DRIVER, "")):
                runs.end_run(run, "FAILED")

    def _end(self, status: Status) -> None:
        parent = self._parent or self._begin()
        self._end_dead_runs(parent)
        runs.end_run(parent, status)

    def _run_of(self, entry: _Entry) -> Run:
        """The step's run, opened on the first call that succeeds."""
        if entry.run is None:
            entry.run = runs.begin_step(
                self._parent or self._begin(), entry.step, entry.identity.id, self._tags
            )
        return entry.run

    def _open(self, entry: _Entry) -> None:
        self._run_of(entry).log_params(entry.identity.config)
        if entry.step.startswith("train-"):
            entry.pending += _points(read_metrics_log(storage.join(entry.folder, "metrics.json")))
            self._send_points(entry)

    def _send_points(self, entry: _Entry) -> None:
        """Send pending points that the server does not have.

        MLflow stores a point only once if it is sent twice with the same time.
        """
        run, pending = self._run_of(entry), list(entry.pending)
        if not pending:
            return
        for name in {point.name for point in pending} - entry.known.keys():
            entry.known[name] = run.steps_of(name)
        new = {
            (point.name, point.step): point for point in pending if point.step not in entry.known[point.name]
        }
        run.log_points(list(new.values()))
        for name, step in new:
            entry.known[name].add(step)
        del entry.pending[: len(pending)]

    def _close(self, entry: _Entry, status: Status, record: Record | None) -> None:
        """Send the rest of a step, and its status.

        If the server refuses a part, the status is FAILED and the next run sends the step again.
        """
        run = self._run_of(entry)
        try:
            self._send_points(entry)
            if record is not None:
                self._send_record(run, entry, record)
        except Exception as error:
            if runs.is_refused(error):
                runs.end_run(run, "FAILED")
            raise
        runs.end_run(run, status)

    def _send_record(self, run: Run, entry: _Entry, record: Record) -> None:
        run.log_tags(
            {
                f"output.{name}": output.sha256
                for name, output in record.outputs.items()
                if not output.path.endswith(".tar")
            }
        )
        run.log_metrics(_numbers(record.metadata) | {"seconds": record.seconds})
        if entry.step.startswith("train-"):
            for name in storage.list_dir(storage.join(entry.folder, PANELS)):
                if name not in entry.shown:
                    self._send_panel(
                        entry, name, storage.read_bytes(storage.join(entry.folder, PANELS, name))
                    )
        panels = storage.join(entry.folder, "panels.png")
        if entry.step == "evaluate" and storage.exists(panels):
            run.log_bytes("panels.png", storage.read_bytes(panels))

    def _send_panel(self, entry: _Entry, name: str, data: bytes) -> None:
        self._run_of(entry).log_bytes(f"{PANELS}/{name}", data)
        entry.shown.add(name)

    def _sample_system(self) -> None:
        """Send the load of the driver's machine; called every few seconds on the outbox thread."""
        for entry in list(self._current.values()):
            if entry.run is None:
                continue
            now_ms, values = read_system()
            entry.pending += [
                Point(f"system/{name}", now_ms // 1000, value, now_ms) for name, value in values.items()
            ]
            self._send_points(entry)


def _points(records: Sequence[MetricRecord]) -> list[Point]:
    points: list[Point] = []
    for record in records:
        points += [
            Point(name, record.samples, value, record.time_ms) for name, value in record.values.items()
        ]
    return points


def _report_error(error: Exception) -> None:
    what = "refuses what is sent" if runs.is_refused(error) else "is away"
    reason = one_line(error)[:300]
    sys.stderr.write(f"tracking {what}, the run goes on without it and sends it later: {reason}\n")


def _numbers(metadata: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metadata.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
