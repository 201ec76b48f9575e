"""Checks of what the records of a dataset say before it becomes a path, a size or a loop.

A checksum finds accidents only: whoever forges a record can compute it. So a dataset of somebody else may
name other files, or numbers that no machine has room for.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from diffbfr.shards import DatasetInfo, Member, ShardDamagedError

_COLUMN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEY: Final = re.compile(r"[a-z0-9_-]+")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_TAR_BYTES: Final = 1 << 40
_MAX_SHARDS: Final = 10**6
_MAX_PX: Final = 1 << 14
_MAX_COUNT: Final = 1 << 40


def check_column(column: object) -> str:
    """Return the name of a column; `ShardDamagedError` if it is no plain name of a folder."""
    if not isinstance(column, str) or not _COLUMN.fullmatch(column):
        raise ShardDamagedError(
            f"a record names the column {column!r}; expected small letters, digits and hyphens; it was not "
            "written by this program"
        )
    return column


def check_tar(tar: str, num_bytes: int, sha256: str, index: int) -> None:
    """`ShardDamagedError` unless a tar is that of a shard of a column, of a size that a tar can have."""
    column, _, name = tar.partition("/")
    check_column(column)
    sizes = isinstance(num_bytes, int) and 0 <= num_bytes <= _MAX_TAR_BYTES
    if name != f"{index:06d}.tar" or not sizes or not _SHA256.fullmatch(sha256):
        raise ShardDamagedError(
            f"the record of shard {index} names the tar {tar!r} of {num_bytes} bytes; expected "
            f"COLUMN/{index:06d}.tar and its size; it was not written by this program"
        )


def check_index_tar(tar: str, column: str) -> None:
    """`ShardDamagedError` unless the index of a column names a tar of that column."""
    if not re.fullmatch(rf"{re.escape(column)}/\d{{6,7}}\.tar", tar):
        raise ShardDamagedError(
            f"the index of {column} names the tar {tar!r}; expected {column}/NNNNNN.tar; it was not written "
            "by this program"
        )


def check_member(member: Member, tar: str, num_bytes: int) -> None:
    """`ShardDamagedError` unless a member has a plain name and lies inside its tar."""
    named = _KEY.fullmatch(member.key) and _NAME.fullmatch(member.name) and _SHA256.fullmatch(member.sha256)
    numbers = isinstance(member.offset, int) and isinstance(member.length, int)
    inside = numbers and member.offset >= 0 and 0 <= member.length <= num_bytes - member.offset
    if not named or not inside or (member.tar, member.column) != (tar, tar.partition("/")[0]):
        raise ShardDamagedError(
            f"{member.tar!r} is said to hold {member.key!r}.{member.name!r} at {member.offset} with "
            f"{member.length} bytes; expected a place inside the {num_bytes} bytes of {tar}; the record was "
            "not written by this program"
        )


def check_info(record: Mapping[str, object]) -> DatasetInfo:
    """The description of a dataset from its record; `ShardDamagedError` unless every number can be one."""
    limits = {"hq_px": _MAX_PX, "lq_px": _MAX_PX, "num_shards": _MAX_SHARDS}
    for field in dataclasses.fields(DatasetInfo):
        value = record[field.name]
        if field.type is int:
            most = limits.get(field.name, _MAX_COUNT)
            valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
        else:
            valid = isinstance(value, str)
        if not valid:
            raise ShardDamagedError(
                f"dataset.json has {field.name} {str(value)[:60]!r}; expected what the shard step writes; it "
                "was not written by this program"
            )
    values: dict[str, Any] = {field.name: record[field.name] for field in dataclasses.fields(DatasetInfo)}
    return DatasetInfo(**values)
