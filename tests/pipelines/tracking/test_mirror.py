"""Tracking receives everything once, also after an outage or the death of the driver; no run stays RUNNING."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipelines import storage
from pipelines.cluster.protocol import Metrics
from pipelines.execution.artifact_store import ArtifactStore, Identity, Record
from pipelines.execution.dag import Step, StepOutput
from pipelines.recipes.recipe import Recipe, TrackingConfig
from pipelines.tracking import heartbeat, runs
from pipelines.tracking.connection import Registry, open_registry
from pipelines.tracking.heartbeat import DriverHeartbeat, has_pending_tracking, read_driver_records
from pipelines.tracking.metrics_log import MetricsLog
from pipelines.tracking.mirror import MlflowMirror
from pipelines.tracking.runs import begin_pipeline, begin_step, find_step, run_status
from tests.pipelines.flows.pocket import pocket
from tests.pipelines.registry.line import Line
from tests.pipelines.registry.mlflow_server import mlflow_server

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry: making one takes seconds."""
    root = tmp_path_factory.mktemp("database")
    _ = open_registry(str(root)).client
    return root / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, database: Path) -> ArtifactStore:
    (tmp_path / "root").mkdir()
    shutil.copy(database, tmp_path / "root" / "mlflow.db")
    return ArtifactStore(str(tmp_path / "root"))


def training(name: str = "train-irm1") -> Step:
    return Step(Identity(name, {"training.seed": 1}, {}, {}), lambda folder: StepOutput({}, {}), lambda: "")


def posts(
    step: Step, store: ArtifactStore, mirror: MlflowMirror, steps: range, finish: bool = True
) -> Record:
    """What a training does as far as the mirror sees it: a post a step, then its record."""
    folder = store.artifact_dir(step.identity)
    with MetricsLog(
        storage.join(folder, "metrics.json"), partial(mirror.log_metrics, step.name), every_s=0.05
    ) as log:
        for number in steps:
            log.add(Metrics(number, 8 * number, {"loss": 1 / number}))
        if not finish:
            raise ZeroDivisionError
    return store.commit(step.identity, {"metrics": "metrics.json"}, {"loss": 0.1}, 1.0)


def loss_steps(registry: Registry, store: ArtifactStore, step: Step) -> list[int]:
    """The steps at which MLflow has the loss, with duplicates."""
    run = find_step(registry, store.root, step.name, step.id)
    assert run is not None
    return [metric.step for metric in registry.client.get_metric_history(run.run_id, "loss") if metric.step]


def statuses(registry: Registry) -> dict[str, list[str]]:
    """Name -> statuses of all runs of that name."""
    found: dict[str, list[str]] = {}
    for run in registry.client.search_runs([registry.experiment_id]):
        found.setdefault(run.info.run_name, []).append(run.info.status)
    return found


def test_a_step_that_fails_and_is_resumed_is_one_run(store: ArtifactStore) -> None:
    step, registry = training(), open_registry(store.root)

    def attempt(numbers: range, finish: bool, plan: str) -> None:
        with MlflowMirror(pocket(), store).following([step], plan) as mirror:
            mirror.track_step(
                step, lambda: posts(step, store, mirror, numbers, finish), store.artifact_dir(step.identity)
            )

    with pytest.raises(ZeroDivisionError):
        attempt(range(1, 4), finish=False, plan="one")
    assert statuses(registry) == {"pocket": ["FAILED"], "train-irm1": ["FAILED"]}
    attempt(range(2, 6), finish=True, plan="two")
    assert statuses(registry)["train-irm1"] == ["FINISHED"]
    assert loss_steps(registry, store, step) == [8, 16, 24, 32, 40]
    assert not has_pending_tracking(store.root)


def test_the_load_of_the_machine_is_sent_however_often_metrics_are(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tracking.mirror._SYSTEM_S", 0.3)
    step, registry = training(), open_registry(store.root)

    def machine() -> bool:
        run = find_step(registry, store.root, step.name, step.id)
        return (
            run is not None
            and "system/cpu_load_percentage" in registry.client.get_run(run.run_id).data.metrics
        )

    with MlflowMirror(pocket(), store).following([step], "plan") as mirror:

        def make() -> Record:
            folder, deadline = store.artifact_dir(step.identity), time.monotonic() + 30
            with MetricsLog(
                storage.join(folder, "metrics.json"), partial(mirror.log_metrics, step.name), every_s=0.02
            ) as log:
                for number in count(1):
                    log.add(Metrics(number, 8 * number, {"loss": 1 / number}))
                    time.sleep(0.02)
                    if number % 50 == 0 and (machine() or time.monotonic() > deadline):
                        break
            assert machine()
            return store.commit(step.identity, {"metrics": "metrics.json"}, {"loss": 0.1}, 1.0)

        mirror.track_step(step, make, store.artifact_dir(step.identity))
    assert loss_steps(registry, store, step)


_KILLED = """
import os, signal, sys
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.tracking.mirror import MlflowMirror
from tests.pipelines.flows.pocket import pocket
from tests.pipelines.tracking.test_mirror import posts, training
store, finished = ArtifactStore(sys.argv[1]), sys.argv[2] == "finished"
step = training()
with MlflowMirror(pocket(), store).following([step], "plan") as mirror:
    def make():
        record = posts(step, store, mirror, range(1, 4))
        if not finished:
            os.unlink(store.artifact_dir(step.identity) + "/record.json")
        mirror._outbox.enqueue(lambda: os.kill(os.getpid(), signal.SIGKILL))
        mirror._outbox.close()
    mirror.track_step(step, make, store.artifact_dir(step.identity))
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["training", "finished"])
def test_after_kill_9_of_the_driver_the_next_run_completes_tracking(store: ArtifactStore, when: str) -> None:
    step, registry = training(), open_registry(store.root)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, store.root, when],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert statuses(registry) == {"pocket": ["RUNNING"], "train-irm1": ["RUNNING"]}
    assert has_pending_tracking(store.root)
    with MlflowMirror(pocket(), store).following(
        [step], "plan" if when == "finished" else "another"
    ) as mirror:
        pass
    assert mirror._parent is not None
    assert run_status(mirror._parent) == "FINISHED"
    if when == "finished":
        assert statuses(registry) == {"pocket": ["FINISHED"], "train-irm1": ["FINISHED"]}
        assert loss_steps(registry, store, step) == [8, 16, 24]
    else:
        assert sorted(statuses(registry)["pocket"]) == ["FAILED", "FINISHED"]
        assert statuses(registry)["train-irm1"] == ["FAILED"]
    assert not has_pending_tracking(store.root)


def test_runs_of_dead_drivers_of_any_plan_are_failed_and_what_they_left_is_sent(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver of another machine is dead when its record is ten minutes old, one of this machine when its
    process has ended.
    """
    registry, done, cut = open_registry(store.root), training(), training("train-tem")
    here, now = heartbeat._namespace(), time.time()
    pid, started = str(os.getpid()), heartbeat._start_time(str(os.getpid()))
    others = {
        "container restarted": (":".join(["host", "boot", "ns", "1", "7"]), now - 601),
        "another machine at work": (":".join(["other", "boot", "ns", "1", "7"]), now - 60),
        "same number, another process": (":".join([*here, pid, f"{started}0"]), now),
        "process ended": (":".join([*here, "4194304", started]), now),
        "at work": (":".join([*here, pid, started]), now),
    }
    for name, (driver, renewed) in others.items():
        tags = {"diffbfr.root": store.root, "diffbfr.driver": driver}
        parent = begin_pipeline(registry, name, name, tags)
        begin_step(parent, f"step of {name}", name, tags)
        steps = {"train-irm1": done.id, "train-tem": cut.id}
        storage.write_json(
            storage.join(store.root, "pending", f"{name}.json"),
            {"driver": driver, "steps": steps, "renewed": renewed},
        )
    with MlflowMirror(pocket(), store).following([], "elsewhere") as elsewhere:
        posts(done, store, elsewhere, range(1, 4))
    found = statuses(registry)
    for name in others:
        lives = name.endswith("at work")
        assert found[name] == found[f"step of {name}"] == ["RUNNING" if lives else "FAILED"]
        assert Path(store.root, "pending", f"{name}.json").exists() == lives
    with MlflowMirror(pocket(), store).following([], "at work"):
        pass
    assert loss_steps(registry, store, done) == [8, 16, 24]
    assert "train-tem" not in statuses(registry)


class Gate:
    """Refuses, as a server does that was given a wrong token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *doors: str) -> None:
        self.shut = True
        for door in doors:
            monkeypatch.setattr(runs, door, partial(self.ask, getattr(runs, door)))

    def ask(self, inside: Callable[..., object], *args: object) -> object:
        if self.shut:
            raise MlflowException("permission denied", error_code=PERMISSION_DENIED)
        return inside(*args)


@pytest.mark.parametrize("opens", ["in this run", "in the next"])
def test_what_is_refused_at_first_is_sent_when_it_is_allowed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opens: str
) -> None:
    step, registry, refused = training(), open_registry(store.root), threading.Event()
    gate = Gate(monkeypatch, "begin_pipeline")
    with MlflowMirror(pocket(), store).following([step], "plan") as mirror:

        def make() -> Record:
            mirror._outbox.enqueue(refused.set)
            assert refused.wait(60)
            gate.shut = opens == "in the next"
            return posts(step, store, mirror, range(1, 4))

        mirror.track_step(step, make, store.artifact_dir(step.identity))
    assert has_pending_tracking(store.root)
    said = capsys.readouterr().err
    assert "tracking refuses what is sent" in said
    assert "tracking refused some of it; the next run sends it again" in said
    if opens == "in this run":
        assert statuses(registry) == {"pocket": ["FINISHED"], "train-irm1": ["FINISHED"]}
    else:
        assert statuses(registry) == {}
        gate.shut = False
        with MlflowMirror(pocket(), store).following([step], "plan"):
            pass
        assert not has_pending_tracking(store.root)
        assert statuses(registry) == {"pocket": ["FINISHED"], "train-irm1": ["FINISHED"]}
    assert loss_steps(registry, store, step) == [8, 16, 24]


def test_ctrl_c_is_recorded_as_a_failure(store: ArtifactStore) -> None:
    step = training()

    def interrupt() -> Record:
        raise KeyboardInterrupt

    def attempt() -> None:
        with MlflowMirror(pocket(), store).following([step], "plan") as mirror:
            mirror.track_step(step, interrupt, store.artifact_dir(step.identity))

    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert statuses(open_registry(store.root)) == {"pocket": ["FAILED"], "train-irm1": ["FAILED"]}


def test_a_record_is_renewed_while_its_driver_runs(tmp_path: Path) -> None:
    with DriverHeartbeat(str(tmp_path), "plan", {"shard": "abc"}, renew_s=0.01) as driver:
        (first,) = read_driver_records(str(tmp_path))
        assert first.driver == driver.driver == heartbeat.process_identity()
        while read_driver_records(str(tmp_path))[0].renewed == first.renewed:
            time.sleep(0.01)
        assert not heartbeat.is_dead(first)
    assert [mark.steps for mark in read_driver_records(str(tmp_path))] == [{"shard": "abc"}]
    driver.remove()
    assert read_driver_records(str(tmp_path)) == []


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with mlflow_server(tmp_path, str(tmp_path / "store")) as uri:
        line = Line(int(uri.rpartition(":")[2]))
        yield line


def through(line: Line) -> Recipe:
    return replace(pocket(), tracking=TrackingConfig(uri=f"http://127.0.0.1:{line.port}"))


@pytest.mark.slow
def test_a_server_that_was_away_gets_every_point_once(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Away at the start, in the middle and at the end; the next run, which has nothing to build, sends the
    rest.
    """
    store, step, later = ArtifactStore(str(tmp_path / "root")), training(), training("train-tem")
    registry = open_registry(store.root, f"http://127.0.0.1:{line.port}")
    line.cut()
    with MlflowMirror(through(line), store, close_s=1.0).following([step, later], "plan") as mirror:

        def make() -> Record:
            folder = store.artifact_dir(step.identity)
            with MetricsLog(
                storage.join(folder, "metrics.json"), partial(mirror.log_metrics, step.name), every_s=0.05
            ) as log:
                for number in range(1, 41):
                    log.add(Metrics(number, 8 * number, {"loss": 1 / number}))
                    for at, act in ((10, line.mend), (20, line.cut), (30, line.mend)):
                        if number == at:
                            act()
                            received.wait(4)
            return store.commit(step.identity, {"metrics": "metrics.json"}, {"loss": 0.1}, 1.0)

        received = threading.Event()
        mirror.track_step(step, make, store.artifact_dir(step.identity))
        mirror._outbox.enqueue(received.set)
        assert received.wait(120)
        line.cut()
        mirror.track_step(
            later, lambda: posts(later, store, mirror, range(1, 4)), store.artifact_dir(later.identity)
        )
    said = capsys.readouterr().err
    assert "the run goes on without it" in said
    assert "the next run sends what it missed" in said
    assert has_pending_tracking(store.root)
    line.mend()
    with MlflowMirror(through(line), store).following([step, later], "plan"):
        pass
    assert loss_steps(registry, store, step) == [8 * number for number in range(1, 41)]
    assert loss_steps(registry, store, later) == [8, 16, 24]
    assert statuses(registry) == {
        "pocket": ["FINISHED"],
        "train-irm1": ["FINISHED"],
        "train-tem": ["FINISHED"],
    }
    assert not has_pending_tracking(store.root)
