"""A training falls, resumes bitwise wherever it was interrupted, and skips what is not finite."""

import copy
import json
import math
import resource
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from diffbfr.checkpoint import MANIFEST, load_checkpoint, load_stage
from diffbfr.diffusion import noise_loss, q_sample, variational_loss
from diffbfr.errors import DivergedError, IncompleteError, UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.origin import Origin, read_origin
from diffbfr.shards import ShardedDataset, row_at
from diffbfr.stages import STAGE_NAMES, LossKind, StageName, StageSpec
from diffbfr.training import checkpoint_writer
from diffbfr.training.batches import Batch, PositionLoader
from diffbfr.training.config import TrainingConfig
from diffbfr.training.loop import SKIPPED, Run, StepMetrics, TrainResult, train
from diffbfr.training.objective import stage_loss
from diffbfr.training.train_step import TrainStep, UpdateResult
from diffbfr.unet_spec import UNetSpec
from tests.diffbfr.tiny import COLUMN, TINY_STAGES, wake

CONFIG = TrainingConfig(
    num_samples=40, global_batch=4, learning_rate=2e-3, checkpoint_samples=12, ema_half_life=20.0, seed=1
)
DROPPING_OUT = replace(TINY_STAGES["irm1"], unet=replace(TINY_STAGES["irm1"].unet, dropout=0.3))


class InterruptedHereError(Exception):
    """What the test raises where a machine would fail."""


def _run(
    dataset: ShardedDataset, folder: Path, stage: StageSpec = DROPPING_OUT, config: TrainingConfig = CONFIG
) -> Run:
    return Run(stage, config, dataset, folder, column=COLUMN if stage.name == "irm2" else None)


def _weights(result: TrainResult, name: str = "irm1") -> bytes:
    return (result.folder / f"{name}.safetensors").read_bytes()


def _ending(result: TrainResult) -> dict[str, str]:
    """Digests of all that a training ends with: model, averages, optimiser, counters and skipped steps."""
    state = (result.folder / "checkpoints" / f"step-{result.steps:08d}" / MANIFEST).read_text()
    digests: dict[str, str] = json.loads(state)
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"} <= digests.keys()
    return digests


# The objective


def _batch(dataset: ShardedDataset, stage: StageSpec, count: int = 6) -> Batch:
    config = replace(CONFIG, global_batch=count)
    return next(PositionLoader(dataset, stage, config, COLUMN if stage.name == "irm2" else None).batches())


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("name", ["irm1", "irm2"])
def test_irms_loss_is_eq_8_and_9_at_a_level_between_neighbouring_steps(
    tiny_dataset: ShardedDataset, name: StageName, kind: LossKind
) -> None:
    stage = replace(TINY_STAGES[name], loss=kind)
    denoiser, batch = wake(Denoiser(stage)), _batch(tiny_dataset, stage)
    assert batch.condition is not None
    errors = []
    for i, t in enumerate(batch.t.tolist()):
        high, low = denoiser.schedule.gamma[t - 1].sqrt().item(), denoiser.schedule.gamma[t].sqrt().item()
        level = low + (high - low) * batch.fraction[i].item()
        y_t = level * batch.y_0[i] + math.sqrt(1 - level**2) * batch.noise[i]
        epsilon = denoiser.net(torch.cat([batch.condition[i], y_t])[None], torch.tensor([level]))[0]
        errors.append(
            (epsilon - batch.noise[i]).abs().mean()
            if kind == "l1"
            else (epsilon - batch.noise[i]).square().mean()
        )
    assert stage_loss(denoiser, denoiser, batch).item() == pytest.approx(
        torch.stack(errors).mean().item(), rel=1e-5
    )


def test_a_network_that_hears_steps_and_says_the_velocity_is_measured_in_it(
    tiny_dataset: ShardedDataset,
) -> None:
    stage = replace(
        TINY_STAGES["irm1"],
        unet=replace(TINY_STAGES["irm1"].unet, time="step"),
        predicts="velocity",
        prior_std=0.2,
    )
    denoiser, batch = wake(Denoiser(stage)), _batch(tiny_dataset, stage)
    assert batch.condition is not None
    errors = []
    for i, t in enumerate(batch.t.tolist()):
        level, sigma = (
            denoiser.schedule.gamma[t].sqrt().item(),
            (1 - denoiser.schedule.gamma[t]).sqrt().item(),
        )
        y_t = level * batch.y_0[i] + sigma * batch.noise[i]
        v = denoiser.net(torch.cat([batch.condition[i], y_t])[None], torch.tensor([float(t)]))[0]
        spread = math.hypot(0.2 * level, sigma)  # Karras et al. 2022, Table 1, about the condition
        residual = (batch.y_0[i] - batch.condition[i]) / 0.2
        errors.append((v - (0.2 * level * batch.noise[i] - sigma * residual) / spread).abs().mean())
    assert stage_loss(denoiser, denoiser, batch).item() == pytest.approx(
        torch.stack(errors).mean().item(), rel=1e-5
    )


def test_tems_loss_is_eq_11_with_a_thousandth_of_the_whole_bound(tiny_dataset: ShardedDataset) -> None:
    stage = TINY_STAGES["tem"]
    denoiser, batch = wake(Denoiser(stage)), _batch(tiny_dataset, stage)
    schedule = denoiser.schedule
    y_t = q_sample(batch.y_0, batch.t, schedule, batch.noise)
    output = denoiser.net(y_t, batch.t.float())
    simple = noise_loss(output[:, :3], batch.noise, "l1").mean()
    bound = (
        1000 * variational_loss(output[:, 3:], batch.y_0, y_t, batch.t, schedule, output[:, :3]).mean()
    )  # a sum over T, drawn at one t
    assert stage_loss(denoiser, denoiser, batch).item() == pytest.approx(
        (simple + 0.001 * bound).item(), rel=1e-5
    )
    part = stage_loss(
        denoiser, denoiser, batch, t_max=120
    ).item()  # of steps up to 120 a draw stands for 120, not for all
    assert part == pytest.approx((simple + 0.001 * 0.12 * bound).item(), rel=1e-5)
    assert stage_loss(denoiser, denoiser, batch, t_max=1500).item() == pytest.approx(
        (simple + 0.001 * bound).item(), rel=1e-5
    )


def test_tem_without_a_range_trains_on_eq_11_alone(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    stage = replace(TINY_STAGES["tem"], unet=replace(TINY_STAGES["tem"].unet, out_channels=3))
    denoiser, batch = wake(Denoiser(stage)), _batch(tiny_dataset, stage)
    output = denoiser.net(q_sample(batch.y_0, batch.t, denoiser.schedule, batch.noise), batch.t.float())
    assert output.shape == batch.y_0.shape
    assert stage_loss(denoiser, denoiser, batch).item() == pytest.approx(
        (output - batch.noise).abs().mean().item(), rel=1e-5
    )
    trained = train(_run(tiny_dataset, tmp_path, stage, replace(CONFIG, num_samples=8)))
    assert math.isfinite(trained.loss)
    assert (
        load_stage(tmp_path, "tem", expected=stage).estimate(batch.y_0, batch.t, None).shape
        == batch.y_0.shape
    )


# One process


def test_averages_are_kept_along_the_way_and_each_is_a_stage_to_load(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    told: list[Path] = []
    config = replace(CONFIG, average_samples=10, checkpoint_samples=10**6)
    result = train(_run(tiny_dataset, tmp_path, config=config), on_checkpoint=told.append)
    assert [path.name for path in told] == [
        "000000012",
        "000000020",
        "000000032",
        "000000040",
        "step-00000010",
    ]
    weights = [load_stage(path, "irm1").net.stem.weight for path in told[:-1]]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[-1], load_stage(result.folder, "irm1").net.stem.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGE_NAMES)
def test_the_loss_falls(tiny_dataset: ShardedDataset, tmp_path: Path, name: StageName) -> None:
    config = replace(CONFIG, num_samples=8 * 40, global_batch=8, learning_rate=1e-2, checkpoint_samples=10**6)
    reports: list[StepMetrics] = []
    result = train(
        _run(tiny_dataset, tmp_path, TINY_STAGES[name], config), report=reports.append, report_every_s=0
    )
    assert [report.step for report in reports] == list(range(1, 41))
    assert [report.samples for report in reports] == list(range(8, 321, 8))
    losses = [report.loss for report in reports]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    assert (result.steps, result.samples, result.resumed_from, result.loss) == (40, 320, 0, losses[-1])
    assert load_stage(tmp_path, name, expected=TINY_STAGES[name]).spec.name == name


@pytest.mark.slow
def test_the_same_training_gives_the_same_bytes(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    first, second = (train(_run(tiny_dataset, tmp_path / place)) for place in "ab")
    assert _weights(first) == _weights(second)
    other = train(_run(tiny_dataset, tmp_path / "c", config=replace(CONFIG, seed=2)))
    assert _weights(other) != _weights(first)


def test_what_is_saved_is_the_average_and_not_the_last_weights(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = replace(CONFIG, num_samples=16, checkpoint_samples=12, ema_half_life=1e-6)
    last = load_file(train(_run(tiny_dataset, tmp_path / "last", config=config)).folder / "irm1.safetensors")
    averaged = load_file(
        train(_run(tiny_dataset, tmp_path / "averaged", config=replace(config, ema_half_life=20.0))).folder
        / "irm1.safetensors"
    )
    assert not torch.equal(last["stem.weight"], averaged["stem.weight"])
    checkpoints = tmp_path / "last" / "checkpoints"
    state = load_checkpoint(
        checkpoints, json.loads((checkpoints / "step-00000003" / "state.json").read_text())["contract"]
    )
    assert state is not None
    for name, weight in state.tensors["model"].items():
        assert torch.equal(state.tensors["ema"][name], weight)


def test_without_an_average_the_last_weights_are_saved(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    config = replace(CONFIG, num_samples=8, average_samples=4, ema_half_life=None)
    alone = train(_run(tiny_dataset, tmp_path / "alone", config=config))
    shortest = train(
        _run(tiny_dataset, tmp_path / "shortest", config=replace(config, ema_half_life=1e-6))
    )  # follows the weights at once
    assert _weights(alone) == _weights(shortest)
    first, second = (
        load_file(alone.folder / "averages" / at / "irm1.safetensors")["stem.weight"]
        for at in ("000000004", "000000008")
    )
    assert not torch.equal(first, second)
    assert "ema" not in TrainStep(TINY_STAGES["irm1"], config).snapshot(0, {}, []).tensors


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weights_decay_as_much_as_is_said_and_not_otherwise(optimizer: Literal["adam", "adamw"]) -> None:
    for decay in (0.0, 0.3):
        config = replace(CONFIG, optimizer=optimizer, weight_decay=decay)
        assert [
            group["weight_decay"] for group in TrainStep(TINY_STAGES["tem"], config).optimizer.param_groups
        ] == [decay]


def _fail_at(count: int) -> Callable[[object], None]:
    calls = []

    def fail(_: object) -> None:
        calls.append(1)
        if len(calls) == count:
            raise InterruptedHereError

    return fail


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_an_interrupted_training_ends_bitwise_as_the_undisturbed(
    tiny_dataset: ShardedDataset, tmp_path: Path, name: StageName
) -> None:
    stage = DROPPING_OUT if name == "irm1" else TINY_STAGES[name]
    config = replace(
        CONFIG,
        optimizer="adamw" if name == "tem" else "adam",
        warmup_samples=8,
        decay_samples=16,
        max_gradient_norm=1.0,
    )
    undisturbed = train(_run(tiny_dataset, tmp_path / "whole", stage, config))
    run = _run(tiny_dataset, tmp_path / "broken", stage, config)
    with pytest.raises(InterruptedHereError):
        train(run, on_checkpoint=_fail_at(2))  # steps 3 and 6 are sealed by now
    with pytest.raises(InterruptedHereError):
        train(run, report=_fail_at(2), report_every_s=0)  # during step 8
    result = train(run)
    assert result.resumed_from == 6
    assert _ending(result) == _ending(undisturbed)
    assert _weights(result, name) == _weights(undisturbed, name)


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_training_that_runs_wide_blocks_again_ends_bitwise_as_one_that_keeps_all(
    tiny_dataset: ShardedDataset, tmp_path: Path, name: StageName
) -> None:
    stage = DROPPING_OUT if name == "irm1" else TINY_STAGES[name]
    kept = train(_run(tiny_dataset, tmp_path / "kept", stage))
    again = train(
        replace(_run(tiny_dataset, tmp_path / "again", stage), recompute_px=stage.px // stage.unet.patch_px)
    )
    assert _weights(kept, name) == _weights(again, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["irm2", "tem"])
def test_a_training_with_every_option_ends_bitwise_as_the_undisturbed(
    tiny_dataset: ShardedDataset, tmp_path: Path, name: StageName
) -> None:
    config = replace(CONFIG, min_snr_gamma=5.0, patch_px=16, ema_lengths=(0.05, 0.1), average_samples=20)
    undisturbed = train(_run(tiny_dataset, tmp_path / "whole", TINY_STAGES[name], config))
    run = _run(tiny_dataset, tmp_path / "broken", TINY_STAGES[name], config)
    with pytest.raises(InterruptedHereError):
        train(run, report=_fail_at(8), report_every_s=0)  # step 6 is sealed by now
    result = train(run)
    assert result.resumed_from == 6
    assert _ending(result) == _ending(undisturbed)
    assert {f"power-{length}.safetensors" for length in config.ema_lengths} <= _ending(result).keys()
    files = [
        f"averages/{samples:09d}/{power}{name}.safetensors"
        for samples in (20, 40)
        for power in ("power-0.05/", "power-0.1/", "")
    ]
    for file in (f"{name}.safetensors", *files):
        assert (result.folder / file).read_bytes() == (undisturbed.folder / file).read_bytes(), file
    plain = train(_run(tiny_dataset, tmp_path / "plain", TINY_STAGES[name]))
    assert _weights(plain, name) != _weights(result, name)


@pytest.mark.slow
def test_a_training_goes_on_from_the_previous_checkpoint_when_the_newest_is_damaged(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    undisturbed = train(_run(tiny_dataset, tmp_path / "whole"))
    run = _run(tiny_dataset, tmp_path / "broken")
    with pytest.raises(InterruptedHereError):
        train(run, on_checkpoint=_fail_at(2))
    newest = tmp_path / "broken" / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    result = train(run)
    assert result.resumed_from == 3
    assert _ending(result) == _ending(undisturbed)
    again = train(run)  # killed before anyone knew that it had ended
    assert (again.resumed_from, again.loss) == (10, pytest.approx(result.loss, rel=0.5))
    assert _weights(again) == _weights(undisturbed)


def test_a_checkpoint_of_other_settings_is_refused(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    train(_run(tiny_dataset, tmp_path))
    with pytest.raises(UsageError, match=r"training\.learning_rate was 0\.002, is 0\.001"):
        train(_run(tiny_dataset, tmp_path, config=replace(CONFIG, learning_rate=1e-3)))


@pytest.mark.slow
def test_how_a_run_is_kept_alive_may_change_on_the_way(
    tiny_dataset: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, {4, 5})
    undisturbed = train(_run(tiny_dataset, tmp_path / "whole", config=replace(CONFIG, keep_best=True)))
    with pytest.raises(DivergedError, match="max_skipped=1"):
        train(_run(tiny_dataset, tmp_path / "broken", config=replace(CONFIG, max_skipped=1)))
    config = replace(CONFIG, max_skipped=2, keep_checkpoints=3)
    result = train(_run(tiny_dataset, tmp_path / "broken", config=config))
    assert result.resumed_from == 3
    assert _ending(result) == _ending(undisturbed)
    assert len(list((tmp_path / "broken" / "checkpoints").iterdir())) == 3


def test_a_training_that_the_first_version_left_goes_on(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    """`checkpoint_v0` was written before formats were numbered, after 2 steps of 3; whatever changes must
    read it.
    """
    written = Path(__file__).parents[1] / "checkpoint_v0"
    shutil.copytree(written, tmp_path / "checkpoints")
    values = json.loads((written / "step-00000002" / "state.json").read_text())
    assert "format" not in values
    assert "max_skipped" in values["contract"]["training"]
    info = replace(tiny_dataset.info, content_id=values["contract"]["content_id"])
    unet = UNetSpec(
        8, 6, 3, inner_channels=2, channel_multipliers=(1,), res_blocks=(1,), attention_px=(), norm_groups=1
    )
    stage = replace(TINY_STAGES["irm1"], unet=unet)
    config = TrainingConfig(num_samples=12, global_batch=4, learning_rate=1e-3, checkpoint_samples=8, seed=1)
    dataset = copy.copy(tiny_dataset)
    dataset.info = info
    with pytest.raises(UsageError, match=r"training\.learning_rate was 0\.001, is 0\.01"):
        train(_run(dataset, tmp_path, stage, replace(config, learning_rate=1e-2)))
    assert train(_run(dataset, tmp_path, stage, config)).resumed_from == 2
    before, after = (
        load_file(tmp_path / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (2, 3)
    )
    for name, weight in before.items():
        assert 0 < (after[name] - weight).abs().max() < 2e-3  # one step of Adam


def test_the_rate_warms_up_stays_and_falls_to_zero(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1.0e-3, warmup_samples=16, decay_samples=16)
    reports: list[StepMetrics] = []
    train(_run(tiny_dataset, tmp_path, config=config), report=reports.append, report_every_s=0)
    shares = [report.learning_rate / 1e-3 for report in reports]
    assert shares == pytest.approx([0.125, 0.375, 0.625, 0.875, 1, 1, 0.875, 0.625, 0.375, 0.125])


def test_a_training_can_start_from_given_weights(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    initial = wake(Denoiser(DROPPING_OUT))
    config = replace(CONFIG, num_samples=4, learning_rate=1e-12, average_samples=2)
    origin = Origin("SR3", "gen.pth", "ab" * 32, "Apache-2.0", "trained on FFHQ")
    run = replace(_run(tiny_dataset, tmp_path, config=config), initial=initial, initial_digest="d")
    train(replace(run, origin=origin))
    saved = sorted(tmp_path.rglob("irm1.safetensors"))
    assert len(saved) == 2  # the average and the last
    assert {read_origin(path) for path in saved} == {origin}
    for name, p in load_stage(tmp_path, "irm1").net.named_parameters():
        assert torch.allclose(p, initial.net.get_parameter(name), atol=1e-6)


def test_a_training_that_diverges_saves_nothing(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30, max_skipped=3)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        train(_run(tiny_dataset, tmp_path, config=config))
    assert not (tmp_path / "irm1.safetensors").exists()


def test_irm2_without_a_column_is_refused(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="irm2 trains on a column made by irm1"):
        train(replace(_run(tiny_dataset, tmp_path, TINY_STAGES["irm2"]), column=None))


# A step whose loss is not finite


def _poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the images of some steps NaN."""
    undisturbed = TrainStep.step

    def step(train_step: TrainStep, share: Batch, number: int) -> UpdateResult:
        if number in steps:
            share = replace(share, y_0=torch.full_like(share.y_0, torch.nan))
        return undisturbed(train_step, share, number)

    monkeypatch.setattr(TrainStep, "step", step)


@pytest.mark.slow
def test_a_step_with_a_nan_loss_changes_nothing_and_is_skipped_again_on_every_replay(
    tiny_dataset: ShardedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _poison(monkeypatch, {4, 7})
    reports: list[StepMetrics] = []
    undisturbed = train(_run(tiny_dataset, tmp_path / "whole"), report=reports.append, report_every_s=0)
    assert [report.skipped for report in reports] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [math.isnan(report.loss) for report in reports] == [step in (4, 7) for step in range(10)]
    run = _run(tiny_dataset, tmp_path / "broken")
    with pytest.raises(InterruptedHereError):
        train(run, report=_fail_at(6), report_every_s=0)  # after step 5 of 0..9; step 3 is sealed
    result = train(run)
    assert result.resumed_from == 3
    assert _ending(result) == _ending(undisturbed)
    rows = json.loads((result.folder / SKIPPED).read_text())
    keys = tiny_dataset.keys("train")
    assert rows == [
        {"step": step, "keys": [keys[row_at(CONFIG.seed, 4 * step + i, 20)] for i in range(4)]}
        for step in (4, 7)
    ]
    assert " ".join(rows[0]["keys"]) in caplog.text
    monkeypatch.undo()
    assert _weights(train(_run(tiny_dataset, tmp_path / "clean"))) != _weights(undisturbed)


def test_a_training_ends_with_one_line_after_too_many_of_them(
    tiny_dataset: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, {1, 2, 5, 8})
    run = _run(tiny_dataset, tmp_path, config=replace(CONFIG, max_skipped=2))
    line = (
        r"irm1: the loss or gradient was NaN or infinity in steps 1, 2, 5; expected at most "
        r"training\.max_skipped=2; see .*skipped\.json"
    )
    for _ in range(2):  # and again, from the checkpoint of step 3, which remembers two of them
        with pytest.raises(DivergedError, match=line):
            train(run)
    with pytest.raises(DivergedError, match=r"see s3://bucket/run/skipped\.json for the faces"):
        train(replace(run, uri="s3://bucket/run"))


# Checkpoints are written on a thread


@pytest.mark.slow
def test_a_full_disk_ends_the_training_and_what_was_sealed_is_gone_on_from(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    undisturbed = train(_run(tiny_dataset, tmp_path / "whole"))
    run, before = _run(tiny_dataset, tmp_path / "broken"), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(path: Path) -> None:
        """From now on the model fits and the optimiser, twice as large, does not."""
        sizes = [(path / f"{group}.safetensors").stat().st_size for group in ("model", "optimizer")]
        assert 1.5 * sizes[0] < sizes[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * sizes[0]), before[1]))

    try:
        with pytest.raises(
            IncompleteError, match=r"cannot write .*File too large.*make some and run the same command again"
        ):
            train(run, on_checkpoint=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["step-00000003"]
    result = train(run)
    assert result.resumed_from == 3
    assert _ending(result) == _ending(undisturbed)


def test_a_checkpoint_holds_the_moment_when_it_was_asked_for(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    held = threading.Event()

    def wait(path: Path) -> None:
        if path.name == "step-00000003":
            held.wait(60)

    def release(metrics: StepMetrics) -> None:
        if metrics.step == 5:  # two steps later
            held.set()

    run = _run(tiny_dataset, tmp_path, config=replace(CONFIG, num_samples=32, keep_checkpoints=3))
    train(run, on_checkpoint=wait, report=release, report_every_s=0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in (3, 6, 8)
    ]
    shorter = train(
        _run(tiny_dataset, tmp_path / "three", config=replace(CONFIG, num_samples=12, ema_half_life=1e-6))
    )
    model = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    for name, weight in load_file(shorter.folder / "irm1.safetensors").items():
        assert torch.equal(model[name], weight)


def test_whoever_waits_for_a_writer_gives_signs_for_a_while_and_then_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that hangs on its way must not look like a training that goes on."""
    monkeypatch.setattr(checkpoint_writer, "_HEARTBEAT_S", 0.01)
    monkeypatch.setattr(checkpoint_writer, "STALL_TIMEOUT_S", 0.1)
    signs: list[float] = []
    with checkpoint_writer.AsyncCheckpointWriter(
        lambda path: None, while_waiting=lambda: signs.append(time.monotonic())
    ) as writing:
        started = time.monotonic()
        writing.write(lambda: [time.sleep(0.6), tmp_path][1])
        writing.write(lambda: tmp_path)
    assert 1 <= len(signs) <= 10
    assert max(signs) - started < 0.5
