"""Parquet tables of frozen dataclass rows; the one module that imports pyarrow.

The schema follows from the annotations of the rows: scalars are plain columns, a tuple of dataclasses is a
list of structs, and what may be None may be null. Tables are written and read one row group at a
time and published atomically. A table of an earlier version may lack columns whose fields have defaults.
"""

import contextlib
import dataclasses
import shutil
import tempfile
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from diffbfr.errors import UsageError
from diffbfr.shards import ShardDamagedError
from pipelines import storage

Row = TypeVar("Row")
_SCALARS: Final[dict[Any, pa.DataType]] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}
_ROWS_AT_ONCE: Final = 256
_ROWS_IN_GROUP: Final = 1 << 14
_COLUMNS_AT_ONCE: Final = 4096


class TableWriter:
    """Writes rows to a parquet file one row group at a time; `close` publishes it atomically.

    The unfinished file is in this machine's temporary folder, so that memory holds one row group. `within`
    and `mode` are as in `storage.write_atomic`.
    """

    def __init__(
        self, uri: str, row_type: type[Any], within: str = "", mode: int = storage.FILE_MODE
    ) -> None:
        self._uri = uri
        self._within = within
        self._mode = mode
        self._row_type = row_type
        self._schema = _schema(row_type)
        folder = tempfile.mkdtemp(prefix="diffbfr-table-")
        # the temporary folder is also removed if `close` is never reached
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "table"
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")

    def append(self, rows: Iterable[Any]) -> None:
        """Add rows as one row group."""
        table = _to_table(rows, self._row_type, self._schema)
        if table.num_rows:
            self._writer.write_table(table)

    def close(self, name: Callable[[str], str] | None = None) -> str:
        """Finish the file, publish it and return its sha256; `name` makes its place from its sha256."""
        self._writer.close()
        sha256 = storage.digest(self._path)
        place = self._uri if name is None else name(sha256)
        storage.put_file(self._path, place, within=self._within, mode=self._mode)
        self._remove()
        return sha256


def write_rows(
    uri: str, row_type: type[Row], rows: Iterable[Row], within: str = "", mode: int = storage.FILE_MODE
) -> str:
    """Write dataclass rows as one parquet file; returns its sha256."""
    writer = TableWriter(uri, row_type, within, mode)
    remaining = iter(rows)
    while group := list(islice(remaining, _ROWS_IN_GROUP)):
        writer.append(group)
    return writer.close()


def read_rows(uri: str, row_type: type[Row], sha256: str = "") -> list[Row]:
    """Read dataclass rows from a parquet file; `ShardDamagedError` if its digest is not `sha256`."""
    return list(stream_rows(uri, row_type, sha256))


def stream_rows(uri: str, row_type: type[Row], sha256: str = "") -> Iterator[Row]:
    """Yield the rows of a table, read in batches; the digest of the file is checked before the first."""
    build = _builder(row_type)
    with _opened(uri, row_type, sha256) as file:
        names = file.schema_arrow.names
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            columns = batch.to_pydict()
            for values in zip(*(columns[name] for name in names), strict=True):
                yield build(dict(zip(names, values, strict=True)))


def stream_columns(
    uri: str, row_type: type[Any], names: Sequence[str], sha256: str = ""
) -> Iterator[list[list[Any]]]:
    """Yield some columns of a table of scalars a batch at a time, far faster than rows.

    A column that an older version did not write has its default. `ShardDamagedError` if the file is not what
    was written.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(row_type)}
    try:
        with _opened(uri, row_type, sha256) as file:
            present = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(_COLUMNS_AT_ONCE, columns=present):
                yield [
                    batch.column(name).to_pylist() if name in present else [defaults[name]] * batch.num_rows
                    for name in names
                ]
    except (pa.ArrowException, ValueError) as error:
        raise ShardDamagedError(
            f"{uri} is damaged ({error}); expected the table as it was written"
        ) from error


def read_table(uri: str, row_type: type[Any], sha256: str = "") -> pa.Table:
    """Read a whole table as arrow columns; its digest is checked as in `stream_rows`."""
    with _opened(uri, row_type, sha256) as file:
        return file.read()


@contextlib.contextmanager
def _opened(uri: str, row_type: type[Any], sha256: str) -> Iterator[pq.ParquetFile]:
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(storage.local_copy(uri))
        except FileNotFoundError as error:
            raise UsageError(
                f"{uri} is not there; expected a table of {row_type.__name__}; run the step that writes it "
                "again"
            ) from error
        if sha256 and storage.digest(path) != sha256:
            raise ShardDamagedError(
                f"{uri} is not the table that was committed; expected its sha256; run the step that writes "
                "it again"
            )
        try:
            file = stack.enter_context(pq.ParquetFile(path))
        except (pa.ArrowException, OSError) as error:
            raise UsageError(
                f"{uri} cannot be read ({error}); expected parquet; run the step that writes it again"
            ) from error
        if not _is_readable(file.schema_arrow, row_type):
            found = file.schema_arrow.names
            raise UsageError(
                f"{uri} has columns {found}; expected those of {row_type.__name__}; another version wrote "
                "it: make it again"
            )
        yield file


def _schema(row_type: type[Any]) -> pa.Schema:
    return pa.schema([(name, _arrow_type(kind)) for name, kind in typing.get_type_hints(row_type).items()])


def _is_readable(found: pa.Schema, row_type: type[Any]) -> bool:
    """Whether a schema is that of the rows, or of rows without some of the fields that have defaults."""
    known = _schema(row_type)
    required = {
        field.name
        for field in dataclasses.fields(row_type)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    names = [name for name in known.names if name in found.names]
    return required.issubset(names) and found.equals(pa.schema([known.field(name) for name in names]))


def _arrow_type(kind: Any) -> pa.DataType:
    """The arrow type of an annotation: a scalar, a Literal of strings, a dataclass, or a tuple of these."""
    if (inner := _optional(kind)) is not None:
        return _arrow_type(inner)
    if kind in _SCALARS:
        return _SCALARS[kind]
    if typing.get_origin(kind) is Literal:
        return pa.string()
    if typing.get_origin(kind) is tuple:
        return pa.list_(_arrow_type(typing.get_args(kind)[0]))
    if dataclasses.is_dataclass(kind):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in typing.get_type_hints(kind).items()])
    raise TypeError(
        f"{kind!r} has no place in a table; expected str, int, float, bool, one of them or None, a dataclass "
        "or a tuple of them"
    )


def _optional(kind: Any) -> Any:
    """X of the annotation `X | None`; None for any other annotation."""
    if typing.get_origin(kind) is not types.UnionType:
        return None
    return next(inner for inner in typing.get_args(kind) if inner is not type(None))


def _to_table(rows: Iterable[Any], row_type: type[Any], schema: pa.Schema) -> pa.Table:
    listed = list(rows)
    hints = typing.get_type_hints(row_type)
    # one array for each column: pyarrow converts columns much faster than rows
    arrays = []
    for field in schema:
        values = [getattr(row, field.name) for row in listed]
        plain = values if hints[field.name] in _SCALARS else [_plain(value) for value in values]
        arrays.append(pa.array(plain, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _builder(row_type: type[Any]) -> Any:
    """A function that builds a row from a plain mapping, with lists as tuples and structs as dataclasses."""
    nested: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(row_type).items():
        if (inner := _optional(kind)) is not None:
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                optional[name] = _builder(inner)
        elif typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)[0]
            is_struct = isinstance(inner, type) and dataclasses.is_dataclass(inner)
            nested[name] = _builder(inner) if is_struct else inner

    def build(values: dict[str, Any]) -> Any:
        for name, item in nested.items():
            values[name] = tuple(item(value) for value in values[name])
        for name, struct in optional.items():
            if values.get(name) is not None:
                values[name] = struct(values[name])
        return row_type(**values)

    return build
