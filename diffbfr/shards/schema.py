"""The rows of a dataset: samples, members of tars, and the records that describe the dataset and its columns.

A dataset is columnar: `hq<px>` (the ground truth), `hq<lq_px>` (x'_0), `lq` (the JPEGs of Eq. 13) and
appended columns. Every column is a folder of tars with the same keys in the same order, so a sample is
identified by its key and a reader opens only the columns it needs.
"""

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias, get_args

from diffbfr.errors import DiffBFRError
from diffbfr.variant import DegradationParams

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
LQ_COLUMN: Final = "lq"
LQ_RECORD: Final = "json"
"""The member of the LQ column that describes its sample; the others are `<variant>.jpg`."""
_MAX_SIDES: Final = 1e5
"""Sides of a frame from it to a corner of its photo, more than any photo has."""


class ShardDamagedError(DiffBFRError):
    """The bytes of a shard are not the committed ones."""


@dataclass(frozen=True, slots=True)
class FaceFrame:
    """Where the frame of an aligned face lies in its photo.

    The pixel (x, y) of the frame of 512 px is (a x - b y + shift_x, b x + a y + shift_y) of the photo; the
    centre of a first pixel is (0, 0). `quad` has the corners of the photo in sides of the frame, x and y in
    turn, clockwise from the upper left, where the frame reaches from 0 to 1: what lies outside the photo was
    mirrored, and no training learns from it.
    `index` is the number of the face among the `num_found` of its photo, the best `score` first.
    """

    index: int
    num_found: int
    score: float
    a: float
    b: float
    shift_x: float
    shift_y: float
    quad: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.quad) != 8 or not all(abs(value) < _MAX_SIDES for value in self.quad):
            raise ShardDamagedError(
                f"a face has the corners {str(self.quad)[:80]}; expected eight numbers, in sides of its frame"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One ground-truth face and the degradation parameters of its pre-sampled variants.

    `source` is the photo's name, `width` and `height` (px) its size after EXIF orientation, `source_sha256`
    the digest of its file. `pixel_sha256` and `low_pixel_sha256` are `images.pixel_digest` of the two stored
    sizes, before any variant's flip or gray. `crop_sha256` is that of the photo's centred square before it
    was resized, and decides the split. `near_hash` is the `perceptual_hash` of the ground truth. Both are ""
    in tars that others made. A face that was found in a photo and aligned has its `face`; then `crop_sha256`
    is that of the whole photo, so that all faces of a photo are in one split.
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
    crop_sha256: str = ""
    near_hash: str = ""
    face: FaceFrame | None = None

    @property
    def seed_digest(self) -> str:
        """What the degradations of this sample are drawn from, beside the recipe and the variant."""
        return seed_digest(self.source_sha256, self.face)


def seed_digest(source_sha256: str, face: FaceFrame | None) -> str:
    """The digest of a photo, and for an aligned face also which face of it: each has draws of its own."""
    return source_sha256 if face is None else f"{source_sha256}#{face.index}"


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file of one sample lies.

    `name` is the file's name without its key ("webp", "0.jpg"), `tar` is relative to the dataset, `offset`
    and `length` are in bytes.
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
    """One column: the names of its members in order, and the digest of the model that made it.

    `model_digest` is "" for the columns made from photos. `quarantined` lists degenerate members as (key,
    name): they stay in their tar, and no training may use them.
    """

    column: str
    names: tuple[str, ...]
    model_digest: str = ""
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`.

    `content_id` is a digest of the decoded pixels and the LQ bytes, the same for any codec and shard size;
    `archive_id` is one of the bytes of the tars.
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
        """The column of ground truths."""
        return f"hq{self.hq_px}"

    @property
    def hq_low_column(self) -> str:
        """The column of x'_0."""
        return f"hq{self.lq_px}"


def row_fields(row: Any) -> dict[str, Any]:
    """Return a row's fields by name, for `json.dumps(default=row_fields)`; those that are None are left out.

    `dataclasses.asdict` copies deeply, which is slow for 500,000 members. A row without an optional field is
    stored as it was before the field existed.
    """
    values = ((field.name, getattr(row, field.name)) for field in fields(row))
    return {name: value for name, value in values if value is not None}
