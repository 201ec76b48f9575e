"""The chain from a cascade back to the photos, and every link that differs from its record."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.flows.lineage import Link, format_chain, trace
from pipelines.registry import get_version
from pipelines.tracking.connection import open_registry
from tests.pipelines.flows.conftest import Place, flip
from tests.pipelines.flows.test_cache_soundness import train_otherwise

pytestmark = pytest.mark.slow

CASCADE = "diffbfr-cascade@candidate"


def chain(root: Path) -> Link:
    return trace(open_registry(str(root)), ArtifactStore(str(root)), CASCADE)


def broken(link: Link) -> dict[str, tuple[str, ...]]:
    """First word of the title -> problems, for every link that has some."""
    return {it.title.split()[0]: it.problems for it in link.all() if it.problems}


def silently(change: Callable[[Path], None], file: Path) -> None:
    """Change a file and give it its times back, as a failing disk does."""
    times = file.stat()
    change(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_chain_goes_back_to_the_photos_with_a_digest_a_link(finished: Place) -> None:
    link = chain(finished.root)
    steps = {it.title.split()[0]: it for it in link.all()}
    assert next(iter(steps)) == "diffbfr-cascade@1"
    stages = {f"diffbfr-{stage}@1" for stage in ("irm1", "irm2", "tem")}
    artifacts = {"cascade", "train-irm1", "train-irm2", "train-tem", "condition-irm1", "shard"}
    assert set(steps) == {"diffbfr-cascade@1", "photos"} | stages | artifacts
    assert all(len(it.digest) == 64 for it in steps.values())
    assert broken(link) == {}
    store = ArtifactStore(str(finished.root))
    assert steps["cascade"].digest == steps["diffbfr-cascade@1"].digest
    assert steps["shard"].digest == store.latest("shard").metadata["content_id"]  # type: ignore[union-attr]
    assert str(finished.photos) in steps["photos"].title
    text = format_chain(link)
    assert text.splitlines()[0].startswith("diffbfr-cascade@1  ")
    assert text.count(" 24 samples") == 1
    assert "!" not in text


DAMAGE: dict[str, tuple[Callable[[Place], None], str, str]] = {
    "a tar rots": (
        lambda p: silently(flip, p.output("shard", "lq/000000.tar")),
        "shard",
        "output lq/000000.tar has the digest",
    ),
    "a column rots": (
        lambda p: silently(flip, p.output("shard", "irm1-*/*.tar")),
        "condition-irm1",
        "has the digest",
    ),
    "a tar is cut": (
        lambda p: os.truncate(p.output("shard", "hq32/000000.tar"), 512),
        "shard",
        "has 512 bytes, recorded",
    ),
    "weights rot": (
        lambda p: silently(flip, p.output("train-tem", "tem.safetensors")),
        "train-tem",
        "output weights has the digest",
    ),
    "a cascade's copy rots": (
        lambda p: silently(flip, p.output("cascade", "irm2.safetensors")),
        "cascade",
        "output irm2.safetensors has",
    ),
    "a file is gone": (
        lambda p: p.output("cascade", "cascade.json").unlink(),
        "cascade",
        "output record is missing",
    ),
    "a stage was trained again": (
        train_otherwise,
        "condition-irm1",
        "input irm1 was rebuilt with other content",
    ),
    "a record is gone": (
        lambda p: p.output("shard", "record.json").unlink(),
        "dataset",
        "its record is gone",
    ),
    "a photo changed": (
        lambda p: flip(min(p.photos.rglob("*.png"))),
        "photos",
        "their listing has the digest",
    ),
    "the photos are gone": (lambda p: shutil.rmtree(p.photos), "photos", "they cannot be listed"),
}


@pytest.fixture
def moved(finished: Place, tmp_path: Path) -> Iterator[Place]:
    """The finished run, which a test damages and the fixture restores, except its database.

    It cannot be a copy: records and registry hold absolute paths.
    """
    folders = (finished.root / "artifacts", finished.root / "mlartifacts", finished.photos)
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    yield finished
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / folder.name, folder)


@pytest.mark.parametrize("name", DAMAGE)
def test_the_damaged_link_is_named(name: str, moved: Place) -> None:
    damage, title, problem = DAMAGE[name]
    damage(moved)
    found = broken(chain(moved.root))
    assert title in found
    assert any(problem in words for words in found[title])
    if name == "a stage was trained again":
        assert set(found) == {"condition-irm1", "cascade", "diffbfr-irm1@1"}
        assert "its irm1.safetensors is not that of train-irm1" in found["diffbfr-irm1@1"][0]
    else:
        assert set(found) == {title}


def test_a_photo_that_changed_and_kept_its_size_and_time_is_found_when_photos_are_read(moved: Place) -> None:
    registry, store = open_registry(str(moved.root)), ArtifactStore(str(moved.root))
    assert broken(trace(registry, store, CASCADE, deep=True)) == {}
    photo = min(moved.photos.rglob("*.png"))
    silently(flip, photo)
    assert broken(chain(moved.root)) == {}
    told = broken(trace(registry, store, CASCADE, deep=True))
    name = photo.relative_to(moved.photos).as_posix()
    assert told == {"photos": (f"1 photos are not those that the dataset was made from (first: {name})",)}


def test_damage_in_the_registry_is_named(moved: Place, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copy(moved.root / "mlflow.db", tmp_path / "copy")
    registry = open_registry(str(tmp_path / "copy"))
    flip(Path(get_version(registry, "diffbfr-tem@1").source.removeprefix("file://"), "tem.safetensors"))
    registry.client.delete_model_version("diffbfr-irm1", "1")
    registry.client.set_model_version_tag("diffbfr-irm2", "1", "data.content_id", "f" * 64)
    found = broken(trace(registry, ArtifactStore(str(moved.root)), CASCADE))
    assert set(found) == {"diffbfr-tem@1", "diffbfr-cascade@1", "diffbfr-irm2@1"}
    assert "registered was" in found["diffbfr-tem@1"][0]
    assert found["diffbfr-cascade@1"] == ("its irm1 diffbfr-irm1@1 is gone or another one",)
    assert found["diffbfr-irm2@1"][0].startswith("it names the data ffffffffffff")


def test_the_command_ends_with_4_when_a_link_is_broken(
    moved: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", "lineage", CASCADE, "--root", str(moved.root)])
    with pytest.raises(SystemExit) as ended:
        main()
    whole = capsys.readouterr().out
    assert ended.value.code == 0
    flip(moved.output("train-irm1", "irm1.safetensors"))
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    assert ended.value.code == 4
    assert [line.strip()[:30] for line in out.splitlines() if line not in whole] == [
        "! output weights has the digest"[:30]
    ]
    assert "1 links of diffbfr-cascade@candidate are not what was recorded (first: train-irm1 " in error
