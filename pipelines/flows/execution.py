"""Runs a graph of steps: each starts once what it needs is there, beside others where the cluster has room for the workers of all."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

from pipelines.artifacts import ArtifactStore, Decision, Record, decide
from pipelines.flows.graph import Done, Step

Around = Callable[[Step, Callable[[], Record]], Record]
_FULL: Final = 1 + 1e-9
_POLL_S: Final = 1.0


def execute(
    steps: Sequence[Step], store: ArtifactStore, around: Around = lambda step, make: make(), stop: Callable[[], None] = lambda: None
) -> list[Done]:
    """Make what is not there; returns every step in the order given, in which each comes after what it needs.

    A step starts when its inputs are done and its share of the cluster is free: with shares of 1 one after the other, in that order and on
    this thread. `around` wraps the making of a step, for those who keep a diary; steps side by side call it from threads. After a failure
    nothing new starts, what runs beside it is finished, and the failure is raised. Ctrl-C ends all: `stop` tells the threads.
    """
    return _Execution(steps, store, around, stop).run()


class _Execution:
    """One run of the graph; everything but the making itself happens on the caller's thread."""

    def __init__(self, steps: Sequence[Step], store: ArtifactStore, around: Around, stop: Callable[[], None]) -> None:
        self._steps, self._store, self._around, self._stop = steps, store, around, stop
        self._ids = {step.id for step in steps}
        self._done: dict[str, Done] = {}
        self._shares: dict[str, float] = {}
        """Of the steps that are being made on threads, by id."""
        self._ended: SimpleQueue[tuple[Step, Decision, Record | BaseException]] = SimpleQueue()

    def run(self) -> list[Done]:
        """All of it."""
        try:
            try:
                while len(self._done) < len(self._steps):
                    self._start()
                    if self._shares:
                        self._take()
            except Exception as error:
                self._finish_others(error)
                raise
        except KeyboardInterrupt:
            self._stop()
            self._drain()
            raise
        return [self._done[step.id] for step in self._steps]

    def _start(self) -> None:
        """Start what can run now: on threads, or here if nothing else could run until it ends."""
        ready = self._ready()
        chosen: dict[str, float] = {}
        for step, _ in ready:
            share = step.share() if len(ready) > 1 or self._shares else 1.0
            taken = sum(self._shares.values()) + sum(chosen.values())
            if taken and taken + share > _FULL:
                break
            chosen[step.id] = share
        alone = len(chosen) == 1 and not self._shares
        for step, decision in ready[: len(chosen)]:
            if alone:
                self._done[step.id] = Done(step, decision, self._make(step))
            else:
                self._shares[step.id] = chosen[step.id]
                threading.Thread(target=self._make_beside, args=(step, decision), name=step.name, daemon=True).start()

    def _ready(self) -> list[tuple[Step, Decision]]:
        """The steps to make whose inputs are done, in order; one whose artifact is there is done."""
        ready = []
        for step in self._steps:
            waits = any(source in self._ids and source not in self._done for source in step.identity.inputs.values())
            if waits or step.id in self._done or step.id in self._shares:
                continue
            decision = decide(self._store, step.identity)
            record = self._store.find(step.identity) if decision.action == "HIT" else None
            if record is None:
                ready.append((step, decision))
            else:
                self._done[step.id] = Done(step, decision, record)
        return ready

    def _make(self, step: Step) -> Record:
        return self._around(step, lambda: _make(step, self._store))

    def _make_beside(self, step: Step, decision: Decision) -> None:
        """On a thread of its own."""
        made: Record | BaseException
        try:
            made = self._make(step)
        except BaseException as error:  # raised again on the caller's thread
            made = error
        self._ended.put((step, decision, made))

    def _take(self) -> None:
        """Wait until a step on a thread ends; raises what it raised."""
        step, decision, made = self._next()
        if isinstance(made, BaseException):
            raise made
        self._done[step.id] = Done(step, decision, made)

    def _next(self) -> tuple[Step, Decision, Record | BaseException]:
        """Wait for a thread to end; a Ctrl-C that comes just before the wait begins is heard after a second."""
        while True:
            with suppress(Empty):
                step, decision, made = self._ended.get(timeout=_POLL_S)
                del self._shares[step.id]
                return step, decision, made

    def _finish_others(self, error: Exception) -> None:
        """Let the steps beside one that failed come to their end: hours of work may be in them."""
        if self._shares:
            beside = " and ".join(step.name for step in self._steps if step.id in self._shares)
            sys.stderr.write(f"a step failed ({_one_line(error)}); {beside} beside it is finished first, Ctrl-C stops it\n")
        self._drain()

    def _drain(self) -> None:
        """Wait for every thread; the first failure is the one that is raised, another is told."""
        while self._shares:
            step, _, made = self._next()
            if isinstance(made, Exception):
                sys.stderr.write(f"{step.name} failed too: {_one_line(made)}\n")


def _make(step: Step, store: ArtifactStore) -> Record:
    started = time.monotonic()
    store.clear(step.identity)
    made = step.make(store.folder(step.identity))
    return store.commit(step.identity, made.outputs, made.facts, time.monotonic() - started, made.content)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
