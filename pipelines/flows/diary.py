"""The run's mirror in MLflow: one parent run, a child a step with its configuration, curves and pictures.

Nothing here is needed to go on: records and checkpoints are. All is told on a thread of its own, and a server that is away hears it later:
while the run goes on, or from the next run, for which `untold/` under the root is kept until everything is told.
"""

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Self

from pipelines import registry as models
from pipelines import storage
from pipelines.artifacts import ArtifactStore, Record
from pipelines.flows.graph import Step
from pipelines.flows.journal import Post, read_journal
from pipelines.flows.teller import Teller
from pipelines.recipes import Recipe
from pipelines.registry import Point, Run, Status
from pipelines.system import read_system

UNTOLD: Final = "untold"
_CLOSE_S: Final = 10.0
_SYSTEM_S: Final = 10.0


@dataclass(eq=False)
class _Entry:
    """One step's run: what is still to be told of it, and which points the server has."""

    step: Step
    folder: str
    run: Run | None = None
    pending: list[Point] = field(default_factory=list)
    known: dict[str, set[int]] = field(default_factory=dict)


class Diary:
    """Tells what each step does; a context manager around the run, which never waits for the server but at its end."""

    def __init__(self, recipe: Recipe, store: ArtifactStore, steps: Sequence[Step], plan_id: str, close_s: float = _CLOSE_S) -> None:
        self._recipe, self._store, self._steps, self._plan_id, self._close_s = recipe, store, steps, plan_id, close_s
        self._tags = {"diffbfr.root": store.root, "diffbfr.driver": f"{socket.gethostname()}:{os.getpid()}"}
        self._parent: Run | None = None
        self._current: dict[str, _Entry] = {}
        self._left: list[str] = []
        self._teller = Teller(_is_refused, _say_away, self._sample_system, _SYSTEM_S)

    def __enter__(self) -> Self:
        untold = storage.join(self._store.root, UNTOLD)
        markers = [storage.join(untold, name) for name in storage.list_dir(untold)]
        self._left = [marker for marker in markers if marker == self._marker or _is_gone(storage.read_json(marker)["diffbfr.driver"])]
        storage.write_json(self._marker, self._tags)
        self._teller.tell(self._begin)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._teller.tell(lambda: self._end_parent(_status(error)))
        if self._teller.close(self._close_s):
            for marker in {self._marker, *self._left}:
                storage.remove_tree(marker)
        else:
            sys.stderr.write("tracking is still away; the next run tells it what it missed\n")

    def around(self, step: Step, make: Callable[[], Record], folder: str) -> Record:
        """Make a step inside a run of its own; steps side by side do so on threads."""
        entry = self._current[step.name] = _Entry(step, folder)
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

    @property
    def _marker(self) -> str:
        return storage.join(self._store.root, UNTOLD, f"{self._plan_id}.json")

    def _begin(self) -> None:
        """Open the parent, and end what earlier drivers left: as finished where the artifact is there, else as failed."""
        tracking = self._recipe.tracking
        registry = models.open_registry(self._store.root, tracking.uri, tracking.experiment)
        tags = {"diffbfr.recipe": self._recipe.name, "diffbfr.faces": self._recipe.data.faces, **self._tags}
        self._parent = models.begin_pipeline(registry, self._recipe.name, self._plan_id, tags)
        for run, tagged in models.unfinished_runs(registry, self._store.root):
            if run.run_id != self._parent.run_id and _is_gone(tagged.get("diffbfr.driver", "")):
                models.end_run(run, "FAILED")
        for step in self._steps if self._left else ():
            record = self._store.find(step.identity) if self._was_left(registry, step) else None
            if record is not None:
                entry = _Entry(step, self._store.folder(step.identity))
                self._open(entry)
                self._close(entry, "FINISHED", record)

    def _was_left(self, registry: models.Registry, step: Step) -> bool:
        """Whether tracking has not heard how a step ended."""
        found = models.find_step(registry, self._store.root, step.name, step.id)
        return found is None or models.run_status(found) != "FINISHED"

    def _end_parent(self, status: Status) -> None:
        if self._parent is not None:
            models.end_run(self._parent, status)

    def _open(self, entry: _Entry) -> None:
        assert self._parent is not None, "the parent is opened by an earlier call"
        if entry.run is None:
            entry.run = models.begin_step(self._parent, entry.step.name, entry.step.id, self._tags)
        entry.run.log_params(entry.step.identity.config)
        if entry.step.name.startswith("train-"):
            entry.pending += _points(read_journal(storage.join(entry.folder, "journal.json")))
            self._tell_points(entry)

    def _tell_points(self, entry: _Entry) -> None:
        """Tell what is pending and not known to be there; MLflow keeps a point once that comes twice with its time."""
        run, pending = entry.run, list(entry.pending)
        if run is None or not pending:
            return
        for name in {point.name for point in pending} - entry.known.keys():
            entry.known[name] = run.steps_of(name)
        new = {(point.name, point.step): point for point in pending if point.step not in entry.known[point.name]}
        run.log_points(list(new.values()))
        for name, step in new:
            entry.known[name].add(step)
        del entry.pending[: len(pending)]

    def _close(self, entry: _Entry, status: Status, record: Record | None) -> None:
        run = entry.run
        assert run is not None, "the run is opened by an earlier call"
        self._tell_points(entry)
        if record is not None:
            run.log_tags({f"output.{name}": output.sha256 for name, output in record.outputs.items() if not output.path.endswith(".tar")})
            run.log_metrics(_numbers(record.facts) | {"seconds": record.seconds})
            if entry.step.name == "evaluate" and storage.exists(storage.join(entry.folder, "panels.png")):
                run.log_bytes("panels.png", storage.read_bytes(storage.join(entry.folder, "panels.png")))
        models.end_run(run, status)

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
    return bool(storage.list_dir(storage.join(root, UNTOLD)))


def _points(posts: Sequence[Post]) -> list[Point]:
    return [Point(name, post.samples, value, post.time_ms) for post in posts for name, value in post.values.items()]


def _status(error: BaseException | None) -> Status:
    return "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _is_gone(driver: str) -> bool:
    """Whether a driver on this machine has ended; of another machine's nobody knows."""
    host, _, pid = driver.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _is_refused(error: Exception) -> bool:
    """Whether telling again would not help; a call that found no run, for an earlier one was refused, is another such."""
    return isinstance(error, AssertionError) or models.is_refused(error)


def _say_away(error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"tracking is away, the run goes on without it and tells it later: {reason[:300]}\n")


def _numbers(facts: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in facts.items() if isinstance(value, int | float) and not isinstance(value, bool)}
