"""The dataset as a model sees it: sample schema, deterministic tars, access by key, and the order of a run.

`schema` defines the rows, `dataset` reads by key, `order` defines which sample is at position p of a run, and
`loader` prefetches a rank's share of each batch in that order. These four are exported here. Three modules
are imported by their own names: `tar` writes and checks one shard, `external_tars` opens tars that other
programs wrote, and `webdataset` gives a dataset as a webdataset pipeline.
"""

from diffbfr.shards.dataset import ColumnIndex, ShardedDataset, TarStore
from diffbfr.shards.loader import Loaded, LoaderState, SampleLoader
from diffbfr.shards.order import epoch_order, row_at
from diffbfr.shards.schema import (
    ColumnInfo,
    DatasetInfo,
    FaceFrame,
    Member,
    Sample,
    ShardDamagedError,
    Split,
)

__all__ = [
    "ColumnIndex",
    "ColumnInfo",
    "DatasetInfo",
    "FaceFrame",
    "Loaded",
    "LoaderState",
    "Member",
    "Sample",
    "SampleLoader",
    "ShardDamagedError",
    "ShardedDataset",
    "Split",
    "TarStore",
    "epoch_order",
    "row_at",
]
