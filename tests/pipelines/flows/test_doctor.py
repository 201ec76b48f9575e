"""The doctor finds unsupported versions, and a storage that does not do what it reports."""

import importlib.metadata
from pathlib import Path

import pytest

from diffbfr.errors import IncompleteError
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.flows import doctor
from pipelines.flows.doctor import REQUIREMENTS, DoctorTask, Requirement, _version_check, examine


@pytest.mark.parametrize(
    ("version", "ok"),
    [("4.9.0", True), ("4.14.0.94", True), ("4.8.1", False), ("5.0.0.93", False), ("4.10.0+local5", True)],
)
def test_unsupported_versions_are_found(version: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    check = _version_check(
        "driver", Requirement("opencv-python-headless", (4, 9), (5,), "no CascadeClassifier")
    )
    assert check.ok is ok
    assert ("no CascadeClassifier" in check.detail) is not ok


def test_an_unwanted_package_and_a_missing_one_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    unwanted = next(it for it in REQUIREMENTS if it.package == "torchvision")
    assert _version_check("driver", unwanted).ok
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.28.0")
    assert "uninstall" in _version_check("driver", unwanted).detail
    monkeypatch.undo()
    assert not _version_check("driver", Requirement("no-such-package", (1,), (2,), "needed")).ok


@pytest.mark.slow
def test_a_storage_without_a_lock_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = storage.write_atomic
    monkeypatch.setattr(storage, "write_atomic", lambda uri, data, create_only=False: honest(uri, data))
    found = {check.what: check for check in examine(DoctorTask(str(tmp_path), None, "driver"))}
    assert not found["storage"].ok
    assert "second writer" in found["storage"].detail
    assert not [name for name in storage.list_dir(tmp_path) if name.startswith("doctor")]


@pytest.mark.slow
def test_a_bucket_passes(s3_bucket: str, tmp_path: Path) -> None:
    found = {
        check.what: check
        for check in examine(DoctorTask(f"{s3_bucket}/runs", f"sqlite:///{tmp_path}/mlflow.db", "driver"))
    }
    assert (found["storage"].ok, found["tracking"].ok) == (True, True), found


@pytest.mark.slow
def test_a_worker_that_does_not_answer_is_a_row(
    tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object, **__: object) -> None:
        raise IncompleteError("worker: 1 of 1 tasks failed")

    monkeypatch.setattr(serial, "map", no_answer)
    assert doctor.doctor(str(tmp_path), None, serial)[-1] == doctor.Check(
        "worker", "answers", False, "worker: 1 of 1 tasks failed"
    )


@pytest.mark.parametrize(
    ("version", "mended"),
    [((3, 11, 7), "3.11.14"), ((3, 12, 11), "3.12.12"), ((3, 13, 5), "3.13.6")],
)
def test_a_python_with_holes_in_tarfile_is_named(version: tuple[int, ...], mended: str) -> None:
    note = doctor.describe_python(version)
    assert "CVE-2025-8194 and CVE-2024-6232" in note
    assert note.endswith(f"mended in {mended}")


@pytest.mark.parametrize("version", [(3, 11, 14), (3, 12, 12), (3, 13, 6), (3, 14, 0)])
def test_nothing_is_said_against_a_mended_python(version: tuple[int, ...]) -> None:
    assert doctor.describe_python(version) == ""
