"""Temporary files below any TMPDIR."""

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.sources.listing_db import open_listing_db
from pipelines.storage.temporary import use_temporary_folder


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_path_that_is_too_long_for_sqlite_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("a" * 250) / ("b" * 250)
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(sqlite3.OperationalError), open_listing_db():
        pass
    use_temporary_folder()
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"
    with open_listing_db():
        pass


def test_a_short_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    use_temporary_folder()
    assert tempfile.gettempdir() == str(tmp_path)


def test_no_folder_at_all_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/absent"])
    with pytest.raises(UsageError, match=r"no folder for temporary files .*set TMPDIR to one"):
        use_temporary_folder()
