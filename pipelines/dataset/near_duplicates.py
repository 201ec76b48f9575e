"""Faces of a dataset that look the same, found by their perceptual hashes, and whether splits share them.

Two hashes that differ in at most 15 of 256 bits agree in one of their 16 parts of 16 bits, so only hashes
with an equal part are compared (multi-index hashing; Norouzi et al. 2012). Time grows about as the number of
faces: where very many share a part, each is compared with the next 512 of them alone.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.images.perceptual import BITS, NEAR
from diffbfr.shards import Sample, Split

_PARTS: Final = NEAR + 1
_MAX_NEIGHBOURS: Final = 512


@dataclass(frozen=True)
class Twin:
    """One face of a group."""

    key: str
    source: str
    split: Split


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of faces that look the same; `faces` of them in all, `identical` with equal pixels.

    `across_splits` are the groups that lie in more than one split, each sorted by key.
    """

    groups: int
    faces: int
    identical: int
    across_splits: tuple[tuple[Twin, ...], ...]


def find_near_duplicates(samples: Sequence[Sample]) -> NearDuplicates:
    """Group the samples by how they look. Samples without a hash belong to no group."""
    hashed = [sample for sample in samples if sample.near_hash]
    by_hash: dict[str, list[Sample]] = defaultdict(list)
    for sample in hashed:
        by_hash[sample.near_hash].append(sample)
    groups: dict[int, list[Sample]] = defaultdict(list)
    for root, members in zip(_roots(list(by_hash)), by_hash.values(), strict=True):
        groups[root] += members
    alike = [sorted(group, key=lambda sample: sample.key) for group in groups.values() if len(group) > 1]
    pixels = Counter((sample.crop_sha256, sample.face and sample.face.index) for sample in hashed)
    across = sorted((group for group in alike if _num_splits(group) > 1), key=lambda group: group[0].key)
    return NearDuplicates(
        groups=len(alike),
        faces=sum(map(len, alike)),
        identical=sum(count for count in pixels.values() if count > 1),
        across_splits=tuple(tuple(map(_twin, group)) for group in across),
    )


def _twin(sample: Sample) -> Twin:
    return Twin(sample.key, sample.source, sample.split)


def _num_splits(group: Sequence[Sample]) -> int:
    return len({sample.split for sample in group})


def _roots(hashes: Sequence[str]) -> list[int]:
    """For each of these different hashes the index of one that stands for all near it, directly or not."""
    if not hashes:
        return []
    words = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint64).reshape(len(hashes), BITS // 64)
    parent = np.arange(len(hashes))
    for first, second in _near_pairs(words):
        apart = parent[first] != parent[second]
        if not apart.any():
            continue
        for one, other in zip(first[apart].tolist(), second[apart].tolist(), strict=True):
            one, other = _root(parent, one), _root(parent, other)
            parent[max(one, other)] = min(one, other)
        while (parent[parent] != parent).any():
            parent = parent[parent]
    roots_of: list[int] = parent.tolist()
    return roots_of


def _root(parent: NDArray[np.int64], index: int) -> int:
    while parent[index] != index:
        index = int(parent[index])
    return index


def _near_pairs(words: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield arrays of rows and of others that differ from them in at most `NEAR` bits; pairs may repeat."""
    parts = words.view(np.uint16)
    assert parts.shape[1] == _PARTS
    for part in range(_PARTS):
        order = np.lexsort((words[:, 0], parts[:, part]))
        ordered = parts[order, part]
        start = np.arange(len(order))
        for distance in range(1, _MAX_NEIGHBOURS + 1):
            start = start[start + distance < len(order)]
            start = start[ordered[start] == ordered[start + distance]]
            if not len(start):
                break
            first, second = order[start], order[start + distance]
            near = np.bitwise_count(words[first] ^ words[second]).sum(axis=1) <= NEAR
            if near.any():
                yield first[near], second[near]
