"""What a process may use: the least of the machine, its affinity and its cgroups, in both versions."""

import os
from pathlib import Path

import pytest

from pipelines.storage import machine

_V2 = "40 1 0:1 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
_V1 = "41 1 0:2 {root} {point} rw,nosuid - cgroup cgroup rw,{controllers}\n"


def describe_process(folder: Path, cgroup: str, mountinfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code find a process in these cgroups and mounts."""
    process = folder / "process"
    process.mkdir()
    (process / "cgroup").write_text(cgroup)
    (process / "mountinfo").write_text(mountinfo)
    monkeypatch.setattr(machine, "_PROCESS", process)


def write(folder: Path, **values: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture(autouse=True)
def _large_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 48),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("20000 100000", 1),
        ("6400000 100000", 48),
    ],
)
def test_a_quota_of_version_2_limits_the_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "fs/slurm/job_7", cpu__max=quota)
    describe_process(
        tmp_path, "0::/slurm/job_7/step\n", _V2.format(root="/", point=tmp_path / "fs"), monkeypatch
    )
    assert machine.usable_cores() == cores


@pytest.mark.parametrize("point", ["cpu,cpuacct", "a folder"])
def test_a_quota_of_version_1_limits_the_cores(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a container the path of the group is that of the host, and the mount begins there."""
    write(tmp_path / point, cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    mount = str(tmp_path / point).replace(" ", "\\040")
    describe_process(
        tmp_path,
        "3:cpuset:/\n2:cpu,cpuacct:/docker/5f\n0::/docker/5f\n",
        _V1.format(root="/docker/5f", point=mount, controllers="cpu,cpuacct"),
        monkeypatch,
    )
    assert machine.usable_cores() == 3


def test_no_quota_and_no_cgroup_leave_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    describe_process(
        tmp_path, "2:cpu:/\n", _V1.format(root="/", point=tmp_path / "cpu", controllers="cpu"), monkeypatch
    )
    assert machine.usable_cores() == 48
    monkeypatch.setattr(machine, "_PROCESS", tmp_path / "absent")
    assert machine.usable_cores() == 48
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert machine.usable_cores() == 1


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [("max", "2147483648", 2 << 30), ("1073741824", "2147483648", 1 << 30), ("max", "max", None)],
)
def test_the_least_limit_of_memory_on_the_way_up_counts(
    own: str, above: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "fs/a/b", memory__max=own)
    write(tmp_path / "fs/a", memory__max=above)
    describe_process(tmp_path, "0::/a/b\n", _V2.format(root="/", point=tmp_path / "fs"), monkeypatch)
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_bytes() == (expected or everything)


def test_a_limit_of_memory_in_version_1_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "memory/job", memory__limit_in_bytes=str(3 << 30))
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    mount = _V1.format(root="/", point=tmp_path / "memory", controllers="memory")
    describe_process(tmp_path, "4:memory:/job\n", mount, monkeypatch)
    assert machine.memory_bytes() == 3 << 30
