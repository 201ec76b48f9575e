"""The rows of a dataset: samples, members of tars, and what the dataset and its columns say about themselves.

A dataset is columnar: `hq<px>` (the ground truth), `hq<lq_px>` (x'_0), `lq` (the JPEGs of Eq. 13) and
whatever was appended. Every column is a folder of tars with the same keys in the same order, so a sample is a
key and a column is read only by who needs it.
"""

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias, get_args

from diffbfr.degradation import DegradationParams
from diffbfr.errors import DiffBFRError

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
LQ_COLUMN: Final = "lq"
LQ_RECORD: Final = "json"
"""The member of the LQ column that describes its sample; the others are `<variant>.jpg`."""


class ShardDamagedError(DiffBFRError):
    """Bytes on disk are not the bytes that were committed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One ground-truth face and the draws of its pre-sampled variants.

    `source` is the photo's name, `width` and `height` (px) its size after EXIF orientation, `source_sha256`
    the digest of its file. `pixel_sha256` and `low_pixel_sha256` are `images.pixel_digest` of the two stored
    sizes, before any variant's flip or gray.
    """

    key: str
    split: Split
    source: str
    source_bytes: int
    source_sha256: str
    width: int
    height: int
    pixel_sha256: str
    low_pixel_sha256: str
    variants: tuple[DegradationParams, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file of one sample lies: `name` is what follows the key ("webp", "0.jpg"), `tar` is
    relative to the dataset.
    """

    key: str
    name: str
    column: str
    tar: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class ColumnInfo:
    """One column: its members' names in order, and the digest of the model that made it ("" for the columns
    made from photos).

    `quarantined` names the members (key, name) that are degenerate: they keep their place, and nothing may
    learn from them.
    """

    column: str
    names: tuple[str, ...]
    model_digest: str = ""
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says.

    `content_id` covers decoded pixels and LQ bytes, whatever the codec and the shard size; `archive_id`
    covers the bytes of the tars.
    """

    hq_px: int
    lq_px: int
    variants: int
    shard_size: int
    num_shards: int
    num_samples: int
    num_train: int
    num_val: int
    num_test: int
    num_quarantined: int
    content_id: str
    archive_id: str
    recipe_digest: str
    source: str

    @property
    def hq_column(self) -> str:
        """Name of the column of ground truths."""
        return f"hq{self.hq_px}"

    @property
    def hq_low_column(self) -> str:
        """Name of the column of x'_0."""
        return f"hq{self.lq_px}"


def row_fields(row: Any) -> dict[str, Any]:
    """Name a row's fields, for `json.dumps(default=row_fields)`; `dataclasses.asdict` copies deeply, which
    500,000 members would feel.
    """
    return {field.name: getattr(row, field.name) for field in fields(row)}
