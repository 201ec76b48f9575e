"""The whole story in this process, at pocket size: what is made, what is not made again, and why."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.checkpoint import checkpoint

from diffbfr.digests import model_digest
from diffbfr.errors import UsageError
from diffbfr.images import decode
from pipelines import registry as models
from pipelines.dataset.manifest import open_dataset, read_ledger
from pipelines.evaluation.stage_panel import PanelTask, draw_panel
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.execution.run_report import RunReport
from pipelines.flows import train_cascade
from pipelines.recipes.presets import RECIPES
from pipelines.recipes.recipe import Recipe
from pipelines.tracking.connection import open_registry
from pipelines.tracking.runs import find_step
from tests.pipelines.flows.pocket import STEPS, pocket

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, str, RunReport]:
    root = str(tmp_path_factory.mktemp("root"))
    recipe = pocket()
    return recipe, root, train_cascade.run(recipe, root)


def actions(report: RunReport) -> dict[str, str]:
    return {step.name: step.action for step in report.steps}


def reason(report: RunReport, name: str) -> str:
    return next(step.reason for step in report.steps if step.name == name)


def folder(root: str, step: str) -> Path:
    (only,) = (Path(root) / "artifacts" / step).iterdir()
    return only


def test_a_first_run_makes_every_step_and_a_page(finished: tuple[Recipe, str, RunReport]) -> None:
    _, root, report = finished
    assert actions(report) == dict.fromkeys(STEPS, "RUN")
    page = Path(report.page).read_text()
    assert Path(report.page).parent == Path(root)
    assert (
        page.count("data:image/png;base64") >= 2 * 5 + 2 * 3
    )  # two panels of five pictures, three photos before and after


def test_an_irm2_of_the_resized_ground_truth_needs_no_column_and_waits_for_no_irm1(tmp_path: Path) -> None:
    recipe = pocket(num_samples=8)
    recipe = replace(
        recipe, irm2=replace(recipe.irm2, training=replace(recipe.irm2.training, condition="resized"))
    )
    report = train_cascade.run(recipe, str(tmp_path))
    assert actions(report) == dict.fromkeys([step for step in STEPS if step != "condition-irm1"], "RUN")
    assert "images by irm1" not in Path(report.page).read_text()
    registry = open_registry(str(tmp_path), None, recipe.tracking.experiment)
    assert "parent.irm1" not in models.get_version(registry, "diffbfr-irm2@1").tags
    alone = train_cascade.run(recipe, str(tmp_path), plan=True, until="train-irm2")
    assert list(actions(alone)) == ["shard", "train-irm2"]


def test_a_second_run_makes_nothing(finished: tuple[Recipe, str, RunReport]) -> None:
    recipe, root, first = finished
    before = {path: path.stat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()}
    report = train_cascade.run(recipe, root)
    assert actions(report) == dict.fromkeys(STEPS, "HIT")
    assert [step.artifact for step in report.steps] == [step.artifact for step in first.steps]
    assert {path: path.stat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()} == before


def test_where_it_runs_is_not_what_it_is(finished: tuple[Recipe, str, RunReport]) -> None:
    recipe, root, _ = finished
    elsewhere = replace(recipe, cluster=replace(recipe.cluster, num_workers=7, recompute_px=16))
    assert actions(train_cascade.run(elsewhere, root, plan=True)) == dict.fromkeys(STEPS, "HIT")


def test_running_wide_blocks_again_leaves_the_same_weights(
    finished: tuple[Recipe, str, RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root, _ = finished
    again: list[int] = []

    def count(*args: Any, **options: Any) -> Any:
        again.append(args[1].shape[-1])
        return checkpoint(*args, **options)

    monkeypatch.setattr("diffbfr.models.unet.checkpoint", count)
    train_cascade.run(
        replace(recipe, cluster=replace(recipe.cluster, recompute_px=8)), str(tmp_path), until="train-irm1"
    )
    assert set(again) == {8}
    weights = [
        (folder(place, "train-irm1") / "irm1.safetensors").read_bytes() for place in (root, str(tmp_path))
    ]
    assert weights[0] == weights[1]


def test_a_plan_says_what_a_training_takes_of_memory(tmp_path: Path) -> None:
    recipe = RECIPES["paper"]()
    work = {}
    for px in (None, 256):
        changed = replace(recipe, cluster=replace(recipe.cluster, recompute_px=px))
        work[px] = {
            step.name: step.work for step in train_cascade.run(changed, str(tmp_path), plan=True).steps
        }
    assert work[None]["train-irm2"].endswith(
        "18.3 GB a worker"
    )  # two workers share a batch of 4, and keep no average
    assert work[256]["train-irm2"].endswith("12.8 GB a worker")
    assert work[None]["train-irm1"] == work[256]["train-irm1"]


def test_a_changed_setting_runs_only_what_it_reaches_and_is_named(
    finished: tuple[Recipe, str, RunReport],
) -> None:
    recipe, root, _ = finished
    changed = replace(
        recipe, irm2=replace(recipe.irm2, training=replace(recipe.irm2.training, learning_rate=2e-3))
    )
    report = train_cascade.run(changed, root, plan=True)
    assert [name for name, action in actions(report).items() if action == "RUN"] == list(STEPS[4:])
    assert "config training.learning_rate: 0.001 -> 0.002" in reason(report, "train-irm2")
    assert "input irm2" in reason(report, "cascade")


def test_other_photos_run_everything(finished: tuple[Recipe, str, RunReport]) -> None:
    recipe, root, _ = finished
    changed = replace(recipe, data=replace(recipe.data, faces="synthetic:count=24,seed=4,px=32"))
    report = train_cascade.run(changed, root, plan=True)
    assert actions(report) == dict.fromkeys(STEPS, "RUN")
    assert "input photos" in reason(report, "shard")


def test_a_deleted_column_is_made_again_with_the_same_bytes(finished: tuple[Recipe, str, RunReport]) -> None:
    recipe, root, _ = finished
    tar = next(folder(root, "shard").glob("irm1-*/*.tar"))
    digest = hashlib.sha256(tar.read_bytes()).hexdigest()
    tar.unlink()
    planned = train_cascade.run(recipe, root, plan=True)
    assert [name for name, action in actions(planned).items() if action == "RUN"] == ["condition-irm1"]
    assert "is missing" in reason(planned, "condition-irm1")
    train_cascade.run(recipe, root)
    assert hashlib.sha256(tar.read_bytes()).hexdigest() == digest


def test_a_single_step_makes_what_it_needs_and_no_more(tmp_path: Path) -> None:
    recipe = pocket()
    report = train_cascade.run(recipe, str(tmp_path), until="train-tem")
    assert actions(report) == {"shard": "RUN", "train-tem": "RUN"}
    assert report.page == ""


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no step is called train-irm3; expected one of shard"):
        train_cascade.run(pocket(), str(tmp_path), until="train-irm3")


def test_the_column_is_what_this_irm1_makes_of_every_variant(finished: tuple[Recipe, str, RunReport]) -> None:
    from diffbfr.cascade import Cascade
    from diffbfr.images import lq_to_model, to_pixels, to_tensor

    _, root, _ = finished
    dataset = open_dataset(folder(root, "shard"))
    (info,) = [column for column in dataset.columns if column.model_digest]
    cascade = Cascade.load(folder(root, "cascade"))
    key = dataset.keys("train")[0]
    noise_key = f"{hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest()}/0/0"
    alone = to_pixels(cascade.identity(to_tensor(lq_to_model(dataset.lq(key, 0), 8)), [noise_key]))[0]
    assert abs(dataset.conditioning(info.column, key, 0).astype(int) - alone.astype(int)).max() <= 1
    assert info.model_digest == model_digest(folder(root, "cascade"), ("irm1",))


def test_the_registry_leads_from_the_cascade_back_to_the_data(
    finished: tuple[Recipe, str, RunReport],
) -> None:
    _, root, _ = finished
    registry = open_registry(root)
    cascade = models.get_version(registry, "diffbfr-cascade@candidate")
    content_id = ArtifactStore(root).latest("shard").metadata["content_id"]  # type: ignore[union-attr]
    assert cascade.tags["data.content_id"] == content_id
    assert (
        models.get_version(registry, cascade.tags["stage.irm2"]).tags["parent.irm1"]
        == cascade.tags["stage.irm1.digest"]
    )
    assert models.fsck(registry) == ()
    holdout = models.read_holdout(registry)
    assert holdout is not None
    assert (holdout.dataset, holdout.protocol.dataset) == (str(folder(root, "shard")), content_id)
    assert models.is_measured(cascade, holdout)


def test_registering_is_one_run_of_the_parent(finished: tuple[Recipe, str, train_cascade.RunReport]) -> None:
    _, root, _ = finished
    registry = open_registry(root)
    runs = [
        run
        for run in registry.client.search_runs([registry.experiment_id])
        if run.info.run_name.startswith("register")
    ]
    assert [(run.info.run_name, run.info.status) for run in runs] == [("register", "FINISHED")]
    assert {"mlflow.parentRunId", "diffbfr.root", "diffbfr.driver"} <= runs[0].data.tags.keys()
    assert {version.run_id for version in models.list_versions(registry)} == {runs[0].info.run_id}


def test_the_sample_archive_is_restored_with_a_row_a_photo(finished: tuple[Recipe, str, RunReport]) -> None:
    _, root, _ = finished
    rows = read_ledger(folder(root, "restore") / "restored" / "ledger.parquet")
    assert [row.status for row in rows] == ["restored"] * 3


def test_evaluation_uses_faces_that_no_stage_trained_on(finished: tuple[Recipe, str, RunReport]) -> None:
    _, root, _ = finished
    dataset = open_dataset(folder(root, "shard"))
    measured = {
        line.split(",")[0] for line in (folder(root, "evaluate") / "rows.csv").read_text().splitlines()[1:]
    }
    assert measured == set(dataset.keys("test"))
    assert measured.isdisjoint(dataset.keys("train"))


def test_a_finished_run_loads_neither_ray_nor_torch_nor_mlflow(
    finished: tuple[Recipe, str, RunReport],
) -> None:
    _, root, _ = finished
    look = (
        "import sys; from tests.pipelines.flows.pocket import pocket; from pipelines.flows import "
        "train_cascade\n"
        "report = train_cascade.run(pocket(), sys.argv[1])\n"
        "assert {step.action for step in report.steps} == {'HIT'} and report.page and 'PSNR' in "
        "report.scores\n"
        "print([name for name in ('ray', 'torch', 'mlflow', 'albumentations') if name in sys.modules])"
    )
    project = Path(__file__).resolve().parents[3]
    answer = subprocess.run(
        [sys.executable, "-c", look, root], cwd=project, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


def test_a_panel_is_drawn_of_each_average_and_changes_no_weight(
    finished: tuple[Recipe, str, RunReport], tmp_path: Path
) -> None:
    recipe, calm, _ = finished
    seen = recipe
    for name in ("irm1", "irm2", "tem"):
        stage = getattr(recipe, name)
        seen = replace(seen, **{name: replace(stage, training=replace(stage.training, average_samples=16))})
    train_cascade.run(seen, str(tmp_path), until="cascade")
    registry, store = open_registry(str(tmp_path)), ArtifactStore(str(tmp_path))
    for name, px in (("irm1", 8), ("irm2", 32), ("tem", 32)):
        made = folder(str(tmp_path), f"train-{name}")
        panels = {path.name: path.read_bytes() for path in sorted((made / "panels").iterdir())}
        assert list(panels) == ["000000016.png", "000000032.png"]
        pictures = decode(panels["000000016.png"]).pixels
        assert pictures.shape == (
            4 * 128,
            3 * 128,
            3,
        )  # four faces, 8 or 32 px enlarged: input, output, truth
        assert not (pictures[:, 128:256] == pictures[:, 256:]).all()
        assert (made / f"{name}.safetensors").read_bytes() == (
            folder(calm, f"train-{name}") / f"{name}.safetensors"
        ).read_bytes()
        record = store.latest(f"train-{name}")
        assert record is not None
        assert record.metadata["panel_seconds"] > 0
        column = record.metadata.get("column", "")
        task = PanelTask(
            str(folder(str(tmp_path), "shard")),
            made / "averages" / "000000016",
            getattr(seen, name).stage,
            column,
        )
        assert draw_panel(task) == panels["000000016.png"], f"another drawing at {px} px"
        run = find_step(registry, store.root, f"train-{name}", record.identity.id)
        assert run is not None
        assert run.read_bytes("panels/000000032.png") == panels["000000032.png"]
