"""`diffbfr distill` on a real cascade of no size: students of its stages, registered with their teacher."""

import json
import sys
from pathlib import Path

import pytest

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.stages import IRM1, IRM1_TINY, IRM2, IRM2_TINY, STAGE_NAMES, TEM, TEM_TINY
from pipelines.cli import main
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.recipes.distilled import distilled, student_of
from pipelines.recipes.overrides import load
from pipelines.registry import get_version
from pipelines.tracking.connection import open_registry
from tests.pipelines.sample_archive import encode, face
from tests.pipelines.tiny_cascade import make_tiny_cascade

SETTINGS = (
    *("--set", "data.faces=synthetic:count=16,seed=3,px=64", "--set", "data.shard_size=8"),
    *("--set", "data.variants=1", "--set", "data.test_fraction=0.25", "--set", "data.val_fraction=0"),
    *("--set", "cluster.num_workers=0", "--set", "evaluate.seeds=0", "--set", "restore.num_photos=2"),
    *("--set", "evaluate.num_panels=1", "--set", "column.max_bad_share=1"),
)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diffbfr", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def training() -> list[str]:
    words = []
    for name in STAGE_NAMES:
        for setting in ("num_samples=16", "global_batch=4", "teacher_steps=2", "checkpoint_samples=8"):
            words += ["--set", f"{name}.training.{setting}"]
    return words


@pytest.mark.slow
def test_a_cascade_becomes_students_that_restore_and_name_their_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, root = make_tiny_cascade(tmp_path / "teacher"), str(tmp_path / "root")
    words = ["distill", str(teacher), "--root", root, *SETTINGS, *training()]
    assert call(monkeypatch, *words) == 0
    store = ArtifactStore(root)
    record = store.latest("cascade")
    assert record is not None
    student = Cascade.load(Path(store.artifact_dir(record.identity)))
    stages = (student.irm1, student.irm2, student.tem)
    assert [stage.spec.fast.num_evaluations for stage in stages] == [4, 2, 2]
    assert all(stage.spec.distilled for stage in stages)

    registry = open_registry(root)
    version = get_version(registry, "diffbfr-cascade@candidate")
    assert version.tags["parent.teacher"] == cascade_digest(teacher)
    assert "parent.init" not in version.tags
    capsys.readouterr()
    assert call(monkeypatch, "models", "lineage", "diffbfr-cascade@candidate", "--root", root) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"teacher  {cascade_digest(teacher)[:12]}") >= 1

    assert call(monkeypatch, *words, "--json") == 0
    printed = capsys.readouterr().out
    steps = json.loads(printed[printed.index("{") :])["steps"]
    assert {step["action"] for step in steps} == {"HIT"}

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(encode(face(0), "PNG"))
    restore = ["restore", str(photos), str(tmp_path / "out"), "--aligned", "--model", version.ref]
    assert call(monkeypatch, *restore, "--root", root, "--set", "cluster.num_workers=0") == 0
    capsys.readouterr()
    assert call(monkeypatch, "distill", version.ref, "--root", root, *SETTINGS) == 2
    assert "irm1 of diffbfr-cascade@1 is distilled already, to 4 evaluations" in capsys.readouterr().err
    faithful = ["restore", str(photos), str(tmp_path / "faithful"), "--aligned", "--model", version.ref]
    assert call(monkeypatch, *faithful, "--root", root, "--mode", "faithful") == 2
    assert "irm1 was distilled to 4 evaluations; expected mode fast" in capsys.readouterr().err


def test_a_student_has_the_network_of_its_teacher_and_the_data_of_the_recipe() -> None:
    teacher = {"irm1": IRM1_TINY, "irm2": IRM2_TINY, "tem": TEM_TINY}
    recipe, small = load("tiny"), load("tiny")
    made = distilled(recipe, teacher, "packaged")  # type: ignore[arg-type]
    assert (made.data, made.evaluate, made.init) == (small.data, small.evaluate, "packaged")
    for name in STAGE_NAMES:
        student = made.stage(name)
        assert student.stage.unet == teacher[name].unet
        assert student.training.num_samples == recipe.stage(name).training.num_samples // 10
        assert student.training.teacher_steps == 4
    sees = load("faces128")
    both = distilled(load("tiny"), {name: sees.stage(name).stage for name in STAGE_NAMES}, "folder")
    assert both.irm2.training.condition == "both"


def test_the_evaluations_of_truncated_stages_lie_between_their_start_and_the_image() -> None:
    from diffbfr.schedule import noise_schedule
    from diffbfr.step_grid import step_grid

    for spec in (IRM1, IRM2, TEM, IRM1_TINY, IRM2_TINY, TEM_TINY):
        student = student_of(spec)
        for fidelity in (0.5, 1.0):
            start = student.start if spec.name == "irm1" else student.start_at(fidelity)
            grid = step_grid(noise_schedule(spec.schedule), start, student.fast)
            assert len(grid) == (4 if spec.name == "irm1" else 2)
            assert 1 < grid[-1] <= 0.85 * grid[-2]
