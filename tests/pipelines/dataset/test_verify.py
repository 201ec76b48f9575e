"""Whatever is damaged is found, at the level that reads it, and the problem says where."""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from diffbfr.degradation import PRESETS, DegradationSpec, degrade
from diffbfr.images import decode, encode_png, encode_webp
from diffbfr.shards import ColumnInfo, ShardDamagedError, ShardedDataset
from diffbfr.shards.tar import build_tar
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.dataset import commits
from pipelines.dataset.columns import finish_column, write_column_shard
from pipelines.dataset.commits import Commit
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.samples import make_face
from pipelines.dataset.verify import LEVELS, plan_verification, verify_shard
from pipelines.dataset.verify_records import DatasetProblem, verify_records
from tests.counts import count
from tests.pipelines.tiny_dataset import make_dataset, make_photos

COLUMN = "irm1-0123456789ab"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve faces in three shards, with one appended column."""
    root = make_dataset(tmp_path_factory.mktemp("verify"))
    dataset = open_dataset(root)
    tasks = tuple(f"task-{index}" for index in range(len(dataset.shards)))
    for index, keys in enumerate(dataset.shards):
        pictures = [
            (key, f"{v}.png", encode_png(decode(dataset.lq_bytes(key, v)).pixels // 2))
            for key in keys
            for v in (0, 1)
        ]
        write_column_shard(str(root), COLUMN, index, tasks[index], pictures)
    finish_column(str(root), ColumnInfo(COLUMN, ("0.png", "1.png"), "m" * 64), tasks)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def problems(root: Path, level: int) -> list[DatasetProblem]:
    return [
        *verify_records(str(root)),
        *(found for task in plan_verification(str(root), level) for found in verify_shard(task).problems),
    ]


@pytest.mark.parametrize("level", range(5))
def test_a_whole_dataset_passes_every_level_and_is_not_touched(root: Path, level: int) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert problems(root, level) == []
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_reports_count_what_was_looked_at(root: Path) -> None:
    reports = {
        level: [verify_shard(task) for task in plan_verification(str(root), level)] for level in range(5)
    }
    assert [sum(report.samples for report in reports[level]) for level in range(5)] == [12] * 5
    assert [sum(report.low_quality_faces for report in reports[level]) for level in range(5)] == [
        0,
        0,
        0,
        0,
        24,
    ]
    tars = sum(path.stat().st_size for path in root.rglob("*.tar"))
    assert [sum(report.num_bytes for report in reports[level]) for level in range(5)] == [
        0,
        0,
        tars,
        tars,
        tars,
    ]
    assert len(LEVELS) == 5


@pytest.mark.cluster
def test_workers_find_what_one_process_finds(root: Path, cluster: Cluster, serial: Cluster) -> None:
    tar = root / "lq" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    found = {}
    for name, workers in (("one", serial), ("two", cluster)):
        found[name] = [
            report.problems
            for report in workers.map(verify_shard, plan_verification(str(root), 4), label="verify")
        ]
    assert found["one"] == found["two"]
    assert [len(each) for each in found["one"]] == [0, 1, 0]


@pytest.mark.parametrize(
    "tar", ["hq32/000000.tar", "hq8/000001.tar", "lq/000002.tar", f"{COLUMN}/000001.tar"]
)
@pytest.mark.parametrize(("damage", "level"), [("gone", 1), ("cut", 1), ("flip", 2)])
def test_damage_is_found_by_the_level_that_reads_it_and_by_none_below(
    root: Path, tar: str, damage: str, level: int
) -> None:
    place = root / tar
    data = bytearray(place.read_bytes())
    if damage == "gone":
        place.unlink()
    elif damage == "cut":
        place.write_bytes(data[:-512])
    else:
        data[600] ^= 4
        place.write_bytes(data)
    assert problems(root, level - 1) == []
    for deeper in range(level, 5):
        found = problems(root, deeper)
        assert [problem.path for problem in found] == [tar]
        assert "run the same command again" in found[0].message


def test_a_flipped_bit_names_the_sample_that_it_hit(root: Path) -> None:
    dataset = open_dataset(root)
    key = dataset.shards[1][2]
    jpeg = dataset.lq_bytes(key, 1)
    tar = root / "lq" / "000001.tar"
    whole = tar.read_bytes()
    data = bytearray(whole)
    data[whole.index(jpeg) + len(jpeg) // 2] ^= 1
    tar.write_bytes(data)
    (problem,) = problems(root, 2)
    assert f"bytes differ in {key}.1.jpg; expected sha256" in problem.message
    header = bytearray(whole)
    header[3] ^= 1
    tar.write_bytes(header)
    assert "bytes differ between the members" in problems(root, 2)[0].message


def _lines(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.suffix in (".json", ".parquet"))


@pytest.mark.slow
def test_a_damaged_record_or_table_is_found_at_level_0_and_before_a_sample_is_read(root: Path) -> None:
    rng = random.Random(5)
    for path in _lines(root):
        whole = path.read_bytes()
        for _ in range(8):
            damaged = bytearray(whole)
            while bytes(damaged).split() == whole.split():  # a space that became another space is no damage
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            relative = path.relative_to(root)
            if relative.name in ("dataset.json", "column.json"):
                with pytest.raises(ShardDamagedError, match="is damaged"):
                    problems(root, 0)
            else:
                assert problems(root, 0), relative
            only_made_with = path.parent.name in ("commits", "plan") or relative.name in (
                "quarantine.parquet",
                "build.json",
            )
            if not only_made_with:  # the rest is what readers need
                with pytest.raises(ShardDamagedError):
                    assert open_dataset(root).columns
        path.write_bytes(whole)
    assert problems(root, 0) == []


def test_a_missing_record_is_found(root: Path) -> None:
    (root / "commits" / "000001.json").unlink()
    (root / COLUMN / "commits" / "000002.json").unlink()
    (root / "manifest" / "columns" / "lq.parquet").unlink()
    assert {problem.path for problem in problems(root, 0)} == {
        "commits/000001.json",
        "commits/000002.json",
        "manifest/columns/lq.parquet",
    }


def _forge(root: Path, index: int, column: int, change: dict[str, bytes]) -> None:
    """Replace members of one shard and make every record and table fit, as a writer with a bug would."""
    old = commits.read(str(root), "commits", index)
    assert old is not None
    record = old.tars[column]
    whole = (root / record.tar).read_bytes()
    tar = commits.StagedTar(record.members[0].column, index)
    for m in record.members:
        tar.add(m.key, m.name, change.get(f"{m.key}.{m.name}", whole[m.offset : m.offset + m.length]))
    draft = tar.finish()
    tars = tuple(draft.info if place == column else other for place, other in enumerate(old.tars))
    (root / "commits" / f"{index:06d}.json").unlink()
    commits.publish(str(root), "commits", replace(old, tars=tars), [draft])


def test_a_writer_that_stored_other_pixels_is_found_at_level_3_and_one_that_degraded_otherwise_at_level_4(
    root: Path,
) -> None:
    dataset = open_dataset(root)
    config = plan_verification(str(root), 4)[0].config
    key = dataset.shards[0][0]
    sample = dataset.sample(key)
    hq = decode(dataset.read(key, "hq32", "webp")).pixels
    _forge(
        root,
        0,
        2,
        {f"{key}.0.jpg": degrade(hq, replace(sample.variants[0], q=sample.variants[0].q - 1), config.spec)},
    )
    at_4 = [problem for problem in problems(root, 4) if problem.path.startswith("lq/")]
    assert [problem.path for problem in at_4] == [f"lq/{key}.0.jpg"]
    assert "not what Eq. 13 makes" in at_4[0].message
    assert not [problem for problem in problems(root, 3) if problem.path.startswith("lq/")]
    other = hq.copy()
    other[0, 0, 0] ^= 1
    _forge(root, 0, 0, {f"{key}.webp": encode_webp(other)})
    assert not [problem for problem in problems(root, 2) if problem.path.startswith("hq32/")]
    assert f"hq32/{key}" in [problem.path for problem in problems(root, 3)]
    _forge(root, 0, 0, {f"{key}.webp": b"no picture"})
    assert "cannot be decoded" in next(f.message for f in problems(root, 3) if f.path == f"hq32/{key}.webp")
    _forge(root, 0, 2, {f"{key}.json": b"{}"})
    assert "not the sample's row" in next(f.message for f in problems(root, 3) if f.path == f"lq/{key}.json")


def test_draws_that_the_seed_does_not_give_are_found_at_level_4(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.dataset import samples

    drawn = samples.draw
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.steps.shard.run_sandboxed", lambda function, *arguments, returns: function(*arguments)
        )
        patch.setattr(samples, "draw", lambda spec, seed: replace(drawn(spec, seed), sigma=1.0))
        root = make_dataset(tmp_path)
    assert problems(root, 3) == []
    assert (
        len([problem for problem in problems(root, 4) if "not those that its seed draws" in problem.message])
        == 24
    )


def _flips(root: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Random bits of all tars, each byte as likely as any other."""
    rng = random.Random(seed)
    tars = sorted(root.rglob("*.tar"))
    for _ in range(count):
        (tar,) = rng.choices(tars, [path.stat().st_size for path in tars])
        yield tar, rng.randrange(tar.stat().st_size * 8)


def _count_found(root: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Flip `count` bits, one at a time; count those that level 2 finds. A reader gets no changed member."""
    dataset = open_dataset(root)
    spans = _spans(dataset)
    tasks = plan_verification(str(root), 2)
    monkeypatch.setattr(
        "pipelines.dataset.verify_records.commits.read", cache(commits.read)
    )  # the records stay as they are
    found = 0
    for tar, bit in _flips(root, count, seed=count):
        with tar.open("r+b") as file:
            _flip(file.fileno(), bit)
            relative = tar.relative_to(root).as_posix()
            hit = [member for first, end, *member in spans[relative] if first <= bit // 8 < end]
            for key, column, name in hit:
                with pytest.raises(ShardDamagedError):
                    dataset.read(key, column, name)
            report = verify_shard(tasks[int(tar.stem)])
            found += [problem.path for problem in report.problems] == [relative]
            _flip(file.fileno(), bit)
    return found


def _spans(dataset: ShardedDataset) -> dict[str, list[tuple[int, int, str, str, str]]]:
    """Where the members lie, by tar, from the shards' own records."""
    spans: dict[str, list[tuple[int, int, str, str, str]]] = {}
    folders = ["commits", *(f"{column.column}/commits" for column in dataset.columns if column.model_digest)]
    for folder in folders:
        for index in range(len(dataset.shards)):
            commit = commits.read(str(dataset.root), folder, index)
            assert isinstance(commit, Commit)
            for tar in commit.tars:
                spans[tar.tar] = [
                    (m.offset, m.offset + m.length, m.key, m.column, m.name) for m in tar.members
                ]
    return spans


def _flip(handle: int, bit: int) -> None:
    os.pwrite(handle, bytes([os.pread(handle, 1, bit // 8)[0] ^ 1 << bit % 8]), bit // 8)


def test_all_of_many_flipped_bits_are_found_and_no_reader_gets_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flips = count(500, 10_000)
    assert _count_found(root, flips, monkeypatch) == flips


def test_every_512_byte_cut_of_every_shard_is_found_and_no_reader_gets_a_shorter_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(root)
    spans = _spans(dataset)
    tasks = plan_verification(str(root), 1)
    monkeypatch.setattr("pipelines.dataset.verify_records.commits.read", cache(commits.read))
    cuts = 0
    for tar in sorted(root.rglob("*.tar")):
        whole = tar.read_bytes()
        relative = tar.relative_to(root).as_posix()
        for end in range(0, len(whole), 512):
            tar.write_bytes(whole[:end])
            assert [problem.path for problem in verify_shard(tasks[int(tar.stem)]).problems] == [relative]
            lost = [member for _, last, *member in spans[relative] if last > end]
            if lost:
                with pytest.raises(ShardDamagedError, match="ends early"):
                    dataset.read(*lost[-1])
            cuts += 1
        tar.write_bytes(whole)
    monkeypatch.undo()
    assert cuts > 300
    assert problems(root, 2) == []


def test_a_dataset_on_s3_is_verified_like_one_on_disk(made: Path, s3_bucket: str) -> None:
    remote = f"{s3_bucket}/verify"
    storage.put_tree(made, remote)
    tasks = plan_verification(remote, 4)
    assert [
        *verify_records(remote),
        *(found for task in tasks for found in verify_shard(task).problems),
    ] == []
    storage.write_atomic(f"{remote}/hq8/000000.tar", build_tar([]).data)
    assert [found.path for task in tasks for found in verify_shard(task).problems] == ["hq8/000000.tar"]


def test_a_face_made_again_from_its_photo_is_the_one_in_the_shard(root: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    dataset = open_dataset(root)
    config = plan_verification(str(root), 4)[0].config
    for sample in dataset.samples[:3]:
        face = make_face(config, sample.key, sample.source, (photos / sample.source).read_bytes())
        assert face.sample == sample
        assert face.contents[2][0] == dataset.lq_bytes(sample.key, 0)


@pytest.mark.parametrize(
    "degradation",
    [
        replace(PRESETS["difface"], arithmetic="float"),
        pytest.param(
            replace(PRESETS["gpen"], before='{"__class_fullname__":"ISONoise","p":0.7}'),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["float", "before"],
)
def test_a_dataset_of_another_recipe_is_made_again_byte_by_byte_where_it_was_made(
    tmp_path: Path, degradation: DegradationSpec
) -> None:
    root = make_dataset(tmp_path, degradation=degradation)
    config = plan_verification(str(root), 4)[0].config
    assert config.degradation == degradation.at(32)
    assert problems(root, 4) == []
    assert open_dataset(root).info.recipe_digest == config.recipe_digest
    paper = make_dataset(tmp_path / "paper")
    assert open_dataset(paper).info.content_id != open_dataset(root).info.content_id
