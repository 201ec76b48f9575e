"""Elastic invariance: sample, variant, t, noise and dropout belong to a position, so that any number of
workers says the same.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.checkpoint import MANIFEST
from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.stages import STAGE_NAMES, StageName, StageSpec
from diffbfr.training.active_ranks import active_ranks
from diffbfr.training.config import TrainingConfig
from diffbfr.training.deterministic_reduce import TreeAllReduce
from diffbfr.training.loop import Run, StepMetrics, train
from tests.diffbfr.tiny import COLUMN, TINY_STAGES
from tests.diffbfr.training.ranks import (
    Steps,
    StoppedError,
    Trouble,
    noting_steps,
    steps_of,
    train_in_processes,
)

CONFIG = TrainingConfig(
    num_samples=40, global_batch=4, learning_rate=2e-3, checkpoint_samples=12, ema_half_life=20.0, seed=1
)
DROPPING_OUT = replace(TINY_STAGES["irm1"], unet=replace(TINY_STAGES["irm1"].unet, dropout=0.3))


def _run(
    dataset: ShardedDataset, folder: Path, stage: StageSpec = DROPPING_OUT, config: TrainingConfig = CONFIG
) -> Run:
    return Run(stage, config, dataset, folder, column=COLUMN if stage.name == "irm2" else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGE_NAMES)
def test_gradients_of_parts_add_up_to_those_of_the_share(
    tiny_dataset: ShardedDataset, tmp_path: Path, name: StageName
) -> None:
    stage = DROPPING_OUT if name == "irm1" else TINY_STAGES[name]
    curves = []
    for micro_batch in (None, 3, 1):
        reports: list[StepMetrics] = []
        run = replace(_run(tiny_dataset, tmp_path / str(micro_batch), stage), micro_batch=micro_batch)
        train(run, report=reports.append, report_every_s=0)
        curves.append([report.loss for report in reports])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_float32_and_not_it(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    losses = [
        train(
            _run(tiny_dataset, tmp_path / kind, config=replace(CONFIG, precision=kind)), report_every_s=10**6
        ).loss
        for kind in ("float32", "bfloat16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


# Several processes


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("reduce_leaves", [None, 4])
def test_any_number_of_workers_sees_the_same_numbers(
    tiny_dataset: ShardedDataset, tmp_path: Path, reduce_leaves: int | None
) -> None:
    """With dropout, on 1 to 4 workers and through 2, 1, 2: losses agree to 1e-6; in one order of sums
    bitwise, and the weights too.

    Three have no even shares of eight faces: two of them compute. On each number a training that is stopped
    ends bitwise as the undisturbed, and through the change each face is seen once an epoch.
    """
    config = replace(
        CONFIG,
        num_samples=96,
        global_batch=8,
        checkpoint_samples=32,
        max_gradient_norm=1.0,
        reduce_leaves=reduce_leaves,
    )
    curves: dict[str, list[float]] = {}
    alone: list[StepMetrics] = []
    train(_run(tiny_dataset, tmp_path / "w1", DROPPING_OUT, config), report=alone.append, report_every_s=0)
    curves["w1"] = [report.loss for report in alone]
    for ranks in (2, 3, 4):
        run, again = (
            _run(tiny_dataset, tmp_path / f"{kind}{ranks}", DROPPING_OUT, config) for kind in ("w", "again")
        )
        ((told, _), *_others), *_ = train_in_processes(
            [[run] * ranks, [again] * ranks, [again] * ranks],
            tmp_path / f"meeting{ranks}",
            [Trouble(), Trouble(stop_after=5)],
        )
        curves[f"w{ranks}"] = [report.loss for report in told]
        whole, resumed = (
            folder / "checkpoints" / "step-00000012" / MANIFEST for folder in (run.folder, again.folder)
        )
        assert resumed.read_text() == whole.read_text(), ranks  # it went on after step 4

    changing = _run(tiny_dataset, tmp_path / "changing", DROPPING_OUT, config)
    losses: list[float] = []
    ((told, _), _), *_ = train_in_processes(
        [[changing] * 2], tmp_path / "first", [Trouble(stop_after=5)]
    )  # step 4 is sealed
    losses += [report.loss for report in told][:4]
    one: list[StepMetrics] = []
    steps: Steps = []
    with pytest.raises(StoppedError), noting_steps(steps):
        train(
            changing, report=lambda metrics: _stop_after(one, metrics, 5), report_every_s=0
        )  # steps 5 to 9, 8 is sealed
    losses += [report.loss for report in one][:4]
    ((told, _), _), *_ = train_in_processes([[changing] * 2], tmp_path / "second")
    curves["changing"] = losses + [report.loss for report in told]
    first, second = (
        [steps_of(tmp_path / meeting, rank) for rank in range(2)] for meeting in ("first", "second")
    )
    ranks_of_steps = (
        list(zip(*first, strict=True))[:4]
        + [(num_active,) for num_active in steps[:4]]
        + list(zip(*second, strict=True))
    )
    assert [step for (step, _), *_ in ranks_of_steps] == list(range(12))
    seen = [key for ranks_of_step in ranks_of_steps for _, keys in ranks_of_step for key in keys]
    for epoch in range(4):  # of twenty faces
        assert sorted(seen[20 * epoch : 20 * (epoch + 1)]) == sorted(tiny_dataset.keys("train"))

    for name, curve in curves.items():
        assert len(curve) == 12, name
        assert curve == (pytest.approx(curves["w1"], rel=1e-6) if reduce_leaves is None else curves["w1"]), (
            name
        )
        weights = (tmp_path / name / "irm1.safetensors").read_bytes()
        assert (weights == (tmp_path / "w1" / "irm1.safetensors").read_bytes()) == (
            reduce_leaves is not None or name == "w1"
        ), name
    seeded = _run(tiny_dataset, tmp_path / "seed", DROPPING_OUT, replace(config, seed=5))
    reports: list[StepMetrics] = []
    train(seeded, report=reports.append, report_every_s=0)
    # Single losses of two seeds may agree to 1e-3 by chance, those of all twelve steps do not.
    assert [report.loss for report in reports] != pytest.approx(curves["w1"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_stage_sees_the_same_numbers_on_two_workers(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    """IRM-2, with its column and patches, and TEM: losses agree to 1e-6; in one order of sums bitwise, and
    all that they end with.
    """
    config = replace(
        CONFIG, num_samples=48, global_batch=8, checkpoint_samples=48, max_gradient_norm=1.0, patch_px=16
    )
    cases: list[tuple[StageName, int | None]] = [
        (name, reduce_leaves) for name in ("irm2", "tem") for reduce_leaves in (None, 2)
    ]

    def run(folder: str, name: StageName, reduce_leaves: int | None) -> Run:
        return _run(
            tiny_dataset,
            tmp_path / folder / f"{name}-{reduce_leaves}",
            TINY_STAGES[name],
            replace(config, reduce_leaves=reduce_leaves),
        )

    together = train_in_processes([[run("two", *case)] * 2 for case in cases], tmp_path / "meeting")
    for (name, reduce_leaves), ((told, _), _) in zip(cases, together, strict=True):
        alone: list[StepMetrics] = []
        train(run("one", name, reduce_leaves), report=alone.append, report_every_s=0)
        losses = [report.loss for report in alone]
        assert [report.loss for report in told] == (
            pytest.approx(losses, rel=1e-6) if reduce_leaves is None else losses
        ), name
        one, two = (
            tmp_path / folder / f"{name}-{reduce_leaves}" / "checkpoints" / "step-00000006" / MANIFEST
            for folder in ("one", "two")
        )
        assert (one.read_text() == two.read_text()) == (reduce_leaves is not None), name


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGE_NAMES)
def test_gradients_in_one_order_are_those_of_the_batch(
    tiny_dataset: ShardedDataset, tmp_path: Path, name: StageName
) -> None:
    losses = []
    for reduce_leaves in (None, 1, 2, 4):
        reports: list[StepMetrics] = []
        config = replace(CONFIG, reduce_leaves=reduce_leaves, max_gradient_norm=1.0)
        train(
            _run(tiny_dataset, tmp_path / str(reduce_leaves), TINY_STAGES[name], config),
            report=reports.append,
            report_every_s=0,
        )
        losses.append([report.loss for report in reports])
    for curve in losses[1:]:
        assert curve == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("reduce_leaves", [0, 3, 8])
def test_parts_that_make_no_tree_of_the_batch_are_refused(reduce_leaves: int) -> None:
    with pytest.raises(
        UsageError,
        match=(
            rf"reduce_leaves={reduce_leaves} and global_batch=4; expected a power of two that divides the "
            rf"batch"
        ),
    ):
        replace(CONFIG, reduce_leaves=reduce_leaves)


def test_parts_larger_than_what_is_held_at_once_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"micro_batch is 1 and a part of the batch 2 images; expected no fewer"
    ):
        TreeAllReduce(2, 4, 1, active_ranks(4, 2))


@pytest.mark.parametrize(
    ("world", "batch", "reduce_leaves", "num_active"),
    [
        (1, 4, None, 1),
        (2, 4, None, 2),
        (3, 4, None, 2),
        (8, 4, None, 4),
        (5, 15, None, 5),
        (3, 48, 4, 2),
        (8, 48, 4, 4),
        (6, 48, 8, 4),
    ],
)
def test_as_many_workers_compute_as_there_are_even_shares_for(
    monkeypatch: pytest.MonkeyPatch, world: int, batch: int, reduce_leaves: int | None, num_active: int
) -> None:
    """Every share is computed by one worker that counts, and their weights make the mean over all workers
    the mean over the batch.
    """
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
    places = []
    for rank in range(world):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        places.append(active_ranks(batch, reduce_leaves))
    assert {place.num_active for place in places} == {num_active}
    assert [place.shard_index for place in places if place.is_active] == list(range(num_active))
    assert sum(place.weight for place in places) == world


def _stop_after(reports: list[StepMetrics], metrics: StepMetrics, count: int) -> None:
    reports.append(metrics)
    if len(reports) == count:
        raise StoppedError


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_run_blocks_again_alike_skip_alike_and_refuse_different_checkpoints(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    """A step whose images are NaN on one of them is skipped by both, as one process skips it that finds
    them all so.
    """
    one = train(_run(tiny_dataset, tmp_path / "one"))
    run, behind = _run(tiny_dataset, tmp_path / "two"), _run(tiny_dataset, tmp_path / "elsewhere")
    again = replace(_run(tiny_dataset, tmp_path / "again"), recompute_px=8)
    spoilt = [
        _run(
            tiny_dataset,
            tmp_path / f"spoilt-{reduce_leaves}",
            config=replace(CONFIG, reduce_leaves=reduce_leaves),
        )
        for reduce_leaves in (None, 2)
    ]
    *skipped, together, recomputed, apart = train_in_processes(
        [
            *((it, it) for it in spoilt),
            (run, run),
            (again, again),
            (replace(behind, folder=one.folder), behind),
        ],
        tmp_path / "meeting",
        [Trouble(nan_rank=1, nan_step=4)] * 2,
    )
    assert [[report.loss for report in reports] for reports, _ in recomputed] == [
        [report.loss for report in told] for told, _ in together
    ]
    assert (tmp_path / "again" / "irm1.safetensors").read_bytes() == (
        tmp_path / "two" / "irm1.safetensors"
    ).read_bytes()
    for reports, refusal in apart:
        assert reports == []
        assert "ranks found checkpoints of steps [10, 0]" in refusal
    for it, ((told, _), _) in zip(spoilt, skipped, strict=True):
        alone: list[StepMetrics] = []
        whole = replace(it, folder=tmp_path / "alone" / it.folder.name)
        with noting_steps([], nan_step=4):
            train(whole, report=alone.append, report_every_s=0)
        assert [report.skipped for report in told] == [0] * 4 + [1] * 6
        assert [report.loss for report in told] == pytest.approx(
            [report.loss for report in alone], rel=1e-6, nan_ok=True
        )
        ends = [
            (folder / "checkpoints" / "step-00000010" / MANIFEST).read_text()
            for folder in (it.folder, whole.folder)
        ]
        assert (ends[0] == ends[1]) == (it.config.reduce_leaves is not None)
