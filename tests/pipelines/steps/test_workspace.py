"""On S3 each rank trains in a place of its own, which an attempt that is killed leaves to the next; rank 0
alone stores.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from diffbfr.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from pipelines import storage
from pipelines.cluster import pool
from pipelines.steps.workspace import workspace

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def folder(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A training's folder on S3; this machine's cache is in `tmp_path`."""
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    return f"{s3_bucket}/workspace-{tmp_path.name}/run"


def _save(place: Path, step: int) -> Path:
    return save_checkpoint(
        place / "checkpoints",
        TrainingState(step, step, {}, {"model": {"w": torch.full((2,), float(step))}}),
        keep=2,
    )


def test_two_ranks_of_a_machine_go_on_from_what_is_stored_and_one_stores(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in range(2):  # the second from the checkpoints of the first
        with ExitStack() as ranks:
            places = []
            for rank in range(2):
                monkeypatch.setenv("RANK", str(rank))
                place, publish = ranks.enter_context(workspace(folder))
                found = load_checkpoint(place / "checkpoints", {})
                assert (found and found.step) == (3 if attempt else None)
                places.append((place, publish))
            (first, stores), (second, keeps) = places
            assert first != second
            steps = [4, 5] if attempt else [1, 2, 3]
            for step in steps:
                keeps(_save(second, step))
                stored = storage.list_dir(f"{folder}/checkpoints")
                assert f"step-{step:08d}" not in stored
                stores(_save(first, step))
            assert storage.list_dir(f"{folder}/checkpoints") == [f"step-{step:08d}" for step in steps[-2:]]
        assert not first.exists()
        assert not second.exists()


def test_a_rank_that_is_killed_leaves_its_place_to_the_next(folder: str) -> None:
    code = "import sys, time; from pipelines.steps.workspace import workspace\n"
    code += "with workspace(sys.argv[1]) as (place, _): (place / 'left').touch(); print(place, flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, folder]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        place = Path(killed.stdout.readline().strip())
        with workspace(folder) as (other, _):
            assert other != place
            assert (place / "left").exists()
        killed.kill()
    assert (place / "left").exists()
    with workspace(folder) as (again, _):
        assert again == place
        assert list(again.iterdir()) == []
    assert {path.suffix for path in place.parent.iterdir()} == {".lock"}


def test_an_upload_outlives_a_server_that_is_away_and_gives_up_as_something_that_passes(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again with pauses; after the last one the command can be run again (exit 3)."""
    honest, away = storage.put_tree, [3]

    def put_tree(*arguments: object, **options: object) -> None:
        away[0] -= 1
        if away[0] >= 0:
            raise storage.TransportError("no S3 server answers")
        honest(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "put_tree", put_tree)
    monkeypatch.setattr(pool, "BACKOFF_S", (0.0, 0.0, 0.0))
    with workspace(folder) as (local, publish):
        publish(_save(local, 1))
        assert storage.list_dir(storage.join(folder, "checkpoints")) == ["step-00000001"]
        away[0] = 4
        with pytest.raises(storage.TransportError, match="could not be stored") as gave_up:
            publish(_save(local, 2))
    assert gave_up.value.exit_code == 3
