"""The studies on a run of seconds: they restore what the cascade restores, resume, and compare by face."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffbfr.cascade import Cascade, Mode
from diffbfr.checkpoint import read_stage_spec
from diffbfr.errors import UsageError
from diffbfr.images import lq_to_model, to_tensor
from diffbfr.keys import noise_key
from diffbfr.metrics.psnr import psnr
from diffbfr.stages import STAGE_NAMES, TEM_TINY, SamplerSpec, ScheduleSpec
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments import ablations, ema_length, fast_faithful
from pipelines.flows import train_cascade
from pipelines.recipes.recipe import Recipe
from tests.pipelines.flows.pocket import pocket

pytestmark = pytest.mark.slow

FAITHFUL = ("faithful",) * 3


def _recipe() -> Recipe:
    """The pocket recipe with twenty steps, a validation split, and averages of IRM-2."""
    recipe = pocket()
    for name in STAGE_NAMES:
        config = recipe.stage(name)
        stage = replace(config.stage, schedule=ScheduleSpec(20, 1e-3, 0.4), start=20 if name == "irm1" else 8)
        training = replace(
            config.training, average_samples=8, ema_lengths=(0.05, 0.1) if name == "irm2" else ()
        )
        recipe = replace(recipe, **{name: replace(config, stage=stage, training=training)})
    return replace(recipe, data=replace(recipe.data, val_fraction=0.25))


@pytest.fixture(scope="module", autouse=True)
def _no_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DIFFBFR_SQUEEZENET", raising=False)
        patch.setenv("DIFFBFR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("studies") / "root")
    train_cascade.run(_recipe(), place, until="cascade")
    return place


def _folder(root: str, step: str) -> Path:
    record = ArtifactStore(root).latest(step)
    assert record is not None
    return Path(ArtifactStore(root).artifact_dir(record.identity))


# Fast against faithful


@pytest.mark.parametrize("mode", ["faithful", "fast"])
def test_an_arm_is_what_the_cascade_makes_in_that_mode(root: str, tmp_path: Path, mode: Mode) -> None:
    cascade, dataset = Cascade.load(_folder(root, "cascade")), open_dataset(_folder(root, "shard"))
    restorer = fast_faithful.Restorer(cascade, dataset, tmp_path)
    key = dataset.keys("test")[0]
    content = dataset.digest(key, "lq", "0.jpg")
    made = cascade.restore(to_tensor([lq_to_model(dataset.lq(key, 0), 8)]), [noise_key(content)], mode)
    for depth, expected in enumerate((made.irm1, made.irm2, made.tem), 1):
        assert torch.equal(restorer.output(key, (mode,) * depth), expected)


def test_the_comparison_is_paired_and_the_same_command_continues(root: str, tmp_path: Path) -> None:
    arms = ["fast/fast/fast", "faithful/ddim:2:1.0/faithful"]
    rows = {row.samplers: row for row in fast_faithful.run(root, tmp_path, arms, 2, "test", None)}
    assert list(rows) == fast_faithful.outputs_of(arms)
    assert all(
        row.d_psnr.mean == row.d_psnr.low == row.d_psnr.high == 0
        for samplers, row in rows.items()
        if set(samplers) == {"faithful"}
    )
    for samplers, row in rows.items():
        assert row.d_psnr.mean == pytest.approx(row.psnr - rows[FAITHFUL[: len(samplers)]].psnr)
        assert (row.d_psnr.count, row.distance, row.ratio) == (2, None, None)
    dataset = open_dataset(_folder(root, "shard"))
    restorer = fast_faithful.Restorer(
        Cascade.load(_folder(root, "cascade")),
        dataset,
        next(path for path in tmp_path.iterdir() if path.is_dir()),
    )
    whole = [
        (fast_faithful.to_pixels(restorer.output(key, FAITHFUL)), dataset.hq(key, 0))
        for key in dataset.keys("test")[:2]
    ]
    expected = [
        float(psnr(torch.from_numpy(made), torch.from_numpy(truth.copy())[None])) for made, truth in whole
    ]
    assert rows[FAITHFUL].psnr == pytest.approx(sum(expected) / 2)
    outputs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(outputs) == 2 * len(rows)
    next(iter(outputs)).unlink()
    assert fast_faithful.run(root, tmp_path, arms, 2, "test", None) == list(rows.values())
    assert sum(path.stat().st_mtime_ns != before for path, before in outputs.items()) == 1


def test_a_sampler_names_solver_evaluations_and_end(root: str) -> None:
    stage = Cascade.load(_folder(root, "cascade")).irm2
    assert fast_faithful.with_sampler(stage, "fast") == (stage, "fast")
    other, mode = fast_faithful.with_sampler(stage, "sde_dpmpp_2m:5:3.5")
    assert (other.spec.fast, mode) == (SamplerSpec("sde_dpmpp_2m", 5, 3.5), "fast")
    assert stage.spec.fast.num_evaluations == 3
    assert (
        fast_faithful.with_sampler(stage, "ddim:4")[0].spec.fast.end_half_log_snr
        == stage.spec.fast.end_half_log_snr
    )


@pytest.mark.parametrize("sampler", ["slow", "ddim", "euler:5", "ddim:x", "ddim:5:4:3"])
def test_a_sampler_that_is_none_is_refused(root: str, sampler: str) -> None:
    with pytest.raises(UsageError, match=r"found the sampler .* expected faithful, fast or SOLVER"):
        fast_faithful.with_sampler(Cascade.load(_folder(root, "cascade")).irm2, sampler)


def test_an_arm_has_a_sampler_a_stage() -> None:
    with pytest.raises(UsageError, match="found the arm 'fast/fast'; expected one sampler a stage"):
        fast_faithful.parse_arm("fast/fast")


# Ablations


@pytest.fixture(scope="module")
def bench(root: str, tmp_path_factory: pytest.TempPathFactory) -> ablations.Bench:
    made = ablations.open_bench(root, tmp_path_factory.mktemp("ablations"), "irm2", 40, 3, "tiny")
    return replace(made, training=replace(made.training, t_max=15, global_batch=4, learning_rate=1e-3))


@pytest.mark.parametrize("arm", ["seed", "t-all", "min-snr", "patches", "both"])
def test_an_arm_changes_one_option_and_nothing_else(bench: ablations.Bench, arm: str) -> None:
    ours, base = ablations.training_of(bench, arm), bench.training
    changed = {name for name in vars(base) if getattr(ours, name) != getattr(base, name)}
    assert changed == {
        {
            "seed": "seed",
            "t-all": "t_max",
            "min-snr": "min_snr_gamma",
            "patches": "patch_px",
            "both": "condition",
        }[arm]
    }


def test_arms_that_change_nothing_are_left_out(bench: ablations.Bench) -> None:
    assert "both" in ablations.arms_of(bench)
    assert "sampled" not in ablations.arms_of(bench)  # it is what the recipe has
    tem = replace(bench, stage=TEM_TINY)
    assert {"both", "sampled"}.isdisjoint(ablations.arms_of(tem))


def test_patches_at_equal_compute_take_more_samples(bench: ablations.Bench) -> None:
    more = ablations.training_of(bench, "patches-compute")
    assert (more.num_samples, more.patch_px) == (64, 16)  # half of the steps cost a quarter
    assert more.num_samples * more.area_share(32) == pytest.approx(bench.training.num_samples)


def test_whole_pictures_at_equal_compute_take_fewer_samples(bench: ablations.Bench) -> None:
    cropped = replace(bench, training=replace(bench.training, patch_px=16))
    assert {"patches", "patches-compute"}.isdisjoint(ablations.arms_of(cropped))
    assert {"whole", "whole-compute"} <= set(ablations.arms_of(cropped))
    assert {"whole", "whole-compute"}.isdisjoint(ablations.arms_of(bench))
    assert ablations.training_of(cropped, "whole") == bench.training
    fewer = ablations.training_of(cropped, "whole-compute")
    assert (fewer.num_samples, fewer.patch_px) == (25, None)  # 40 of which half show a quarter


def test_arms_are_trained_scored_and_kept(bench: ablations.Bench) -> None:
    first = ablations.main(bench, ["t-all", "ema-0.08", "both"])
    lines = first.splitlines()
    assert [line.split()[0] for line in lines] == ["arm", "base", "t-all", "ema-0.08", "both"]
    assert read_stage_spec(bench.out / "both", "irm2").sees_input
    assert "(+0.00 [+0.00, +0.00])" in lines[1]
    base, other = (ablations.run_arm(bench, arm) for arm in ("base", "t-all"))
    assert base["scores"].keys() == set(bench.keys) == other["scores"].keys()
    assert base["scores"] != other["scores"]
    weights = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*.safetensors")}
    assert ablations.main(bench, ["t-all", "ema-0.08", "both"]) == first
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*.safetensors")} == weights
    assert (bench.out / "table.txt").read_text() == f"{first}\n"


def test_an_arm_of_another_name_is_refused(bench: ablations.Bench) -> None:
    with pytest.raises(UsageError, match="found the arm 'dropout'; expected one of base, seed"):
        ablations.run_arm(bench, "dropout")


# The length of the average


def test_every_length_is_scored_on_the_validation_faces(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ema_length.measure(root, "irm2", [0.05, 0.12])
    assert list(found) == [0.05, 0.12]
    assert found[0.05] != found[0.12]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["0.05", "0.12"]


def test_a_stage_that_kept_none_is_refused(root: str) -> None:
    with pytest.raises(UsageError, match="found 0 power-function averages of tem"):
        ema_length.measure(root, "tem", [0.05])
