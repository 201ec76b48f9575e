"""The run's mirror in MLflow: one parent run, a child a step with its configuration, curves and pictures.

Nothing here is needed to go on: records and checkpoints are. All is told on a thread of its own, and a server that is away or refuses hears
it later: while the run goes on, or from the next run, for which a mark under the root is kept until everything is told (`drivers`). A run
there ends FINISHED, or FAILED for whatever else ended it: an error, Ctrl-C, or a death, which the next run tells.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Self

from pipelines import registry as models
from pipelines import storage
from pipelines.artifacts import ArtifactStore, Identity, Record
from pipelines.flows.drivers import DRIVER, Signs, read_marks, run_tags
from pipelines.flows.graph import Step
from pipelines.flows.journal import Post, read_journal
from pipelines.flows.panels import PANELS
from pipelines.flows.teller import Teller
from pipelines.recipes import Recipe
from pipelines.registry import Point, Run, Status
from pipelines.system import read_system

_CLOSE_S: Final = 10.0
_SYSTEM_S: Final = 10.0


@dataclass(eq=False)
class _Entry:
    """One step's run: what is still to be told of it, and which points the server has."""

    identity: Identity
    folder: str
    run: Run | None = None
    pending: list[Point] = field(default_factory=list)
    known: dict[str, set[int]] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)

    @property
    def step(self) -> str:
        return self.identity.step


class Diary:
    """Tells what each step does; a context manager around the run, which never waits for the server but at its end."""

    def __init__(self, recipe: Recipe, store: ArtifactStore, steps: Sequence[Step], plan_id: str, close_s: float = _CLOSE_S) -> None:
        self._recipe, self._store, self._plan_id, self._close_s = recipe, store, plan_id, close_s
        self._signs = Signs(store.root, plan_id, {step.name: step.id for step in steps})
        self._tags = run_tags(store.root)
        self._parent: Run | None = None
        self._current: dict[str, _Entry] = {}
        self._teller = Teller(models.is_refused, _say_why, self._sample_system, _SYSTEM_S)

    def __enter__(self) -> Self:
        self._signs.__enter__()
        self._teller.tell(self._begin)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._teller.tell(partial(self._end, _status(error)))
        told = self._teller.close(self._close_s)
        self._signs.__exit__()
        if told and not self._teller.num_refused:
            self._signs.remove()
        else:
            what = "refused some of it; the next run tells it again" if told else "is still away; the next run tells it what it missed"
            sys.stderr.write(f"tracking {what}\n")

    def around(self, step: Step, make: Callable[[], Record], folder: str) -> Record:
        """Make a step inside a run of its own; steps side by side do so on threads."""
        entry = self._current[step.name] = _Entry(step.identity, folder)
        self._teller.tell(partial(self._open, entry))
        try:
            record = make()
        except BaseException as error:
            self._teller.tell(partial(self._close, entry, _status(error), None))
            raise
        finally:
            del self._current[step.name]
        self._teller.tell(partial(self._close, entry, "FINISHED", record))
        return record

    def hear(self, step: str, posts: Sequence[Post]) -> None:
        """Take what the training of a step posted; it is told within seconds."""
        entry = self._current.get(step)
        if entry is not None:
            entry.pending += _points(posts)
            self._teller.tell(partial(self._tell_points, entry))

    def show(self, step: str, name: str, data: bytes) -> None:
        """Take a picture of what the stage of a step makes."""
        entry = self._current.get(step)
        if entry is not None:
            self._teller.tell(partial(self._tell_panel, entry, name, data))

    def _begin(self) -> Run:
        """Open the parent, and tell what earlier drivers left, of whatever plan: a step is finished where its artifact is there."""
        tracking = self._recipe.tracking
        registry = models.open_registry(self._store.root, tracking.uri, tracking.experiment)
        tags = {"diffbfr.recipe": self._recipe.name, "diffbfr.faces": self._recipe.data.faces, **self._tags}
        self._parent = parent = models.begin_pipeline(registry, self._recipe.name, self._plan_id, tags)
        self._end_gone(parent)
        for name, artifact in {item for mark in self._signs.left for item in mark.steps.items()}:
            found = models.find_step(registry, self._store.root, name, artifact)
            record = self._store.by_id(artifact) if found is None or models.run_status(found) != "FINISHED" else None
            if record is not None and self._store.find(record.identity) is not None:
                entry = _Entry(record.identity, self._store.folder(record.identity))
                self._open(entry)
                self._close(entry, "FINISHED", record)
        return parent

    def _end_gone(self, parent: Run) -> None:
        """Say FAILED of every run of this root whose driver is gone."""
        for run, tags in models.unfinished_runs(parent.registry, self._store.root):
            if run.run_id != parent.run_id and self._signs.is_gone(tags.get(DRIVER, "")):
                models.end_run(run, "FAILED")

    def _end(self, status: Status) -> None:
        parent = self._parent or self._begin()
        self._end_gone(parent)
        models.end_run(parent, status)

    def _run_of(self, entry: _Entry) -> Run:
        """The step's run; what a server refused to open is asked for again."""
        if entry.run is None:
            entry.run = models.begin_step(self._parent or self._begin(), entry.step, entry.identity.id, self._tags)
        return entry.run

    def _open(self, entry: _Entry) -> None:
        self._run_of(entry).log_params(entry.identity.config)
        if entry.step.startswith("train-"):
            entry.pending += _points(read_journal(storage.join(entry.folder, "journal.json")))
            self._tell_points(entry)

    def _tell_points(self, entry: _Entry) -> None:
        """Tell what is pending and not known to be there; MLflow keeps a point once that comes twice with its time."""
        run, pending = self._run_of(entry), list(entry.pending)
        if not pending:
            return
        for name in {point.name for point in pending} - entry.known.keys():
            entry.known[name] = run.steps_of(name)
        new = {(point.name, point.step): point for point in pending if point.step not in entry.known[point.name]}
        run.log_points(list(new.values()))
        for name, step in new:
            entry.known[name].add(step)
        del entry.pending[: len(pending)]

    def _close(self, entry: _Entry, status: Status, record: Record | None) -> None:
        """Tell the rest of a step and how it ended; where the server refuses a part, FAILED until the next run tells it again."""
        run = self._run_of(entry)
        try:
            self._tell_points(entry)
            if record is not None:
                self._tell_record(run, entry, record)
        except Exception as error:
            if models.is_refused(error):
                models.end_run(run, "FAILED")
            raise
        models.end_run(run, status)

    def _tell_record(self, run: Run, entry: _Entry, record: Record) -> None:
        run.log_tags({f"output.{name}": output.sha256 for name, output in record.outputs.items() if not output.path.endswith(".tar")})
        run.log_metrics(_numbers(record.facts) | {"seconds": record.seconds})
        if entry.step.startswith("train-"):
            for name in storage.list_dir(storage.join(entry.folder, PANELS)):
                if name not in entry.shown:
                    self._tell_panel(entry, name, storage.read_bytes(storage.join(entry.folder, PANELS, name)))
        panels = storage.join(entry.folder, "panels.png")
        if entry.step == "evaluate" and storage.exists(panels):
            run.log_bytes("panels.png", storage.read_bytes(panels))

    def _tell_panel(self, entry: _Entry, name: str, data: bytes) -> None:
        self._run_of(entry).log_bytes(f"{PANELS}/{name}", data)
        entry.shown.add(name)

    def _sample_system(self) -> None:
        """On the teller's thread, every few seconds: what the driver's machine is doing."""
        for entry in list(self._current.values()):
            if entry.run is None:
                continue
            now_ms, values = read_system()
            entry.pending += [Point(f"system/{name}", now_ms // 1000, value, now_ms) for name, value in values.items()]
            self._tell_points(entry)


def is_untold(root: str) -> bool:
    """Whether an earlier run ended before tracking had heard everything."""
    return bool(read_marks(root))


def _points(posts: Sequence[Post]) -> list[Point]:
    return [Point(name, post.samples, value, post.time_ms) for post in posts for name, value in post.values.items()]


def _status(error: BaseException | None) -> Status:
    """Ctrl-C is a failure too: a run is FINISHED or it is not, and the next one goes on either way."""
    return "FINISHED" if error is None else "FAILED"


def _say_why(error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    what = "refuses what it is told" if models.is_refused(error) else "is away"
    sys.stderr.write(f"tracking {what}, the run goes on without it and tells it later: {reason[:300]}\n")


def _numbers(facts: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in facts.items() if isinstance(value, int | float) and not isinstance(value, bool)}
