"""A run refuses to begin without what its last step needs, in one line and before any work."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.nodes import NodeReport
from pipelines.flows import train_cascade
from pipelines.flows.places import PlaceTask, require_places, try_places
from pipelines.recipes.overrides import load
from pipelines.sources import open_source
from pipelines.steps.shard import SHARD
from pipelines.storage import files
from pipelines.tracking.checks import check_ready
from pipelines.tracking.connection import Registry, open_registry

NO_RAY = "cluster.num_workers=0"


def run(root: Path, *settings: str, until: str | None = None) -> None:
    train_cascade.run(load("smoke", overrides=(NO_RAY, *settings)), str(root), until=until)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a step begins."""

    def begun(*_: object) -> None:
        raise AssertionError("a step began")

    monkeypatch.setattr("pipelines.flows.train_cascade._run_tracked", begun)


@pytest.mark.slow
def test_a_registry_that_is_away_ends_a_run_before_it_begins(tmp_path: Path, no_work: None) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="no MLflow server answers at"):
        run(tmp_path, "tracking.uri=http://127.0.0.1:9")
    assert time.monotonic() - started < 60
    assert not (tmp_path / "artifacts").exists()


def test_a_step_that_registers_nothing_needs_no_registry(tmp_path: Path, no_work: None) -> None:
    with pytest.raises(AssertionError, match="a step began"):
        run(tmp_path, "tracking.uri=http://127.0.0.1:9", until=SHARD.name)


def read_only(database: Path) -> None:
    sqlite3.connect(database).execute("PRAGMA user_version = 1").connection.close()
    database.write_bytes(database.read_bytes()[:50])


def older(database: Path) -> None:
    change_schema(database, "867495a8f9d4")


def unknown(database: Path) -> None:
    change_schema(database, "ffffffffffff")


def change_schema(database: Path, version: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (read_only, "cannot be written"),
        (older, "was made by an earlier MLflow"),
        (unknown, "was made by another MLflow"),
    ],
)
def test_a_database_that_would_refuse_the_models_is_found_without_mlflow(
    registry: Registry, damage: Callable[[Path], None], says: str
) -> None:
    database = Path(registry.uri.removeprefix("sqlite:///"))
    check_ready(registry)
    damage(database)
    with pytest.raises(UsageError, match=says):
        check_ready(registry)


def test_a_database_that_does_not_exist_yet_passes_and_is_not_made(tmp_path: Path) -> None:
    check_ready(open_registry(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_the_check_of_a_local_registry_costs_little(registry: Registry) -> None:
    """No duration is asserted; what costs, importing MLflow or a connection to it, is not there."""
    check_ready(registry)
    assert "client" not in vars(registry)


@pytest.mark.parametrize("metric", ["squeezenet", "identity"])
def test_weights_of_a_metric_that_are_none_end_a_run_before_it_begins(
    metric: str, tmp_path: Path, no_work: None
) -> None:
    (tmp_path / "text.npz").write_text("no weights")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name, says in (("text", "cannot be read as weights"), ("other", "expected")):
        with pytest.raises(UsageError, match=says) as caught:
            run(tmp_path / "root", f"evaluate.{metric}={tmp_path / name}.npz")
        assert str(tmp_path / name) in str(caught.value)


def test_an_output_without_exclusive_creation_ends_a_command_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = files.write_atomic
    monkeypatch.setattr(files, "write_atomic", lambda uri, data, create_only=False: honest(uri, data))
    with pytest.raises(UsageError, match="lets a second writer replace a file"):
        storage.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


class OtherDisks(Cluster):
    """Stands for a cluster whose nodes see the driver's files below another path, or none of them."""

    def __init__(self, *moved: tuple[Path, Path]) -> None:
        super().__init__(ClusterConfig(num_workers=1, address="10.0.0.1:6379"))
        self._moved = moved

    def on_each_node(self, function: Callable[[Any], Any], task: Any) -> list[NodeReport[Any]]:
        assert isinstance(task, PlaceTask)
        for here, away in self._moved:
            here.rename(away)
        try:
            return [NodeReport("10.0.0.2", function(task), None, 0, 1)]
        finally:
            for here, away in self._moved:
                away.rename(here)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from tests.pipelines.sample_archive import build

    build(tmp_path / "photos")
    return tmp_path / "photos"


def test_photos_on_the_drivers_disk_alone_are_refused_and_none_is_blamed(
    photos: Path, tmp_path: Path
) -> None:
    source = open_source(str(photos), every_file=True)
    output = tmp_path / "output"
    output.mkdir()
    require_places(OtherDisks(), str(output), [(source, list(source.refs()))])
    with pytest.raises(
        UsageError, match=r"1 of 1 nodes cannot work \(first: 10.0.0.2\): .*photos is not there"
    ):
        require_places(OtherDisks((photos, tmp_path / "gone")), str(output), [(source, list(source.refs()))])
    with pytest.raises(UsageError, match="output is on the driver's disk alone"):
        require_places(OtherDisks((output, tmp_path / "gone")), str(output))
    assert list(output.iterdir()) == [], "the mark is removed"


def test_a_node_that_cannot_write_the_output_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    mark.touch()

    def refused(uri: object, data: bytes, create_only: bool = False) -> bool:
        raise PermissionError(13, "Permission denied", str(uri))

    monkeypatch.setattr(files, "write_atomic", refused)
    assert "cannot write to" in try_places(PlaceTask(str(tmp_path), str(mark), ()))
