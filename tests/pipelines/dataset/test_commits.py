"""A shard is one attempt's, whole, whoever else writes at the same moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.dataset import commits
from pipelines.dataset.commits import Commit, CommitConflictError, StagedFiles, StagedTar, find, publish

COLUMNS = ("hq", "low", "lq")


def _attempt(content: bytes, *more: str) -> tuple[Commit, list[StagedFiles]]:
    """One attempt at the same shard with the given content, and with `more` samples."""
    staged = []
    for column in COLUMNS:
        tar = StagedTar(column, 0)
        for key in ("a", *more):
            tar.add(key, "bin", content)
        staged.append(tar.finish())
    return Commit(0, "task", (), tuple(tar.info for tar in staged), ()), staged


@contextmanager
def _before_write(monkeypatch: pytest.MonkeyPatch, moment: int, act: Callable[[], object]) -> Iterator[None]:
    """Act before the write number `moment`, as another process might."""
    write, calls = storage.write_atomic, []

    def interrupted(uri: storage.Uri, data: bytes, create_only: bool = False, **options: Any) -> bool:
        calls.append(uri)
        if len(calls) == moment + 1:
            with monkeypatch.context() as patch:
                patch.setattr(storage, "write_atomic", write)
                act()
        return write(uri, data, create_only, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomic", interrupted)
        yield


def _wrong(root: Path) -> list[str]:
    """Tars that are there and not what the standing record says."""
    standing = commits.read(str(root), "commits", 0)
    assert standing is not None
    there = [tar for tar in standing.tars if (root / tar.tar).exists()]
    return [tar.tar for tar in there if storage.digest(root / tar.tar) != tar.sha256]


@pytest.mark.parametrize(
    "moment", range(4), ids=["before-hq", "before-low", "before-lq", "before-the-record"]
)
def test_who_comes_too_late_leaves_no_tar_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    first, staged = _attempt(b"first")
    interruption = _before_write(
        monkeypatch, moment, lambda: publish(str(tmp_path), "commits", first, staged)
    )
    with interruption, pytest.raises(CommitConflictError, match="committed with other content"):
        publish(str(tmp_path), "commits", *_attempt(b"later"))
    assert commits.read(str(tmp_path), "commits", 0) == first
    assert _wrong(tmp_path) == []
    assert (find(str(tmp_path), "commits", 0, "task") is None) == (
        moment < len(COLUMNS)
    )  # a tar is missing, and that is seen
    publish(str(tmp_path), "commits", first, staged)
    assert find(str(tmp_path), "commits", 0, "task") == first
    assert _wrong(tmp_path) == []


def test_who_commits_first_keeps_its_tars_though_another_wrote_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write_atomic
    _, others = _attempt(b"later")

    def interrupted(uri: storage.Uri, data: bytes, create_only: bool = False, **options: Any) -> bool:
        if create_only:
            for tar in others:  # the other has written all its tars, and dies before its record
                write(tmp_path / tar.info.tar, tar.built.data)
        return write(uri, data, create_only, **options)

    monkeypatch.setattr(storage, "write_atomic", interrupted)
    first, staged = _attempt(b"first")
    publish(str(tmp_path), "commits", first, staged)
    assert find(str(tmp_path), "commits", 0, "task") == first
    assert _wrong(tmp_path) == []


def test_a_conflict_with_what_stands_touches_nothing_and_is_the_users_to_mend(tmp_path: Path) -> None:
    first, staged = _attempt(b"first")
    publish(str(tmp_path), "commits", first, staged)
    (tmp_path / "lq" / "000000.tar").write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="check that every worker runs the same versions"):
        publish(str(tmp_path), "commits", *_attempt(b"later"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "moment", range(4), ids=["before-hq", "before-low", "before-lq", "before-the-record"]
)
def test_attempts_that_differ_in_what_was_quarantined_agree_and_the_first_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    first, staged = _attempt(b"same")
    with _before_write(monkeypatch, moment, lambda: publish(str(tmp_path), "commits", first, staged)):
        assert publish(str(tmp_path), "commits", *_attempt(b"same", "timed-out-there")) == first
    assert commits.read(str(tmp_path), "commits", 0) == first
    assert _wrong(tmp_path) == []
