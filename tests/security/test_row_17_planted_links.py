"""Links in a folder that a run goes on in are refused, wherever they lie; nothing is written through them."""

import os
import shutil
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.execution.artifact_store import ArtifactStore, Identity
from pipelines.execution.dag import Step, StepOutput
from pipelines.execution.runner import run_steps
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.flows.restore_page import write_restore_page
from pipelines.flows.restore_verify import verify_restoration
from pipelines.storage import UnsafePlaceError
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face

ALIGNED = RestoreOptions(aligned=True)


@pytest.fixture
def output(tmp_path: Path, serial: Cluster) -> Path:
    """A finished restoration, in which a photo more is to be restored."""
    (tmp_path / "in/album").mkdir(parents=True)
    (tmp_path / "in/album/0.png").write_bytes(encode(face(0, 24), "PNG"))
    write_restore_page(
        restore_archive(str(tmp_path / "in"), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    )
    (tmp_path / "in/album/1.png").write_bytes(encode(face(1, 24), "PNG"))
    return tmp_path / "out"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("place", "to_file"),
    [
        ("album", False),
        (".diffbfr", False),
        (".diffbfr/commits", False),
        ("other/deep/link", False),
        ("album/1.png", True),
        ("album/0.png", True),
        ("ledger.parquet", True),
        ("restore.json", True),
        ("report.html", True),
        (".diffbfr/request.json", True),
        (".diffbfr/commits/0.json", True),
        (".diffbfr/damaged.json", True),
        (".diffbfr/page.json", True),
    ],
)
@pytest.mark.parametrize("command", ["restore", "verify"])
def test_a_link_in_an_output_is_refused_and_not_written_through(
    output: Path, victim: Path, serial: Cluster, place: str, to_file: bool, command: str
) -> None:
    link = output / place
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        shutil.copytree(link, victim, dirs_exist_ok=True)
        shutil.rmtree(link)
    elif link.exists():
        link.unlink()
    link.symlink_to(victim / "letter.txt" if to_file else victim)
    before = tree(victim)

    def run() -> object:
        if command == "verify":
            return verify_restoration(str(output), serial)
        return restore_archive(str(output.parent / "in"), str(output), FakeModel(), ALIGNED, serial)

    name = place.split("/")[-1]
    with pytest.raises(UnsafePlaceError, match=f"{name} is a link; expected .*; remove the link"):
        run()
    assert tree(victim) == before


def test_a_broken_link_is_refused_too(output: Path, serial: Cluster) -> None:
    (output / "album/1.png").symlink_to(output.parent / "made by the restore")
    with pytest.raises(UnsafePlaceError, match="is a link"):
        restore_archive(str(output.parent / "in"), str(output), FakeModel(), ALIGNED, serial)
    assert not (output.parent / "made by the restore").exists()


def test_an_output_that_the_user_reaches_by_a_link_is_fine(
    output: Path, serial: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "shortcut").symlink_to(output)
    report = restore_archive(str(tmp_path / "in"), str(tmp_path / "shortcut"), FakeModel(), ALIGNED, serial)
    assert report.num_worked == 1


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/file"])
def test_no_write_below_a_folder_follows_or_replaces_a_link(tmp_path: Path, victim: Path, link: str) -> None:
    root = tmp_path / "root"
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(victim / "letter.txt" if link.endswith("file") else victim)
    place, before = root / "a/b/file", tree(victim)

    for create_only in (False, True):
        with pytest.raises(UnsafePlaceError, match="is a link"):
            storage.write_atomic(place, b"new", create_only=create_only, within=root)
    (tmp_path / "source").write_bytes(b"new")
    with pytest.raises(UnsafePlaceError, match="is a link"):
        storage.put_file(tmp_path / "source", str(place), within=root)
    with pytest.raises(UnsafePlaceError, match="is a link"):
        storage.remove_file(place, within=root)
    assert tree(victim) == before


def test_a_write_within_a_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "root/../x", tmp_path / "x"):
        with pytest.raises(UnsafePlaceError, match="does not lie in"):
            storage.write_atomic(place, b"new", within=tmp_path / "root")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("place", ["artifacts", "artifacts/shard", "own", "own/file", "own/deep/folder"])
def test_a_step_of_a_run_writes_through_no_link_below_its_root(
    tmp_path: Path, victim: Path, place: str
) -> None:
    store = ArtifactStore(str(tmp_path / "root"))
    identity = Identity("shard", {}, {}, {})
    link = (
        Path(store.artifact_dir(identity), place[4:])
        if place.startswith("own")
        else tmp_path / "root" / place
    )
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim / "letter.txt" if place.endswith("file") else victim)
    before = tree(victim)

    def build(folder: str) -> StepOutput:
        storage.write_atomic(storage.join(folder, "file"), b"written")
        return StepOutput({"file": "file"}, {})

    step = Step(identity=identity, build=build, estimate=str, share=lambda: 1.0)
    with pytest.raises(UsageError, match="is a link"):
        run_steps([step], store)
    assert tree(victim) == before


def test_a_hard_link_is_replaced_and_its_other_name_keeps_its_bytes(
    output: Path, serial: Cluster, victim: Path
) -> None:
    (output / "ledger.parquet").unlink()
    os.link(victim / "letter.txt", output / "ledger.parquet")
    restore_archive(str(output.parent / "in"), str(output), FakeModel(), ALIGNED, serial)
    assert tree(victim) == {"letter.txt": b"mine"}
