"""The doctor finds unsupported versions, and machines and places that do not do what work needs of them."""

import importlib.metadata
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from diffbfr.errors import DiffBFRError, IncompleteError
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.flows import doctor, machine_checks
from pipelines.flows.doctor import DoctorTask, Examination, Finding, examine
from pipelines.flows.machine_checks import (
    HOLES,
    REQUIREMENTS,
    Requirement,
    SpaceLimit,
    check_device,
    check_space,
    check_version,
    clock_offset,
    describe_hole,
    parse_version,
)


@pytest.mark.parametrize(
    ("version", "ok"),
    [("4.9.0", True), ("4.14.0.94", True), ("4.8.1", False), ("5.0.0.93", False), ("4.10.0+local5", True)],
)
def test_unsupported_versions_are_found(version: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    found, detail = check_version(Requirement("opencv-python-headless", (4, 9), (5,), "no CascadeClassifier"))
    assert found is ok
    assert ("no CascadeClassifier" in detail) is not ok


def test_an_unwanted_package_and_a_missing_one_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    unwanted = next(it for it in REQUIREMENTS if it.package == "torchvision")
    assert check_version(unwanted)[0]
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.28.0")
    assert "uninstall" in check_version(unwanted)[1]
    monkeypatch.undo()
    assert not check_version(Requirement("no-such-package", (1,), (2,), "needed"))[0]


@pytest.mark.parametrize(
    ("package", "holed", "mended"),
    [
        ("ray", "2.51.2", "2.52.0"),
        ("mlflow", "3.14.1", "3.15.0"),
        ("torch", "2.9.1+cpu", "2.10.0"),
        ("pillow", "12.2.0", "12.3.0"),
    ],
)
def test_a_version_with_a_known_hole_says_so_first(
    package: str, holed: str, mended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirement = next(it for it in REQUIREMENTS if it.package == package)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: holed)
    ok, detail = check_version(requirement)
    assert not ok
    assert detail.startswith(f"{holed}: {HOLES[package].what}; expected ")
    assert describe_hole(package, parse_version(mended)) == ""


@pytest.mark.slow
def test_a_storage_without_a_lock_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = storage.files.write_atomic
    monkeypatch.setattr(storage.files, "write_atomic", lambda uri, data, create_only=False: honest(uri, data))
    found = findings(examine(DoctorTask(str(tmp_path))))
    assert not found["storage"].ok
    assert "lets a second writer replace a file" in found["storage"].detail
    assert not [name for name in storage.list_dir(tmp_path) if name.startswith("doctor")]


def test_a_storage_that_decides_only_between_writers_in_turn_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks whether the file is there, and then writes: two writers at the same time both win."""
    honest = storage.files.write_atomic

    def look_then_write(uri: storage.Uri, data: bytes, create_only: bool = False) -> bool:
        if create_only and storage.exists(uri):
            return False
        threads.wait()
        return honest(uri, data)

    import threading

    threads = threading.Barrier(1)
    monkeypatch.setattr(storage.files, "write_atomic", look_then_write)
    storage.check_writable(tmp_path)
    threads = threading.Barrier(8)

    def at_once(uri: storage.Uri, data: bytes, create_only: bool = False) -> bool:
        return look_then_write(uri, data, create_only) if create_only else honest(uri, data)

    monkeypatch.setattr(storage.files, "write_atomic", at_once)
    with pytest.raises(DiffBFRError, match="lets a second writer replace"):
        storage.probe(tmp_path)


@pytest.mark.slow
def test_a_bucket_passes(s3_bucket: str, tmp_path: Path, serial: Cluster) -> None:
    root = f"{s3_bucket}/{uuid.uuid4().hex}"
    checks = doctor.doctor(root, f"sqlite:///{tmp_path}/mlflow.db", serial)
    found = {(check.where, check.what): check for check in checks}
    assert all(check.ok for check in checks), checks
    assert "put in parts" in found["driver", "storage"].detail
    assert "put in parts" in found["worker", "storage"].detail
    assert found["driver", "tracking"].ok
    assert storage.list_dir(root) == []


@pytest.mark.slow
def test_a_worker_that_does_not_answer_is_a_row(
    tmp_path: Path, serial: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object, **__: object) -> None:
        raise IncompleteError("worker: 1 of 1 tasks failed")

    monkeypatch.setattr(serial, "on_each_node", no_answer)
    assert doctor.doctor(str(tmp_path), None, serial)[-1] == doctor.Check(
        "worker", "answers", False, "worker: 1 of 1 tasks failed"
    )


def test_a_root_that_another_machine_does_not_have_is_found(tmp_path: Path) -> None:
    found = findings(examine(DoctorTask(str(tmp_path), str(tmp_path / "elsewhere" / "mark"))))
    assert not found["same root"].ok
    assert "on the driver's disk alone" in found["same root"].detail


@pytest.mark.parametrize(
    ("times", "offset"),
    [
        ((100, 101, 105, 106), 0),
        ((100, 100, 106, 106), 0),
        ((100, 1000, 1005, 110), 895),  # its clock is ahead
        ((1000, 100, 105, 1010), -900),  # and behind
    ],
)
def test_clocks_are_compared_through_the_answer(times: tuple[float, ...], offset: float) -> None:
    assert clock_offset(*times) == offset


def test_a_full_disk_is_found_and_what_helps_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = (SpaceLimit(tmp_path / "not" / "made" / "yet", 1 << 30, "copies"),)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    assert "1024 GiB" in check_space(limit)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1 << 40, 0, 1 << 20))
    with pytest.raises(DiffBFRError, match="expected 1 GiB for copies; free some, or set DIFFBFR_CACHE"):
        check_space(limit)


def test_a_gpu_that_torch_does_not_see_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no GPU" in check_device(tmp_path)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(machine_checks, "_ask_torch", list)
    with pytest.raises(DiffBFRError, match=r"1 GPUs are here .* torch sees none; .*use the CUDA image"):
        check_device(tmp_path)
    seen: list[dict[str, Any]] = [{"name": "A GPU", "bytes": 80 << 30, "bf16": True}]
    monkeypatch.setattr(machine_checks, "_ask_torch", lambda: json.loads(json.dumps(seen)))
    assert check_device(tmp_path) == "A GPU 80 GiB: bfloat16 or float32"


@pytest.mark.parametrize(
    ("version", "mended"),
    [((3, 11, 7), "3.11.14"), ((3, 12, 11), "3.12.12"), ((3, 13, 5), "3.13.6")],
)
def test_a_python_with_holes_in_tarfile_is_named(version: tuple[int, ...], mended: str) -> None:
    note = machine_checks.describe_python(version)
    assert "CVE-2025-8194 and CVE-2024-6232" in note
    assert note.endswith(f"mended in {mended}")


@pytest.mark.parametrize("version", [(3, 11, 14), (3, 12, 12), (3, 13, 6), (3, 14, 0)])
def test_nothing_is_said_against_a_mended_python(version: tuple[int, ...]) -> None:
    assert machine_checks.describe_python(version) == ""


def findings(examination: Examination) -> dict[str, Finding]:
    return {finding.what: finding for finding in examination.findings}
