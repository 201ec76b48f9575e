"""Records and tables of a dataset: `open_dataset` reads them into a `ShardedDataset`.

`dataset.json` describes the dataset, a `column.json` each appended column. The parquet tables (`tables`) hold
the samples, the index of each column and the quarantined photos. A `ShardedDataset` does not depend on
parquet.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import eq
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, decode_trusted
from diffbfr.shards import (
    ColumnIndex,
    ColumnInfo,
    DatasetInfo,
    Member,
    Sample,
    ShardDamagedError,
    ShardedDataset,
)
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD
from pipelines import storage
from pipelines.dataset.commits import Quarantined
from pipelines.dataset.record_checks import check_column, check_index_tar, check_info
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.dataset.shard_cache import cache_of
from pipelines.dataset.tables import (
    TableWriter,
    read_rows,
    read_table,
    stream_columns,
    stream_rows,
    write_rows,
)

__all__ = [
    "COLUMN_RECORD",
    "DATASET_RECORD",
    "QUARANTINE",
    "SAMPLES",
    "DatasetRecord",
    "LedgerRow",
    "TableWriter",
    "members_path",
    "open_dataset",
    "read_columns",
    "read_info",
    "read_ledger",
    "read_quarantine",
    "read_record",
    "read_rows",
    "read_shard_keys",
    "stream_columns",
    "stream_rows",
    "write_column_record",
    "write_ledger",
    "write_record",
    "write_rows",
]

DATASET_RECORD: Final = "dataset.json"
COLUMN_RECORD: Final = "column.json"
SAMPLES: Final = "manifest/samples.parquet"
QUARANTINE: Final = "quarantine.parquet"


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The outcome of one input of `restore`; the ledger has exactly one row for each input.

    `name` is relative to the input, `output` to the output folder ("" if there is none). `duplicate_of` names
    the restored input with the same bytes. `model_digest` is the cascade that made the output ("" if there is
    none). An input that is no photo by its name is `skipped`. If there are several restorations (`samples`),
    `output` is the first one and `spread` is the mean over pixels of their standard deviation in 8-bit
    levels; it is 0 for a single restoration.
    """

    name: str
    status: Literal["restored", "no_face", "duplicate", "quarantined", "failed", "skipped"]
    reason: str
    message: str
    num_bytes: int
    sha256: str
    width: int
    height: int
    num_faces: int
    duplicate_of: str
    output: str
    output_sha256: str
    model_digest: str
    seconds: float
    samples: int = 1
    spread: float = 0.0


@dataclass(frozen=True)
class DatasetRecord:
    """The content of `dataset.json`, and of the columns appended since.

    `recipe` and `tools` are plain values; `tables` maps the path of each table to its sha256.
    """

    info: DatasetInfo
    columns: tuple[ColumnInfo, ...]
    recipe: Mapping[str, Any]
    tools: Mapping[str, str]
    tables: Mapping[str, str]


def write_ledger(
    uri: str, rows: Iterable[LedgerRow], within: str = "", mode: int = storage.FILE_MODE
) -> None:
    """Write the ledger of a restored archive; `within` and `mode` are as in `storage.write_atomic`."""
    write_rows(uri, LedgerRow, rows, within, mode)


def read_ledger(uri: str) -> list[LedgerRow]:
    """Read the ledger of a restored archive."""
    return read_rows(uri, LedgerRow)


def read_quarantine(root: str | Path) -> list[Quarantined]:
    """Read the refused inputs of a dataset."""
    return read_rows(storage.join(root, QUARANTINE), Quarantined)


def members_path(column: str) -> str:
    """Path of a column's index, relative to its dataset."""
    return f"manifest/columns/{column}.parquet"


def open_dataset(
    root: str | Path, decode_image: Callable[[bytes], Pixels] = decode_trusted
) -> ShardedDataset:
    """Open a finished dataset with every finished column; UsageError if it is not finished.

    The index of an appended column is read and checked on first use. The shards of a dataset on S3 are
    fetched when they are read, into a cache on this machine (`DIFFBFR_CACHE`, else `~/.cache/diffbfr`) of
    `DIFFBFR_CACHE_BYTES` (64 GiB).
    """
    where = storage.absolute(root)
    if not storage.exists(storage.join(where, DATASET_RECORD)):
        raise UsageError(
            f"{where} holds no {DATASET_RECORD}; expected a finished dataset; run the shard step to its end"
        )
    record = read_record(where)
    samples = read_rows(storage.join(where, SAMPLES), Sample, record.tables[SAMPLES])
    if len(samples) != record.info.num_samples:
        raise UsageError(
            f"{where}: {SAMPLES} has {len(samples)} rows, dataset.json says {record.info.num_samples}; run "
            "the shard step again"
        )
    columns = _Columns(where, record, tuple(sample.key for sample in samples))
    if storage.is_remote(where):
        return ShardedDataset(where, record.info, samples, columns, cache_of(where), decode_image)
    return ShardedDataset(Path(where), record.info, samples, columns, None, decode_image)


class _Columns(Mapping[str, ColumnIndex]):
    """The index of each column by its name.

    The indices of the columns made from photos are read at once, so that threads and forks share them. The
    index of an appended column is read on first use (`ShardedDataset.column`): a column that a run does not
    use costs it nothing, and cannot fail it.
    """

    def __init__(self, root: str, record: DatasetRecord, keys: Sequence[str]) -> None:
        self._root = root
        self._record = record
        self._keys = keys
        self._infos = {column.column: column for column in record.columns}
        self._read: dict[str, ColumnIndex] = {}
        for column in record.columns:
            if not column.model_digest:
                self[column.column]

    def __getitem__(self, name: str) -> ColumnIndex:
        if name not in self._read:
            self._read[name] = _read_column(
                self._root, self._infos[name], self._keys, self._record.tables[members_path(name)]
            )
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


def write_record(
    root: str,
    info: DatasetInfo,
    columns: Sequence[ColumnInfo],
    how: Mapping[str, Any],
    tables: Mapping[str, str],
) -> None:
    """Write `dataset.json` with a checksum. It makes the dataset visible, so it is written last.

    `how` holds the `recipe` and the `tools` as plain values, `tables` the sha256 of each table by its path.
    """
    # tuples become lists here, as they are when the record is read and its checksum compared
    columns_made = [dataclasses.asdict(column) for column in columns]
    record = {**dataclasses.asdict(info), "columns": columns_made, "tables": dict(tables), **how}
    write_checksummed_json(storage.join(root, DATASET_RECORD), json.loads(json.dumps(record)), within=root)


def write_column_record(root: str, info: ColumnInfo, table_sha256: str) -> None:
    """Write an appended column's `column.json` with a checksum, last, because it makes the column visible."""
    record = json.loads(json.dumps({**dataclasses.asdict(info), "table": table_sha256}))
    write_checksummed_json(storage.join(root, info.column, COLUMN_RECORD), record, within=root)


def read_record(root: str | Path) -> DatasetRecord:
    """Read `dataset.json` and the `column.json` of each finished column."""
    made = read_checksummed_json(storage.join(root, DATASET_RECORD))
    # appended columns are found by their files: `dataset.json` is never rewritten
    tables = dict(made["tables"])
    columns = [_column_info(column) for column in made["columns"]]
    for name in storage.list_dir(root):
        place = storage.join(root, name, COLUMN_RECORD)
        if storage.exists(place):
            appended = read_checksummed_json(place)
            if appended["column"] != name:
                raise ShardDamagedError(f"{place} is of the column {appended['column']!r}; expected {name}")
            columns.append(_column_info(appended))
            tables[members_path(name)] = appended["table"]
    info = check_info(made)
    for path in tables:
        storage.check_key(path, storage.join(root, DATASET_RECORD))
    return DatasetRecord(info, tuple(columns), made["recipe"], made["tools"], tables)


def read_info(root: str | Path) -> DatasetInfo:
    """Read the description of the whole dataset from `dataset.json`."""
    return read_record(root).info


def read_columns(root: str | Path) -> tuple[ColumnInfo, ...]:
    """The finished columns: those made with the dataset, and each appended one that has a `column.json`."""
    return read_record(root).columns


def read_shard_keys(root: str | Path) -> tuple[tuple[str, ...], ...]:
    """The keys of each shard in order, from the index alone; empty if all photos of it are quarantined."""
    record = read_record(root)
    keys: list[list[str]] = [[] for _ in range(record.info.num_shards)]
    table = read_table(
        storage.join(root, members_path(LQ_COLUMN)), Member, record.tables[members_path(LQ_COLUMN)]
    )
    for key, name, tar in zip(*(table[column].to_pylist() for column in ("key", "name", "tar")), strict=True):
        if name == LQ_RECORD:
            keys[int(PurePosixPath(tar).stem)].append(key)
    return tuple(map(tuple, keys))


def _column_info(record: Mapping[str, Any]) -> ColumnInfo:
    quarantined = tuple((key, name) for key, name in record.get("quarantined", ()))
    return ColumnInfo(
        check_column(record["column"]), tuple(record["names"]), record["model_digest"], quarantined
    )


def _read_column(root: str, info: ColumnInfo, keys: Sequence[str], sha256: str) -> ColumnIndex:
    """Read a column's index straight into arrays, and check that its keys are the dataset's, in order."""
    table = read_table(storage.join(root, members_path(info.column)), Member, sha256)
    n, m = len(keys), len(info.names)
    members = zip(table["key"].to_pylist(), table["name"].to_pylist(), strict=True)
    if table.num_rows != n * m or not all(map(eq, members, product(keys, info.names))):
        raise UsageError(
            f"column {info.column} of {root} does not hold the dataset's keys in order; make the column again"
        )
    # millions of members share a few thousand tar names, so names are stored once
    tars = table["tar"].combine_chunks().dictionary_encode()
    for tar in tars.dictionary.to_pylist():
        check_index_tar(tar, info.column)
    try:
        digest = b"".join(map(bytes.fromhex, table["sha256"].to_pylist()))
    except ValueError as error:
        raise ShardDamagedError(
            f"the index of {info.column} holds a digest that is none ({error}); expected 64 hex digits"
        ) from error
    return ColumnIndex(
        info=info,
        tars=tuple(tars.dictionary.to_pylist()),
        tar_row=tars.indices.to_numpy()[::m].astype(np.int32),
        offset=table["offset"].to_numpy().reshape(n, m),
        length=table["length"].to_numpy().reshape(n, m),
        digest=np.frombuffer(digest, dtype=np.uint8).reshape(n, m, 32),
    )
