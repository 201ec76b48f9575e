"""Append a column to a finished dataset: the same keys in the same order, a tar and a commit record a shard,
`column.json` last.

What was there is not touched, and readers see the column only when it is whole.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.shards import ColumnInfo, Member
from pipelines import storage
from pipelines.dataset import commits, manifest
from pipelines.dataset.commits import Commit, Quarantined

_NAME: Final = re.compile(r"(?!(lq|hq\d+|manifest|commits)$)[a-z0-9][a-z0-9-]{0,62}")


def find_column_shard(dataset_root: str, column: str, index: int, task: str) -> Commit | None:
    """Return the valid commit of one shard of a column, None if it is still to be made; `task` is the
    digest of what it depends on.
    """
    return commits.find(storage.absolute(dataset_root), _commits_folder(column), index, task)


def write_column_shard(
    dataset_root: str,
    column: str,
    index: int,
    task: str,
    files: Iterable[tuple[str, str, bytes]],
    quarantined: Sequence[Quarantined] = (),
) -> Commit:
    """Publish one shard of a column from (key, member name, content) in the dataset's order: tar first,
    commit record last.

    `quarantined` names members that are degenerate: they keep their place in the tar, and nothing may learn
    from them.
    """
    tar = commits.StagedTar(column, index)
    for key, name, content in files:
        tar.add(key, name, content)
    draft = tar.finish()
    commit = Commit(index=index, task=task, samples=(), tars=(draft.record,), quarantined=tuple(quarantined))
    return commits.publish(storage.absolute(dataset_root), _commits_folder(column), commit, [draft])


def finish_column(dataset_root: str, info: ColumnInfo, tasks: Sequence[str]) -> ColumnInfo:
    """Check that every shard is committed with the dataset's keys in order, write the column's index and,
    last, `column.json`.

    `tasks` are the digests that the shards were written under, shard 0 first.
    """
    root = storage.absolute(dataset_root)
    _check_free(root, info)
    shards = manifest.read_shard_keys(root)
    if len(tasks) != len(shards):
        raise UsageError(
            f"column {info.column} was made as {len(tasks)} shards, {root} has {len(shards)}; expected as "
            "many; make it again"
        )
    table = manifest.TableWriter(storage.join(root, manifest.members_path(info.column)), Member)
    quarantined: list[tuple[str, str]] = []
    for index, task in enumerate(tasks):
        commit = commits.find(root, _commits_folder(info.column), index, task)
        if commit is None:
            raise IncompleteError(
                f"shard {index} of column {info.column} in {root} has no valid commit; expected all "
                f"{len(tasks)}; run the command again"
            )
        keys, members = shards[index], commit.tars[0].members
        if [(member.key, member.name) for member in members] != [
            (key, name) for key in keys for name in info.names
        ]:
            raise UsageError(
                f"shard {index} of column {info.column} holds {len(members)} members; "
                f"expected {len(keys)} keys x {', '.join(info.names)} in order; make it again"
            )
        table.append(members)
        quarantined += map(member_of, commit.quarantined)
    made = replace(info, quarantined=tuple(quarantined))
    manifest.write_column_record(root, made, table.close())
    return made


def read_quarantined(dataset_root: str, column: str, num_shards: int) -> list[Quarantined]:
    """The degenerate pictures of a column by the records of its shards; a shard without a record has none
    to tell.
    """
    root = storage.absolute(dataset_root)
    shards = (commits.read(root, _commits_folder(column), index) for index in range(num_shards))
    return [row for commit in shards if commit is not None for row in commit.quarantined]


def member_of(row: Quarantined) -> tuple[str, str]:
    """Key and name of a quarantined member: a key has no dot."""
    key, _, name = row.source.partition(".")
    return key, name


def _commits_folder(column: str) -> str:
    if not _NAME.fullmatch(column):
        raise UsageError(
            f"column name {column!r} is not usable; expected lower-case letters, digits and hyphens, at most "
            "63, none of the dataset's own"
        )
    return f"{column}/commits"


def _check_free(root: str, info: ColumnInfo) -> None:
    """A name belongs to one model for ever: readers have trained on it."""
    for column in manifest.read_columns(root):
        if column.column == info.column and replace(column, quarantined=()) != info:
            raise UsageError(
                f"{root} already has a column {info.column} of model {column.model_digest[:12]}; "
                f"expected that of {info.model_digest[:12]}; choose another column name"
            )
