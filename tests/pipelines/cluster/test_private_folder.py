"""The folder of a Ray of our own: short, closed to others, and gone when its driver is."""

import stat
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.cluster import private_folder
from pipelines.cluster.private_folder import (
    MAX_PARENT_BYTES,
    RAY_FOLDER,
    create_private_folder,
    find_problem,
    remove_dead_folders,
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The only places where the folder may lie; any length will do."""
    places: list[Path] = []
    monkeypatch.setattr(private_folder, "parents", lambda: places)
    monkeypatch.setattr(private_folder, "MAX_PARENT_BYTES", 10_000)
    monkeypatch.setattr(private_folder, "_check_sockets", lambda folder: None)
    return places


def test_every_socket_of_ray_fits_below_a_parent_of_the_longest_path() -> None:
    """Linux: 107 bytes, and PIDs of seven digits."""
    session = "session_2026-12-31_23-59-59_999999_4194304"
    folder = f"{'p' * MAX_PARENT_BYTES}/diffbfr-abcdefgh/{RAY_FOLDER}"
    assert len(f"{folder}/{session}/sockets/plasma_store") == 107


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_long_path_is_passed_over(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("a" * 76)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(long))
    assert private_folder.parents()[0] == long
    assert find_problem(long) == f"a path of {len(str(long))} bytes"
    folder = create_private_folder("1:2:3")
    try:
        assert len(str(folder.parent)) <= MAX_PARENT_BYTES
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        remove_dead_folders(lambda driver: driver == "1:2:3")
    assert not folder.exists()


def test_length_is_counted_in_bytes(tmp_path: Path) -> None:
    assert find_problem(Path("/" + "é" * 20)) == "a path of 41 bytes"


def test_a_relative_place_is_made_absolute_and_an_empty_one_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setenv("TMPDIR", "here")
    assert private_folder.parents()[0] == Path.cwd() / "here"


def test_what_is_wrong_with_each_place_is_said(places: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    places += [tmp_path / "absent", tmp_path / "file", tmp_path / "open"]
    with pytest.raises(UsageError) as caught:
        create_private_folder("1:2:3")
    line = str(caught.value)
    assert f"{tmp_path}/absent: No such file or directory" in line
    assert f"{tmp_path}/file: not a folder" in line
    assert f"{tmp_path}/open: others may rename what is in it" in line
    assert "set RAY_TMPDIR to one" in line
    assert "\n" not in line


def test_a_full_disk_is_passed_over(
    places: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, other = tmp_path / "full", tmp_path / "with a space"
    for place in (full, other):
        place.mkdir()
    places += [full, other]
    usage = private_folder.shutil.disk_usage
    monkeypatch.setattr(
        private_folder.shutil,
        "disk_usage",
        lambda place: usage(place)._replace(free=1 << 20) if place == full else usage(place),
    )
    assert find_problem(full) == "1 MiB free"
    assert create_private_folder("1:2:3").parent == other


def test_only_folders_of_dead_drivers_and_of_this_user_are_removed(
    places: list[Path], tmp_path: Path
) -> None:
    places.append(tmp_path)
    dead, alive = create_private_folder("dead"), create_private_folder("alive")
    (tmp_path / "diffbfr-copy-abcdefgh").mkdir()
    (tmp_path / "diffbfr-nodriver").mkdir()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "driver").write_text("dead")
    (tmp_path / "diffbfr-tomylink").symlink_to(victim)
    remove_dead_folders(lambda driver: driver == "dead")
    assert not dead.exists()
    assert alive.exists()
    others = {"diffbfr-copy-abcdefgh", "diffbfr-nodriver", "diffbfr-tomylink", "victim"}
    assert {place.name for place in tmp_path.iterdir()} == {alive.name, *others}
    assert (victim / "driver").exists()
