"""The list of hashes by which two laboratories prove that they hold the same evaluation set, without showing a picture.

A line a low-quality face: the sha256 of its JPEG, of its ground truth's pixels, and of the photo; then key and variant. Shards, codecs and
splits of the rest are not in it. The list's own sha256 is the one number to publish.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset, Split
from diffbfr.shards.schema import LQ_COLUMN

_HEAD: Final = "# diffbfr hashes 1: sha256 of the low-quality JPEG, of the ground truth's pixels, of the photo; key.variant"
_SHOWN: Final = 12


def list_hashes(dataset: ShardedDataset, split: Split, variants: int) -> str:
    """Return the list of a split's first `variants` variants, sorted by key; what the files hold is for `data verify` to check."""
    if not 1 <= variants <= dataset.info.variants:
        raise UsageError(
            f"{variants} variants were asked for, the dataset has {dataset.info.variants}; expected at least 1 and at most those"
        )
    keys = dataset.keys(split)
    if not keys:
        raise UsageError(f"the dataset in {dataset.root} has no {split} samples; expected some; choose another --split")
    lines = [
        _HEAD,
        f"# {len(keys)} faces x {variants}, {dataset.info.lq_px} -> {dataset.info.hq_px} px, recipe {dataset.info.recipe_digest}",
    ]
    for key in keys:
        sample = dataset.sample(key)
        for variant in range(variants):
            lq = dataset.digest(key, LQ_COLUMN, f"{variant}.jpg")
            lines.append(f"{lq}  {sample.pixel_sha256}  {sample.source_sha256}  {key}.{variant}")
    return "\n".join(lines) + "\n"


def digest_list(text: str) -> str:
    """Return the sha256 of a list."""
    return hashlib.sha256(text.encode()).hexdigest()


def compare_lists(published: str, ours: str) -> list[str]:
    """Say in lines how our list differs from a published one; nothing if it does not."""
    theirs, mine = _faces(published), _faces(ours)
    if not theirs:
        raise UsageError(f"the published list has no faces; expected lines as `{_HEAD[2:]}`; check the file")
    found = [f"{name} is missing here" for name in theirs if name not in mine]
    found += [f"{name} is not in the published list" for name in mine if name not in theirs]
    for name in theirs.keys() & mine.keys():
        for what, expected, has in zip(("low-quality face", "ground truth", "photo"), theirs[name], mine[name], strict=True):
            if expected != has:
                found.append(f"{name}: the {what} is {has[:_SHOWN]}, published {expected[:_SHOWN]}")
                break
    return sorted(found)


def _faces(text: str) -> dict[str, Sequence[str]]:
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    if any(len(row) != 4 for row in rows):
        raise UsageError("the published list has a line that is not three hashes and a name; expected the list that `data hashes` writes")
    return {row[3]: row[:3] for row in rows}
