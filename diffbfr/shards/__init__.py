"""The dataset as a model sees it: sample schema, deterministic tars, random access by key, and the order of
an epoch.

`schema` names the rows, `tar` writes and checks one shard, `dataset` reads, `order` says which sample
position p of a run is, `loader` reads ahead in that order: a rank's share of each batch. `foreign` opens tars
that others wrote.
"""

from diffbfr.shards.dataset import ColumnIndex, ShardedDataset, TarStore
from diffbfr.shards.external_tars import index_tars, open_tars
from diffbfr.shards.loader import Loaded, LoaderState, SampleLoader
from diffbfr.shards.order import epoch_order, position
from diffbfr.shards.schema import ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split
from diffbfr.shards.tar import BuiltTar, TarBuilder, TarMember, build_tar, check_tar, write_tar

__all__ = [
    "BuiltTar",
    "ColumnIndex",
    "ColumnInfo",
    "DatasetInfo",
    "Loaded",
    "LoaderState",
    "Member",
    "Sample",
    "SampleLoader",
    "ShardDamagedError",
    "ShardedDataset",
    "Split",
    "TarBuilder",
    "TarMember",
    "TarStore",
    "build_tar",
    "check_tar",
    "epoch_order",
    "index_tars",
    "open_tars",
    "position",
    "write_tar",
]
