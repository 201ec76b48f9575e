"""Parquet tables and the dataset that they describe: the one door to pyarrow.

A table is a sequence of frozen dataclass rows; its schema follows from their annotations: scalars are plain columns, a tuple of dataclasses
is a list of structs. `open_dataset` reads `dataset.json` and the tables into a `ShardedDataset`, which knows nothing of parquet.
"""

import dataclasses
import io
import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffbfr.errors import UsageError
from diffbfr.shards import ColumnIndex, ColumnInfo, DatasetInfo, Member, Sample, ShardedDataset
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD
from pipelines import storage
from pipelines.commits import Quarantined

DATASET_RECORD: Final = "dataset.json"
COLUMN_RECORD: Final = "column.json"
SAMPLES: Final = "manifest/samples.parquet"
QUARANTINE: Final = "quarantine.parquet"

Row = TypeVar("Row")
_SCALARS: Final[dict[Any, pa.DataType]] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What became of one input of `restore`; exactly one row an input.

    `name` is relative to the input, `output` to the output folder ("" if none); `duplicate_of` names the input with the same bytes that was
    restored; `model_digest` is the cascade that made the output ("" if there is none).
    """

    name: str
    status: Literal["restored", "no_face", "duplicate", "quarantined", "failed"]
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


class TableWriter:
    """Write rows to a parquet file piece by piece; `close` publishes it whole, and nothing is visible before."""

    def __init__(self, uri: str, row_type: type[Any]) -> None:
        self._uri = uri
        self._row_type = row_type
        self._schema = _schema(row_type)
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, self._schema, compression="zstd")

    def append(self, rows: Iterable[Any]) -> None:
        """Add rows as one row group."""
        table = _to_table(rows, self._row_type, self._schema)
        if table.num_rows:
            self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file and publish it."""
        self._writer.close()
        storage.write_atomic(self._uri, self._buffer.getvalue())


def write_rows(uri: str, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write dataclass rows as one parquet file."""
    writer = TableWriter(uri, row_type)
    writer.append(rows)
    writer.close()


def read_rows(uri: str, row_type: type[Row]) -> list[Row]:
    """Read dataclass rows back from a parquet file."""
    columns = _read_table(uri, row_type).to_pydict()
    build = _builder(row_type)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, row_type))]
    return [build(dict(zip(names, values, strict=True))) for values in zip(*(columns[name] for name in names), strict=True)]


def write_ledger(uri: str, rows: Iterable[LedgerRow]) -> None:
    """Write the ledger of a restored archive."""
    write_rows(uri, LedgerRow, rows)


def read_ledger(uri: str) -> list[LedgerRow]:
    """Read the ledger of a restored archive."""
    return read_rows(uri, LedgerRow)


def read_quarantine(root: str | Path) -> list[Quarantined]:
    """Read the refused inputs of a dataset."""
    return read_rows(storage.join(root, QUARANTINE), Quarantined)


def members_path(column: str) -> str:
    """Where a column's index lies in its dataset."""
    return f"manifest/columns/{column}.parquet"


def open_dataset(root: str | Path) -> ShardedDataset:
    """Open a finished dataset with every finished column; one on S3 comes through a cache (`DIFFBFR_CACHE`, else `~/.cache/diffbfr`)."""
    where = storage.absolute(root)
    if not storage.exists(storage.join(where, DATASET_RECORD)):
        raise UsageError(f"{where} holds no {DATASET_RECORD}; expected a finished dataset; run the shard step to its end")
    cache = Path(os.environ.get("DIFFBFR_CACHE", "~/.cache/diffbfr")).expanduser() / "datasets"
    local = storage.fetch_tree(where, cache)
    info = read_info(local)
    samples = read_rows(str(local / SAMPLES), Sample)
    if len(samples) != info.num_samples:
        raise UsageError(f"{where}: {SAMPLES} has {len(samples)} rows, dataset.json says {info.num_samples}; run the shard step again")
    keys = [sample.key for sample in samples]
    columns = {column.column: _read_column(local, column, keys) for column in read_columns(local)}
    return ShardedDataset(local, info, samples, columns)


def read_info(root: str | Path) -> DatasetInfo:
    """Read `dataset.json`."""
    record = storage.read_json(storage.join(root, DATASET_RECORD))
    return DatasetInfo(**{field.name: record[field.name] for field in dataclasses.fields(DatasetInfo)})


def read_columns(root: str | Path) -> list[ColumnInfo]:
    """Name the finished columns: those made with the dataset, and each appended one whose `column.json` is there."""
    made = storage.read_json(storage.join(root, DATASET_RECORD))["columns"]
    places = [storage.join(root, name, COLUMN_RECORD) for name in storage.list_dir(root)]
    appended = [storage.read_json(place) for place in places if storage.exists(place)]
    return [ColumnInfo(record["column"], tuple(record["names"]), record["model_digest"]) for record in [*made, *appended]]


def read_shard_keys(root: str | Path) -> tuple[tuple[str, ...], ...]:
    """Read the keys of each shard in order, from the index alone; none for a shard whose photos were all quarantined."""
    keys: list[list[str]] = [[] for _ in range(read_info(root).num_shards)]
    table = _read_table(storage.join(root, members_path(LQ_COLUMN)), Member)
    for key, name, tar in zip(*(table[column].to_pylist() for column in ("key", "name", "tar")), strict=True):
        if name == LQ_RECORD:
            keys[int(PurePosixPath(tar).stem)].append(key)
    return tuple(map(tuple, keys))


def _read_column(root: Path, info: ColumnInfo, keys: Sequence[str]) -> ColumnIndex:
    """Read a column's index straight into arrays, and check that its keys are the dataset's, in order."""
    table = _read_table(str(root / members_path(info.column)), Member)
    n, m = len(keys), len(info.names)
    names = np.array(table["name"].to_pylist()).reshape(-1)
    in_order = len(names) == n * m and table["key"].to_pylist() == [key for key in keys for _ in range(m)]
    if not in_order or not (names.reshape(n, m) == np.array(info.names)).all():
        raise UsageError(f"column {info.column} of {root} does not hold the dataset's keys in order; make the column again")
    tars = table["tar"].combine_chunks().dictionary_encode()
    digest = b"".join(map(bytes.fromhex, table["sha256"].to_pylist()))
    return ColumnIndex(
        info=info,
        tars=tuple(tars.dictionary.to_pylist()),
        tar_row=tars.indices.to_numpy()[::m].astype(np.int32),
        offset=table["offset"].to_numpy().reshape(n, m),
        length=table["length"].to_numpy().reshape(n, m),
        digest=np.frombuffer(digest, dtype=np.uint8).reshape(n, m, 32),
    )


def _read_table(uri: str, row_type: type[Any]) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    except FileNotFoundError as error:
        raise UsageError(f"{uri} is not there; expected a table of {row_type.__name__}; run the step that writes it again") from error
    except pa.ArrowException as error:
        raise UsageError(f"{uri} cannot be read ({error}); expected parquet; run the step that writes it again") from error
    if not table.schema.equals(_schema(row_type)):
        raise UsageError(
            f"{uri} has columns {table.column_names}; expected those of {row_type.__name__}; another version wrote it: make it again"
        )
    return table


def _schema(row_type: type[Any]) -> pa.Schema:
    return pa.schema([(name, _arrow_type(kind)) for name, kind in typing.get_type_hints(row_type).items()])


def _arrow_type(kind: Any) -> pa.DataType:
    """Map an annotation: a scalar, a Literal of strings, a dataclass, or a tuple of any length of one of these."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if typing.get_origin(kind) is Literal:
        return pa.string()
    if typing.get_origin(kind) is tuple:
        return pa.list_(_arrow_type(typing.get_args(kind)[0]))
    if dataclasses.is_dataclass(kind):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in typing.get_type_hints(kind).items()])
    raise TypeError(f"{kind!r} has no place in a table; expected str, int, float, bool, a dataclass or a tuple of them")


def _to_table(rows: Iterable[Any], row_type: type[Any], schema: pa.Schema) -> pa.Table:
    listed = list(rows)
    hints = typing.get_type_hints(row_type)
    arrays = []
    for field in schema:
        values = [getattr(row, field.name) for row in listed]
        plain = values if hints[field.name] in _SCALARS else [_plain(value) for value in values]
        arrays.append(pa.array(plain, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _builder(row_type: type[Any]) -> Any:
    """Return a function from a plain mapping to a row, with lists turned back into tuples and structs into their dataclasses."""
    nested: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(row_type).items():
        if typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)[0]
            nested[name] = _builder(inner) if isinstance(inner, type) and dataclasses.is_dataclass(inner) else inner

    def build(values: dict[str, Any]) -> Any:
        for name, item in nested.items():
            values[name] = tuple(item(value) for value in values[name])
        return row_type(**values)

    return build
