"""The dataset as a model sees it: sample schema, deterministic tars, access by key, and the order of a run.

`schema` defines the rows, `tar` writes and checks one shard, `dataset` reads by key, `order` defines which
sample is at position p of a run, and `loader` prefetches a rank's share of each batch in that order.
`external_tars` opens tars that other programs wrote, and `webdataset` gives a dataset as a webdataset
pipeline.
"""

from typing import TYPE_CHECKING, Any

from diffbfr.shards.dataset import ColumnIndex, ShardedDataset, TarStore
from diffbfr.shards.external_tars import index_tars, open_tars
from diffbfr.shards.loader import Loaded, LoaderState, SampleLoader
from diffbfr.shards.order import epoch_order, row_at
from diffbfr.shards.schema import ColumnInfo, DatasetInfo, Member, Sample, ShardDamagedError, Split
from diffbfr.shards.tar import BuiltTar, TarBuilder, TarMember, build_tar, check_tar, write_tar

if TYPE_CHECKING:
    from diffbfr.shards.webdataset import webdataset_pipeline

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
    "row_at",
    "webdataset_pipeline",
    "write_tar",
]


def __getattr__(name: str) -> Any:
    """Import webdataset, and torch with it, only when the pipeline is asked for."""
    if name == "webdataset_pipeline":
        from diffbfr.shards.webdataset import webdataset_pipeline

        return webdataset_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
