"""Checksum list of an evaluation set: two laboratories compare it to prove that they hold the same faces.

The list has one line for each low-quality face: the sha256 of its JPEG, of its ground truth's pixels and of
the photo, then key and variant. It does not depend on shards, codecs or other splits. The sha256 of the list
is the one number to publish. The list is made from the manifest; `find_damage` reads the files, so that no
list is published or compared whose files are damaged.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.images import ImageRefused, pixel_digest
from diffbfr.shards import ShardDamagedError, ShardedDataset, Split
from diffbfr.shards.schema import LQ_COLUMN
from pipelines import storage
from pipelines.sources.sandboxed_images import decode_sandboxed

_HEAD: Final = (
    "# diffbfr checksums 1: sha256 of the low-quality JPEG, of the ground truth's pixels, of the photo; "
    "key.variant"
)
_SHOWN_DIGITS: Final = 12


def list_checksums(dataset: ShardedDataset, split: Split, variants: int) -> str:
    """The checksum list of a split's first `variants` variants from the manifest, sorted by key."""
    if not 1 <= variants <= dataset.info.variants:
        raise UsageError(
            f"{variants} variants were asked for, the dataset has {dataset.info.variants}; expected at least "
            "1 and at most those"
        )
    keys = dataset.keys(split)
    if not keys:
        raise UsageError(
            f"the dataset in {dataset.root} has no {split} samples; expected some; choose another --split"
        )
    # the head names the sizes and the recipe, so that lists of different sets are told apart at once
    lines = [
        _HEAD,
        f"# {len(keys)} faces x {variants}, {dataset.info.lq_px} -> {dataset.info.hq_px} px, recipe "
        f"{dataset.info.recipe_digest}",
    ]
    for key in keys:
        sample = dataset.sample(key)
        for variant in range(variants):
            lq = dataset.digest(key, LQ_COLUMN, f"{variant}.jpg")
            lines.append(f"{lq}  {sample.pixel_sha256}  {sample.source_sha256}  {key}.{variant}")
    return "\n".join(lines) + "\n"


def find_damage(dataset: ShardedDataset, split: Split, variants: int) -> list[str]:
    """Read every file that the list covers; return a line for each LQ file or ground truth that differs."""
    found = []
    for key in dataset.keys(split):
        try:
            truth = dataset.read(key, dataset.info.hq_column, dataset.hq_name)
            digest = pixel_digest(decode_sandboxed(truth))
        except (ShardDamagedError, ImageRefused) as error:
            found.append(f"{key}: the ground truth is damaged here ({error})")
        else:
            if digest != dataset.sample(key).pixel_sha256:
                shown = digest[:_SHOWN_DIGITS]
                found.append(f"{key}: the ground truth's pixels are {shown}, the list says otherwise")
        for variant in range(variants):
            try:
                dataset.lq_bytes(key, variant)
            except ShardDamagedError as error:
                found.append(f"{key}.{variant}: the low-quality face is damaged here ({error})")
    return found


def read_list(uri: str) -> str:
    """Read a published list; UsageError if it is missing or not text."""
    try:
        return storage.read_bytes(uri).decode()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(
            f"there is no checksum list at {uri}; expected the one that was published; correct --check"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{uri} is no text; expected the list that `data checksums --out` writes; correct --check"
        ) from error


def digest_list(text: str) -> str:
    """The sha256 of a list."""
    return hashlib.sha256(text.encode()).hexdigest()


def compare_lists(published: str, ours: str) -> list[str]:
    """The differences of our list from a published one, a line for each face that differs."""
    theirs = _parse(published)
    mine = _parse(ours)
    if not theirs:
        raise UsageError(f"the published list has no faces; expected lines as `{_HEAD[2:]}`; check the file")
    # a face that only one side has is a difference too
    found = [f"{name} is missing here" for name in theirs if name not in mine]
    found += [f"{name} is not in the published list" for name in mine if name not in theirs]
    for name in theirs.keys() & mine.keys():
        # one line for each face: a different photo changes all three checksums
        for what, expected, has in zip(
            ("low-quality face", "ground truth", "photo"), theirs[name], mine[name], strict=True
        ):
            if expected != has:
                found.append(
                    f"{name}: the {what} is {has[:_SHOWN_DIGITS]}, published {expected[:_SHOWN_DIGITS]}"
                )
                break
    return sorted(found)


def _parse(text: str) -> dict[str, Sequence[str]]:
    """The three checksums of each face by its name."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    if any(len(row) != 4 for row in rows):
        raise UsageError(
            "the published list has a line that is not three checksums and a name; expected the list that "
            "`data checksums` writes"
        )
    return {row[3]: row[:3] for row in rows}
