"""Ray and the serial path give the same reports, the same failures and the same user errors."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig, capacity, joining, pool, trainer
from pipelines.cluster.failures import root_cause
from pipelines.cluster.monitor import TrainingMonitor
from pipelines.cluster.protocol import Metrics, TrainingReporter
from tests.pipelines.cluster.fake_monitor import FakeMonitorClient


@dataclass(frozen=True)
class SquareTask:
    index: int
    folder: str
    fails_with: str = ""
    deaths: int = 0


def square(task: SquareTask) -> int:
    """Square the index; leave a mark; fail or die as the task says."""
    marks = len(list(Path(task.folder).glob(f"{task.index}.*")))
    Path(task.folder, f"{task.index}.{marks}").touch()
    if marks < task.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    match task.fails_with:
        case "network" if not marks:
            raise ConnectionResetError("the server went away")
        case "bug":
            raise RuntimeError(f"cannot square {task.index}\nsecond line")
        case "usage":
            raise UsageError("found a circle; expected a square; use another")
        case "quarantine":
            raise QuarantineError("3 of 3 inputs are quarantined")
    return task.index**2


class Squarer:
    """Leaves a mark when it is constructed, then squares."""

    def __init__(self, folder: str) -> None:
        Path(folder, f"made.{os.getpid()}.{time.monotonic_ns()}").touch()

    def __call__(self, task: SquareTask) -> int:
        return square(task)


@dataclass(frozen=True)
class SumConfig:
    folder: str
    steps: int
    fails_at: int = -1
    failing_ranks: tuple[int, ...] = ()


def sum_over_ranks(config: SumConfig, reporter: TrainingReporter) -> tuple[float, int]:
    """A small training: an all-reduce a step, a counter on disk to resume from, metrics.

    Returns the total and the number of steps of this attempt.
    """
    import torch
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank in config.failing_ranks:
        raise UsageError("found no column; expected irm1; condition first")
    sealed = Path(config.folder, "sealed")
    first, total = (int(float(part)) for part in sealed.read_text().split()) if sealed.exists() else (0, 0)
    for step in range(first, config.steps):
        value = torch.tensor(
            [float(sum(position for position in range(4) if position % world == rank) + step / world)]
        )
        if world > 1:
            dist.all_reduce(value)
        total += value.item()
        if step == config.fails_at and rank == 0:
            raise storage.StorageError("sealed reads back different from what was written")
        if rank == 0:
            reporter.report(Metrics(step + 1, (step + 1) * 4, {"loss": total}))
            sealed.with_suffix(".new").write_text(f"{step + 1} {total}")
            sealed.with_suffix(".new").replace(sealed)
        if world > 1:
            dist.barrier()
        reporter.heartbeat(step + 1)
    return total, config.steps - first


@dataclass(frozen=True)
class MeetTask:
    folder: str
    name: str
    others: int


def meet(task: MeetTask, reporter: TrainingReporter | None = None) -> float:
    """Leave a mark and wait for the marks of others; returns the time at which they were there."""
    Path(task.folder, task.name).touch()
    deadline = time.monotonic() + 120
    while len(list(Path(task.folder).iterdir())) <= task.others:
        assert time.monotonic() < deadline, f"{task.name} met nobody"
        time.sleep(0.05)
    return time.monotonic()


def test_no_workers_start_no_ray() -> None:
    code = (
        "import sys; from pipelines.cluster import Cluster, ClusterConfig\n"
        "with Cluster(ClusterConfig(num_workers=0)) as c: assert c.map(abs, [-1, 2], label='x') == [1, 2]\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["num_workers", "cpus_per_worker", "recompute_px"])
def test_a_negative_number_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^cluster.{name} is -1; expected 0 or more"):
        ClusterConfig(**{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("[::1]:1", "[Rr]efused|[Aa]ssign|[Uu]nreachable"),
        ("foo", "Invalid address format: foo"),
        ("other:6379", "Version mismatch"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line_at_once(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address.startswith("other"):  # a head with another Python, as Ray says it
        monkeypatch.setattr(joining, "_check_connection", lambda address: None)
        monkeypatch.setattr("ray.init", _refuse)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(
        UsageError,
        match=rf"^no Ray cluster at {re.escape(address)} \(.*({reason}).*\); expected a running one",
    ):
        Cluster(ClusterConfig(address=address)).map(abs, [1], label="join")


def _refuse(**options: object) -> None:
    raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0")


@pytest.mark.parametrize("least", [0, 3])
def test_at_least_more_workers_than_at_most_or_none_is_refused(least: int) -> None:
    with pytest.raises(
        UsageError, match=rf"min_workers is {least}; expected 1 to cluster.num_workers=2, or none"
    ):
        ClusterConfig(num_workers=2, min_workers=least)


def test_no_tasks_are_no_work(serial: Cluster) -> None:
    assert serial.map(square, [], label="nothing") == []


def wait_for_every_core() -> None:
    """Wait until every core of Ray is free."""
    import ray

    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:  # type: ignore[no-untyped-call]
        assert time.monotonic() < deadline, "cores are still held"
        time.sleep(0.1)


class TestEachKind:
    """Every test runs in this process and on Ray."""

    @pytest.fixture(params=["serial", pytest.param("cluster", marks=pytest.mark.cluster)])
    def where(self, request: pytest.FixtureRequest) -> Cluster:
        found = request.getfixturevalue(request.param)
        assert isinstance(found, Cluster)
        return found

    @pytest.fixture(params=["map", "map_actors"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @staticmethod
    def run(where: Cluster, kind: str, tasks: list[SquareTask], seen: list[int] | None = None) -> list[int]:
        listener = seen.append if seen is not None else None
        if kind == "map":
            return where.map(square, tasks, label="square", weight=lambda task: 2, on_report=listener)
        folder = tasks[0].folder
        return where.map_actors(lambda: Squarer(folder), tasks, label="square", on_report=listener)

    def test_reports_come_in_the_order_of_the_tasks(self, where: Cluster, kind: str, tmp_path: Path) -> None:
        seen: list[int] = []
        tasks = [SquareTask(index, str(tmp_path)) for index in range(7)]
        assert self.run(where, kind, tasks, seen) == [0, 1, 4, 9, 16, 25, 36]
        assert sorted(seen) == [0, 1, 4, 9, 16, 25, 36]

    def test_one_failing_task_is_named_and_the_others_are_done(
        self, where: Cluster, kind: str, tmp_path: Path
    ) -> None:
        seen: list[int] = []
        tasks = [
            SquareTask(index, str(tmp_path), fails_with="bug" if index == 2 else "") for index in range(5)
        ]
        with pytest.raises(
            IncompleteError, match=r"^square: 1 of 5 tasks failed \(task 2: RuntimeError: cannot square 2\)"
        ) as caught:
            self.run(where, kind, tasks, seen)
        assert "\n" not in str(caught.value)
        assert sorted(seen) == [0, 1, 9, 16]

    @pytest.mark.parametrize(
        ("fails_with", "error"), [("usage", UsageError), ("quarantine", QuarantineError)]
    )
    def test_an_error_of_the_user_is_raised_as_itself(
        self, where: Cluster, kind: str, fails_with: str, error: type[Exception], tmp_path: Path
    ) -> None:
        with pytest.raises(error) as caught:
            self.run(
                where,
                kind,
                [SquareTask(0, str(tmp_path), fails_with=fails_with), SquareTask(1, str(tmp_path))],
            )
        assert type(caught.value) is error
        if (
            where.config.num_workers
        ):  # while the exception, and so the frames it came through, is still at hand
            wait_for_every_core()

    def test_a_task_that_the_network_failed_is_tried_again_and_no_other(
        self, where: Cluster, kind: str, tmp_path: Path
    ) -> None:
        tasks = [
            SquareTask(0, str(tmp_path), fails_with="network"),
            SquareTask(1, str(tmp_path), fails_with="bug"),
        ]
        with pytest.raises(IncompleteError, match=r"^square: 1 of 2 tasks failed \(task 1: RuntimeError"):
            self.run(where, kind, tasks)
        assert (len(list(tmp_path.glob("0.*"))), len(list(tmp_path.glob("1.*")))) == (2, 1)

    def test_a_training_gives_the_same_sum_and_reports_each_step_once(
        self, where: Cluster, tmp_path: Path
    ) -> None:
        reported: list[Metrics] = []
        result = where.train(
            sum_over_ranks,
            SumConfig(str(tmp_path), 3),
            label="sum",
            total=12,
            root=str(tmp_path / "root"),
            on_metrics=reported.append,
        )
        assert result == (21.0, 3)
        assert reported == [
            Metrics(1, 4, {"loss": 6.0}),
            Metrics(2, 8, {"loss": 13.0}),
            Metrics(3, 12, {"loss": 21.0}),
        ]
        assert not list((tmp_path / "root").rglob("*.json"))

    def test_an_error_of_the_user_in_a_training_is_raised_as_itself(
        self, where: Cluster, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="condition first"):
            where.train(
                sum_over_ranks,
                SumConfig(str(tmp_path), 3, failing_ranks=(0, 1)),
                label="sum",
                total=12,
                root=str(tmp_path),
            )


@pytest.mark.parametrize("kind", ["map", "map_actors"])
def test_a_network_that_stays_away_ends_in_an_incomplete_error(
    serial: Cluster, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(pool.time, "sleep", pauses.append)
    tried: list[int] = []

    def fail(task: int) -> int:
        tried.append(task)
        raise TimeoutError("no answer")

    run = (
        serial.map
        if kind == "map"
        else lambda function, tasks, label: serial.map_actors(lambda: function, tasks, label=label)
    )
    with pytest.raises(IncompleteError, match=r"1 of 1 tasks failed \(task 0: TimeoutError: no answer\)"):
        run(fail, [7], label="fail")
    assert (tried, pauses) == ([7] * 4, [1.0, 4.0, 16.0])


@pytest.mark.cluster
def test_a_task_whose_worker_dies_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    tasks = [SquareTask(index, str(tmp_path), deaths=1 if index == 1 else 0) for index in range(4)]
    assert cluster.map(square, tasks, label="square") == [0, 1, 4, 9]
    assert len(list(tmp_path.glob("1.*"))) == 2


@pytest.mark.cluster
def test_a_task_whose_actor_dies_runs_again_on_another(cluster: Cluster, tmp_path: Path) -> None:
    tasks = [SquareTask(index, str(tmp_path), deaths=1 if index == 1 else 0) for index in range(6)]
    assert cluster.map_actors(lambda: Squarer(str(tmp_path)), tasks, label="square") == [0, 1, 4, 9, 16, 25]
    assert len(list(tmp_path.glob("1.*"))) == 2
    assert len(list(tmp_path.glob("made.*"))) in (
        2,
        3,
    )  # two actors, and one in the place of the dead one if there is work left for it


@pytest.mark.cluster
def test_a_task_that_kills_every_actor_is_named_and_the_others_are_done(
    cluster: Cluster, tmp_path: Path
) -> None:
    seen: list[int] = []
    tasks = [SquareTask(index, str(tmp_path), deaths=99 if index == 1 else 0) for index in range(4)]
    with pytest.raises(IncompleteError, match=r"1 of 4 tasks failed \(task 1: ActorDiedError"):
        cluster.map_actors(lambda: Squarer(str(tmp_path)), tasks, label="square", on_report=seen.append)
    assert sorted(seen) == [0, 4, 9]
    assert len(list(tmp_path.glob("1.*"))) == 4  # the first try and three more


@pytest.mark.cluster
def test_more_workers_than_cpus_are_refused_before_they_wait_for_ever(
    cluster: Cluster, tmp_path: Path
) -> None:
    greedy = Cluster(ClusterConfig(num_workers=2, cpus_per_worker=1000))
    with pytest.raises(UsageError, match=r"2 workers want 2000 CPUs, the cluster has \d+"):
        greedy.map_actors(
            lambda: square, [SquareTask(0, str(tmp_path)), SquareTask(1, str(tmp_path))], label="square"
        )
    with pytest.raises(UsageError, match="2 workers want 2000 CPUs"):
        greedy.train(sum_over_ranks, SumConfig(str(tmp_path), 1), label="sum", total=4, root=str(tmp_path))


def kill_the_monitor(folder: str, reporter: TrainingReporter) -> None:
    """Rank 0 kills the monitor; each rank goes on without it."""
    import torch.distributed as dist

    from pipelines.cluster.watchdog import RankReporter

    assert isinstance(reporter, RankReporter)
    if dist.get_rank() == 0:
        reporter.monitor.stop()
    for number in range(600):
        Path(folder, f"step-{dist.get_rank()}").write_text(str(number))
        reporter.heartbeat(number)
        time.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_training_that_the_driver_has_lost_is_one_line_and_its_ranks_end_with_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(
        IncompleteError,
        match=r"^sum: the training failed with ActorDiedError: .*; run the same command again",
    ):
        cluster.train(kill_the_monitor, str(tmp_path), label="sum", total=1, root=str(tmp_path / "root"))
    wait_for_every_core()
    assert max(int(step.read_text()) for step in tmp_path.glob("step-*")) < 599


@pytest.mark.cluster
@pytest.mark.slow
def test_an_error_of_the_user_on_a_single_rank_is_raised_too(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "NUM_RETRIES", 1)
    with pytest.raises(UsageError, match="condition first"):
        cluster.train(
            sum_over_ranks,
            SumConfig(str(tmp_path), 3, failing_ranks=(1,)),
            label="sum",
            total=12,
            root=str(tmp_path),
        )


@pytest.mark.cluster
@pytest.mark.slow
def test_a_training_that_a_storage_always_fails_is_tried_again_and_ends_with_one_line(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "NUM_RETRIES", 1)
    with pytest.raises(
        IncompleteError,
        match=(
            "sum: 2 attempts to train came no further, the last with StorageError: sealed reads back "
            "different"
        ),
    ) as caught:
        cluster.train(
            sum_over_ranks,
            SumConfig(str(tmp_path), 3, fails_at=1),
            label="sum",
            total=12,
            root=str(tmp_path / "root"),
        )
    assert "\n" not in str(caught.value)


def test_workers_of_a_joined_cluster_know_the_endpoint_and_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    joined: dict[str, object] = {}

    def join(**options: object) -> None:
        joined.update(options)
        raise ConnectionError("seen enough")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", join)
    wanted = {
        "AWS_ENDPOINT_URL": "http://s3:9000",
        "DIFFBFR_CACHE": "/fast/cache",
        "DIFFBFR_CACHE_BYTES": "1000",
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UsageError, match="no Ray cluster at ray-head"),
        Cluster(ClusterConfig(address="ray-head")) as cluster,
    ):
        cluster.map(abs, [1], label="join")
    environment = joined["runtime_env"]["env_vars"]  # type: ignore[index]
    assert {name: environment[name] for name in wanted} == wanted


@pytest.mark.cluster
@pytest.mark.slow
def test_two_trainings_are_under_way_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    beside = Cluster(replace(cluster.config, num_workers=1))
    assert beside.fraction_needed(2) <= 0.5
    (tmp_path / "met").mkdir()

    def train(name: str) -> float:
        task = MeetTask(str(tmp_path / "met"), name, others=1)
        return beside.train(meet, task, label=name, total=1, root=str(tmp_path), num_parallel=2)

    with ThreadPoolExecutor(2) as threads:
        met = list(threads.map(train, ("irm1", "tem")))
    assert max(met) - min(met) < 5


@pytest.mark.cluster
def test_work_on_other_threads_is_ended_when_the_cluster_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    beside = Cluster(cluster.config)
    with ThreadPoolExecutor(1) as thread:
        task = MeetTask(str(tmp_path), "alone", others=99)
        mapped = thread.submit(beside.map, meet, [task], label="wait")
        while not (tmp_path / "alone").exists():
            time.sleep(0.05)
        beside.stop()
        with pytest.raises(KeyboardInterrupt):
            mapped.result(60)


# Groups that do not start, with nothing of Ray running


def _run_attempts(
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[Exception | str],
    monitor: TrainingMonitor | None = None,
    begins: bool = False,
) -> object:
    """The outcome of a training whose groups end so, one after another; `begins`: after their ranks began."""
    names: list[str] = []
    client = FakeMonitorClient(monitor)

    class Trainer:
        def __init__(self, worker: object, **settings: Any) -> None:
            names.append(settings["run_config"].name)

        def fit(self) -> SimpleNamespace:
            outcome = outcomes.pop(0)
            if begins:
                client.monitor.begin_attempt(0, 2)
            if isinstance(outcome, RayError):
                raise outcome
            if isinstance(outcome, Exception):
                raise ControllerError(outcome)
            return SimpleNamespace(return_value=outcome)

    from ray.exceptions import RayError
    from ray.train import ControllerError

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    job = trainer._TrainJob(sum_over_ranks, SumConfig("", 1), client, "sum", 30.0, 3)
    found = trainer._run_attempts(job, "sum", "state", trainer.WorkerGroup(2, 1, use_gpu=False))
    # Ray does nothing for a name that has ended before.
    assert names == [f"sum-{attempt}" for attempt in range(len(names))]
    return found


def test_a_group_that_does_not_start_is_tried_again_and_given_up_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = RuntimeError("the address is in use")
    assert _run_attempts(monkeypatch, [broken, broken, broken, "trained"]) == "trained"
    given_up = _run_attempts(monkeypatch, [broken] * 4)
    assert isinstance(given_up, IncompleteError)
    assert str(given_up).startswith(
        "sum: 4 attempts to train came no further, the last with RuntimeError: the address is in use; run"
    )


@pytest.mark.parametrize("begins", [False, True])
def test_a_training_whose_controller_is_lost_begins_again_with_another_and_says_so(
    begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    monitor, died = TrainingMonitor(), ActorDiedError()
    assert (
        _run_attempts(monkeypatch, [died, OutOfMemoryError("too much"), "trained"], monitor, begins)
        == "trained"
    )
    assert monitor.take_failures() == [
        "Ray Train's controller died (ActorDiedError: The actor died unexpectedly before finishing this "
        "task.)",
        "Ray Train's controller died (OutOfMemoryError: too much)",
    ]
    attempts: list[Exception | str] = [died] * 6
    given_up = _run_attempts(monkeypatch, attempts, begins=begins)
    assert str(given_up).startswith(
        "sum: 4 attempts to train came no further, the last with Ray Train's controller died"
    )
    assert len(attempts) == 2


@pytest.mark.parametrize(("first", "last"), [("20", "300"), ("900", "900")])
def test_a_group_that_does_not_start_in_time_gets_more_of_it_as_often_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, first: str, last: str
) -> None:
    """Machines are missing, or are so slow that ranks need minutes to import what they need."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    monkeypatch.setenv(trainer.START_TIME_VARIABLE, first)
    assert _run_attempts(monkeypatch, [*[WorkerGroupStartupTimeoutError(2)] * 20, "trained"]) == "trained"
    assert os.environ[trainer.START_TIME_VARIABLE] == last


def test_the_cause_is_who_died_else_what_the_first_failed_with() -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    broken = UserExceptionWithTraceback(RuntimeError("Connection closed by peer\nfar away"), "a stack")
    killed, starved = (
        WorkerHealthCheckFailedError("gone", cause)
        for cause in (RuntimeError("died"), OutOfMemoryError("too much"))
    )
    assert (
        root_cause({1: broken, 2: broken}) == "worker 1 failed with RuntimeError: Connection closed by peer"
    )
    assert root_cause({0: broken, 1: killed}) == "worker 1 died (killed, or its machine was lost)"
    assert root_cause({0: killed, 1: starved, 2: broken}) == "worker 0 and 1 died (out of memory)"


def test_failures_are_reported_once_and_not_beside_an_error_of_the_user() -> None:
    monitor = TrainingMonitor()
    monitor.record_failure("worker 1 died")
    assert (monitor.take_failures(), monitor.take_failures()) == (["worker 1 died"], [])
    monitor.report_user_error(0, UsageError("condition first"))
    monitor.record_failure("worker 0 failed")
    assert monitor.take_failures() == []


@pytest.mark.parametrize("elastic", [False, True])
def test_a_training_that_waits_for_machines_says_so_once_a_minute(
    elastic: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundles = {0: {"CPU": 1.0}, 1: {"CPU": 1.0}}
    now, groups = (
        [0.0],
        {
            "a": {"state": "CREATED", "bundles": {0: {"CPU": 4.0}}},
            "b": {"state": "PENDING", "bundles": bundles},
        },
    )
    if elastic:  # Ray asks for no places while there is room for too few workers
        del groups["b"]
    monkeypatch.setattr(capacity.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("ray.util.placement_group_table", lambda: groups)
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 5.0})
    waiter, group = capacity.CapacityWarning("irm1", 2, 1), trainer.WorkerGroup(2, 1, use_gpu=False)
    for second in range(300):
        now[0] = float(second)
        waiter.check(second < 100, lambda: trainer._waits_for_room(group))
        if second == 240:
            groups["b"] = {
                "state": "CREATED",
                "bundles": bundles,
            }  # a place was found; the ranks import torch
    assert [record.getMessage() for record in caplog.records] == [
        "irm1: waiting for 2 workers of 1 CPUs each; the cluster has 5 CPUs, 4 of them in use; it goes on when "
        "other work frees them, or add machines"
    ] * 2
