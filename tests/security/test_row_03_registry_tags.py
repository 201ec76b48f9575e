"""What a registry says never becomes a path outside the cache or the run: digests, uploads, artifacts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.errors import DiffBFRError
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.registry import ModelVersion
from pipelines.registry import fetching as module
from pipelines.registry import gc as gc_module
from pipelines.registry.fetching import fetch
from pipelines.registry.gc import collect_garbage
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import Run
from tests.pipelines.registry.fixtures import ROOT

DIGESTS = (
    "../../x",
    "/tmp/x",
    "",
    "a" * 63,
    "a" * 65,
    "A" * 64,
    "g" * 64,
    "a" * 63 + "\n",
    "..",
    "a" * 32 + "/" + "a" * 31,
)
VERSION = ModelVersion("diffbfr-irm1", 1, "", (), "", "mlflow-artifacts:/0/run/artifacts/models/x", "r", {})


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_digest_that_is_none_is_refused_before_a_folder_is_made(
    digest: str, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(DiffBFRError, match=r"has the digest tag .*; expected 64 hex digits"):
        fetch(registry, replace(VERSION, digest=digest), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("source", ["s3://bucket/models/..", "mlflow-artifacts:/0/r/artifacts/models/%2e%2e"])
def test_the_end_of_a_source_decides_no_folder(
    source: str, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(
        module, "_download", lambda registry, version, source, folder: made.append(str(folder))
    )
    with pytest.raises(DiffBFRError):
        fetch(registry, replace(VERSION, digest="a" * 64, source=source), tmp_path / "cache")
    assert set(made) == {str(tmp_path / "cache" / ("a" * 64) / "files")}


def test_a_tag_of_uploads_deletes_nothing_but_uploads(
    run: Run, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "photo.png").write_bytes(b"mine")
    run.log_bytes("notes/kept.txt", b"mine too")
    monkeypatch.setattr(gc_module, "_MAY_UPLOAD_S", 0.0)
    relative = f"models/{'../' * 12}{str(victim).lstrip('/')}"
    attacks = (str(victim), relative, "notes", "models", "models/..", "models/../notes", "", ".")
    run.log_tags(
        {"diffbfr.uploads": "yes"} | {f"diffbfr.uploads.{i}": path for i, path in enumerate(attacks)}
    )

    assert collect_garbage(registry, ROOT, ()) == ()
    assert (victim / "photo.png").read_bytes() == b"mine"
    assert run.read_bytes("notes/kept.txt") == b"mine too"


def test_an_artifact_id_that_is_a_path_finds_no_record(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "root"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "record.json").write_text("{}")
    (tmp_path / "root" / "artifacts" / "shard").mkdir(parents=True)

    assert store.by_id("../../../outside") is None
    assert store.by_id(str(outside)) is None
    shutil.rmtree(outside)
