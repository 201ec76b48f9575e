"""Steps run side by side where there is room, never before what they need, and leave the same bytes as one
after the other.
"""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diffbfr.errors import IncompleteError, UsageError
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.execution import runner
from pipelines.execution.artifact_store import ArtifactStore, Identity, Record
from pipelines.execution.dag import Step, StepOutput
from pipelines.execution.runner import run_steps
from pipelines.flows.train_cascade import build_pipeline
from pipelines.steps.context import RunContext
from tests.pipelines.flows.pocket import pocket

MEETING_S = 30.0


class Kitchen:
    """The story in small: fake steps that say when they begin and end, and write what they read."""

    def __init__(self, root: Path, share: float, **acts: Callable[[], object]) -> None:
        self.store, self.share, self.acts = ArtifactStore(str(root)), share, acts
        self.events: list[str] = []
        self.threads: dict[str, str] = {}
        self.steps: list[Step] = []
        shard = self.step("shard")
        irm1, tem = self.step("irm1", shard), self.step("tem", shard)
        column = self.step("column", shard, irm1)
        irm2 = self.step("irm2", shard, column)
        self.step("cascade", irm1, irm2, tem)

    def step(self, name: str, *inputs: Step) -> Step:
        step = Step(
            Identity(name, {}, {it.name: it.id for it in inputs}, {}),
            lambda folder: self.make(name, inputs, folder),
            str,
        )
        step = Step(step.identity, step.build, step.estimate, lambda: self.share)
        self.steps.append(step)
        return step

    def make(self, name: str, inputs: tuple[Step, ...], folder: str) -> StepOutput:
        self.events.append(f"{name} begins")
        self.threads[name] = threading.current_thread().name
        read = [
            storage.read_bytes(storage.join(self.store.artifact_dir(it.identity), "made")) for it in inputs
        ]
        self.acts.get(name, lambda: None)()
        storage.write_atomic(storage.join(folder, "made"), b"|".join([name.encode(), *read]))
        self.events.append(f"{name} ends")
        return StepOutput({"made": "made"}, {})

    def run(self) -> list[str]:
        return [done.record.identity.step for done in run_steps(self.steps, self.store)]

    def made(self) -> dict[str, str]:
        """Content of every artifact that is there."""
        return {
            step.name: record.content for step in self.steps if (record := self.store.find(step.identity))
        }


ORDER = ["shard", "irm1", "tem", "column", "irm2", "cascade"]


def meeting() -> Callable[[], object]:
    """Whoever calls it waits until two do."""
    barrier = threading.Barrier(2)
    return lambda: barrier.wait(MEETING_S)


def test_without_room_steps_follow_one_another_in_the_order_given_on_the_callers_thread(
    tmp_path: Path,
) -> None:
    kitchen = Kitchen(tmp_path, 0.51)
    assert kitchen.run() == ORDER
    assert kitchen.events == [f"{name} {word}" for name in ORDER for word in ("begins", "ends")]
    assert set(kitchen.threads.values()) == {threading.current_thread().name}


def test_with_room_two_steps_overlap_and_none_begins_before_what_it_needs(tmp_path: Path) -> None:
    meet = meeting()
    kitchen = Kitchen(tmp_path / "beside", 0.5, irm1=meet, tem=meet)
    assert kitchen.run() == ORDER
    at = {event: number for number, event in enumerate(kitchen.events)}
    for step in kitchen.steps:
        for needed in step.identity.inputs:
            assert at[f"{needed} ends"] < at[f"{step.name} begins"]
    serial = Kitchen(tmp_path / "serial", 1.0)
    serial.run()
    assert kitchen.made() == serial.made()
    assert list(kitchen.made()) == ORDER


def test_a_long_training_is_beside_all_that_does_not_need_it(tmp_path: Path) -> None:
    irm2_ended = threading.Event()
    kitchen = Kitchen(tmp_path, 0.5, irm2=irm2_ended.set, tem=lambda: irm2_ended.wait(MEETING_S))
    kitchen.run()
    assert (
        kitchen.events.index("tem begins")
        < kitchen.events.index("irm2 begins")
        < kitchen.events.index("tem ends")
    )


def test_what_is_beside_a_failure_is_finished_and_nothing_new_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise UsageError("irm1 wants more faces; expected 8; shard them")

    kitchen = Kitchen(tmp_path, 0.5, irm1=fail, tem=lambda: failed.wait(MEETING_S))
    with pytest.raises(UsageError, match="irm1 wants more faces"):
        kitchen.run()
    assert list(kitchen.made()) == ["shard", "tem"]
    assert (
        "a step failed (irm1 wants more faces; expected 8; shard them); tem beside it is finished first"
        in capsys.readouterr().err
    )
    kitchen.acts = {}
    assert kitchen.run() == ORDER
    assert kitchen.events.count("tem begins") == 1


def test_of_two_failures_the_first_is_raised_and_the_other_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise IncompleteError("first")

    def fail_later() -> None:
        failed.wait(MEETING_S)
        raise IncompleteError("second")

    with pytest.raises(IncompleteError, match="first"):
        Kitchen(tmp_path, 0.5, irm1=fail, tem=fail_later).run()
    assert "tem failed too: second" in capsys.readouterr().err


@pytest.mark.parametrize("after_a_failure", [False, True])
def test_ctrl_c_ends_every_step_and_tracking_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, after_a_failure: bool
) -> None:
    stopping, draining, heard = threading.Event(), threading.Event(), list[str]()
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores Ctrl-C
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    meet, drain = meeting(), runner._Runner._join_all

    def work() -> None:
        meet()
        if stopping.wait(MEETING_S):
            raise KeyboardInterrupt

    def press_ctrl_c() -> None:
        meet()
        assert not after_a_failure or draining.wait(MEETING_S)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        if stopping.wait(MEETING_S):
            raise KeyboardInterrupt

    def fail() -> None:
        meet()
        raise IncompleteError("irm1 is lost")

    def track(step: Step, make: Callable[[], Record]) -> Record:
        try:
            return make()
        except BaseException as error:
            heard.append(f"{step.name} {type(error).__name__}")
            raise

    monkeypatch.setattr(runner._Runner, "_join_all", lambda self: (draining.set(), drain(self)))
    kitchen = Kitchen(tmp_path, 0.5, irm1=fail if after_a_failure else work, tem=press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run_steps(kitchen.steps, kitchen.store, track, stopping.set)
    assert sorted(heard) == [
        "irm1 IncompleteError" if after_a_failure else "irm1 KeyboardInterrupt",
        "tem KeyboardInterrupt",
    ]
    assert list(kitchen.made()) == ["shard"]


def _share_out(cluster: Cluster, cpus: int) -> Cluster:
    """Let a cluster say that it has so many cores, without a Ray."""
    cluster.start = lambda: None  # type: ignore[method-assign]
    cluster._resource = lambda name: float(cpus) if name == "CPU" else 0.0  # type: ignore[method-assign]
    return cluster


@pytest.mark.parametrize(
    ("cpus", "workers", "beside"),
    [(2, 0, False), (2, 1, True), (2, 2, False), (3, 2, False), (4, 2, True), (16, 4, True)],
)
def test_irm1_and_tem_fit_beside_each_other_where_there_are_cores_for_both(
    tmp_path: Path, cpus: int, workers: int, beside: bool
) -> None:
    cluster = _share_out(Cluster(ClusterConfig(num_workers=workers)), cpus)
    ctx = RunContext(pocket(num_workers=workers), ArtifactStore(str(tmp_path)), cluster)
    shares = {step.name: step.share() for step in build_pipeline(ctx)}
    assert (shares["train-irm1"] + shares["train-tem"] <= 1) == beside
    assert shares["train-irm2"] > 0.5 or workers == 0
