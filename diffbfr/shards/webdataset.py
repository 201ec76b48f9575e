"""A dataset, or some of its columns joined by key, as a webdataset pipeline. Importing it imports torch.

webdataset reads and groups the tars and splits them over nodes and workers. Which files a tar must hold, and
the sha256 of each, comes from the dataset's index: webdataset itself reads a tar that was cut at the end of a
member as a shorter one, without an error.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.shards.dataset import ColumnIndex, ShardedDataset
from diffbfr.shards.schema import ShardDamagedError, Split

# webdataset reads this once, when it is imported: no `pipe:` URLs and no pickled members.
os.environ.setdefault("WDS_SECURE", "1")

import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander

Splitter: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]


def webdataset_pipeline(
    dataset: ShardedDataset,
    columns: Sequence[str] | None = None,
    split: Split | None = None,
    *,
    nodesplitter: Splitter = wds.split_by_node,
    workersplitter: Splitter = wds.split_by_worker,
    shuffle_seed: int | None = None,
) -> Any:
    """Return the samples of one epoch as a `webdataset.DataPipeline` with the methods of `WebDataset`.

    Further stages can follow, such as `.shuffle(1000).decode("rgb8").to_tuple("lq.0.jpg", "hq128.png")`.

    A sample is a dict: `__key__`, `__url__` (its tar in the first column) and the undecoded bytes of each
    file under `<column>.<name>`, such as `lq.0.jpg`, `lq.json` or `hq128.png`. Quarantined files are left
    out. `columns` are joined by key; all finished ones by default. `split` keeps the samples of one split.

    Tars are split over nodes (`RANK` and `WORLD_SIZE`, or the process group of torch.distributed), then over
    the workers of a `DataLoader`: over all of them every key comes exactly once. Tars come in order, or are
    shuffled by `shuffle_seed` in the same way on every node; samples come in the order of their tar.

    Raises UsageError for unknown columns, columns with other keys in their tars, or an empty split. Iteration
    raises `ShardDamagedError` when no copy of a tar holds the committed files.
    """
    names = tuple(columns) if columns is not None else tuple(info.column for info in dataset.columns)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"columns {names} were asked for; expected at least one, each once")
    indexes = [dataset.index(name) for name in names]
    for index in indexes[1:]:
        if not np.array_equal(index.tar_row, indexes[0].tar_row):
            raise UsageError(
                f"the tars of {index.info.column} hold other keys than those of {names[0]}; expected the "
                "same; make the column again"
            )
    wanted = np.array([split is None or sample.split == split for sample in dataset.samples], dtype=bool)
    numbers = np.unique(indexes[0].tar_row[wanted]).tolist()
    if not numbers:
        raise UsageError(
            f"the dataset in {dataset.root} has no {split or ''} samples; expected at least one; choose "
            "another split"
        )
    pipeline = wds.DataPipeline(
        wds.SimpleShardList([indexes[0].tars[number] for number in numbers], seed=shuffle_seed),
        nodesplitter,
        workersplitter,
        _ReadColumns(dataset, names, wanted),
    )
    return wds.FluidWrapper(pipeline)


@dataclass(frozen=True, eq=False)
class _ReadColumns:
    """The stage that turns the tars of the first column into samples of all columns; picklable."""

    dataset: ShardedDataset
    columns: tuple[str, ...]
    wanted: NDArray[np.bool_]

    def __call__(self, shards: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        tars = self.dataset.index(self.columns[0]).tars
        for shard in shards:
            yield from self._join(shard["url"], tars.index(shard["url"]))

    def _join(self, url: str, number: int) -> Iterator[dict[str, Any]]:
        """Read tar `number` of every column side by side, a sample at a time."""
        readers = [self._read_tar(column, number) for column in self.columns]
        for parts in zip(*readers, strict=True):
            rows = {row for row, _ in parts}
            key = self.dataset.samples[parts[0][0]].key
            if len(rows) != 1:
                raise ShardDamagedError(
                    f"{url}: after {key} the columns {', '.join(self.columns)} go on with different keys; "
                    "expected the same order; make the columns again"
                )
            if self.wanted[parts[0][0]]:
                sample: dict[str, Any] = {"__key__": key, "__url__": url}
                for _, files in parts:
                    sample.update(files)
                yield sample

    def _read_tar(self, column: str, number: int) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Yield row and files of each sample of one tar; continue in another copy where one is damaged."""
        index = self.dataset.index(column)
        num_read = 0
        damage: ShardDamagedError | None = None
        for path in self.dataset.tars.copies(index.tars[number]):
            try:
                for row, files in islice(self._read_copy(path, index, number), num_read, None):
                    num_read += 1
                    yield row, files
                return
            except ShardDamagedError as error:
                damage = error
        assert damage is not None
        raise damage

    def _read_copy(
        self, path: Path, index: ColumnIndex, number: int
    ) -> Iterator[tuple[int, dict[str, bytes]]]:
        rows = np.flatnonzero(index.tar_row == number)
        rows = rows[np.argsort(index.offset[rows, 0], kind="stable")]
        quarantined = frozenset(index.info.quarantined)
        try:
            with path.open("rb") as stream:
                samples = group_by_keys(
                    tar_file_expander([{"url": str(path), "stream": stream}]), lcase=False
                )
                for row in rows.tolist():
                    yield row, self._check(path, index, quarantined, row, next(samples, {}))
                if next(samples, None) is not None:
                    raise _damaged(path, f"it holds more than {len(rows)} samples")
        except FileNotFoundError as error:
            raise _damaged(path, "it is gone") from error
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            # webdataset appends the stream and the URL to the arguments; the first one is the message.
            raise _damaged(path, f"it cannot be read ({error.args[0] if error.args else error!r})") from error

    def _check(
        self,
        path: Path,
        index: ColumnIndex,
        quarantined: frozenset[tuple[str, str]],
        row: int,
        found: dict[str, Any],
    ) -> dict[str, bytes]:
        """Return the files of one sample by `<column>.<name>` if they are the committed ones."""
        info = index.info
        key = self.dataset.samples[row].key
        names = {name for name in found if not name.startswith("__")}
        if found.get("__key__") != key or names != set(info.names):
            raise _damaged(path, f"{key} or a file of it is missing")
        files: dict[str, bytes] = {}
        for place, name in enumerate(info.names):
            if not self.wanted[row] or (key, name) in quarantined:
                continue
            if hashlib.sha256(found[name]).digest() != index.digest[row, place].tobytes():
                raise _damaged(path, f"{key}.{name} has another sha256")
            files[f"{info.column}.{name}"] = found[name]
        return files


def _damaged(path: Path, what: str) -> ShardDamagedError:
    return ShardDamagedError(f"{path} is not what was committed: {what}; make the shard again")
