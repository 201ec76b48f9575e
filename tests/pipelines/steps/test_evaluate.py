"""Scores are of the images that `restore` makes, and do not depend on batches, workers or task order."""

import functools
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from diffbfr.cascade import Cascade
from diffbfr.degradation import PRESETS
from diffbfr.errors import UsageError
from diffbfr.images import decode, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.scores import aggregate
from pipelines.execution.model_ref import ModelRef, pin_model
from pipelines.sources import open_source
from pipelines.steps.evaluate import (
    EvaluateTask,
    evaluate,
    identity_weights,
    make_evaluator,
    plan_evaluation,
    squeezenet_weights,
)
from pipelines.steps.shard import ShardConfig, finish_dataset, plan_shards, shard
from tests.pipelines.tiny_cascade import HQ_PX, LQ_PX, make_tiny_cascade


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("dataset"))
    config = ShardConfig(
        hq_px=HQ_PX,
        lq_px=LQ_PX,
        variants=2,
        shard_size=8,
        val_fraction=0.1,
        test_fraction=0.6,
        seed=1,
        degradation=PRESETS["paper"],
    )
    tasks = plan_shards(open_source(f"synthetic:count=12,seed=5,px={HQ_PX}"), config, root)
    for task in tasks:
        shard(task)
    finish_dataset(root, tasks)
    return root


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return pin_model(make_tiny_cascade(tmp_path_factory.mktemp("cascade")))


@pytest.fixture
def task(dataset_root: str, cascade: ModelRef) -> EvaluateTask:
    keys = tuple(open_dataset(dataset_root).keys("test")[:5])
    assert len(keys) == 5
    return EvaluateTask(0, dataset_root, cascade, keys, variant=1, seeds=(0, 3), batch=2, panels=keys[:2])


@pytest.mark.slow
def test_every_subject_of_every_face_and_draw_has_a_row(task: EvaluateTask) -> None:
    report = evaluate(task)
    found = sorted((row.key, row.subject, -1 if row.seed is None else row.seed) for row in report.rows)
    expected = [(key, "lq", -1) for key in task.keys]
    expected += [
        (key, subject, seed) for key in task.keys for subject in ("irm1", "irm2", "tem") for seed in (0, 3)
    ]
    assert found == sorted(expected)
    assert [metric.name for metric in report.metrics] == ["PSNR", "SSIM"]


@pytest.mark.slow
def test_a_score_is_that_of_the_picture_which_restore_would_write(
    task: EvaluateTask, cascade: ModelRef
) -> None:
    key, dataset = task.keys[3], open_dataset(task.dataset)
    file = dataset.lq_bytes(key, 1)
    model = Cascade.load(Path(cascade.folder))
    x_0 = to_tensor(lq_to_model(decode(file).pixels, LQ_PX))
    restored = to_pixels(
        model.restore(x_0, [noise_key(hashlib.sha256(file).hexdigest(), seed=3)], "fast").tem
    )[0]
    expected = peak_signal_noise_ratio(dataset.hq(key, 1), restored, data_range=255)
    row = next(row for row in evaluate(task).rows if (row.key, row.subject, row.seed) == (key, "tem", 3))
    assert row.values[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_batches_change_no_score(task: EvaluateTask) -> None:
    rows = [
        sorted(
            evaluate(replace(task, batch=batch)).rows, key=lambda row: (row.key, row.subject, row.seed or 0)
        )
        for batch in (1, 5)
    ]
    for one, other in zip(*rows, strict=True):
        assert (one.key, one.subject, one.seed) == (other.key, other.subject, other.seed)
        assert one.values == pytest.approx(other.values, abs=0.02)


@pytest.mark.slow
def test_tasks_cut_small_measure_what_one_task_measures(task: EvaluateTask) -> None:
    whole = plan_evaluation(task, num_panels=3, keys_per_task=100)
    small = plan_evaluation(task, num_panels=3, keys_per_task=2)
    assert len(whole) == 1
    assert [len(t.keys) for t in small] == [2, 2, 1]
    one = aggregate(whole, [evaluate(t) for t in whole], "content", "test", HQ_PX)
    other = aggregate(small, [evaluate(t) for t in reversed(small)], "content", "test", HQ_PX)
    assert one.protocol == other.protocol
    assert [panel.key for panel in one.panels] == [panel.key for panel in other.panels]
    assert one.interval("tem", "PSNR").mean == pytest.approx(other.interval("tem", "PSNR").mean, abs=0.01)


@pytest.mark.slow
def test_panels_hold_the_pictures_that_were_measured(task: EvaluateTask) -> None:
    report = evaluate(task)
    assert [panel.key for panel in report.panels] == list(task.panels)
    for panel in report.panels:
        truth = decode(panel.hq).pixels
        for subject, png in panel.images()[:-1]:
            row = next(
                r
                for r in report.rows
                if (r.key, r.subject, r.seed) == (panel.key, subject, None if subject == "lq" else 0)
            )
            assert row.values[0] == pytest.approx(
                peak_signal_noise_ratio(truth, decode(png).pixels, data_range=255), abs=1e-9
            )


@pytest.mark.slow
def test_an_actor_pool_without_ray_serves_the_same_rows(task: EvaluateTask, serial: Cluster) -> None:
    tasks = plan_evaluation(task, keys_per_task=2)
    reports = serial.map_actors(
        functools.partial(make_evaluator, tasks[0]), tasks, label="evaluate", weight=lambda t: len(t.keys)
    )
    for report, twin in zip(reports, [evaluate(t) for t in tasks], strict=True):
        assert replace(report, seconds=0) == replace(twin, seconds=0)


def test_a_worker_serves_no_other_dataset(task: EvaluateTask) -> None:
    with pytest.raises(UsageError, match="one cascade and one dataset a worker"):
        make_evaluator(task)(replace(task, dataset="elsewhere"))


def test_a_cascade_of_another_size_is_refused(task: EvaluateTask) -> None:
    with pytest.raises(UsageError, match=r"16 -> 64 px.*8 -> 32 px"):
        evaluate(replace(task, cascade=ModelRef(task.cascade.folder, task.cascade.digest, 8, 32)))


def test_no_held_out_faces_is_a_refusal_and_not_an_empty_table(task: EvaluateTask) -> None:
    with pytest.raises(UsageError, match="test_fraction"):
        plan_evaluation(replace(task, keys=()))


def test_panels_are_pinned_evenly_over_the_hold_out(task: EvaluateTask) -> None:
    keys = tuple(f"k{i:02d}" for i in range(10))
    pinned = [
        key
        for t in plan_evaluation(replace(task, keys=keys), num_panels=5, keys_per_task=3)
        for key in t.panels
    ]
    assert pinned == ["k00", "k02", "k04", "k06", "k08"]


def test_squeezenet_weights_come_from_the_configuration_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "a.npz", tmp_path / "b.npz"
    ours.touch()
    theirs.touch()
    monkeypatch.delenv("DIFFBFR_SQUEEZENET", raising=False)
    assert squeezenet_weights(None) is None
    monkeypatch.setenv("DIFFBFR_SQUEEZENET", str(theirs))
    assert squeezenet_weights(None) == str(theirs)
    assert squeezenet_weights(str(ours)) == str(ours)
    with pytest.raises(UsageError, match=r"evaluate\.squeezenet or DIFFBFR_SQUEEZENET"):
        squeezenet_weights(str(tmp_path / "absent.npz"))


def test_the_identity_cosine_joins_the_table_where_weights_are_given(
    task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffbfr.metrics.identity import MobileFaceNet

    np.savez(
        tmp_path / "faces.npz",
        **{n: t.numpy() for n, t in MobileFaceNet().state_dict().items() if "num_batches" not in n},
    )
    monkeypatch.setenv("DIFFBFR_IDENTITY", str(tmp_path / "faces.npz"))
    report = evaluate(replace(task, keys=task.keys[:1], seeds=(0,), identity=identity_weights(None)))
    assert [metric.name for metric in report.metrics] == ["PSNR", "SSIM", "identity cosine"]
    assert all(-1 <= row.values[2] <= 1 for row in report.rows)


def test_the_squeezenet_distance_joins_the_table_where_weights_are_given(
    task: EvaluateTask, tmp_path: Path
) -> None:
    from diffbfr.metrics.squeezenet import SqueezeNetFeatures

    arrays = {}
    for name, tensor in SqueezeNetFeatures().state_dict().items():
        for mine, theirs in (
            ("fires.", ""),
            (".squeeze.", "/conv1x1_1."),
            (".expand_1.", "/conv1x1_2."),
            (".expand_3.", "/conv3x3_2."),
        ):
            name = name.replace(mine, theirs)
        arrays[name] = (torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * 0.1).numpy()
    np.savez(tmp_path / "weights.npz", **arrays)
    report = evaluate(replace(task, keys=task.keys[:1], seeds=(0,), squeezenet=str(tmp_path / "weights.npz")))
    assert [metric.name for metric in report.metrics] == ["PSNR", "SSIM", "squeezenet distance"]
    assert all(0 < row.values[2] < 2 for row in report.rows)
