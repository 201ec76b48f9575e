"""Cascades of two recipes and two datasets are compared on the frozen hold-out, each evaluated there once."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from diffbfr.errors import UsageError
from pipelines.cli import main
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.evaluation.scores import Evaluation, means
from pipelines.execution.model_ref import ModelRef, pin_model
from pipelines.flows import promote as promote_module
from pipelines.flows.promote import choose_holdout, promote
from pipelines.recipes.presets import RECIPES
from pipelines.registry import (
    HoldOut,
    ModelVersion,
    RegressionError,
    freeze_holdout,
    list_actions,
    read_holdout,
    record_evaluation,
    register_cascade,
    register_stage,
)
from pipelines.steps.evaluate import evaluate_cascade
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Run
from tests.pipelines.registry.fixtures import lineage
from tests.pipelines.registry.scored import aliases, evaluation
from tests.pipelines.tiny_cascade import HQ_PX, LQ_PX, make_tiny_cascade
from tests.pipelines.tiny_dataset import CONFIG, build

SMOKE = RECIPES["smoke"]()
RECIPE = replace(SMOKE, cluster=ClusterConfig(num_workers=0), evaluate=replace(SMOKE.evaluate, max_faces=2))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The data that two recipes were trained and evaluated on."""
    place = tmp_path_factory.mktemp("data")
    for name in "ab":
        make_dataset(place / name, name)
    return str(place / "a"), str(place / "b")


def make_dataset(folder: Path, name: str) -> None:
    """Twelve procedural faces, more than half of them held out."""
    config = replace(CONFIG, hq_px=HQ_PX, lq_px=LQ_PX, test_fraction=0.6)
    build(f"synthetic:count=12,seed={ord(name)},px={HQ_PX}", folder, config)


def cascade(folder: Path, loudness: float) -> Path:
    """A cascade whose TEM differs from the image in proportion to `loudness`."""
    make_tiny_cascade(folder)
    weights = load_file(folder / "tem.safetensors")
    save_file(
        {name: tensor * loudness for name, tensor in weights.items()},
        folder / "tem.safetensors",
        metadata={"stage": "tem"},
    )
    return folder


Trainer = Callable[[str, float, Evaluation], ModelVersion]
ELSEWHERE = evaluation((30.0, 0.9, 0.1), "a data set of another recipe")


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Trainer:
    """Register a cascade with the evaluation of its own run."""

    def make(name: str, loudness: float, own: Evaluation) -> ModelVersion:
        folder = cascade(tmp_path / name, loudness)
        stages = {stage: register_stage(run, stage, folder, lineage()) for stage in ("irm1", "irm2", "tem")}  # type: ignore[arg-type]
        version = register_cascade(run, folder, stages, lineage())  # type: ignore[arg-type]
        record_evaluation(run.registry, version, own)
        return version

    return make


def scores(folder: Path, dataset: str) -> Evaluation:
    return evaluate_cascade(Cluster(RECIPE.cluster), pin_model(folder), dataset, RECIPE.evaluate, "fast", "")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the cascades that a promotion evaluates, in order."""
    calls: list[str] = []

    def count(cluster: Cluster, it: ModelRef, *more: Any) -> Evaluation:
        calls.append(it.digest)
        return evaluate_cascade(cluster, it, *more)

    monkeypatch.setattr(promote_module, "evaluate_cascade", count)
    return calls


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_cascades_of_two_recipes_and_data_sets_are_measured_once_on_the_hold_out(
    train: Trainer,
    registry: Registry,
    datasets: tuple[str, str],
    measured: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = datasets[0]
    own = scores(cascade(tmp_path / "first", 0.5), here)
    first = train("first", 0.5, own)
    freeze_holdout(registry, choose_holdout(here, RECIPE), "the first evaluation")
    promote(registry, "diffbfr-cascade@candidate", False, "", RECIPE, str(tmp_path))
    assert measured == [], "its own run measured it on the hold-out"

    louder = train("louder", 8.0, ELSEWHERE)
    words = ("promote", "--root", str(tmp_path / "root"), "--set", "cluster.num_workers=0")
    assert command(monkeypatch, *words) == 4
    out, error = capsys.readouterr()
    assert "<- too much" in out
    assert "diffbfr-cascade@2 may be worse than the champion diffbfr-cascade@1 in psnr" in error
    assert measured == [louder.digest]
    with pytest.raises(RegressionError) as refusal:
        promote(registry, "diffbfr-cascade@2", False, "", RECIPE, str(tmp_path))
    assert measured == [louder.digest], "its scores are kept"
    expected = [means(it)["tem.psnr"] for it in (own, scores(tmp_path / "louder", here))]
    psnr = refusal.value.comparisons[0]
    assert (psnr.champion, psnr.candidate) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert aliases(registry) == {"champion": first.version, "candidate": louder.version}

    assert command(monkeypatch, *words, "--force", "--why", "for a poster") == 0
    assert aliases(registry) == {"champion": louder.version, "previous": first.version}
    newest = list_actions(registry)[-1]
    assert (newest.action, newest.before, newest.after, newest.why) == (
        "promote --force",
        first.ref,
        louder.ref,
        "for a poster",
    )

    quiet = train("quiet", 0.0, ELSEWHERE)
    promote(registry, "diffbfr-cascade@candidate", False, "", RECIPE, str(tmp_path))
    assert measured == [louder.digest, quiet.digest]
    assert aliases(registry) == {"champion": quiet.version, "previous": louder.version}


@pytest.mark.slow
def test_another_hold_out_is_a_command_and_measures_both_anew(
    train: Trainer,
    registry: Registry,
    datasets: tuple[str, str],
    measured: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, elsewhere = datasets
    one = train("one", 0.5, ELSEWHERE)
    root = ("--root", str(tmp_path / "root"))
    assert command(monkeypatch, "holdout", *root) == 0
    assert "there is no hold-out yet" in capsys.readouterr().out
    assert command(monkeypatch, "holdout", here, "--set", "evaluate.max_faces=1", *root) == 0
    promote(registry, "diffbfr-cascade@candidate", False, "", RECIPE, str(tmp_path))
    words = ("holdout", elsewhere, "--set", "evaluate.max_faces=2", "--why", "harder faces", *root)
    assert command(monkeypatch, *words) == 0
    two = train("two", 0.5001, ELSEWHERE)
    assert "psnr v" in capsys.readouterr().out
    promote(registry, "diffbfr-cascade@candidate", False, "", RECIPE, str(tmp_path))
    assert measured == [one.digest, one.digest, two.digest]
    holdout = read_holdout(registry)
    assert holdout is not None
    assert (holdout.dataset, holdout.protocol.num_images) == (elsewhere, 2)
    assert [it.why for it in list_actions(registry) if it.action == "holdout"] == ["", "harder faces"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gone", "another", "metric"])
def test_a_hold_out_that_is_not_what_was_frozen_is_refused(
    train: Trainer,
    registry: Registry,
    datasets: tuple[str, str],
    measured: list[str],
    tmp_path: Path,
    fault: str,
) -> None:
    place = tmp_path / "copy"
    shutil.copytree(datasets[0], place)
    holdout = choose_holdout(str(place), RECIPE)
    if fault == "metric":
        holdout = HoldOut(holdout.dataset, holdout.protocol, {**holdout.metrics, "squeezenet_distance": "1"})
    freeze_holdout(registry, holdout, "")
    train("one", 0.5, ELSEWHERE)
    if fault != "metric":
        shutil.rmtree(place)
    if fault == "another":
        shutil.copytree(datasets[1], place)
    expected = {
        "gone": "is gone; expected the dataset of content",
        "another": "has content",
        "metric": "measured by squeezenet_distance v1",
    }
    with pytest.raises(UsageError, match=expected[fault]):
        promote(registry, "diffbfr-cascade@candidate", False, "", RECIPE, str(tmp_path))
    assert measured == []
    assert aliases(registry) == {"candidate": 1}
