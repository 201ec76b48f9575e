"""Append a column, files derived from every sample, to a finished dataset.

A column holds the dataset's keys in the same order: one tar and one commit record for each shard, and
`column.json`, written last. Existing files are not touched, and readers see a column only when it is
complete.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.shards import ColumnInfo, Member
from pipelines import storage
from pipelines.dataset import commits, manifest
from pipelines.dataset.commits import Commit, Quarantined

_NAME: Final = re.compile(r"(?!(lq|hq\d+|manifest|commits)$)[a-z0-9][a-z0-9-]{0,62}")


def find_column_shard(dataset_root: str, column: str, index: int, task: str) -> Commit | None:
    """The valid commit of one shard of a column, None if there is none; `task` digests what it depends on."""
    return commits.find(storage.absolute(dataset_root), _commits_folder(column), index, task)


def write_column_shard(
    dataset_root: str,
    column: str,
    index: int,
    task: str,
    files: Iterable[tuple[str, str, bytes]],
    quarantined: Sequence[Quarantined] = (),
) -> Commit:
    """Publish one shard of a column: the tar first, the commit record last.

    `files` are (key, member name, content) in the dataset's order. `quarantined` names degenerate members:
    they keep their place in the tar, and no model is trained on them.
    """
    tar = commits.StagedTar(column, index)
    for key, name, content in files:
        tar.add(key, name, content)
    staged = tar.finish()
    commit = Commit(index=index, task=task, samples=(), tars=(staged.info,), quarantined=tuple(quarantined))
    return commits.publish(storage.absolute(dataset_root), _commits_folder(column), commit, [staged])


def finish_column(dataset_root: str, info: ColumnInfo, tasks: Sequence[str]) -> ColumnInfo:
    """Check every shard of a column, write its index and, last, `column.json`.

    Each shard must be committed with the dataset's keys in order. `tasks` are the digests that the shards
    were written under, shard 0 first.
    """
    root = storage.absolute(dataset_root)
    _check_free(root, info)
    shards = manifest.read_shard_keys(root)
    if len(tasks) != len(shards):
        raise UsageError(
            f"column {info.column} was made as {len(tasks)} shards, {root} has {len(shards)}; expected as "
            "many; make it again"
        )
    # the index is written shard by shard, so that memory holds the members of one shard
    table = manifest.TableWriter(storage.join(root, manifest.members_path(info.column)), Member, root)
    quarantined: list[tuple[str, str]] = []
    for index, task in enumerate(tasks):
        commit = commits.find(root, _commits_folder(info.column), index, task)
        if commit is None:
            raise IncompleteError(
                f"shard {index} of column {info.column} in {root} has no valid commit; expected all "
                f"{len(tasks)}; run the command again"
            )
        keys = shards[index]
        members = commit.tars[0].members
        if [(member.key, member.name) for member in members] != list(product(keys, info.names)):
            raise UsageError(
                f"shard {index} of column {info.column} holds {len(members)} members; "
                f"expected {len(keys)} keys x {', '.join(info.names)} in order; make it again"
            )
        table.append(members)
        quarantined += map(member_of, commit.quarantined)
    # `column.json` also names the quarantined members, which readers of the column skip
    made = replace(info, quarantined=tuple(quarantined))
    manifest.write_column_record(root, made, table.close())
    return made


def read_quarantined(dataset_root: str, column: str, num_shards: int) -> list[Quarantined]:
    """The degenerate images of a column, read from the records of its shards; missing records are skipped."""
    root = storage.absolute(dataset_root)
    quarantined: list[Quarantined] = []
    for index in range(num_shards):
        commit = commits.read(root, _commits_folder(column), index)
        if commit is not None:
            quarantined += commit.quarantined
    return quarantined


def member_of(row: Quarantined) -> tuple[str, str]:
    """Key and member name of a quarantined row; a key contains no dot."""
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
    """Refuse a name that another model's column has, because readers may have trained on that column."""
    for column in manifest.read_columns(root):
        if column.column == info.column and replace(column, quarantined=()) != info:
            raise UsageError(
                f"{root} already has a column {info.column} of model {column.model_digest[:12]}; "
                f"expected that of {info.model_digest[:12]}; choose another column name"
            )
