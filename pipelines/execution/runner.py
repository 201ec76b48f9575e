"""Runs the steps of a graph: each starts once its inputs are done and its share of the cluster is free."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

from diffbfr.errors import one_line
from pipelines.execution.artifact_store import ArtifactStore, Record
from pipelines.execution.dag import Step, StepResult
from pipelines.execution.decision import Decision, decide

Track = Callable[[Step, Callable[[], Record]], Record]
_FULL: Final = 1 + 1e-9
_POLL_S: Final = 1.0


def run_steps(
    steps: Sequence[Step],
    store: ArtifactStore,
    track: Track = lambda step, build: build(),
    stop: Callable[[], None] = lambda: None,
) -> list[StepResult]:
    """Build every artifact that does not exist; returns the results in the order of `steps`.

    `steps` lists each step after its inputs. Steps whose shares add up to more than 1 run one after the
    other in that order, on this thread; others run in parallel on threads. `track(step, build)` wraps the
    building of a step. After a failure no step starts, those under way are finished, and the failure is
    raised. After Ctrl-C `stop` is called, which must end the threads.
    """
    return _Runner(steps, store, track, stop).run()


class _Runner:
    """One run of a graph; only the building itself happens on other threads than the caller's."""

    def __init__(
        self, steps: Sequence[Step], store: ArtifactStore, track: Track, stop: Callable[[], None]
    ) -> None:
        self._steps = steps
        self._store = store
        self._track = track
        self._stop = stop
        self._ids = {step.id for step in steps}
        self._results: dict[str, StepResult] = {}
        self._running: dict[str, float] = {}
        """Shares of the steps that are running on threads, by id."""
        self._ended: SimpleQueue[tuple[Step, Decision, Record | BaseException]] = SimpleQueue()

    def run(self) -> list[StepResult]:
        try:
            try:
                while len(self._results) < len(self._steps):
                    self._start_ready()
                    if self._running:
                        self._collect_one()
            except Exception as error:
                self._finish_running(error)
                raise
        except KeyboardInterrupt:
            self._stop()
            self._join_all()
            raise
        return [self._results[step.id] for step in self._steps]

    def _start_ready(self) -> None:
        """Start the steps that fit beside each other; one that would run alone runs on this thread."""
        ready = self._find_ready()
        shares: dict[str, float] = {}
        for step, _ in ready:
            share = step.share() if len(ready) > 1 or self._running else 1.0
            taken = sum(self._running.values()) + sum(shares.values())
            if taken and taken + share > _FULL:
                break
            shares[step.id] = share
        alone = len(shares) == 1 and not self._running
        for step, decision in ready[: len(shares)]:
            if alone:
                self._results[step.id] = StepResult(step, decision, self._build(step))
            else:
                self._running[step.id] = shares[step.id]
                arguments = (step, decision)
                threading.Thread(
                    target=self._run_in_thread, args=arguments, name=step.name, daemon=True
                ).start()

    def _find_ready(self) -> list[tuple[Step, Decision]]:
        """The steps to build whose inputs are done, in order; a HIT is recorded as done."""
        ready = []
        for step in self._steps:
            inputs = self._ids.intersection(step.identity.inputs.values())
            if step.id in self._results or step.id in self._running or not inputs <= self._results.keys():
                continue
            decision = decide(self._store, step.identity)
            record = self._store.find(step.identity) if decision.action == "HIT" else None
            if record is None:
                ready.append((step, decision))
            else:
                self._results[step.id] = StepResult(step, decision, record)
        return ready

    def _build(self, step: Step) -> Record:
        return self._track(step, lambda: _build_and_commit(step, self._store))

    def _run_in_thread(self, step: Step, decision: Decision) -> None:
        built: Record | BaseException
        try:
            built = self._build(step)
        except BaseException as error:  # raised again on the caller's thread
            built = error
        self._ended.put((step, decision, built))

    def _collect_one(self) -> None:
        """Wait until a step on a thread ends; raises what it raised."""
        step, decision, built = self._next_ended()
        if isinstance(built, BaseException):
            raise built
        self._results[step.id] = StepResult(step, decision, built)

    def _next_ended(self) -> tuple[Step, Decision, Record | BaseException]:
        # A queue that is waited for without a timeout would swallow a Ctrl-C that comes just before the wait.
        while True:
            with suppress(Empty):
                step, decision, built = self._ended.get(timeout=_POLL_S)
                del self._running[step.id]
                return step, decision, built

    def _finish_running(self, error: Exception) -> None:
        """Let the steps beside a failed one finish: hours of work may be in them."""
        if self._running:
            others = " and ".join(step.name for step in self._steps if step.id in self._running)
            sys.stderr.write(
                f"a step failed ({one_line(error)}); {others} beside it is finished first, Ctrl-C stops it\n"
            )
        self._join_all()

    def _join_all(self) -> None:
        """Join all threads; failures are printed, because an earlier one is raised already."""
        while self._running:
            step, _, built = self._next_ended()
            if isinstance(built, Exception):
                sys.stderr.write(f"{step.name} failed too: {one_line(built)}\n")


def _build_and_commit(step: Step, store: ArtifactStore) -> Record:
    started = time.monotonic()
    store.reopen(step.identity)
    store.clear(step.identity)
    output = step.build(store.artifact_dir(step.identity))
    seconds = time.monotonic() - started
    return store.commit(step.identity, output.outputs, output.metadata, seconds, output.content)
