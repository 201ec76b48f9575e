"""The cache of copies: where it lies, and what is said where it cannot lie there."""

from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines import storage


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIFFBFR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_most_particular_variable_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.cache_folder("models") == tmp_path / ".cache/diffbfr/models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert storage.cache_folder("models") == tmp_path / "xdg/diffbfr/models"
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "own"))
    assert storage.cache_folder("models") == tmp_path / "own/models"


def test_a_home_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").touch()  # nobody can make a folder in a file, not even root
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match=r"no room for local copies in .*set DIFFBFR_CACHE to one"):
        storage.make_cache(storage.cache_folder("models"))


def test_a_user_without_a_home_needs_none_until_a_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    folder = storage.cache_folder("models")
    with pytest.raises(UsageError, match="set DIFFBFR_CACHE to one"):
        storage.make_cache(folder)
