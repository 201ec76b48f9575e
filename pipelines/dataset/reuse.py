"""Reuse of samples from other datasets: an unchanged photo is not decoded, resized or degraded again.

Samples are looked up by the digest of their photo. The ground truths are reused if they were made the same
way (sizes, code, versions of the tools), the low-quality faces if the whole recipe is the same. Reused files
are checked by their digests, and damaged ones are made again. So a changed recipe or an added photo costs
only what differs, and no byte of a dataset depends on reuse.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from diffbfr.errors import DiffBFRError
from diffbfr.images import ImageRefused, encode_truth
from diffbfr.shards import Member, Sample
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD
from diffbfr.spec import from_dict
from pipelines import storage
from pipelines.dataset import commits
from pipelines.dataset.commits import Commit
from pipelines.dataset.samples import CachedSample, GroundTruth, ShardConfig
from pipelines.dataset.sealed_json import read_checksummed_json
from pipelines.dataset.shard_plan import BUILD_RECORD, COMMITS, describe_build
from pipelines.sources.sandboxed_images import decode_sandboxed

_TRUTH_FIELDS: Final = ("hq_px", "lq_px", "align", "max_enlargement", "detector")
"""Settings that a ground truth depends on."""


class SampleCache:
    """Samples of the compatible datasets among `folders`, indexed by the content of their photos."""

    def __init__(self, folders: tuple[str, ...], config: ShardConfig) -> None:
        self._config = config
        configs = {folder: _compatible_config(folder, config) for folder in folders}
        self._made_by = {folder: made_by for folder, made_by in configs.items() if made_by is not None}
        self._shards: dict[str, tuple[str, int]] = {}
        for folder in self._made_by:
            for commit in _commits(folder):
                for sample in commit.samples:
                    self._shards.setdefault(sample.source_sha256, (folder, commit.index))

    def find(self, source_sha256: str) -> list[CachedSample]:
        """The cached samples of a photo with this content; empty if there are none or one is damaged."""
        if source_sha256 not in self._shards:
            return []
        folder, index = self._shards[source_sha256]
        commit = _commit(folder, index)
        if commit is None:
            return []
        samples = [sample for sample in commit.samples if sample.source_sha256 == source_sha256]
        # a photo may be there twice, and all the faces of one are in one shard
        of_one = [sample for sample in samples if sample.source == samples[0].source]
        return load_samples(folder, commit, of_one, self._made_by[folder], self._config)


@lru_cache(maxsize=1)
def open_sample_cache(folders: tuple[str, ...], config: ShardConfig) -> SampleCache:
    """The sample cache of this process, built once; samples that are added later are not seen."""
    return SampleCache(folders, config)


def sibling_datasets(dataset_root: str) -> tuple[str, ...]:
    """Folders of the other datasets beside this one, finished or not."""
    parent, _, own = storage.absolute(dataset_root).rpartition("/")
    places = [storage.join(parent, name) for name in storage.list_dir(parent) if name != own]
    return tuple(place for place in places if storage.exists(storage.join(place, BUILD_RECORD)))


def load_samples(
    folder: str, commit: Commit, samples: Sequence[Sample], made_by: ShardConfig, config: ShardConfig
) -> list[CachedSample]:
    """Read the samples of one photo from a committed shard; empty if a file of one is missing or damaged."""
    loaded = [_load_sample(folder, commit, sample, made_by, config) for sample in samples]
    whole = [cached for cached in loaded if cached is not None]
    return whole if len(whole) == len(loaded) else []


def _load_sample(
    folder: str, commit: Commit, sample: Sample, made_by: ShardConfig, config: ShardConfig
) -> CachedSample | None:
    """Read a sample from a committed shard, for use in a dataset of `config`.

    None if one of its files is missing or has another digest than the commit record says.
    """
    contents = _read_files(folder, commit, sample.key)
    if contents is None:
        return None
    hq_column, low_column, _ = (column.column for column in made_by.columns)
    hq = contents[hq_column, made_by.hq_codec]
    # another codec stores the same pixels, so that only the encoding is repeated
    if made_by.hq_codec != config.hq_codec:
        try:
            hq = encode_truth(decode_sandboxed(hq), config.hq_codec)
        except ImageRefused:
            return None
    truth = GroundTruth(
        width=sample.width,
        height=sample.height,
        pixel_sha256=sample.pixel_sha256,
        low_pixel_sha256=sample.low_pixel_sha256,
        crop_sha256=sample.crop_sha256,
        near_hash=sample.near_hash,
        hq=hq,
        low=contents[low_column, "png"],
        face=sample.face,
    )
    # another recipe draws other parameters, so that no low-quality face can be reused
    if made_by.recipe_digest != config.recipe_digest:
        return CachedSample(truth)
    jpegs = [
        content for (column, name), content in contents.items() if column == LQ_COLUMN and name != LQ_RECORD
    ]
    return CachedSample(truth, tuple(jpegs))


def _read_files(folder: str, commit: Commit, key: str) -> dict[tuple[str, str], bytes] | None:
    """The files of a sample by (column, name); None if one is missing or damaged."""
    contents: dict[tuple[str, str], bytes] = {}
    for tar in commit.tars:
        for member in tar.members:
            if member.key != key:
                continue
            try:
                content = _read(storage.join(folder, tar.tar), tar.sha256, member)
            except FileNotFoundError:
                return None
            if hashlib.sha256(content).hexdigest() != member.sha256:
                return None
            contents[member.column, member.name] = content
    return contents


def _compatible_config(folder: str, config: ShardConfig) -> ShardConfig | None:
    """The configuration of a dataset, if its ground truths are those that `config` would give."""
    wanted = describe_build(config)
    try:
        made = read_checksummed_json(storage.join(folder, BUILD_RECORD))
        made_by = from_dict(ShardConfig, made["recipe"])
    except (FileNotFoundError, DiffBFRError):
        return None
    same_tools = all(
        made["tools"].get(tool) == wanted_version for tool, wanted_version in wanted["tools"].items()
    )
    same_sizes = all(getattr(made_by, name) == getattr(config, name) for name in _TRUTH_FIELDS)
    same_code = all(made.get(name) == wanted[name] for name in ("format", "codecs", "code"))
    return made_by if same_tools and same_sizes and same_code else None


def _commits(folder: str) -> Iterator[Commit]:
    for name in storage.list_dir(storage.join(folder, COMMITS)):
        commit = _commit(folder, int(name.removesuffix(".json")))
        if commit is not None:
            yield commit


@lru_cache(maxsize=4)
def _commit(folder: str, index: int) -> Commit | None:
    """The record of a shard; None if it is missing or damaged."""
    try:
        return commits.read(folder, COMMITS, index)
    except DiffBFRError:
        return None


def _read(uri: str, sha256: str, member: Member) -> bytes:
    """One file of a tar. From S3 the whole tar is fetched, because a request costs more than a photo."""
    if storage.is_remote(uri):
        return _tar(uri, sha256)[member.offset : member.offset + member.length]
    return storage.read_range(uri, member.offset, member.length)


@lru_cache(maxsize=3)
def _tar(uri: str, sha256: str) -> bytes:
    """A whole tar. Neighbours in one dataset are neighbours in another, so each tar is fetched about once.

    The digest is part of the cache's key, so that a rewritten tar is fetched again.
    """
    return storage.read_bytes(uri)
