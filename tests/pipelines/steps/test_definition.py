"""A step that one file defines is planned, run, found again, killed and resumed like the product's own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cluster import Cluster
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.steps.definition import driver_only, without
from pipelines.steps.train import TRAIN
from tests.pipelines.steps import toy_step

PROJECT = Path(__file__).parents[3]
WORDS = ("one", "three", "seventeen")


def test_a_step_is_planned_then_run_and_then_a_hit(tmp_path: Path, serial: Cluster) -> None:
    root = str(tmp_path)
    first = toy_step.plan(root, WORDS, serial)
    assert (first.action, first.reason) == ("RUN", "first run")
    result = toy_step.run(root, WORDS, serial)
    folder = Path(ArtifactStore(root).artifact_dir(result.record.identity))
    assert [(folder / f"{word}.txt").read_text() for word in WORDS] == ["3", "5", "9"]
    assert result.record.metadata == {"new": 3}
    assert toy_step.plan(root, WORDS, serial).action == "HIT"
    assert toy_step.run(root, WORDS, serial).record == result.record


def test_a_changed_setting_is_named_by_the_plan(tmp_path: Path, serial: Cluster) -> None:
    toy_step.run(str(tmp_path), WORDS, serial)
    again = toy_step.plan(str(tmp_path), WORDS[:2], serial)
    assert (again.action, again.reason) == (
        "RUN",
        'config words: ["one", "three", "seventeen"] -> ["one", "three"]',
    )


def test_its_code_is_its_file(tmp_path: Path, serial: Cluster) -> None:
    steps, _ = toy_step.pipeline(str(tmp_path), WORDS, serial)
    assert toy_step.CODE in steps[0].identity.code


def test_a_killed_step_continues_with_the_same_command(tmp_path: Path, serial: Cluster) -> None:
    command = [sys.executable, "-m", toy_step.CODE, str(tmp_path), *WORDS]
    killed = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, toy_step.KILL_AT: "seventeen"}, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert toy_step.plan(str(tmp_path), WORDS, serial).action == "RUN"
    subprocess.run(command, cwd=PROJECT, check=True, timeout=120)
    record = ArtifactStore(str(tmp_path)).latest("toy")
    assert record is not None
    assert record.metadata == {"new": 1}


def test_steps_in_parallel_count_each_other() -> None:
    assert [TRAIN[name].num_parallel for name in ("irm1", "irm2", "tem")] == [2, 1, 2]
    for step in TRAIN.values():
        assert all(
            step.name in other.parallel_with for other in TRAIN.values() if other.name in step.parallel_with
        )


@pytest.mark.parametrize(
    ("left_out", "kept"),
    [
        (("a",), ["ab.c", "b"]),
        (("a.b",), ["a.c.d", "ab.c", "b"]),
        (("a.c", "b"), ["a.b", "ab.c"]),
        ((), ["a.b", "a.c.d", "ab.c", "b"]),
    ],
)
def test_a_group_is_left_out_with_all_that_is_in_it(left_out: tuple[str, ...], kept: list[str]) -> None:
    settings = {"a.b": 1, "a.c.d": 2, "ab.c": 3, "b": 4}
    assert sorted(without(settings, *left_out)) == kept


def test_the_mark_changes_no_function() -> None:
    def double(number: int) -> int:
        return 2 * number

    assert driver_only(double) is double
