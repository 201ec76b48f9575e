"""The same photos give the same dataset for any order, task count, crash or number of drivers."""

import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffbfr.degradation import PRESETS, apply_target, degrade, draw, sample_seed
from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from diffbfr.images import decode, encode_png, pixel_digest, resize
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.dataset.commits import CommitConflictError
from pipelines.dataset.manifest import open_dataset, read_quarantine
from pipelines.dataset.samples import Face, make_face, split_of
from pipelines.dataset.shard_plan import split_listing
from pipelines.sources import PhotoRef, open_source
from pipelines.steps.shard import ShardConfig, ShardTask, finish_dataset, plan_shards, shard
from tests import forks
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos, picture

ROOT = Path(__file__).parents[3]
FROZEN_CONTENT = "8eb1b3f5bd163813c8896c3803da9616523a10759f1f42b0567fc07e984e96fb"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve good photos in the layout of FFHQ."""
    return make_photos(tmp_path / "photos")


def _tasks(photos: Path | str, root: Path | str, config: ShardConfig = CONFIG) -> list[ShardTask]:
    return plan_shards(open_source(photos), config, str(root))


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_the_dataset_has_the_documented_files_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "data")
    shards = [f"{folder}/{index:06d}" for folder in ("hq32", "hq8", "lq", "commits") for index in range(3)]
    assert sorted(_files(tmp_path / "data")) == sorted(
        [f"{name}.json" if name.startswith("commits") else f"{name}.tar" for name in shards]
        + [f"manifest/columns/{column}.parquet" for column in ("hq32", "hq8", "lq")]
        + [f"plan/{index:06d}.json" for index in range(3)]
        + ["manifest/samples.parquet", "quarantine.parquet", "build.json", "dataset.json"]
    )


def test_two_builds_are_equal_to_the_last_byte(photos: Path, tmp_path: Path) -> None:
    assert build(photos, tmp_path / "one") == build(photos, tmp_path / "two")
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_the_order_of_tasks_does_not_matter(photos: Path, tmp_path: Path) -> None:
    expected = build(photos, tmp_path / "one")
    tasks = _tasks(photos, tmp_path / "two")
    for task in random.Random(0).sample(tasks, len(tasks)):
        shard(task)
    assert finish_dataset(str(tmp_path / "two"), tasks) == expected
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


@pytest.mark.parametrize("shard_size", [1, 7, 100])
def test_the_content_does_not_depend_on_the_shard_size(photos: Path, tmp_path: Path, shard_size: int) -> None:
    expected = build(photos, tmp_path / "one")
    other = build(photos, tmp_path / "two", replace(CONFIG, shard_size=shard_size))
    assert other.content_id == expected.content_id
    assert other.archive_id != expected.archive_id
    assert other.num_shards == -(-12 // shard_size)


def test_a_rerun_reads_no_photo(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.tar")}
    tasks = _tasks(photos, tmp_path / "data")
    for path in photos.rglob("*.png"):
        path.unlink()
    reports = [shard(task) for task in tasks]
    assert [(report.index, report.committed, report.quarantined, report.skipped) for report in reports] == [
        (0, 5, 0, True),
        (1, 5, 0, True),
        (2, 2, 0, True),
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.tar")} == before


class _PowerCutError(Exception):
    pass


@pytest.mark.slow
def test_a_crash_between_any_two_writes_leaves_no_trace(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build(photos, tmp_path / "whole")
    whole = _files(tmp_path / "whole")
    write, put = storage.write_atomic, storage.put_file
    for survives in range(len(whole)):
        left = [survives]

        def spend(left: list[int] = left) -> None:
            if left[0] == 0:
                raise _PowerCutError
            left[0] -= 1

        def write_some(
            uri: storage.Uri, data: bytes, spend: Callable[[], None] = spend, **options: Any
        ) -> bool:
            spend()
            return write(uri, data, **options)

        def put_some(
            source: Path, uri: storage.Uri, spend: Callable[[], None] = spend, **options: Any
        ) -> None:
            spend()
            put(source, uri, **options)

        root = tmp_path / f"cut-{survives}"
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_atomic", write_some)
            patch.setattr(storage, "put_file", put_some)
            with pytest.raises(_PowerCutError):
                build(photos, root)
        assert not (root / "dataset.json").exists()
        with pytest.raises(UsageError, match=r"no dataset\.json"):
            open_dataset(root)
        assert build(photos, root) == expected
        assert _files(root) == whole


_IDENTITY_PROGRAM = """
import sys, tempfile
from pipelines.steps.shard import shard, finish_dataset, plan_shards
from pipelines.sources import open_source
from tests.pipelines.tiny_dataset import CONFIG
import cv2
import numpy as np
with tempfile.TemporaryDirectory() as root:
    tasks = plan_shards(open_source(sys.argv[1]), CONFIG, root)
    for task in tasks:
        shard(task)
    info = finish_dataset(root, tasks)
features = [name for name, on in np._core._multiarray_umath.__cpu_features__.items() if on]
print(cv2.ipp.useIPP(), cv2.getCPUFeaturesLine(), " ".join(features), info.content_id, info.archive_id, sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize("switched_off", ["opencv-ipp", "avx", "numpy-simd", "libjpeg-simd", "everything"])
def test_other_instruction_sets_give_the_same_dataset(
    photos: Path, tmp_path: Path, switched_off: str
) -> None:
    import cv2

    core = np._core._multiarray_umath
    opencv = [
        name.strip("*")
        for name in cv2.getCPUFeaturesLine().split()
        if name.startswith("*") and not name.endswith("?")
    ]
    switches = {
        "opencv-ipp": {"OPENCV_IPP": "disabled"},
        "avx": {"OPENCV_CPU_DISABLE": ",".join(opencv)},
        "numpy-simd": {
            "NPY_DISABLE_CPU_FEATURES": " ".join(
                name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)
            )
        },
        "libjpeg-simd": {"JSIMD_FORCENONE": "1"},
    }
    chosen = switches.get(switched_off) or {
        name: value for each in switches.values() for name, value in each.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", _IDENTITY_PROGRAM, str(photos)],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    ipp, opencv_line, numpy_line, content_id, archive_id = done.stdout.strip().split("|")
    assert ipp == str("OPENCV_IPP" not in chosen and cv2.ipp.useIPP())
    assert (
        not {f"*{name}" for name in opencv} & set(opencv_line.split()) or "OPENCV_CPU_DISABLE" not in chosen
    )
    assert not set(chosen.get("NPY_DISABLE_CPU_FEATURES", "").split()) & set(numpy_line.split())
    expected = build(photos, tmp_path / "here")
    assert (content_id, archive_id) == (expected.content_id, expected.archive_id)


def test_the_content_of_a_dataset_with_default_settings_is_frozen(tmp_path: Path) -> None:
    """Published datasets are compared by this id; if it changes, FORMAT or the recipe's name must change."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        y, x = np.mgrid[0:64, 0:80].astype(np.int64)
        stack = np.stack([3 * x + 11 * number, 4 * y, (x * y + 50 * number) // 20], axis=2) % 256
        Image.fromarray(stack.astype(np.uint8)).save(
            tmp_path / "photos" / f"{number}.bmp"
        )  # no codec, no versions
    config = ShardConfig(64, 16, 2, 3, 0.05, 0.05, 0, PRESETS["paper"])
    assert build(tmp_path / "photos", tmp_path / "data", config).content_id == FROZEN_CONTENT


def test_two_drivers_at_once_leave_one_dataset(photos: Path, tmp_path: Path) -> None:
    expected = build(photos, tmp_path / "one")
    tasks = _tasks(photos, tmp_path / "two")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(shard, tasks * 4))
    assert finish_dataset(str(tmp_path / "two"), tasks) == expected
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


@pytest.mark.slow
def test_two_processes_that_make_the_same_dataset_at_once_both_end_with_it_whole(tmp_path: Path) -> None:
    faces, config = "synthetic:count=24,seed=1,px=48", replace(CONFIG, shard_size=2)
    expected = build(faces, tmp_path / "one", config)
    drivers = [forks.process(build, faces, tmp_path / "two", config) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(300)
        assert driver.exitcode == 0
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert open_dataset(tmp_path / "two").info == expected


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_cut_or_lost_tar_is_noticed_and_made_again(photos: Path, tmp_path: Path, damage: str) -> None:
    build(photos, tmp_path / "data")
    whole = _files(tmp_path / "data")
    tar = tmp_path / "data" / "hq8" / "000001.tar"
    if damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    else:
        tar.unlink()
    tasks = _tasks(photos, tmp_path / "data")
    with pytest.raises(IncompleteError, match=r"shard 1 of 3 .* no valid commit"):
        finish_dataset(str(tmp_path / "data"), tasks)
    assert [shard(task).skipped for task in tasks] == [True, False, True]
    assert _files(tmp_path / "data") == whole


def test_a_missing_shard_is_incomplete(photos: Path, tmp_path: Path) -> None:
    tasks = _tasks(photos, tmp_path / "data")
    shard(tasks[0])
    with pytest.raises(IncompleteError, match="shard 1 of 3"):
        finish_dataset(str(tmp_path / "data"), tasks)


def test_another_recipe_or_a_changed_photo_does_not_pass_for_the_committed_one(
    photos: Path, tmp_path: Path
) -> None:
    build(photos, tmp_path / "data")
    with pytest.raises(CommitConflictError, match="made from other inputs"):
        build(photos, tmp_path / "data", replace(CONFIG, seed=4))
    (photos / "00000" / "00000.png").write_bytes(picture(99))
    with pytest.raises(CommitConflictError, match="made from other inputs"):
        build(photos, tmp_path / "data")


def test_an_attempt_that_makes_other_bytes_cannot_replace_a_committed_tar_and_is_not_told_to_try_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serial: Cluster
) -> None:
    build(photos, tmp_path / "data")
    whole = _files(tmp_path / "data")
    (tmp_path / "data" / "lq" / "000000.tar").unlink()
    monkeypatch.setattr(
        "pipelines.steps.shard.run_sandboxed", lambda function, *arguments, returns: function(*arguments)
    )
    monkeypatch.setattr(
        "pipelines.dataset.samples.degrade", lambda hq, params, spec: degrade(hq, replace(params, q=60), spec)
    )
    with pytest.raises(CommitConflictError, match="committed with other content"):
        serial.map(shard, _tasks(photos, tmp_path / "data"), label="shard")
    now = _files(tmp_path / "data")
    assert {name: data for name, data in whole.items() if name in now} == now


def test_a_worker_holds_its_shard_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_large(
        function: object,
        config: ShardConfig,
        key: str,
        source: str,
        data: bytes,
        encodes_itself: bool,
        *,
        returns: type[Face],
    ) -> Face:
        face = make_face(config, key, source, data, encodes_itself)
        return replace(face, contents=((os.urandom(2_000_000),), (os.urandom(200_000),), face.contents[2]))

    monkeypatch.setattr("pipelines.steps.shard.run_sandboxed", make_large)
    tasks = _tasks(photos, tmp_path / "data", replace(CONFIG, shard_size=60))
    shard(_tasks(photos, tmp_path / "warm")[0])
    tracemalloc.start()
    shard(tasks[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.25 * sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.tar"))


def test_pictures_are_what_the_paper_and_the_recipe_say(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    spec = PRESETS["paper"].at(32)
    for sample in dataset.samples:
        hq = resize(decode((photos / sample.source).read_bytes()).pixels, 32, "bicubic")
        low = resize(hq, 8, "bicubic")
        assert (sample.pixel_sha256, sample.low_pixel_sha256) == (pixel_digest(hq), pixel_digest(low))
        for variant in (0, 1):
            params = draw(spec, sample_seed(dataset.info.recipe_digest, sample.source_sha256, variant))
            assert sample.variants[variant] == params
            assert dataset.lq_bytes(sample.key, variant) == degrade(hq, params, spec)
            np.testing.assert_array_equal(dataset.hq(sample.key, variant), apply_target(hq, params))
            np.testing.assert_array_equal(dataset.hq_low(sample.key, variant), apply_target(low, params))


def test_a_shard_alone_says_what_it_holds(photos: Path, tmp_path: Path) -> None:
    import webdataset as wds

    build(photos, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    columns = {
        column: list(wds.WebDataset(str(tmp_path / "data" / column / "000000.tar"), shardshuffle=False))
        for column in ("lq", "hq32")
    }
    assert (
        [sample["__key__"] for sample in columns["lq"]]
        == [sample["__key__"] for sample in columns["hq32"]]
        == list(dataset.shards[0])
    )
    for lq, hq in zip(columns["lq"], columns["hq32"], strict=True):
        sample = dataset.sample(lq["__key__"])
        assert lq["1.jpg"] == dataset.lq_bytes(sample.key, 1)
        assert pixel_digest(decode(hq["webp"]).pixels) == sample.pixel_sha256
        assert json.loads(lq["json"])["variants"][0]["sigma"] == sample.variants[0].sigma


def test_the_codec_of_the_ground_truths_changes_no_pixel_and_no_content_id(
    photos: Path, tmp_path: Path
) -> None:
    build(photos, tmp_path / "webp")
    build(photos, tmp_path / "png", replace(CONFIG, hq_codec="png"))
    webp, png = open_dataset(tmp_path / "webp"), open_dataset(tmp_path / "png")
    assert (png.column("hq32").names, png.hq_name) == (("png",), "png")
    for sample in webp.samples:
        assert png.read(sample.key, "hq32", "png").startswith(b"\x89PNG")
        assert (png.hq(sample.key, 1) == webp.hq(sample.key, 1)).all()
    assert (png.info.content_id, png.info.recipe_digest) == (webp.info.content_id, webp.info.recipe_digest)
    assert png.info.archive_id != webp.info.archive_id
    with pytest.raises(CommitConflictError, match=r"recipe\.hq_codec webp, expected png"):
        build(photos, tmp_path / "webp", replace(CONFIG, hq_codec="png"))


def test_more_variants_keep_the_first_ones(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "two")
    build(photos, tmp_path / "three", replace(CONFIG, variants=3))
    two, three = open_dataset(tmp_path / "two"), open_dataset(tmp_path / "three")
    for sample in two.samples:
        assert three.sample(sample.key).variants[:2] == sample.variants
        assert three.lq_bytes(sample.key, 1) == two.lq_bytes(sample.key, 1)


def test_a_folder_and_a_zip_of_the_same_photos_have_the_same_content(photos: Path, tmp_path: Path) -> None:
    import shutil

    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    assert build(photos, tmp_path / "one").content_id == build(archive, tmp_path / "two").content_id


def test_a_wide_photo_is_cut_to_its_centred_square() -> None:
    wide = np.zeros((32, 48, 3), np.uint8)
    wide[:, 8:40] = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    face = make_face(CONFIG, "wide", "wide.png", encode_png(wide))
    assert face.sample.pixel_sha256 == pixel_digest(np.ascontiguousarray(wide[:, 8:40]))
    assert (face.sample.width, face.sample.height) == (48, 32)


@pytest.fixture
def bad_photos(photos: Path) -> Path:
    good = picture(50)
    (photos / "bad").mkdir()
    (photos / "bad" / "text.png").write_bytes(b"this is no picture")
    (photos / "bad" / "cut.png").write_bytes(good[: len(good) // 2])
    (photos / "bad" / "small.png").write_bytes(picture(51, width=31, height=64))
    (photos / "bad" / "empty.png").write_bytes(b"")
    (photos / "bad" / "broken.png").symlink_to(photos / "nothing")
    return photos


def test_refused_photos_are_quarantined_with_their_reason_and_counted(
    bad_photos: Path, tmp_path: Path
) -> None:
    info = build(bad_photos, tmp_path / "data")
    rows = {row.source: row for row in read_quarantine(tmp_path / "data")}
    assert {source: (row.stage, row.reason) for source, row in rows.items()} == {
        "bad/text.png": ("decode", "not_an_image"),
        "bad/cut.png": ("decode", "truncated"),
        "bad/small.png": ("decode", "too_small"),
        "bad/empty.png": ("decode", "empty"),
        "bad/broken.png": ("read", "unreadable"),
    }
    assert all(row.message and "\n" not in row.message for row in rows.values())
    assert rows["bad/text.png"].source_bytes == 18
    assert (info.num_samples, info.num_quarantined) == (12, 5)
    assert (
        info.num_train + info.num_val + info.num_test
        == info.num_samples
        == len(open_dataset(tmp_path / "data"))
    )


def test_bad_neighbours_change_nothing_for_a_good_photo(bad_photos: Path, tmp_path: Path) -> None:
    build(bad_photos, tmp_path / "with")
    for path in (bad_photos / "bad").iterdir():
        path.unlink()
    assert (
        build(bad_photos, tmp_path / "without").content_id == open_dataset(tmp_path / "with").info.content_id
    )


def test_a_shard_of_refused_photos_only_is_empty_and_whole(bad_photos: Path, tmp_path: Path) -> None:
    build(bad_photos, tmp_path / "data", replace(CONFIG, shard_size=1))
    dataset = open_dataset(tmp_path / "data")
    assert sum(keys == () for keys in dataset.shards) == 5
    assert len(dataset.shards) == 17


def test_more_refused_photos_than_allowed_end_the_build_after_the_table_is_written(
    bad_photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        QuarantineError, match=r"5 of 17 photos were refused.*expected at most 4.*quarantine\.parquet"
    ):
        build(bad_photos, tmp_path / "data", max_bad=4)
    assert len(read_quarantine(tmp_path / "data")) == 5
    assert not (tmp_path / "data" / "dataset.json").exists()
    assert build(bad_photos, tmp_path / "data", max_bad=5).num_quarantined == 5


def test_a_folder_of_refused_photos_only_never_becomes_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no")
    with pytest.raises(QuarantineError, match="1 of 1 photos"):
        build(tmp_path / "photos", tmp_path / "data", max_bad=10)


def test_equal_photos_are_never_in_two_splits_and_adding_photos_moves_none(
    photos: Path, tmp_path: Path
) -> None:
    build(photos, tmp_path / "one")
    before = {sample.source: sample.split for sample in open_dataset(tmp_path / "one").samples}
    assert len(set(before.values())) > 1
    for number in range(12):
        (photos / f"copy-{number}.png").write_bytes(picture(number))
    build(photos, tmp_path / "two")
    splits: dict[str, set[str]] = {}
    after = open_dataset(tmp_path / "two").samples
    for sample in after:
        splits.setdefault(sample.source_sha256, set()).add(sample.split)
    assert len(after) == 24
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())
    assert {sample.source: sample.split for sample in after if sample.source in before} == before


def test_an_evaluation_set_holds_every_photo_in_its_test_split(photos: Path, tmp_path: Path) -> None:
    info = build(photos, tmp_path / "data", replace(CONFIG, val_fraction=0.0, test_fraction=1.0, variants=1))
    assert (info.num_train, info.num_val, info.num_test) == (0, 0, 12)
    with pytest.raises(UsageError, match="none of 12 photos fell into the train split"):
        build(
            photos,
            tmp_path / "unlucky",
            replace(CONFIG, val_fraction=0.0, test_fraction=0.9999999, variants=1),
        )


def test_split_fractions_are_kept_on_average() -> None:
    found = [split_of(CONFIG, f"{number:064x}") for number in range(4000)]
    for split, share in (("val", 0.15), ("test", 0.15), ("train", 0.7)):
        assert abs(found.count(split) - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
    assert {
        split_of(replace(CONFIG, val_fraction=0.0, test_fraction=0.0), f"{number:064x}")
        for number in range(100)
    } == {"train"}


def _keys(names: list[str]) -> list[str]:
    """The key of each name."""
    key_of = {
        ref.name: key
        for part in split_listing((PhotoRef("", name, 0, "") for name in names), 3)
        for key, ref in part
    }
    return [key_of[name] for name in names]


def test_keys_are_stems_and_collisions_get_a_hash_of_the_whole_name() -> None:
    names = [
        "00000/00000.png",
        "00000/00001.png",
        "A b.png",
        "a-B.jpg",
        "été/ü.png",
        "x" * 200 + ".png",
        "a/..png",
    ]
    keys = _keys(names)
    assert keys[:2] == ["00000", "00001"]
    assert keys[2].startswith("a-b-")
    assert keys[3].startswith("a-b-")
    assert keys[4].startswith("photo-")
    assert len(set(keys)) == len(keys)
    assert all(
        set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and 0 < len(key) <= 80 for key in keys
    )
    shuffled = random.Random(1).sample(names, len(names))
    assert dict(zip(shuffled, _keys(shuffled), strict=True)) == dict(zip(names, keys, strict=True))


def test_a_photo_that_is_named_like_another_ones_hashed_key_stays_apart() -> None:
    hashed = _keys(["1/a.png", "2/a.png"])[0]
    keys = _keys(["1/a.png", "2/a.png", f"{hashed}.png"])
    assert len(set(keys)) == 3
    assert keys[2] == hashed


def test_a_name_listed_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"names 'a\.png' 2 times"):
        _keys(["a.png", "a.png"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lq_px": 32}, "lq_px < hq_px"),
        ({"variants": 0}, "at least 1"),
        ({"shard_size": 0}, "at least 1"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "come to 1 at most"),
        ({"val_fraction": -0.1}, "come to 1 at most"),
    ],
)
def test_an_impossible_configuration_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_what_does_not_change_pixels_does_not_change_the_recipe() -> None:
    same = replace(CONFIG, variants=9, shard_size=1, val_fraction=0.0, test_fraction=0.5)
    assert same.recipe_digest == CONFIG.recipe_digest
    for change in (
        {"hq_px": 64},
        {"lq_px": 16},
        {"seed": 0},
        {"degradation": replace(PRESETS["paper"], q=(1, 2))},
    ):
        assert replace(CONFIG, **change).recipe_digest != CONFIG.recipe_digest  # type: ignore[arg-type]


@pytest.mark.slow
def test_photos_and_dataset_on_s3_give_the_same_content(
    photos: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    expected = build(photos, tmp_path / "local")
    remote_photos, root = (f"{s3_bucket}/{tmp_path.name}/{name}" for name in ("photos", "data"))
    storage.put_tree(photos, remote_photos)
    remote = build(remote_photos, root)
    assert remote.content_id == expected.content_id
    assert remote.archive_id == expected.archive_id
    dataset = open_dataset(root)
    key = dataset.keys("train")[0]
    np.testing.assert_array_equal(dataset.hq(key, 1), open_dataset(tmp_path / "local").hq(key, 1))
    assert all(shard(task).skipped for task in _tasks(remote_photos, root))


def test_every_orientation_of_a_photo_gives_the_same_ground_truth() -> None:
    upright = Image.open(io.BytesIO(picture(5)))
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    expected = make_face(CONFIG, "a", "a.png", picture(5)).sample.pixel_sha256
    assert make_face(CONFIG, "a", "a.png", turned.getvalue()).sample.pixel_sha256 == expected


@pytest.mark.cluster
def test_workers_of_a_cluster_make_what_one_process_makes(
    photos: Path, tmp_path: Path, cluster: Cluster, serial: Cluster
) -> None:
    reports = {}
    for name, workers in (("one", serial), ("two", cluster)):
        tasks = _tasks(photos, tmp_path / name, replace(CONFIG, shard_size=3))
        reports[name] = [replace(report, seconds=0.0) for report in workers.map(shard, tasks, label="shard")]
        finish_dataset(str(tmp_path / name), tasks)
    assert reports["one"] == reports["two"]
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
