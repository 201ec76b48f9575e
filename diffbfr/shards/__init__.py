"""The dataset as a model sees it: sample schema, deterministic tars, random access by key, and the order of an epoch.

`schema` names the rows, `tar` writes and checks one shard, `dataset` reads, `order` says which sample position p of a run is,
`loader` reads ahead in that order.
"""

from diffbfr.shards.dataset import ColumnIndex, ShardedDataset, Tars
from diffbfr.shards.loader import Loaded, SampleLoader, digest_keys, order_digest
from diffbfr.shards.order import epoch_order, position, positions
from diffbfr.shards.schema import ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split
from diffbfr.shards.tar import BuiltTar, TarMember, build_tar, check_tar, write_tar

__all__ = [
    "BuiltTar",
    "ColumnIndex",
    "ColumnInfo",
    "DatasetInfo",
    "Loaded",
    "Member",
    "Sample",
    "SampleLoader",
    "ShardDamagedError",
    "ShardedDataset",
    "Split",
    "TarMember",
    "Tars",
    "build_tar",
    "check_tar",
    "digest_keys",
    "epoch_order",
    "order_digest",
    "position",
    "positions",
    "write_tar",
]
