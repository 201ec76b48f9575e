"""Tables 2 to 4 on networks of a few thousand parameters: shared, resumed, scored as any outputs are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffbfr.cascade import Cascade
from diffbfr.images import decode, lq_to_model
from diffbfr.metrics.psnr import psnr
from pipelines.dataset.manifest import open_dataset
from pipelines.experiments import paper_tables
from pipelines.experiments.paper import restoring
from pipelines.experiments.paper.restoring import Sampling
from pipelines.experiments.paper.trainings import FullSizeDataset, Plan
from tests.pipelines.flows.pocket import pocket
from tests.pipelines.tiny_cascade import make_tiny_cascade
from tests.pipelines.tiny_dataset import build, make_photos


def request(root: Path, table: str) -> paper_tables.Request:
    """A table of two seeds on three faces."""
    recipe = pocket()
    recipe = replace(
        recipe, data=replace(recipe.data, faces="synthetic:count=6,seed=3,px=32", test_fraction=0.0)
    )
    plan = Plan(recipe, str(root), 8, (0, 1))
    hold_out = paper_tables.HoldOut("faces", "synthetic:count=3,seed=9,px=32")
    return paper_tables.Request(table, plan, (hold_out,), Sampling("fast", 3), 3, 0)


@pytest.mark.slow
def test_a_table_trains_restores_scores_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "no weights"))
    text = paper_tables.run(request(tmp_path / "root", "2"))
    stored = json.loads((tmp_path / "root" / "table-2.json").read_text())
    found = stored["hold_outs"]["faces"]
    assert found["unavailable"].keys() == {"fid", "niqe", "lpips_alex"}
    assert "FID: run diffbfr setup metrics" in text
    rows = {line.split("  ")[0] for line in text.splitlines()}
    assert {"LQ input", "IRM-s", "IRM-c", "N1 = 1000 (IRM-c-t)", "N2 = 100 (TEM-w)"} <= rows
    assert {f["verdict"] for f in stored["findings"]["faces"] if f["metric"] == "fid"} == {"not measured"}

    (place,) = (tmp_path / "root" / "outputs").iterdir()
    for seed, values in enumerate(found["values"]):
        for arm, row in values.items():
            pairs = [
                (file, place / "reference" / file.name)
                for file in sorted((place / str(seed) / arm).iterdir())
            ]
            pixels = [
                [torch.from_numpy(decode(f.read_bytes()).pixels.copy())[None] for f in pair] for pair in pairs
            ]
            assert len(pairs) == 3
            assert row["psnr"] == pytest.approx(np.mean([float(psnr(*pair)) for pair in pixels]))

    trained = {f: f.stat().st_mtime_ns for f in (tmp_path / "root").rglob("*.safetensors")}
    outputs = {f: f.stat().st_mtime_ns for f in place.rglob("*.png")}
    lost = next(iter(place.glob("1/n1-1000/*.png")))
    lost.unlink()
    paper_tables.run(request(tmp_path / "root", "3"))
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "root").rglob("*.safetensors")} == trained
    kept = {f for f in outputs if f.parent != lost.parent}
    assert {f: f.stat().st_mtime_ns for f in kept} == {f: outputs[f] for f in kept}
    assert len(list(place.rglob("*.png"))) == len(outputs) + 2 * 4 * 3  # four more starts


def test_an_end_holds_for_all_but_tem(tmp_path: Path) -> None:
    cascade = Cascade.load(make_tiny_cascade(tmp_path))
    ended = restoring.started(cascade.irm2, 1000, Sampling(evaluations=4, end=1.5))
    assert (ended.spec.fast.num_evaluations, ended.spec.fast.end_half_log_snr) == (4, 1.5)
    own = restoring.started(cascade.irm2, 1000, Sampling(evaluations=4))
    assert own.spec.fast.end_half_log_snr == cascade.irm2.spec.fast.end_half_log_snr
    assert own.spec.start == ended.spec.start != cascade.irm2.spec.start


def test_irm_s_learns_from_the_whole_face_at_full_size(tmp_path: Path) -> None:
    build(make_photos(tmp_path / "photos", 3), tmp_path / "dataset")
    dataset = open_dataset(str(tmp_path / "dataset"))
    full = FullSizeDataset(dataset)
    key = dataset.samples[0].key
    assert full.info.lq_px == full.info.hq_px == 32
    assert np.array_equal(full.hq_low(key, 0), dataset.hq(key, 0))
    assert np.array_equal(lq_to_model(full.lq(key, 0), 32), lq_to_model(dataset.lq(key, 0), 32))
