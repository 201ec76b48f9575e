"""A shard is one attempt's, whole, whoever else writes at the same moment."""

from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines import commits, storage
from pipelines.commits import Commit, CommitConflictError, Draft, TarDraft, find, publish

COLUMNS = ("hq", "low", "lq")


def _attempt(content: bytes) -> tuple[Commit, list[Draft]]:
    """The same shard by another version of the code: other bytes of the same size."""
    drafts = []
    for column in COLUMNS:
        tar = TarDraft(column, 0)
        tar.add("a", "bin", content)
        drafts.append(tar.finish())
    return Commit(0, "task", (), tuple(draft.record for draft in drafts), ()), drafts


def _wrong(root: Path) -> list[str]:
    """Tars that are there and not what the standing record says."""
    standing = commits.read(str(root), "commits", 0)
    assert standing is not None
    there = [tar for tar in standing.tars if (root / tar.tar).exists()]
    return [tar.tar for tar in there if storage.digest(root / tar.tar) != tar.sha256]


@pytest.mark.parametrize("moment", range(4), ids=["before-hq", "before-low", "before-lq", "before-the-record"])
def test_who_comes_too_late_leaves_no_tar_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    write, calls = storage.write_atomic, []

    def interrupted(uri: storage.Uri, data: bytes, create_only: bool = False) -> bool:
        calls.append(uri)
        if len(calls) == moment + 1:
            with monkeypatch.context() as patch:
                patch.setattr(storage, "write_atomic", write)
                publish(str(tmp_path), "commits", *_attempt(b"first"))
        return write(uri, data, create_only)

    monkeypatch.setattr(storage, "write_atomic", interrupted)
    with pytest.raises(CommitConflictError, match="committed with other content"):
        publish(str(tmp_path), "commits", *_attempt(b"later"))
    monkeypatch.setattr(storage, "write_atomic", write)
    first, drafts = _attempt(b"first")
    assert commits.read(str(tmp_path), "commits", 0) == first
    assert _wrong(tmp_path) == []
    assert (find(str(tmp_path), "commits", 0, "task") is None) == (moment < len(COLUMNS))  # a tar is missing, and that is seen
    publish(str(tmp_path), "commits", first, drafts)
    assert find(str(tmp_path), "commits", 0, "task") == first
    assert _wrong(tmp_path) == []


def test_who_commits_first_keeps_its_tars_though_another_wrote_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.write_atomic
    _, others = _attempt(b"later")

    def interrupted(uri: storage.Uri, data: bytes, create_only: bool = False) -> bool:
        if create_only:
            for draft in others:  # the other has written all its tars, and dies before its record
                write(tmp_path / draft.record.tar, draft.built.data)
        return write(uri, data, create_only)

    monkeypatch.setattr(storage, "write_atomic", interrupted)
    first, drafts = _attempt(b"first")
    publish(str(tmp_path), "commits", first, drafts)
    assert find(str(tmp_path), "commits", 0, "task") == first
    assert _wrong(tmp_path) == []


def test_a_conflict_with_what_stands_touches_nothing_and_is_the_users_to_mend(tmp_path: Path) -> None:
    first, drafts = _attempt(b"first")
    publish(str(tmp_path), "commits", first, drafts)
    (tmp_path / "lq" / "000000.tar").write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="check that every worker runs the same versions"):
        publish(str(tmp_path), "commits", *_attempt(b"later"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
