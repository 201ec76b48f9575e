"""A position of a run holds the same sample, variant, t and noise whoever asks for it and with whatever
else.
"""

import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from threading import Semaphore, active_count
from typing import Any

import pytest
import torch
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, lq_to_model, to_tensor
from diffbfr.models.denoiser import upsample
from diffbfr.shards import FaceFrame, Loaded, ShardedDataset, row_at
from diffbfr.stages import STAGE_NAMES, StageName
from diffbfr.training.batches import Batch, PositionLoader, position_seed
from diffbfr.training.config import TrainingConfig
from tests.diffbfr.tiny import COLUMN, TINY_STAGES

CONFIG = TrainingConfig(num_samples=100, global_batch=4, learning_rate=1e-3, seed=11)
EVERY_STAGE = pytest.mark.parametrize("name", STAGE_NAMES)


def _batch(
    dataset: ShardedDataset, name: StageName, first: int, count: int, config: TrainingConfig = CONFIG
) -> Batch:
    """Positions first..first + count - 1, as one rank reads them."""
    loader = PositionLoader(
        dataset, TINY_STAGES[name], replace(config, global_batch=count), COLUMN if name == "irm2" else None
    )
    return next(loader.batches(first))


def _fields(batch: Batch) -> dict[str, Tensor]:
    return {
        field.name: value
        for field in dataclasses.fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }


@EVERY_STAGE
@pytest.mark.parametrize(("ranks", "readers"), [(1, 1), (2, 0), (2, 2), (4, 1), (8, 3)])
def test_a_position_does_not_depend_on_ranks_and_readers(
    tiny_dataset: ShardedDataset, name: StageName, ranks: int, readers: int
) -> None:
    loader = PositionLoader(
        tiny_dataset, TINY_STAGES[name], replace(CONFIG, global_batch=8), COLUMN if name == "irm2" else None
    )
    shares = [loader.batches(8, rank, ranks, readers) for rank in range(ranks)]
    for first in (8, 16):  # the second crosses the end of an epoch of 20
        whole = _fields(_batch(tiny_dataset, name, first, 8))
        parts = [_fields(next(share)) for share in shares]
        for field, value in whole.items():
            assert torch.equal(torch.cat([part[field] for part in parts]), value), field
    for share in shares:
        share.close()


def test_a_batch_is_made_while_the_one_before_is_trained_on(
    tiny_dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a thread, which is gone once the batches are closed; what stops a reader is raised where its
    batch is asked for.
    """
    loader, made, threads = (
        PositionLoader(tiny_dataset, TINY_STAGES["irm1"], CONFIG, None),
        Semaphore(0),
        active_count(),
    )
    join, read = loader._join, loader._sample_at

    def noted(share: Sequence[Loaded[Any]]) -> Batch:
        made.release()
        return join(share)

    def fail_at_9(key: str, position: int) -> object:
        if position == 9:
            raise UsageError("a damaged shard")
        return read(key, position)

    monkeypatch.setattr(loader, "_join", noted)
    monkeypatch.setattr(loader, "_sample_at", fail_at_9)
    with closing(loader.batches(readers=1)) as batches:
        next(batches)
        assert all(made.acquire(timeout=30) for _ in range(2))  # positions 0 to 7
        next(batches)
        with pytest.raises(UsageError, match="a damaged shard"):
            next(batches)
    deadline = time.monotonic() + 30
    while active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@EVERY_STAGE
def test_a_batch_holds_the_pairs_of_eq_8_9_and_11(tiny_dataset: ShardedDataset, name: StageName) -> None:
    batch = _batch(tiny_dataset, name, 0, 20)
    keys = tiny_dataset.keys("train")
    for place in range(20):
        key = keys[row_at(CONFIG.seed, place, len(keys))]
        targets, conditions = [], []
        for variant in range(2):
            targets.append(
                to_tensor(
                    tiny_dataset.hq_low(key, variant) if name == "irm1" else tiny_dataset.hq(key, variant)
                )[0]
            )
            conditions.append(
                to_tensor(lq_to_model(tiny_dataset.lq(key, variant), 8))
                if name == "irm1"
                else upsample(to_tensor(tiny_dataset.conditioning(COLUMN, key, variant)), 32)
            )
        drawn = [variant for variant in range(2) if torch.equal(batch.y_0[place], targets[variant])]
        assert drawn
        if batch.condition is not None:
            assert any(
                torch.allclose(batch.condition[place], conditions[variant][0], atol=1e-6) for variant in drawn
            )
    assert (batch.condition is None) == (name == "tem")


def test_an_epoch_holds_every_face_once(tiny_dataset: ShardedDataset) -> None:
    faces = _batch(tiny_dataset, "tem", 20, 20).y_0
    flips = torch.minimum(
        faces.flatten(1).sum(1), faces.flip(-1).flatten(1).sum(1)
    )  # the sum does not see a flip
    assert len({round(float(value), 2) for value in flips}) == 20


@pytest.fixture(scope="module")
def many(tiny_dataset: ShardedDataset) -> Batch:
    """The first 200 positions of IRM-1."""
    return _batch(tiny_dataset, "irm1", 0, 200)


def test_steps_are_uniform_over_1_to_t(many: Batch) -> None:
    t = many.t
    assert 1 <= int(t.min()) < 100
    assert 1900 < int(t.max()) <= 2000
    assert float(t.double().mean()) == pytest.approx(1000.5, abs=4 * 2000 / (12 * 200) ** 0.5)


def test_steps_end_at_t_max(tiny_dataset: ShardedDataset, many: Batch) -> None:
    restricted = _batch(tiny_dataset, "irm1", 0, 40, replace(CONFIG, t_max=3)).t
    assert set(restricted.tolist()) == {1, 2, 3}
    beyond = _batch(tiny_dataset, "irm1", 0, 20, replace(CONFIG, t_max=10**6)).t
    assert torch.equal(beyond, many.t[:20])


def test_fractions_are_uniform_and_noise_is_standard_normal(many: Batch) -> None:
    assert 0 <= float(many.fraction.min()) < 0.05
    assert 0.95 < float(many.fraction.max()) < 1
    n = many.noise.numel()
    assert abs(float(many.noise.mean())) < 5 / n**0.5
    assert abs(float(many.noise.var()) - 1) < 5 * (2 / n) ** 0.5
    assert len({float(noise[0, 0, 0]) for noise in many.noise}) == 200


def test_another_seed_or_stage_draws_otherwise(tiny_dataset: ShardedDataset) -> None:
    assert (
        len(
            {
                position_seed(seed, name, place)
                for seed in (0, 1)
                for name in STAGE_NAMES
                for place in range(100)
            }
        )
        == 600
    )
    first = _batch(tiny_dataset, "irm1", 0, 8)
    other = _batch(tiny_dataset, "irm1", 0, 8, replace(CONFIG, seed=12))
    assert not torch.equal(first.t, other.t)
    assert not torch.equal(first.noise, other.noise)


def test_irm2_without_a_column_is_refused(tiny_dataset: ShardedDataset) -> None:
    with pytest.raises(UsageError, match="irm2 trains on a column made by irm1 and none was given"):
        PositionLoader(tiny_dataset, TINY_STAGES["irm2"], CONFIG, None)


def _resized(dataset: ShardedDataset, config: TrainingConfig = CONFIG) -> Batch:
    config = replace(config, condition="resized", global_batch=20)
    return next(PositionLoader(dataset, TINY_STAGES["irm2"], config, None).batches())


def _quarantining(dataset: ShardedDataset, *members: tuple[str, str]) -> ShardedDataset:
    """The dataset as it would be had these pictures of its column come out degenerate."""
    damaged, index = copy.copy(dataset), dataset._columns[COLUMN]
    damaged._columns = {
        **dataset._columns,
        COLUMN: replace(index, info=replace(index.info, quarantined=members)),
    }
    return damaged


def test_irm2_never_sees_a_quarantined_picture_and_all_others_as_often(
    tiny_dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, half, *others = tiny_dataset.keys("train")
    damaged = _quarantining(tiny_dataset, (gone, "0.png"), (gone, "1.png"), (half, "0.png"))
    read = Counter[tuple[str, int]]()
    true_read = ShardedDataset.conditioning

    def conditioning(self: ShardedDataset, column: str, key: str, variant: int) -> Pixels:
        read[key, variant] += 1
        return true_read(self, column, key, variant)

    monkeypatch.setattr(ShardedDataset, "conditioning", conditioning)
    epochs, faces = 12, 1 + len(others)
    _batch(damaged, "irm2", 0, epochs * faces)
    assert Counter(key for key, _ in read.elements()) == dict.fromkeys((half, *others), epochs)
    assert {variant for key, variant in read if key == half} == {1}
    assert {variant for key, variant in read if key == others[0]} == {0, 1}
    loader = PositionLoader(damaged, TINY_STAGES["irm2"], CONFIG, COLUMN)
    assert gone not in loader.keys_at(0, 10 * faces)
    assert PositionLoader(damaged, TINY_STAGES["tem"], CONFIG, None).keys == tiny_dataset.keys("train")


def test_a_column_of_which_nothing_is_left_is_refused(tiny_dataset: ShardedDataset) -> None:
    members = [(key, f"{variant}.png") for key in tiny_dataset.keys("train") for variant in range(2)]
    with pytest.raises(UsageError, match=f"every picture of column {COLUMN} is quarantined"):
        PositionLoader(_quarantining(tiny_dataset, *members), TINY_STAGES["irm2"], CONFIG, COLUMN)


def test_irm2_may_see_the_ground_truth_resized_and_then_reads_no_column(tiny_dataset: ShardedDataset) -> None:
    batch, sampled = _resized(tiny_dataset), _batch(tiny_dataset, "irm2", 0, 20)
    keys = tiny_dataset.keys("train")
    assert batch.condition is not None
    for place in range(20):
        key = keys[row_at(CONFIG.seed, place, len(keys))]
        pairs = [(tiny_dataset.hq(key, variant), tiny_dataset.hq_low(key, variant)) for variant in range(2)]
        (low,) = {
            low.tobytes(): low for high, low in pairs if torch.equal(to_tensor(high)[0], batch.y_0[place])
        }.values()
        assert torch.allclose(batch.condition[place], upsample(to_tensor(low), 32)[0], atol=1e-6)
    assert torch.equal(batch.y_0, sampled.y_0)
    assert torch.equal(batch.noise, sampled.noise)


def test_irm2_may_see_its_input_beside_the_column(tiny_dataset: ShardedDataset) -> None:
    """The first half of the condition is the paper's; the second is the degraded face at full size."""
    irm2 = TINY_STAGES["irm2"]
    nine = replace(irm2, unet=replace(irm2.unet, in_channels=9))
    config = replace(CONFIG, condition="both", global_batch=20)
    batch = next(PositionLoader(tiny_dataset, nine, config, COLUMN).batches())
    paper = _batch(tiny_dataset, "irm2", 0, 20)
    assert batch.condition is not None
    assert paper.condition is not None
    assert torch.equal(batch.condition[:, :3], paper.condition)
    assert torch.equal(batch.y_0, paper.y_0)
    keys = tiny_dataset.keys("train")
    for place in range(20):
        key = keys[row_at(CONFIG.seed, place, len(keys))]
        known = [to_tensor(lq_to_model(tiny_dataset.lq(key, variant), 32))[0] for variant in range(2)]
        assert any(torch.equal(batch.condition[place, 3:], x_0) for x_0 in known)


@pytest.mark.parametrize(("condition", "channels"), [("both", 6), ("sampled", 9), ("resized", 9)])
def test_a_condition_of_other_channels_than_the_network_is_refused(
    tiny_dataset: ShardedDataset, condition: Any, channels: int
) -> None:
    stage = replace(TINY_STAGES["irm2"], unet=replace(TINY_STAGES["irm2"].unet, in_channels=channels))
    with pytest.raises(UsageError, match=f"irm2 has condition={condition} with unet.in_channels={channels};"):
        PositionLoader(tiny_dataset, stage, replace(CONFIG, condition=condition), COLUMN)


def test_a_column_that_would_not_be_read_is_refused(tiny_dataset: ShardedDataset) -> None:
    config = replace(CONFIG, condition="resized")
    with pytest.raises(
        UsageError, match="irm2 has condition=resized and was given the column irm1-test; expected none"
    ):
        PositionLoader(tiny_dataset, TINY_STAGES["irm2"], config, COLUMN)
    with pytest.raises(UsageError, match="tem has condition=resized; expected sampled"):
        PositionLoader(tiny_dataset, TINY_STAGES["tem"], config, None)


@EVERY_STAGE
def test_the_target_of_a_gray_photo_is_gray_or_in_colour(
    tiny_dataset: ShardedDataset, name: StageName, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = ShardedDataset._params
    monkeypatch.setattr(
        ShardedDataset, "_params", lambda self, key, variant: replace(drawn(self, key, variant), gray=True)
    )
    gray = _batch(tiny_dataset, name, 0, 8)
    coloured = _batch(tiny_dataset, name, 0, 8, replace(CONFIG, gray_target="colour"))
    assert torch.equal(gray.y_0, gray.y_0[:, :1].expand_as(gray.y_0))
    assert float((coloured.y_0 - coloured.y_0[:, :1]).abs().amax()) > 0.1
    if gray.condition is not None and coloured.condition is not None:
        assert torch.equal(gray.condition, coloured.condition)
    known = _resized(tiny_dataset, replace(CONFIG, gray_target="colour")).condition
    assert known is not None
    assert torch.equal(known, known[:, :1].expand_as(known))  # IRM-2 sees what a gray photo would give it


@pytest.mark.parametrize(("name", "px", "offered"), [("irm1", 32, 8), ("tem", 64, 32)])
def test_a_dataset_of_another_size_is_refused(
    tiny_dataset: ShardedDataset, name: StageName, px: int, offered: int
) -> None:
    stage = replace(TINY_STAGES[name], unet=replace(TINY_STAGES[name].unet, image_px=px))
    with pytest.raises(UsageError, match=f"{name} works at {px} px, the dataset in .* offers {offered} px"):
        PositionLoader(tiny_dataset, stage, CONFIG, None)


def test_a_dataset_without_training_faces_is_refused(tiny_dataset: ShardedDataset) -> None:
    held_out = [replace(sample, split="test") for sample in tiny_dataset.samples]
    dataset = ShardedDataset(tiny_dataset.root, tiny_dataset.info, held_out, {})
    with pytest.raises(UsageError, match="has no training faces"):
        PositionLoader(dataset, TINY_STAGES["tem"], CONFIG, None)


# Patches


def _corner(whole: Tensor, patch: Tensor) -> tuple[int, int]:
    """Top and left of the only place where an image holds this patch."""
    side, room = patch.shape[-1], whole.shape[-1] - patch.shape[-1] + 1
    places = [
        (y, x)
        for y in range(room)
        for x in range(room)
        if torch.equal(whole[:, y : y + side, x : x + side], patch)
    ]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize("name", ["irm2", "tem"])
def test_a_patch_is_the_same_crop_of_target_condition_and_noise(
    tiny_dataset: ShardedDataset, name: StageName
) -> None:
    whole = _batch(tiny_dataset, name, 0, 20)
    patches = _batch(tiny_dataset, name, 0, 20, replace(CONFIG, patch_px=16, patch_full_share=0.0))
    corners = [_corner(whole.noise[i], patches.noise[i]) for i in range(20)]
    for i, (y, x) in enumerate(corners):
        assert torch.equal(patches.y_0[i], whole.y_0[i, :, y : y + 16, x : x + 16])
        if whole.condition is not None and patches.condition is not None:
            assert torch.equal(patches.condition[i], whole.condition[i, :, y : y + 16, x : x + 16])
    assert torch.equal(patches.t, whole.t)
    assert torch.equal(patches.fraction, whole.fraction)
    assert len(set(corners)) > 15
    assert {0 <= y <= 16 and 0 <= x <= 16 for y, x in corners} == {True}


def test_patches_do_not_depend_on_how_ranks_slice_the_batch(tiny_dataset: ShardedDataset) -> None:
    loader = PositionLoader(tiny_dataset, TINY_STAGES["irm2"], replace(CONFIG, patch_px=16), COLUMN)
    with (
        closing(loader.batches()) as wholes,
        closing(loader.batches(0, 0, 2)) as left,
        closing(loader.batches(0, 1, 2)) as right,
    ):
        for _ in range(6):
            parts = [_fields(next(left)), _fields(next(right))]
            for field, value in _fields(next(wholes)).items():
                assert torch.equal(torch.cat([part[field] for part in parts]), value), field


def test_a_share_of_the_steps_sees_whole_images(tiny_dataset: ShardedDataset) -> None:
    loader = PositionLoader(
        tiny_dataset,
        TINY_STAGES["tem"],
        replace(CONFIG, global_batch=1, patch_px=16, patch_full_share=0.25),
        None,
    )
    with closing(loader.batches()) as batches:
        sides = [next(batches).y_0.shape[-1] for _ in range(200)]
    assert set(sides) == {16, 32}
    assert sides.count(32) == pytest.approx(50, abs=4 * (200 * 0.25 * 0.75) ** 0.5)


def test_patches_of_irm1_are_refused(tiny_dataset: ShardedDataset) -> None:
    with pytest.raises(UsageError, match="irm1 has patch_px=4; expected none"):
        _batch(tiny_dataset, "irm1", 0, 4, replace(CONFIG, patch_px=4))


def test_a_patch_is_the_same_crop_of_what_the_photos_hold(tiny_dataset: ShardedDataset) -> None:
    """The quadrilateral of some faces is the left half of the frame, on the right where they are flipped."""
    half = FaceFrame(0, 1, 1.0, 1.0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 1.0))
    samples = [
        replace(sample, face=half if row % 2 else None) for row, sample in enumerate(tiny_dataset.samples)
    ]
    aligned = ShardedDataset(tiny_dataset.root, tiny_dataset.info, samples, tiny_dataset._columns)
    patched = replace(CONFIG, patch_px=16, patch_full_share=0.0)
    whole = _batch(aligned, "tem", 0, 16).valid
    part = _batch(aligned, "tem", 0, 16, patched).valid
    assert whole is not None
    assert part is not None
    assert whole.shape == (16, 1, 32, 32)
    assert part.shape == (16, 1, 16, 16)
    shares = whole.flatten(1).mean(1)
    assert set(shares.tolist()) == {0.5, 1.0}
    sides = {bool(image[0, :, 0].all()) for image, share in zip(whole, shares, strict=True) if share < 1}
    assert sides == {True, False}
    for image, crop in zip(whole, part, strict=True):
        assert bool((image.unfold(1, 16, 1).unfold(2, 16, 1) == crop[:, None, None]).all((3, 4)).any())
    assert torch.equal(whole[:4], _batch(aligned, "tem", 0, 4).valid)  # type: ignore[arg-type]
