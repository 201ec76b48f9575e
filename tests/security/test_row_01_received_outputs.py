"""An output folder of somebody else: what its records name is never removed or read outside of it."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffbfr.errors import UsageError
from pipelines.cluster import Cluster
from pipelines.execution.artifact_store import ArtifactStore, Identity
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.restoration.journal import read_units
from pipelines.storage import UnsafePlaceError
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face

ALIGNED = RestoreOptions(aligned=True)
Record = dict[str, Any]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A tree beside the output."""
    folder = tmp_path / "victim"
    (folder / "deep").mkdir(parents=True)
    (folder / "letter.txt").write_text("mine")
    (folder / "deep" / "photo.png").write_bytes(b"mine too")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sealed(record: Record) -> str:
    """The record with a checksum that fits, as a forger makes it."""
    plain = {name: value for name, value in record.items() if name != "seal"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return json.dumps({**plain, "seal": hashlib.sha256(text.encode()).hexdigest()})


def forge(output: Path, change: Callable[[Record], None], name: str = "") -> None:
    """Plant a record beside the real ones, of the first input, so changed that its input must be done again."""
    real = min((output / ".diffbfr/commits").iterdir())
    record = json.loads(real.read_text())
    outcome = record["outcomes"][0]
    outcome["fingerprint"] = "another"
    change(outcome)
    record["outcomes"] = [outcome]
    (real.parent / (name or "f" * 20 + ".json")).write_text(sealed(record))


def restore(photos: Path, serial: Cluster) -> Path:
    output = photos.parent / "out"
    restore_archive(str(photos), str(output), FakeModel(), ALIGNED, serial)
    return output


@pytest.mark.parametrize(
    "kind", ["../victim", "../victim/letter.txt", "absolute", "a/../../victim", "..", ".", "/", "a//b"]
)
@pytest.mark.parametrize("field", ["output", "others"])
@pytest.mark.parametrize("form", ["sealed", "plain"])
def test_a_planted_name_removes_nothing_outside(
    photos: Path,
    victim: Path,
    serial: Cluster,
    kind: str,
    field: str,
    form: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = restore(photos, serial)
    name = str(victim) if kind == "absolute" else kind
    before = tree(victim)

    def change(outcome: Record) -> None:
        if field == "output":
            outcome["row"]["output"] = name
        else:
            outcome["others"] = [{"name": name, "num_bytes": 1, "sha256": ""}]

    forge(output, change)
    planted = output / ".diffbfr/commits" / ("f" * 20 + ".json")
    if form != "sealed":
        planted.write_text(json.dumps(json.loads(planted.read_text())["outcomes"]))
    restore(photos, serial)

    assert tree(victim) == before
    assert "cannot be used" in capsys.readouterr().err, "it is said"
    assert not planted.exists()
    assert sorted(path.name for path in output.glob("*.png")) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    "name", [".diffbfr", ".diffbfr/request.json", "ledger.parquet", ".DiffBFR/commits", "restore.json"]
)
def test_a_planted_name_of_our_own_files_is_refused(photos: Path, serial: Cluster, name: str) -> None:
    output = restore(photos, serial)
    forge(output, lambda outcome: outcome["row"].update(output=name))

    assert list(read_units(str(output)).damaged) == ["f" * 20 + ".json"]
    restore(photos, serial)
    assert (output / ".diffbfr/request.json").is_file()
    assert (output / "ledger.parquet").is_file()


def test_a_planted_name_of_a_folder_inside_removes_no_tree(photos: Path, serial: Cluster) -> None:
    output = restore(photos, serial)
    (output / "album").mkdir()
    (output / "album/kept.png").write_bytes(b"kept")
    forge(output, lambda outcome: outcome["row"].update(output="album"))

    with pytest.raises(UnsafePlaceError, match="album is a folder; expected a file"):
        restore(photos, serial)
    assert (output / "album/kept.png").read_bytes() == b"kept"


@pytest.mark.parametrize(
    "change",
    [
        lambda outcome: outcome["row"].update(output=["../victim"]),
        lambda outcome: outcome["row"].update(num_bytes="many"),
        lambda outcome: outcome["row"].update(status="deleted"),
        lambda outcome: outcome.update(output_bytes=None),
        lambda outcome: outcome.update(others=7),
        lambda outcome: outcome.update(others=[["../victim", 1]]),
        lambda outcome: outcome.pop("fingerprint"),
        lambda outcome: outcome["row"].update(surprise=1),
        lambda outcome: outcome["row"].update(output="a\0b"),
        lambda outcome: outcome["row"].update(output="..\\victim"),
        lambda outcome: outcome["row"].update(output_sha256="x"),
    ],
)
def test_a_record_of_another_shape_is_no_traceback(
    photos: Path, victim: Path, serial: Cluster, change: Callable[[Record], None]
) -> None:
    output = restore(photos, serial)
    before = tree(victim)
    forge(output, change)
    restore(photos, serial)
    assert tree(victim) == before


def test_records_that_are_no_files_do_not_hang(photos: Path, serial: Cluster) -> None:
    output = restore(photos, serial)
    os.mkfifo(output / ".diffbfr/commits/pipe.json")
    (output / ".diffbfr/commits/folder.json").mkdir()
    (output / ".diffbfr/commits/deep.json").write_text("[" * 200_000)

    assert set(read_units(str(output)).damaged) == {"pipe.json", "folder.json", "deep.json"}


def test_the_name_of_a_planted_record_is_printed_without_its_controls(
    photos: Path, serial: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    output = restore(photos, serial)
    (output / ".diffbfr/commits/\x1b]52;c;eA==\x07.json").write_text("planted")
    restore(photos, serial)
    assert "cannot be used" in (said := capsys.readouterr().err)
    assert "\x1b" not in said


def test_a_record_of_an_artifact_that_names_another_tree_removes_nothing(
    tmp_path: Path, victim: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "root"))
    identity = Identity("train-irm1", {}, {}, {})
    folder = Path(store.artifact_dir(identity))
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    store.commit(identity, {"weights": "weights"}, {}, 1.0)
    before = tree(victim)
    record = json.loads((folder / "record.json").read_text())
    for path in (
        "../" * 4 + "victim",
        str(victim),
        f"../../../../{victim.name}/letter.txt",
        "deep/../../../../../victim",
        "..",
    ):
        record["outputs"]["weights"]["path"] = path
        (folder / "record.json").write_text(json.dumps(record))
        for use in (store.clear, store.find):
            with pytest.raises(UsageError, match=r"cannot be read as a record .*; remove its folder"):
                use(identity)
        assert tree(victim) == before, path
