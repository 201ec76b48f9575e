"""Random access to a dataset by key: one pread per member, whose sha256 is checked before it is returned.

No file stays open and no state is shared, so a dataset can be pickled, forked and used by several threads.
`pipelines.dataset.manifest.open_dataset` builds it.
"""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, decode_trusted
from diffbfr.shards.schema import LQ_COLUMN, ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split
from diffbfr.shards.valid_area import valid_area
from diffbfr.variant import DegradationParams, apply_target


@dataclass(frozen=True, eq=False)
class ColumnIndex:
    """Where the members of a column lie; row i is the i-th key of the dataset.

    `tars` are paths relative to the dataset and `tar_row` [n] is the index of a sample's tar in it. `offset`
    and `length` [n, len(info.names)] are in bytes, `digest` [n, len(info.names), 32] is the sha256.
    """

    info: ColumnInfo
    tars: tuple[str, ...]
    tar_row: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    digest: NDArray[np.uint8]

    @classmethod
    def of(cls, info: ColumnInfo, keys: Sequence[str], members: Sequence[Member]) -> "ColumnIndex":
        """Index members sorted by key and then in the order of `info.names`; UsageError if one is missing."""
        n, m = len(keys), len(info.names)
        expected = list(product(keys, info.names))
        if [(member.key, member.name) for member in members] != expected:
            raise UsageError(
                f"column {info.column} holds {len(members)} members that are not {n} keys x {m} names in "
                "order; expected the keys of the dataset; make the column again"
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
    """Gives local copies of the tars of a dataset; picklable."""

    @abstractmethod
    def copies(self, tar: str) -> Iterator[Path]:
        """Yield paths to copies of a tar, which is named relative to the dataset.

        The reader asks for the next copy only when the previous one was missing or damaged.
        """


@dataclass(frozen=True)
class LocalTarStore(TarStore):
    """Tars in a folder of this machine, where each has a single copy."""

    root: Path

    def copies(self, tar: str) -> Iterator[Path]:
        yield self.root / tar


class ShardedDataset:
    """A committed dataset at `root`: samples by key and the columns that were finished when it was opened.

    `tars` gives the shards; without it they are read from the folder `root`. `decode_image` decodes their
    images.
    """

    def __init__(
        self,
        root: Path | str,
        info: DatasetInfo,
        samples: Sequence[Sample],
        columns: Mapping[str, ColumnIndex],
        tars: TarStore | None = None,
        decode_image: Callable[[bytes], Pixels] = decode_trusted,
    ) -> None:
        self.root = root
        self.info = info
        self.tars = tars if tars is not None else LocalTarStore(Path(root))
        self._decode_image = decode_image
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
        """Every finished column, sorted by name."""
        return tuple(self._columns[name].info for name in sorted(self._columns))

    @cached_property
    def shards(self) -> tuple[tuple[str, ...], ...]:
        """The keys of each shard, in order: shard i of every column holds exactly `shards[i]`.

        A shard whose photos were all quarantined has no keys.
        """
        keys: list[list[str]] = [[] for _ in range(self.info.num_shards)]
        index = self._columns[LQ_COLUMN]
        numbers = [int(Path(tar).stem) for tar in index.tars]
        for sample, tar_row in zip(self._samples, index.tar_row.tolist(), strict=True):
            keys[numbers[tar_row]].append(sample.key)
        return tuple(map(tuple, keys))

    def keys(self, split: Split) -> list[str]:
        """The keys of one split, sorted."""
        return [sample.key for sample in self._samples if sample.split == split]

    def sample(self, key: str) -> Sample:
        """The description of one sample; UsageError for an unknown key."""
        return self._samples[self._row_of(key)]

    def column(self, column: str) -> ColumnInfo:
        """The description of a column; UsageError if it is not there or not finished."""
        return self.index(column).info

    def lengths(self, column: str, name: str) -> NDArray[np.int64]:
        """The size in bytes of one member of every sample, in the order of `samples`."""
        index, member = self._index_of(column, name)
        return index.length[:, member]

    def digest(self, key: str, column: str, name: str) -> str:
        """The sha256 that one member was committed with, in hex."""
        index, member = self._index_of(column, name)
        return bytes(index.digest[self._row_of(key), member]).hex()

    def read(self, key: str, column: str, name: str) -> bytes:
        """Return the bytes of one member; `ShardDamagedError` if no copy of its tar holds them."""
        index, member = self._index_of(column, name)
        row = self._row_of(key)
        damage: ShardDamagedError | None = None
        for tar in self.tars.copies(index.tars[int(index.tar_row[row])]):
            try:
                data = _pread(tar, int(index.offset[row, member]), int(index.length[row, member]))
            except ShardDamagedError as error:
                damage = error
                continue
            if hashlib.sha256(data).digest() == index.digest[row, member].tobytes():
                return data
            damage = ShardDamagedError(
                f"{tar}: {key}.{name} is not what was committed; expected its sha256; make the shard again"
            )
        assert damage is not None
        raise damage

    @property
    def hq_name(self) -> str:
        """The member of the ground-truth column, which is named by its codec, such as "webp"."""
        return self.index(self.info.hq_column).info.names[0]

    def hq(self, key: str, variant: int, in_colour: bool = False) -> Pixels:
        """The ground truth of a variant, uint8 [hq_px, hq_px, 3], flipped and (not `in_colour`) made gray."""
        return apply_target(
            self._decode(key, self.info.hq_column, self.hq_name), self._target(key, variant, in_colour)
        )

    def hq_low(self, key: str, variant: int, in_colour: bool = False) -> Pixels:
        """x'_0 of a variant, uint8 [lq_px, lq_px, 3], flipped and (not `in_colour`) made gray."""
        return apply_target(
            self._decode(key, self.info.hq_low_column, "png"), self._target(key, variant, in_colour)
        )

    def lq(self, key: str, variant: int) -> Pixels:
        """The low-quality face of a variant, uint8 [h, w, 3], at the low resolution of its JPEG.

        `images.lq_to_model` resizes it for a model.
        """
        return self._decode_image(self.lq_bytes(key, variant))

    def lq_bytes(self, key: str, variant: int) -> bytes:
        """The JPEG that Eq. 13 ends with, as it was committed."""
        return self.read(key, LQ_COLUMN, f"{variant}.jpg")

    @cached_property
    def is_aligned(self) -> bool:
        """Whether faces were found in photos, so that a frame may reach beyond its photo."""
        return any(sample.face is not None for sample in self._samples)

    def valid(self, key: str, variant: int, px: int) -> NDArray[np.float32]:
        """1 where the photo holds a pixel of the variant's target of `px` and 0 elsewhere, [px, px]."""
        face = self.sample(key).face
        if face is None:
            return np.ones((px, px), np.float32)
        valid = valid_area(face, px)
        return np.ascontiguousarray(valid[:, ::-1]) if self._params(key, variant).flip else valid

    def conditioning(self, column: str, key: str, variant: int) -> Pixels:
        """The image of a variant in an appended column, uint8 [h, w, 3].

        It was made from the variant's LQ, so it already has the variant's flip and gray.
        """
        return self._decode(key, column, f"{variant}.png")

    def _decode(self, key: str, column: str, name: str) -> Pixels:
        return self._decode_image(self.read(key, column, name))

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

    def _index_of(self, column: str, name: str) -> tuple[ColumnIndex, int]:
        """The index of a column and the position of one of its names in it."""
        index = self.index(column)
        if name not in index.info.names:
            raise UsageError(f"column {column} has no member {name!r}; it has {', '.join(index.info.names)}")
        return index, index.info.names.index(name)

    def index(self, column: str) -> ColumnIndex:
        """Where the files of a column lie; UsageError if the column is not there or not finished."""
        if column not in self._columns:
            raise UsageError(
                f"the dataset in {self.root} has no finished column {column!r}; it has "
                f"{', '.join(sorted(self._columns))}"
            )
        return self._columns[column]


def _pread(path: Path, offset: int, length: int) -> bytes:
    """Read at an offset of a file that is opened for it: that costs microseconds, and no handle is forked."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ShardDamagedError(
            f"{path} is gone; expected a committed shard; run the shard step again"
        ) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ShardDamagedError(f"{path} is no regular file; expected a shard; make it again")
        # asked for no more than there is, a forged index costs no memory
        length_there = max(0, min(length, status.st_size - offset)) if offset >= 0 else 0
        data = os.pread(handle, length_there, max(0, offset))
        while len(data) < length_there and (
            more := os.pread(handle, length_there - len(data), offset + len(data))
        ):
            data += more
    finally:
        os.close(handle)
    if len(data) != length:
        raise ShardDamagedError(
            f"{path} ends early: {len(data)} of {length} bytes at {offset}; expected a whole shard; make it "
            "again"
        )
    return data
