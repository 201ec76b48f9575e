"""Scores by stage, start and group: of the same restorations as `evaluate`, kept, and read when asked for again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffbfr.cascade import Cascade
from diffbfr.errors import UsageError
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.types import EvaluateTask
from pipelines.execution.model_ref import pin_model
from pipelines.experiments import stage_scores
from pipelines.experiments.group_scores import format_groups, group_scores, read_groups
from pipelines.experiments.stage_tables import Scored, comparison_table, detail_table, stage_table
from pipelines.steps.evaluate import evaluate
from tests.pipelines.evaluation.random_weights import write_random_weights
from tests.pipelines.tiny_cascade import make_tiny_cascade
from tests.pipelines.tiny_dataset import CONFIG, build, picture


@pytest.mark.slow
def test_each_start_is_scored_once_and_the_papers_is_what_evaluate_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_weights(tmp_path / "cache")
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        (photos / f"{seed}.png").write_bytes(picture(seed, 64, 64))
    config = replace(CONFIG, hq_px=64, lq_px=16, val_fraction=0.0, test_fraction=1.0)
    build(photos, tmp_path / "data", config)
    dataset = open_dataset(str(tmp_path / "data"))
    keys = tuple(dataset.keys("test"))
    model = make_tiny_cascade(tmp_path / "model")
    faces, meters = stage_scores.open_faces(dataset, keys), stage_scores.Meters()
    cascade, out = Cascade.load(model), tmp_path / "out"

    found = stage_scores.score_cascade(cascade, faces, ("0.5", "1", "auto"), (0,), meters, out)
    report = evaluate(EvaluateTask(0, str(tmp_path / "data"), pin_model(model), keys))
    for stage in ("lq", "irm1", "irm2", "tem"):
        theirs = {row.key: row.values[0] for row in report.rows if row.subject == stage}
        assert found["0.5"].rows[stage]["psnr"] == pytest.approx([theirs[key] for key in keys])
    assert found["1"].rows["irm1"] == found["0.5"].rows["irm1"]
    assert found["1"].rows["tem"] != found["0.5"].rows["tem"]
    assert found["auto"].evaluations == (3, 3, 3)

    few = Cascade.load(model)
    stage_scores.take_few(few)
    small = stage_scores.score_cascade(few, faces, ("0.5",), (0,), meters, tmp_path / "few")["0.5"]
    assert small.evaluations == (4, 2, 2)
    assert small.rows["tem"] != found["0.5"].rows["tem"]

    again = stage_scores.score_cascade(None, faces, ("auto", "0.5"), (0,), meters, out)  # type: ignore[arg-type]
    assert again == {start: found[start] for start in ("auto", "0.5")}
    assert len(stage_table({"packaged": found})) == 1 + 2 + 2 * 3
    thirds = detail_table(found, faces.details)
    assert len(thirds) == 1 + 3 * 3
    groups = tmp_path / "groups.csv"
    sources = [Path(sample.source).name for sample in dataset.samples]
    groups.write_text("file,group\n" + "".join(f"{name},{name[0]}\n" for name in sources[:2]))
    assert sorted(read_groups(groups, dataset, keys)) == sorted(
        [*(name[0] for name in sources[:2]), "not labelled"]
    )
    groups.write_text("photo\nx\n")
    with pytest.raises(UsageError, match="expected CSV with the columns file and group"):
        read_groups(groups, dataset, keys)


def scored(lpips: list[float], seconds: float) -> Scored:
    values = {"lpips": lpips, "psnr": [20.0, 21.0], "identity": [0.5, 0.7]}
    return Scored((4, 2, 2), seconds, {"tem": values})


def test_a_student_is_compared_with_its_teacher_face_by_face() -> None:
    table = comparison_table(
        {"teacher": {"0.5": scored([0.1, 0.3], 4.0)}, "student": {"0.5": scored([0.11, 0.33], 1.0)}}
    )
    assert table[1][:2] == ["student", "0.5"]
    assert table[1][2].startswith("+10.0 [+10.0, +10.0]")
    assert table[1][3].startswith("+0.000")
    assert table[1][-1] == "4.0"


def test_a_group_that_is_worse_than_the_mean_is_marked_and_first() -> None:
    rows = {"lpips": [0.1, 0.1, 0.2, 0.1], "identity": [0.8, 0.8, 0.8, 0.5]}
    found = group_scores(rows, ["a", "a", "b", "c"])
    assert [(score.name, score.faces, score.is_worse) for score in found] == [
        ("b", 1, True),
        ("a", 2, False),
        ("c", 1, True),
    ]
    assert format_groups(found).count("!") == 2
    assert np.isclose(found[1].lpips, 0.1)


@pytest.mark.parametrize("starts", ["2", "low", ""])
def test_a_start_is_a_fidelity_or_auto(starts: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected fidelities from 0 to 1, or auto"):
        stage_scores.main([str(tmp_path / "out"), "--root", str(tmp_path), "--starts", starts])
