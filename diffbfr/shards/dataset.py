"""Random access to a dataset by key: one pread a member, its digest checked before anyone uses it.

No file stays open and nothing is shared, so a dataset can be pickled, forked and used by threads.
`pipelines.dataset.manifest.open_dataset` builds it.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbfr.degradation import DegradationParams, apply_target
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, decode_trusted
from diffbfr.shards.schema import LQ_COLUMN, ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split


@dataclass(frozen=True, eq=False)
class ColumnIndex:
    """Where a column's members lie: rows are samples in the order of their keys, columns are `info.names`.

    `tars` are paths relative to the dataset; `tar_row` [n] says which one holds a sample; `offset` and
    `length` are bytes, `digest` sha256.
    """

    info: ColumnInfo
    tars: tuple[str, ...]
    tar_row: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    digest: NDArray[np.uint8]

    @classmethod
    def of(cls, info: ColumnInfo, keys: Sequence[str], members: Sequence[Member]) -> "ColumnIndex":
        """Index members that are sorted by key and, within one, in the order of `info.names`; every key
        must have every name.
        """
        n, m = len(keys), len(info.names)
        if [(member.key, member.name) for member in members] != [
            (key, name) for key in keys for name in info.names
        ]:
            raise UsageError(
                f"column {info.column} holds {len(members)} members that are not {n} keys x {m} names in "
                "order; "
                "expected the keys of the dataset; make the column again"
            )
        tars = tuple(sorted({member.tar for member in members}))
        row_of = {tar: row for row, tar in enumerate(tars)}
        return cls(
            info=info,
            tars=tars,
            tar_row=np.array([row_of[member.tar] for member in members[::m]], dtype=np.int32),
            offset=np.array([member.offset for member in members], dtype=np.int64).reshape(n, m),
            length=np.array([member.length for member in members], dtype=np.int64).reshape(n, m),
            digest=np.frombuffer(
                b"".join(bytes.fromhex(member.sha256) for member in members), dtype=np.uint8
            ).reshape(n, m, 32),
        )


class TarStore(ABC):
    """Where the tars of a dataset can be read; picklable."""

    @abstractmethod
    def copies(self, tar: str) -> Iterator[Path]:
        """Yield paths of a tar (named relative to the dataset), another one as often as the reader found
        the last gone or damaged.
        """


@dataclass(frozen=True)
class LocalTarStore(TarStore):
    """Tars in a folder of this machine: there is one copy."""

    root: Path

    def copies(self, tar: str) -> Iterator[Path]:
        """Yield the one place."""
        yield self.root / tar


class ShardedDataset:
    """A committed dataset at `root`: samples by key, and every column that was finished when it was opened.

    `tars` says where its shards can be read; without it they lie under `root`.
    """

    def __init__(
        self,
        root: Path | str,
        info: DatasetInfo,
        samples: Sequence[Sample],
        columns: Mapping[str, ColumnIndex],
        tars: TarStore | None = None,
    ) -> None:
        self.root = root
        self.info = info
        self._tars = tars if tars is not None else LocalTarStore(Path(root))
        self._samples = tuple(samples)
        self._columns = columns
        self._row = {sample.key: row for row, sample in enumerate(self._samples)}

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every sample, sorted by key."""
        return self._samples

    @property
    def columns(self) -> tuple[ColumnInfo, ...]:
        """Every column that is finished, by name."""
        return tuple(self._columns[name].info for name in sorted(self._columns))

    @cached_property
    def shards(self) -> tuple[tuple[str, ...], ...]:
        """The keys of each shard, in order: shard i of every column holds exactly `shards[i]` (maybe none,
        if all were quarantined).
        """
        keys: list[list[str]] = [[] for _ in range(self.info.num_shards)]
        index = self._columns[LQ_COLUMN]
        numbers = [int(Path(tar).stem) for tar in index.tars]
        for sample, tar_row in zip(self._samples, index.tar_row.tolist(), strict=True):
            keys[numbers[tar_row]].append(sample.key)
        return tuple(map(tuple, keys))

    def keys(self, split: Split) -> list[str]:
        """Keys of one split, sorted."""
        return [sample.key for sample in self._samples if sample.split == split]

    def sample(self, key: str) -> Sample:
        """The row of one sample."""
        return self._samples[self._row_of(key)]

    def column(self, column: str) -> ColumnInfo:
        """What a column says about itself; UsageError if it is not there or not finished."""
        return self._index(column).info

    def lengths(self, column: str, name: str) -> NDArray[np.int64]:
        """Bytes of one member of every sample, in the order of `samples`."""
        index, place = self._place(column, name)
        return index.length[:, place]

    def digest(self, key: str, column: str, name: str) -> str:
        """The sha256 that one member was committed with."""
        index, place = self._place(column, name)
        return bytes(index.digest[self._row_of(key), place]).hex()

    def read(self, key: str, column: str, name: str) -> bytes:
        """Return one member's bytes; `ShardDamagedError` if they are not the committed ones."""
        index, place = self._place(column, name)
        row = self._row_of(key)
        damage: ShardDamagedError | None = None
        for tar in self._tars.copies(index.tars[int(index.tar_row[row])]):
            try:
                data = _pread(tar, int(index.offset[row, place]), int(index.length[row, place]))
            except ShardDamagedError as error:
                damage = error
                continue
            if hashlib.sha256(data).digest() == index.digest[row, place].tobytes():
                return data
            damage = ShardDamagedError(
                f"{tar}: {key}.{name} is not what was committed; expected its sha256; make the shard again"
            )
        assert damage is not None
        raise damage

    @property
    def hq_name(self) -> str:
        """Name of the ground truth's member, which is its codec's."""
        return self._index(self.info.hq_column).info.names[0]

    def hq(self, key: str, variant: int, in_colour: bool = False) -> Pixels:
        """Ground truth of a variant, uint8 hq_px x hq_px x 3, with the variant's flip and, unless
        `in_colour`, gray.
        """
        return apply_target(
            self._decode(key, self.info.hq_column, self.hq_name), self._target(key, variant, in_colour)
        )

    def hq_low(self, key: str, variant: int, in_colour: bool = False) -> Pixels:
        """x'_0 of a variant, uint8 lq_px x lq_px x 3, with the variant's flip and, unless `in_colour`,
        gray.
        """
        return apply_target(
            self._decode(key, self.info.hq_low_column, "png"), self._target(key, variant, in_colour)
        )

    def lq(self, key: str, variant: int) -> Pixels:
        """The low-quality face of a variant at its own low resolution, uint8 h w 3; `images.lq_to_model`
        brings it to a model's size.
        """
        return decode_trusted(self.lq_bytes(key, variant))

    def lq_bytes(self, key: str, variant: int) -> bytes:
        """The literal JPEG of Eq. 13."""
        return self.read(key, LQ_COLUMN, f"{variant}.jpg")

    def conditioning(self, column: str, key: str, variant: int) -> Pixels:
        """A variant's picture from an appended column, uint8; it was made from the variant's LQ, so flip
        and gray are already in it.
        """
        return self._decode(key, column, f"{variant}.png")

    def _decode(self, key: str, column: str, name: str) -> Pixels:
        return decode_trusted(self.read(key, column, name))

    def _target(self, key: str, variant: int, in_colour: bool) -> DegradationParams:
        params = self._params(key, variant)
        return replace(params, gray=False) if in_colour else params

    def _params(self, key: str, variant: int) -> DegradationParams:
        if not 0 <= variant < self.info.variants:
            raise UsageError(
                f"variant {variant} of {key} was asked for; the dataset holds 0..{self.info.variants - 1}"
            )
        return self.sample(key).variants[variant]

    def _row_of(self, key: str) -> int:
        row = self._row.get(key)
        if row is None:
            raise UsageError(
                f"the dataset in {self.root} has no key {key!r}; ask `keys(split)` for those it has"
            )
        return row

    def _place(self, column: str, name: str) -> tuple[ColumnIndex, int]:
        index = self._index(column)
        if name not in index.info.names:
            raise UsageError(f"column {column} has no member {name!r}; it has {', '.join(index.info.names)}")
        return index, index.info.names.index(name)

    def _index(self, column: str) -> ColumnIndex:
        if column not in self._columns:
            raise UsageError(
                f"the dataset in {self.root} has no finished column {column!r}; it has "
                f"{', '.join(sorted(self._columns))}"
            )
        return self._columns[column]


def _pread(path: Path, offset: int, length: int) -> bytes:
    """Open, read at an offset, close: the open costs microseconds, and no handle has to survive a fork."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ShardDamagedError(
            f"{path} is gone; expected a committed shard; run the shard step again"
        ) from error
    try:
        data = os.pread(handle, length, offset)
        while len(data) < length and (more := os.pread(handle, length - len(data), offset + len(data))):
            data += more
    finally:
        os.close(handle)
    if len(data) != length:
        raise ShardDamagedError(
            f"{path} ends early: {len(data)} of {length} bytes at {offset}; expected a whole shard; make it "
            "again"
        )
    return data
