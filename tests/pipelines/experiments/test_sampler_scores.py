"""Samplers of a cascade compared on the same faces."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.cascade import Cascade
from diffbfr.errors import UsageError
from diffbfr.stages import IRM2_TINY, TEM_TINY, SamplerSpec
from pipelines.dataset.manifest import open_dataset
from pipelines.experiments import sampler_scores
from pipelines.experiments.sampler_scores import score_samplers, set_samplers
from pipelines.experiments.sampler_words import sampled
from tests.pipelines.evaluation.random_weights import write_random_weights
from tests.pipelines.tiny_cascade import make_tiny_cascade
from tests.pipelines.tiny_dataset import CONFIG, build, picture

STAGES = ("IRM-1", "IRM-2", "TEM")


def test_what_a_word_leaves_out_is_the_stages_own() -> None:
    assert sampled(IRM2_TINY, "ddim:4:1.5@300") == replace(
        IRM2_TINY, fast=SamplerSpec("ddim", 4, 1.5), start=300
    )
    assert sampled(TEM_TINY, "dpmpp_2m:2") == replace(TEM_TINY, fast=SamplerSpec("dpmpp_2m", 2, 4.0))


@pytest.mark.parametrize("word", ["euler:4:1", "ddim", "ddim:x", "ddim:0", "ddim:4:1@x", "ddim:4:3:2", ""])
def test_any_other_word_is_named(word: str) -> None:
    with pytest.raises(UsageError, match=r"found the sampler .* expected SOLVER:EVALUATIONS"):
        sampled(TEM_TINY, word)


@pytest.mark.parametrize("text", ["irm3=ddim:4", "ddim:4", "tem"])
def test_a_sampler_belongs_to_a_stage(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected irm1, irm2, tem with its sampler"):
        set_samplers(Cascade.load(make_tiny_cascade(tmp_path)), text)


def test_only_the_named_stage_is_sampled_otherwise(tmp_path: Path) -> None:
    cascade = Cascade.load(make_tiny_cascade(tmp_path))
    own, irm2 = cascade.tem.spec, cascade.irm2.spec
    set_samplers(cascade, "irm2=ddim:2:1.0@9")
    assert cascade.tem.spec == own
    assert cascade.irm2.spec == replace(irm2, fast=SamplerSpec("ddim", 2, 1.0), start=9)


@pytest.mark.slow
def test_what_was_scored_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_weights(tmp_path / "cache")
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        (photos / f"{seed}.png").write_bytes(picture(seed, 64, 64))
    build(photos, tmp_path / "data", replace(CONFIG, hq_px=64, lq_px=16, val_fraction=0.0, test_fraction=1.0))
    dataset = open_dataset(str(tmp_path / "data"))
    model = make_tiny_cascade(tmp_path / "model")
    asked = (model, dataset, tuple(dataset.keys("test")), ("tem=ddim:2:3.0",), tmp_path / "out")
    table = score_samplers(*asked)
    rows = [line.split() for line in table.splitlines()]
    assert [row[:3] for row in rows[1:5]] == [
        ["its", "own", "input"],
        *(["its", "own", stage] for stage in STAGES),
    ]
    assert [row[:2] for row in rows[5:]] == [["tem=ddim:2:3.0", stage] for stage in STAGES]
    assert rows[3][3:] == rows[6][2:]  # IRM-2 is the same, and TEM's 3 evaluations are 2
    assert rows[4][3:8] != rows[7][2:7]
    assert (rows[4][-1], rows[7][-1]) == ("3+3+3", "3+3+2")
    monkeypatch.setattr(sampler_scores, "restore", None)
    assert score_samplers(*asked) == table
