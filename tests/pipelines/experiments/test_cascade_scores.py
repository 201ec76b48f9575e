"""LPIPS and FID beside the other figures: of the same restorations as `diffbfr evaluate`, or left out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffbfr.images import decode, to_tensor
from diffbfr.metrics.lpips import Lpips
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.types import EvaluateTask
from pipelines.execution.model_ref import pin_model
from pipelines.experiments import cascade_scores
from pipelines.experiments.perceptual import measure_perceptual
from pipelines.packages.weights import find_weights
from pipelines.steps.evaluate import evaluate
from tests.pipelines.evaluation.random_weights import write_random_weights
from tests.pipelines.tiny_cascade import make_tiny_cascade
from tests.pipelines.tiny_dataset import CONFIG, build, picture


@pytest.fixture(autouse=True)
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_weights(tmp_path / "cache")
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    for variable in ("DIFFBFR_SQUEEZENET", "DIFFBFR_IDENTITY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    config = replace(CONFIG, hq_px=64, lq_px=16, val_fraction=0.0, test_fraction=1.0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        (photos / f"{seed}.png").write_bytes(picture(seed, 64, 64))
    build(photos, tmp_path / "data", config)
    return str(tmp_path / "data")


@pytest.mark.slow
def test_the_figures_are_of_what_evaluate_restores(dataset: str, tmp_path: Path, serial: Cluster) -> None:
    model = make_tiny_cascade(tmp_path / "model")
    keys = tuple(open_dataset(dataset).keys("test"))
    scored = cascade_scores.score_cascade(model, dataset, keys, (0, 1), tmp_path / "out", serial)
    report = evaluate(EvaluateTask(0, dataset, pin_model(model), keys, seeds=(0, 1)))
    for subject, scores in scored.items():
        rows = [row for row in report.rows if row.subject == subject]
        for seed, found in enumerate(scores):
            theirs = {row.key: row.values[0] for row in rows if row.seed in (None, seed)}
            assert found.rows["psnr"] == pytest.approx([theirs[key] for key in found.keys])
    table = cascade_scores.tabulate(scored)
    assert [len(scores) for scores in scored.values()] == [1, 2, 2, 2]
    assert table["tem"]["fid"] is None
    pictures = [
        [decode((tmp_path / "out" / side / f"{key}.png").read_bytes()).pixels for key in sorted(keys)]
        for side in ("1/tem", "reference")
    ]
    weights = find_weights("lpips-alex")
    assert weights is not None
    np.testing.assert_allclose(
        scored["tem"][1].rows["lpips_alex"], Lpips("alex", weights)(*map(to_tensor, pictures)), rtol=1e-5
    )
    lpips = table["tem"]["lpips_alex"]
    both = np.mean([scores.rows["lpips_alex"] for scores in scored["tem"]])
    assert getattr(lpips, "mean", None) == pytest.approx(both)
    text = cascade_scores.format_table(table, scored)
    assert "3 faces, 2 restorations each, card ffhq-holdout" in text
    assert "FID: run diffbfr setup metrics" in text
    json.dumps(cascade_scores._plain(table), allow_nan=False)


def test_all_splits_are_every_face_once(dataset: str) -> None:
    opened = open_dataset(dataset)
    one, two = (cascade_scores.keys_of(opened, split) for split in ("train", "test"))
    everything = cascade_scores.keys_of(opened, "all")
    assert set(one) | set(two) <= set(everything)
    assert (
        len(everything) == len(set(everything)) == sum(len(opened.keys(s)) for s in ("train", "val", "test"))
    )


def test_the_same_command_makes_nothing_again(dataset: str, tmp_path: Path, serial: Cluster) -> None:
    model = make_tiny_cascade(tmp_path / "model")
    keys = tuple(open_dataset(dataset).keys("test"))[:2]
    first = cascade_scores.score_cascade(model, dataset, keys, (0,), tmp_path / "out", serial, ("tem",))
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()}
    again = cascade_scores.score_cascade(model, dataset, keys, (0,), tmp_path / "out", serial, ("tem",))
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert again["tem"][0].rows == first["tem"][0].rows


def test_without_weights_nothing_is_measured_and_nothing_replaces_it(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_cascade(tmp_path / "model")
    keys = tuple(open_dataset(dataset).keys("test"))
    found = measure_perceptual(model, dataset, keys, ("tem",))["tem"]
    assert found.lpips is not None
    assert found.lpips.keys() == set(keys)
    assert list(found.means) == ["LPIPS (Alex)"]
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "none"))
    assert measure_perceptual(model, dataset, keys, ("tem",)) == {}
