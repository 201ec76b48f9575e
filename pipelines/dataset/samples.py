"""One photo to one sample: the configuration of a dataset, the split of a photo, the files of each column."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from diffbfr.degradation import DegradationSpec, degrade, draw, sample_seed
from diffbfr.documents import check_whole
from diffbfr.errors import UsageError
from diffbfr.images import (
    Codec,
    Pixels,
    center_square,
    decode,
    encode_stored_png,
    encode_truth,
    pixel_digest,
    resize,
)
from diffbfr.images.perceptual import perceptual_hash
from diffbfr.shards import ColumnInfo, FaceFrame, Sample, Split
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields, seed_digest

FORMAT: Final = "diffbfr-dataset-2"
"""Changes whenever the same photos and configuration would give other pixels, LQ bytes, keys or splits.

Format 2 splits by pixels, format 1 split by the bytes of the file.
"""
_SEEDS: Final = "diffbfr-dataset-1"
"""The format whose seeds are drawn: the low-quality faces of formats 1 and 2 are the same."""


_MAX_PX: Final = 4096
_MAX_ENLARGEMENT: Final = 8.0


@dataclass(frozen=True)
class ShardConfig:
    """The configuration of a dataset.

    Faces have `hq_px` and `lq_px` pixels a side and `variants` degradations by Eq. 13; a shard holds
    `shard_size` inputs. The ranges of `degradation` are given at the size that it names and are scaled to
    `hq_px`. The fractions are of photo contents, by hash; a `test_fraction` of 1 makes an evaluation set
    without training samples. `hq_codec` is the lossless format of the ground truths.

    With `align` every usable face of each photo is found by the detector whose weights have the digest
    `detector`, and aligned to the FFHQ frame; one whose frame has fewer than `hq_px` / `max_enlargement`
    pixels a side in its photo is left out.
    """

    hq_px: int
    lq_px: int
    variants: int
    shard_size: int
    val_fraction: float
    test_fraction: float
    seed: int
    degradation: DegradationSpec
    hq_codec: Codec = "webp"
    align: bool = False
    max_enlargement: float = 1.1
    detector: str = ""

    def __post_init__(self) -> None:
        check_whole("the dataset", "hq_px", self.hq_px, 2, _MAX_PX)
        if not 1 <= self.lq_px < self.hq_px:
            raise UsageError(f"lq_px is {self.lq_px} and hq_px {self.hq_px}; expected 1 <= lq_px < hq_px")
        if self.variants < 1 or self.shard_size < 1:
            raise UsageError(
                f"variants is {self.variants} and shard_size {self.shard_size}; expected at least 1 of each"
            )
        if self.align != bool(self.detector):
            raise UsageError(
                f"align is {self.align} with the detector {self.detector[:12] or 'none'}; expected a "
                "detector for faces that are to be aligned, and none otherwise"
            )
        if not 1 <= self.max_enlargement <= _MAX_ENLARGEMENT:
            raise UsageError(
                f"max_enlargement is {self.max_enlargement}; expected 1 (never) to {_MAX_ENLARGEMENT}"
            )
        if self.val_fraction < 0 or self.test_fraction < 0 or self.val_fraction + self.test_fraction > 1:
            raise UsageError(
                f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}; expected "
                "shares that come to 1 at most"
            )

    @cached_property
    def spec(self) -> DegradationSpec:
        """Eq. 13 in pixels of `hq_px`."""
        return self.degradation.at(self.hq_px)

    @cached_property
    def recipe_digest(self) -> str:
        """Digest of what a sample's pixels and seeds depend on, without variants, shards, splits, codecs."""
        parts: list[object] = [_SEEDS, self.hq_px, self.lq_px, self.seed, self.spec.digest]
        if self.align:
            parts += [self.detector, self.max_enlargement]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def columns(self) -> tuple[ColumnInfo, ...]:
        """The columns made from photos, with their members' names in order."""
        lq_names = (*(f"{variant}.jpg" for variant in range(self.variants)), LQ_RECORD)
        return (
            ColumnInfo(f"hq{self.hq_px}", (self.hq_codec,)),
            ColumnInfo(f"hq{self.lq_px}", ("png",)),
            ColumnInfo(LQ_COLUMN, lq_names),
        )


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A photo's two encoded ground truths, the digests of their pixels, and those of its centred square.

    `width` and `height` are those of the upright photo in pixels. Of a face with a `face` the digest
    `crop_sha256` is that of the whole photo.
    """

    width: int
    height: int
    pixel_sha256: str
    low_pixel_sha256: str
    crop_sha256: str
    near_hash: str
    hq: bytes
    low: bytes
    face: FaceFrame | None = None

    @classmethod
    def of(
        cls,
        config: ShardConfig,
        photo: Pixels,
        hq: Pixels,
        crop_sha256: str,
        face: FaceFrame | None = None,
    ) -> "GroundTruth":
        """Make the small ground truth, and encode both."""
        low = resize(hq, config.lq_px, "bicubic")
        height, width = photo.shape[:2]
        return cls(
            width,
            height,
            pixel_digest(hq),
            pixel_digest(low),
            crop_sha256,
            perceptual_hash(hq),
            encode_truth(hq, config.hq_codec),
            encode_stored_png(low),
            face,
        )


@dataclass(frozen=True, eq=False)
class CachedSample:
    """The reusable part of a sample: its ground truths, and the low-quality JPEGs of its first variants."""

    truth: GroundTruth
    jpegs: tuple[bytes, ...] = ()


@dataclass(frozen=True, eq=False)
class Face:
    """One finished sample: its row, and for each of `ShardConfig.columns` its members' content in order."""

    sample: Sample
    contents: tuple[tuple[bytes, ...], ...]


def make_face(config: ShardConfig, key: str, source: str, data: bytes, split_by_bytes: bool = False) -> Face:
    """Decode one photo, crop its centred square, resize it to both sizes and degrade every variant.

    `ImageRefused` if it cannot be used. A photo smaller than `hq_px` is refused, because an enlarged one
    would train a model on blurred ground truth. `split_by_bytes` is for sources whose bytes follow from the
    pixels (`PhotoSource.encodes_itself`).
    """
    photo = decode(data, min_px=config.hq_px).pixels
    square = center_square(photo)
    hq = resize(square, config.hq_px, "bicubic")
    truth = GroundTruth.of(config, photo, hq, pixel_digest(square))
    sha256 = hashlib.sha256(data).hexdigest()
    return finish_face(config, key, source, len(data), sha256, truth, lambda: hq, (), split_by_bytes)


def remake_face(
    config: ShardConfig,
    key: str,
    source: str,
    source_bytes: int,
    source_sha256: str,
    cached: CachedSample,
    split_by_bytes: bool = False,
) -> Face:
    """Make the sample that `make_face` makes from its cached part; only missing variants are degraded."""
    return finish_face(
        config,
        key,
        source,
        source_bytes,
        source_sha256,
        cached.truth,
        lambda: decode(cached.truth.hq).pixels,
        cached.jpegs,
        split_by_bytes,
    )


def finish_face(
    config: ShardConfig,
    key: str,
    source: str,
    source_bytes: int,
    source_sha256: str,
    truth: GroundTruth,
    hq: Callable[[], Pixels],
    jpegs: Sequence[bytes],
    split_by_bytes: bool,
) -> Face:
    """Draw the parameters of every variant, degrade those without a JPEG, and write the sample's row."""
    drawn_from = seed_digest(source_sha256, truth.face)
    seeds = (sample_seed(config.recipe_digest, drawn_from, variant) for variant in range(config.variants))
    sample = Sample(
        key=key,
        split=split_of(config, source_sha256 if split_by_bytes else truth.crop_sha256),
        source=source,
        source_bytes=source_bytes,
        source_sha256=source_sha256,
        width=truth.width,
        height=truth.height,
        pixel_sha256=truth.pixel_sha256,
        low_pixel_sha256=truth.low_pixel_sha256,
        variants=tuple(draw(config.spec, seed) for seed in seeds),
        crop_sha256=truth.crop_sha256,
        near_hash=truth.near_hash,
        face=truth.face,
    )
    # cached variants come first, because variant i has the same seed in both datasets
    made = list(jpegs[: config.variants])
    if len(made) < config.variants:
        pixels = hq()
        made += [degrade(pixels, params, config.spec) for params in sample.variants[len(made) :]]
    # the row is also stored in the shard, so that a shard can be read without the manifest
    row = json.dumps(sample, default=row_fields, sort_keys=True).encode()
    return Face(sample, ((truth.hq,), (truth.low,), (*made, row)))


def split_of(config: ShardConfig, sha256: str) -> Split:
    """The split of a photo, by the digest of its content: equal content has one split, in every dataset.

    The content is what a model can see of a photo, the pixels of its centred square in full size, or of the
    whole photo if its faces are aligned: neither the file's format, its EXIF data and its name, nor the size
    of the dataset's faces. Added photos move none.
    """
    word = hashlib.sha256(f"diffbfr split\0{config.seed}\0{sha256}".encode()).digest()[:8]
    # a uniform number in [0, 1) from the content, so that no state is kept between runs
    share = int.from_bytes(word, "big") / 2**64
    if share < config.val_fraction:
        return "val"
    return "test" if share < config.val_fraction + config.test_fraction else "train"
