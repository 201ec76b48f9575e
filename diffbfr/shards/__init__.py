"""The dataset as a model sees it: sample schema, deterministic tars, random access by key, and the order of an epoch.

`schema` names the rows, `tar` writes and checks one shard, `dataset` reads, `order` says which sample position p of a run is.
"""

from diffbfr.shards.dataset import ColumnIndex, ShardedDataset, Tars
from diffbfr.shards.order import epoch_order, position, positions
from diffbfr.shards.schema import ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split
from diffbfr.shards.tar import BuiltTar, TarMember, build_tar, check_tar, write_tar

__all__ = [
    "BuiltTar",
    "ColumnIndex",
    "ColumnInfo",
    "DatasetInfo",
    "Member",
    "Sample",
    "ShardDamagedError",
    "ShardedDataset",
    "Split",
    "TarMember",
    "Tars",
    "build_tar",
    "check_tar",
    "epoch_order",
    "position",
    "positions",
    "write_tar",
]
