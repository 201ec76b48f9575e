"""Every common error of the system at every file operation of a restore: what it ends, and whom it blames.

An error about one photo never ends a run, and an error about the place never blames a photo: then there is no
ledger, no record names a photo as bad, and the same command goes on once the place is mended.
"""

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from diffbfr.errors import DiffBFRError, IncompleteError, QuarantineError, UsageError
from pipelines.cluster import Cluster
from pipelines.flows.restore_archive import RestoreOptions, RestoreReport, require_clean, restore_archive
from pipelines.restoration.face_input import read_face
from pipelines.restoration.journal import read_units
from pipelines.restoration.outcomes import LEDGER
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face

ALIGNED = RestoreOptions(aligned=True, unit_size=2)
BAD: Final = "2/2.png"

REFUSED_NAMES: Final = ("ENAMETOOLONG", "EILSEQ", "EINVAL", "EISDIR", "ENOTDIR", "EEXIST", "ELOOP", "ENXIO")
"""About one file, however it is used."""
UNREADABLE: Final = ("ENOENT", "EACCES", "EPERM", "EIO", "EBUSY", "EOPNOTSUPP")
"""About one file if it is read, about the place if it is written."""
PLACES: Final = (
    "ENOSPC",
    "EDQUOT",
    "EROFS",
    "EMFILE",
    "ENFILE",
    "ETIMEDOUT",
    "ESTALE",
    "ENOMEM",
    "ENOTCONN",
    "EAGAIN",
)
"""About the place."""
EVERY: Final = (*REFUSED_NAMES, *UNREADABLE, *PLACES)
FEW: Final = ("ENAMETOOLONG", "EIO", "ENOSPC")

READS: Final = ("open", "read")
WRITES: Final = ("mkdir", "create", "write", "fsync", "rename")


def matrix(*operations: str) -> list[Any]:
    """Each operation with each error; most are slow tests, because they are many."""
    cases = []
    for operation in operations:
        for name in EVERY:
            marks = () if name in FEW else (pytest.mark.slow,)
            cases.append(pytest.param(operation, name, marks=marks, id=f"{operation}-{name}"))
    return cases


@pytest.fixture(autouse=True)
def decoding_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder's process takes a second to start, and no case is about it."""
    monkeypatch.setattr("pipelines.restoration.photo_reading.start_reader", lambda: None)
    monkeypatch.setattr("pipelines.restoration.photo_reading.read_face_sandboxed", read_face)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos, each in a folder of its own."""
    for number in range(5):
        (tmp_path / f"in/{number}").mkdir(parents=True)
        (tmp_path / f"in/{number}/{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    return tmp_path / "in"


def restore(photos: Path, serial: Cluster) -> RestoreReport:
    return restore_archive(str(photos), str(photos.parent / "out"), FakeModel(), ALIGNED, serial)


class _Failing:
    """An open file whose reading or writing fails."""

    def __init__(self, file: Any, fail: Callable[[], None]) -> None:
        self._file = file
        self._fail = fail

    def __enter__(self) -> "_Failing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "readinto", "write", "writelines"):
            self._fail()
        return getattr(self._file, name)


@contextmanager
def failing(operation: str, number: int, below: Path) -> Iterator[list[str]]:
    """Let one operation fail for every file below a place; yields the paths at which it did."""
    hits: list[str] = []

    def check(path: object) -> None:
        text = str(path)  # `shutil` gives handles, which are below no place
        if text == str(below) or text.startswith(f"{below}/"):
            hits.append(text)
            raise OSError(number, os.strerror(number), text)

    with pytest.MonkeyPatch.context() as patch:

        def patch_os(name: str, position: int = 0, wanted: Callable[..., bool] = lambda *_: True) -> None:
            real = getattr(os, name)

            def call(*arguments: Any, **options: Any) -> Any:
                if wanted(*arguments):
                    check(arguments[position])
                return real(*arguments, **options)

            patch.setattr(os, name, call)

        if operation == "list":
            patch_os("scandir")
        elif operation == "mkdir":
            patch_os("mkdir")
        elif operation == "create":
            patch_os("open", wanted=lambda path, flags, *_: bool(flags & os.O_CREAT))
        elif operation == "open":
            patch_os("open", wanted=lambda path, flags, *_: not flags & os.O_CREAT)
        elif operation == "rename":
            patch_os("replace", position=1)
        elif operation == "link":
            patch_os("link", position=1)
        elif operation == "remove":
            patch_os("unlink")
        elif operation == "fsync":
            real = os.fsync

            def fsync(handle: int) -> None:
                check(Path(f"/proc/self/fd/{handle}").readlink())
                real(handle)

            patch.setattr(os, "fsync", fsync)
        else:
            real_open = builtins.open

            def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
                file = real_open(path, mode, *arguments, **options)
                if (operation == "read") == ("r" in mode) and isinstance(path, str | os.PathLike):
                    return _Failing(file, lambda: check(path))
                return file

            patch.setattr(builtins, "open", opened)
        yield hits


def blamed(output: Path) -> list[str]:
    """The inputs that a record names as bad."""
    return [
        o.row.name for o in read_units(str(output)).outcomes if o.row.status not in ("restored", "duplicate")
    ]


def expect_one_photo(report: RestoreReport, status: str, name: str = BAD) -> None:
    assert {row.name: row.status for row in report.rows if row.status != "restored"} == {name: status}
    assert report.counts.restored == 4


def expect_the_place(error: DiffBFRError, photos: Path) -> None:
    output = photos.parent / "out"
    assert error.exit_code == IncompleteError.exit_code
    assert "run the same command again" in str(error)
    assert "\n" not in str(error)
    assert "2.png" not in str(error), "no photo is named"
    assert not (output / LEDGER).exists()
    assert blamed(output) == []


@pytest.mark.parametrize(("operation", "name"), matrix(*READS))
def test_an_input_that_cannot_be_read(photos: Path, serial: Cluster, operation: str, name: str) -> None:
    with failing(operation, getattr(errno, name), photos / BAD) as hits:
        if name in PLACES:
            with pytest.raises(DiffBFRError) as raised:
                restore(photos, serial)
            expect_the_place(raised.value, photos)
        else:
            report = restore(photos, serial)
            expect_one_photo(report, "quarantined")
            with pytest.raises(QuarantineError, match=BAD):
                require_clean(report)
    assert hits
    assert restore(photos, serial).counts.restored == 5


@pytest.mark.parametrize(("operation", "name"), matrix("list"))
def test_a_folder_of_the_input_that_cannot_be_listed(
    photos: Path, serial: Cluster, operation: str, name: str
) -> None:
    with failing(operation, getattr(errno, name), photos / "2") as hits:
        if name in PLACES:
            with pytest.raises(DiffBFRError) as raised:
                restore(photos, serial)
            expect_the_place(raised.value, photos)
        else:
            expect_one_photo(restore(photos, serial), "quarantined", "2/")
    assert hits
    assert restore(photos, serial).counts.restored == 5


@pytest.mark.parametrize(("operation", "name"), matrix(*WRITES))
def test_an_output_that_cannot_be_written(photos: Path, serial: Cluster, operation: str, name: str) -> None:
    output = photos.parent / "out"
    with failing(operation, getattr(errno, name), output / "2") as hits:
        if name in REFUSED_NAMES and not (operation == "mkdir" and name == "EEXIST"):
            report = restore(photos, serial)
            expect_one_photo(report, "failed")
            with pytest.raises(IncompleteError, match=BAD):
                require_clean(report)
            assert not (output / BAD).exists()
        elif operation == "mkdir" and name in ("EEXIST", "ENOENT"):
            with pytest.raises(DiffBFRError) as raised:
                require_clean(restore(photos, serial))
            assert raised.value.exit_code == IncompleteError.exit_code
        else:
            with pytest.raises(DiffBFRError) as raised:
                restore(photos, serial)
            expect_the_place(raised.value, photos)
    assert hits
    assert restore(photos, serial).counts.restored == 5


@pytest.mark.parametrize(("operation", "name"), matrix("create", "write", "rename"))
def test_a_record_that_cannot_be_written_blames_no_photo(
    photos: Path, serial: Cluster, operation: str, name: str
) -> None:
    with failing(operation, getattr(errno, name), photos.parent / "out/.diffbfr/commits") as hits:
        with pytest.raises(DiffBFRError) as raised:
            restore(photos, serial)
        expect_the_place(raised.value, photos)
    assert hits
    assert restore(photos, serial).counts.restored == 5


@pytest.mark.parametrize(("operation", "name"), matrix("mkdir", "create", "write", "fsync", "rename", "list"))
def test_an_output_folder_that_cannot_be_used_ends_before_any_work(
    photos: Path, serial: Cluster, operation: str, name: str
) -> None:
    output = photos.parent / "out"
    if operation == "list":
        restore(photos, serial)
        (output / LEDGER).unlink()
    with failing(operation, getattr(errno, name), output) as hits:
        with pytest.raises(DiffBFRError) as raised:
            restore(photos, serial)
        assert raised.value.exit_code in (UsageError.exit_code, IncompleteError.exit_code)
        assert ".png" not in str(raised.value)
        assert "\n" not in str(raised.value)
    assert hits
    assert restore(photos, serial).counts.restored == 5


@pytest.mark.parametrize(("operation", "name"), matrix("link", "remove"))
def test_links_and_removals_that_fail(photos: Path, serial: Cluster, operation: str, name: str) -> None:
    """A file system without hard links, or one that removes nothing, still takes a restoration."""
    ended: list[DiffBFRError] = []
    with failing(operation, getattr(errno, name), photos.parent / "out") as hits:
        try:
            assert restore(photos, serial).counts.restored == 5
        except DiffBFRError as error:
            ended.append(error)
    assert {error.exit_code for error in ended} <= {UsageError.exit_code, IncompleteError.exit_code}
    assert not any(".png" in str(error) for error in ended)
    assert hits
    assert restore(photos, serial).counts.restored == 5


def test_an_input_folder_that_goes_away_blames_no_photo(photos: Path, serial: Cluster) -> None:
    """A disk that is pulled out while photos are restored: each photo seems to be gone."""

    class Pulled(FakeModel):
        def load(self) -> Any:
            photos.rename(photos.parent / "pulled out")
            return super().load()

    with pytest.raises(DiffBFRError) as raised:
        restore_archive(str(photos), str(photos.parent / "out"), Pulled(), ALIGNED, serial)
    expect_the_place(raised.value, photos)
    (photos.parent / "pulled out").rename(photos)
    assert restore(photos, serial).counts.restored == 5
