"""Samples of other datasets are reused, only the rest is made, and no byte depends on it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.degradation import PRESETS
from diffbfr.images import CODECS
from pipelines import storage
from pipelines.dataset import reuse, samples
from pipelines.dataset.reuse import sibling_datasets
from pipelines.dataset.samples import ShardConfig
from pipelines.execution.fingerprint import code_fingerprint
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos, picture


class Counter:
    """How often photos were decoded and faces degraded."""

    def __init__(self) -> None:
        self.decoded: list[str] = []
        self.degraded = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter = Counter()
    degrade = samples.degrade

    def count_degraded(*arguments: object) -> bytes:
        counter.degraded += 1
        return degrade(*arguments)  # type: ignore[arg-type]

    def count_decoded(
        function: object,
        config: ShardConfig,
        key: str,
        source: str,
        data: bytes,
        split_by_bytes: bool,
        *,
        returns: type,
    ) -> object:
        counter.decoded.append(source)
        return samples.make_face(config, key, source, data, split_by_bytes)

    monkeypatch.setattr(samples, "degrade", count_degraded)
    monkeypatch.setattr("pipelines.steps.shard.run_sandboxed", count_decoded)
    reuse.open_sample_cache.cache_clear()
    yield counter
    reuse.open_sample_cache.cache_clear()


def _make(photos: Path, root: Path, config: ShardConfig = CONFIG) -> None:
    tasks = plan_shards(open_source(photos), config, str(root), sibling_datasets(str(root)))
    for task in tasks:
        shard(task)
    finish_dataset(str(root), tasks)


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.mark.parametrize(
    ("change", "degraded"),
    [
        ({"shard_size": 3}, 0),
        ({"val_fraction": 0.4}, 0),
        ({"variants": 1}, 0),
        ({"variants": 5}, 36),
        ({"seed": 9}, 24),
        ({"degradation": PRESETS["difface"]}, 24),
        ({"hq_codec": "png"}, 0),
    ],
    ids=["shard-size", "split", "fewer-variants", "more-variants", "seed", "degradation", "codec"],
)
def test_a_changed_recipe_makes_only_what_it_must_and_the_same_bytes(
    photos: Path, tmp_path: Path, counted: Counter, change: dict[str, object], degraded: int
) -> None:
    root = tmp_path / "datasets"
    build(photos, root / "first")
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    build(photos, tmp_path / "alone", config)
    counted.decoded, counted.degraded = [], 0
    _make(photos, root / "second", config)
    assert (counted.decoded, counted.degraded) == ([], degraded)
    assert _files(root / "second") == _files(tmp_path / "alone")


@pytest.mark.parametrize("change", [{"hq_px": 36}, {"lq_px": 16}])
def test_other_sizes_take_nothing_over(
    photos: Path, tmp_path: Path, counted: Counter, change: dict[str, int]
) -> None:
    build(photos, tmp_path / "datasets" / "first")
    counted.decoded = []
    _make(photos, tmp_path / "datasets" / "second", replace(CONFIG, **change))  # type: ignore[arg-type]
    assert len(counted.decoded) == 12


def test_other_versions_of_the_tools_take_nothing_over(
    photos: Path, tmp_path: Path, counted: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(photos, tmp_path / "datasets" / "first")
    counted.decoded = []
    monkeypatch.setattr("pipelines.dataset.shard_plan.version", lambda tool: "99")
    _make(photos, tmp_path / "datasets" / "second")
    assert len(counted.decoded) == 12


def test_other_codecs_take_nothing_over(
    photos: Path, tmp_path: Path, counted: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(photos, tmp_path / "datasets" / "first")
    counted.decoded = []
    monkeypatch.setattr(
        "pipelines.dataset.shard_plan.CODECS", {**CODECS, "webp": {"quality": 75, "method": 4}}
    )
    _make(photos, tmp_path / "datasets" / "second")
    assert len(counted.decoded) == 12


@pytest.mark.parametrize(
    "module",
    [
        "diffbfr.images.decode",
        "diffbfr.images.convert",
        "diffbfr.degradation.recipe",
        "pipelines.dataset.samples",
    ],
)
def test_other_code_takes_nothing_over(
    photos: Path, tmp_path: Path, counted: Counter, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    build(photos, tmp_path / "datasets" / "first")
    counted.decoded = []
    code = dict(code_fingerprint(("pipelines.dataset.samples",)))
    monkeypatch.setattr(
        "pipelines.dataset.shard_plan.code_fingerprint", lambda entries: {**code, module: code[module][::-1]}
    )
    _make(photos, tmp_path / "datasets" / "second")
    assert len(counted.decoded) == 12


def test_code_that_only_carries_samples_is_no_reason_to_make_them_again(
    photos: Path, tmp_path: Path, counted: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(photos, tmp_path / "datasets" / "first")
    counted.decoded = []
    code = dict(code_fingerprint(("pipelines.dataset.samples",)))
    monkeypatch.setattr(
        "pipelines.dataset.shard_plan.code_fingerprint",
        lambda entries: {**code, "diffbfr.shards.loader": "another"},
    )
    _make(photos, tmp_path / "datasets" / "second")
    assert counted.decoded == []


def test_added_and_mended_photos_are_the_only_ones_decoded(
    photos: Path, tmp_path: Path, counted: Counter
) -> None:
    (photos / "broken.png").write_bytes(b"not yet")
    build(photos, tmp_path / "datasets" / "first")
    (photos / "broken.png").write_bytes(picture(70))
    (photos / "00000" / "00001a.png").write_bytes(picture(71))
    (photos / "00000" / "00002.png").rename(photos / "00000" / "renamed.png")
    counted.decoded = []
    _make(photos, tmp_path / "datasets" / "second")
    assert sorted(counted.decoded) == ["00000/00001a.png", "broken.png"]
    assert _files(tmp_path / "datasets" / "second")["dataset.json"] == _fresh(photos, tmp_path)


def _fresh(photos: Path, tmp_path: Path) -> bytes:
    build(photos, tmp_path / "fresh")
    return (tmp_path / "fresh" / "dataset.json").read_bytes()


def test_an_unfinished_dataset_is_taken_over_as_far_as_it_goes(
    photos: Path, tmp_path: Path, counted: Counter
) -> None:
    tasks = plan_shards(open_source(photos), CONFIG, str(tmp_path / "datasets" / "first"))
    shard(tasks[1])
    counted.decoded = []
    _make(photos, tmp_path / "datasets" / "second")
    assert len(counted.decoded) == 7


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "record", "making"])
def test_what_is_damaged_there_is_made_anew(
    photos: Path, tmp_path: Path, counted: Counter, damage: str
) -> None:
    first = tmp_path / "datasets" / "first"
    build(photos, first)
    expected = {
        name: data
        for name, data in _files(first).items()
        if name.startswith(("hq", "lq", "commits", "dataset"))
    }
    tar = first / "lq" / "000001.tar"
    record = {"record": first / "commits" / "000001.json", "making": first / "build.json"}.get(damage, tar)
    data = bytearray(record.read_bytes())
    if damage == "gone":
        tar.unlink()
    elif damage == "cut":
        tar.write_bytes(data[:1024])
    else:
        data[1000 if damage == "flip" else 60] ^= 1
        record.write_bytes(data)
    counted.decoded = []
    _make(photos, tmp_path / "datasets" / "second")
    assert (
        len(counted.decoded)
        in {"flip": (1,), "cut": (5,), "gone": (5,), "record": (5,), "making": (12,)}[damage]
    )
    made = _files(tmp_path / "datasets" / "second")
    assert {name: data for name, data in made.items() if name in expected} == expected


def test_siblings_are_the_datasets_beside_one(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 2)
    for name in ("one", "two", "three"):
        plan_shards(open_source(tmp_path / "photos"), CONFIG, str(tmp_path / "datasets" / name))
    (tmp_path / "datasets" / "other").mkdir()
    assert sibling_datasets(str(tmp_path / "datasets" / "two")) == (
        str(tmp_path / "datasets" / "one"),
        str(tmp_path / "datasets" / "three"),
    )
    assert sibling_datasets(str(tmp_path / "nowhere" / "x")) == ()


@pytest.mark.slow
def test_a_dataset_on_s3_is_taken_over_too(
    photos: Path, tmp_path: Path, counted: Counter, s3_bucket: str
) -> None:
    build(photos, tmp_path / "local")
    storage.put_tree(tmp_path / "local", f"{s3_bucket}/earlier/first")
    counted.decoded = []
    root = f"{s3_bucket}/earlier/second"
    tasks = plan_shards(open_source(photos), replace(CONFIG, shard_size=4), root, sibling_datasets(root))
    for task in tasks:
        shard(task)
    assert finish_dataset(root, tasks).num_samples == 12
    assert counted.decoded == []
