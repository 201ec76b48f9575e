"""One photo to one sample: what a dataset is made of, the keys and splits of its photos, and the content of every column."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Final

from diffbfr.degradation import DegradationSpec, degrade, draw, sample_seed
from diffbfr.errors import UsageError
from diffbfr.images import center_square, decode, encode_png, encode_webp, pixel_digest, resize
from diffbfr.shards import ColumnInfo, Sample, Split
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields

FORMAT: Final = "diffbfr-dataset-1"
"""Changes whenever the same photos and configuration would give other pixels, LQ bytes, keys or splits."""

_STEM_CHARACTERS: Final = 40


@dataclass(frozen=True)
class ShardConfig:
    """What a dataset is made of: faces of `hq_px` and `lq_px`, `variants` draws of Eq. 13 each, `shard_size` inputs a shard.

    `degradation` holds at the size it names and is scaled to `hq_px`. The fractions are of photo contents, by hash.
    """

    hq_px: int
    lq_px: int
    variants: int
    shard_size: int
    val_fraction: float
    test_fraction: float
    seed: int
    degradation: DegradationSpec

    def __post_init__(self) -> None:
        if not 1 <= self.lq_px < self.hq_px:
            raise UsageError(f"lq_px is {self.lq_px} and hq_px {self.hq_px}; expected 1 <= lq_px < hq_px")
        if self.variants < 1 or self.shard_size < 1:
            raise UsageError(f"variants is {self.variants} and shard_size {self.shard_size}; expected at least 1 of each")
        if self.val_fraction < 0 or self.test_fraction < 0 or self.val_fraction + self.test_fraction >= 1:
            raise UsageError(
                f"val_fraction {self.val_fraction} + test_fraction {self.test_fraction} leaves nothing to train on; lower them"
            )

    @cached_property
    def spec(self) -> DegradationSpec:
        """Eq. 13 in pixels of `hq_px`."""
        return self.degradation.at(self.hq_px)

    @cached_property
    def recipe_digest(self) -> str:
        """Digest of what a sample's pixels and seeds depend on; not of the number of variants, nor of shards or splits."""
        parts = [FORMAT, self.hq_px, self.lq_px, self.seed, self.spec.digest]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def columns(self) -> tuple[ColumnInfo, ...]:
        """The columns made from photos, with their members' names in order."""
        lq_names = (*(f"{variant}.jpg" for variant in range(self.variants)), LQ_RECORD)
        return ColumnInfo(f"hq{self.hq_px}", ("webp",)), ColumnInfo(f"hq{self.lq_px}", ("png",)), ColumnInfo(LQ_COLUMN, lq_names)


@dataclass(frozen=True, eq=False)
class Face:
    """One finished sample: its row, and for each of `ShardConfig.columns` the content of its members in order."""

    sample: Sample
    contents: tuple[tuple[bytes, ...], ...]


def make_face(config: ShardConfig, key: str, source: str, data: bytes) -> Face:
    """Decode one photo, cut its centred square, resize it to both sizes and degrade every variant; `ImageRefused` if it cannot be used.

    A photo smaller than hq_px is refused: enlarging it would teach a model that blur is ground truth.
    """
    digest = hashlib.sha256(data).hexdigest()
    photo = decode(data, min_px=config.hq_px).pixels
    hq = resize(center_square(photo), config.hq_px, "bicubic")
    low = resize(hq, config.lq_px, "bicubic")
    sample = Sample(
        key=key,
        split=split_of(config, digest),
        source=source,
        source_bytes=len(data),
        source_sha256=digest,
        width=photo.shape[1],
        height=photo.shape[0],
        pixel_sha256=pixel_digest(hq),
        low_pixel_sha256=pixel_digest(low),
        variants=tuple(draw(config.spec, sample_seed(config.recipe_digest, digest, variant)) for variant in range(config.variants)),
    )
    jpegs = (degrade(hq, params, config.spec) for params in sample.variants)
    described = json.dumps(sample, default=row_fields, sort_keys=True).encode()  # so that a shard says what it holds without the manifest
    return Face(sample, ((encode_webp(hq),), (encode_png(low),), (*jpegs, described)))


def split_of(config: ShardConfig, source_sha256: str) -> Split:
    """Assign a photo's content to a split: equal content is never in two splits, and adding photos moves none."""
    word = hashlib.sha256(f"diffbfr split\0{config.seed}\0{source_sha256}".encode()).digest()[:8]
    share = int.from_bytes(word, "big") / 2**64
    if share < config.val_fraction:
        return "val"
    return "test" if share < config.val_fraction + config.test_fraction else "train"


def photo_keys(names: Sequence[str]) -> list[str]:
    """Give each photo a key of [a-z0-9_-]: its file's stem (FFHQ's `00000/00000.png` is `00000`).

    Stems that are the same after lower-casing and cleaning all get a hash of their whole name, so that a key never depends on the
    listing's order; where that hash does not yet tell them apart, a longer one does.
    """
    stems = [_clean(PurePosixPath(name.replace("\\", "/")).stem) for name in names]
    uses = Counter(stems)
    for digits in (8, 16, 32):
        keys = [
            stem if stem and uses[stem] == 1 else f"{stem or 'photo'}-{hashlib.sha256(name.encode()).hexdigest()[:digits]}"
            for stem, name in zip(stems, names, strict=True)
        ]
        if len(set(keys)) == len(keys):
            return keys
    twice, uses_of_it = Counter(names).most_common(1)[0]
    raise UsageError(f"the listing names {twice!r} {uses_of_it} times; expected each photo once; check the source")


def _clean(stem: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-")[:_STEM_CHARACTERS]
