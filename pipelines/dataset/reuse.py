"""What other datasets hold already: a photo with the same content need not be decoded, resized and encoded
again, nor degraded.

A sample is taken over by the digest of its photo. Its ground truths are taken over if they were made the same
way (sizes, code, versions of the tools), its low-quality faces if the whole recipe is the same. What is taken
over is checked by its digests; what is damaged is made anew. So changing a recipe, adding photos or mending
one makes only what must be made, and no byte depends on it.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from diffbfr.errors import DiffBFRError
from diffbfr.images import decode, encode_truth
from diffbfr.shards import Member, Sample
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD
from diffbfr.spec import from_dict
from pipelines import storage
from pipelines.dataset import commits
from pipelines.dataset.commits import Commit
from pipelines.dataset.samples import CachedSample, GroundTruth, ShardConfig
from pipelines.dataset.sealed_json import read_checksummed_json
from pipelines.dataset.shard_plan import BUILD_RECORD, COMMITS, describe_build


class SampleCache:
    """The datasets among `folders` that are of use to one of this configuration, indexed by the content of
    their photos.
    """

    def __init__(self, folders: tuple[str, ...], config: ShardConfig) -> None:
        self._config = config
        self._made_by = {folder: made for folder in folders if (made := _usable(folder, config)) is not None}
        self._shards: dict[str, tuple[str, int]] = {}
        for folder in self._made_by:
            for commit in _commits(folder):
                for sample in commit.samples:
                    self._shards.setdefault(sample.source_sha256, (folder, commit.index))

    def find(self, source_sha256: str) -> CachedSample | None:
        """Return what is there of a photo with this content; None if nothing is, or if it is damaged."""
        if source_sha256 not in self._shards:
            return None
        folder, index = self._shards[source_sha256]
        commit = _commit(folder, index)
        sample = (
            next((sample for sample in commit.samples if sample.source_sha256 == source_sha256), None)
            if commit
            else None
        )
        return (
            reuse(folder, commit, sample, self._made_by[folder], self._config) if commit and sample else None
        )


@lru_cache(maxsize=1)
def open_sample_cache(folders: tuple[str, ...], config: ShardConfig) -> SampleCache:
    """Index the datasets once a worker; what they gain afterwards is not seen."""
    return SampleCache(folders, config)


def sibling_datasets(dataset_root: str) -> tuple[str, ...]:
    """Name the other datasets beside this one, finished or not."""
    parent, _, own = storage.absolute(dataset_root).rpartition("/")
    places = [storage.join(parent, name) for name in storage.list_dir(parent) if name != own]
    return tuple(place for place in places if storage.exists(storage.join(place, BUILD_RECORD)))


def reuse(
    folder: str, commit: Commit, sample: Sample, made_by: ShardConfig, config: ShardConfig
) -> CachedSample | None:
    """Take a sample out of a committed shard; None if one of its files is not as it was committed."""
    contents: dict[tuple[str, str], bytes] = {}
    for record in commit.tars:
        for member in record.members:
            if member.key == sample.key:
                try:
                    content = _read(storage.join(folder, record.tar), record.sha256, member)
                except FileNotFoundError:
                    return None
                if hashlib.sha256(content).hexdigest() != member.sha256:
                    return None
                contents[member.column, member.name] = content
    hq, low, _ = (column.column for column in made_by.columns)
    sums = sample.width, sample.height, sample.pixel_sha256, sample.low_pixel_sha256
    stored = contents[hq, made_by.hq_codec]
    stored = (
        stored
        if made_by.hq_codec == config.hq_codec
        else encode_truth(decode(stored).pixels, config.hq_codec)
    )
    truth = GroundTruth(*sums, stored, contents[low, "png"])
    same = made_by.recipe_digest == config.recipe_digest
    jpegs = (
        [content for (column, name), content in contents.items() if column == LQ_COLUMN and name != LQ_RECORD]
        if same
        else []
    )
    return CachedSample(truth, tuple(jpegs))


def _usable(folder: str, config: ShardConfig) -> ShardConfig | None:
    """How a dataset was made, if its ground truths are those that this configuration would make."""
    wanted = describe_build(config)
    try:
        made = read_checksummed_json(storage.join(folder, BUILD_RECORD))
        made_by = from_dict(ShardConfig, made["recipe"])
    except (FileNotFoundError, DiffBFRError):
        return None
    same_tools = all(made["tools"].get(tool) == its for tool, its in wanted["tools"].items())
    same_sizes = (made_by.hq_px, made_by.lq_px) == (config.hq_px, config.lq_px)
    same_code = all(made.get(name) == wanted[name] for name in ("format", "codecs", "code"))
    return made_by if same_tools and same_sizes and same_code else None


def _commits(folder: str) -> Iterator[Commit]:
    for name in storage.list_dir(storage.join(folder, COMMITS)):
        commit = _commit(folder, int(name.removesuffix(".json")))
        if commit is not None:
            yield commit


@lru_cache(maxsize=4)
def _commit(folder: str, index: int) -> Commit | None:
    """The record of a shard; a damaged one has nothing to offer."""
    try:
        return commits.read(folder, COMMITS, index)
    except DiffBFRError:
        return None


def _read(uri: str, sha256: str, member: Member) -> bytes:
    """One file of a tar. From S3 the tar is fetched whole: a request costs more than a photo."""
    if storage.is_remote(uri):
        return _tar(uri, sha256)[member.offset : member.offset + member.length]
    return storage.read_range(uri, member.offset, member.length)


@lru_cache(maxsize=3)
def _tar(uri: str, sha256: str) -> bytes:
    """A whole tar: neighbours in one dataset are neighbours in another, so it is read about once. The
    digest tells its versions apart.
    """
    return storage.read_bytes(uri)
