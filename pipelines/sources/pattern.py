"""Photos in the archives that a pattern such as `photos/train_*.zip` names: each of them like a folder that
is called as its stem.

Only the pattern travels to a worker, however many archives there are: where a photo lies says which of them
holds it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise, takewhile
from types import MappingProxyType
from typing import Final

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.archive import ZipSource, check_zip
from pipelines.sources.published import attach_checksums, find_index, index_at
from pipelines.sources.source import PhotoRef, PhotoSource
from pipelines.sources.tar import TarSource, check_tar

_MARKS: Final = "*?["
_KINDS: Final = MappingProxyType({".zip": (ZipSource, check_zip), ".tar": (TarSource, check_tar)})
_SUFFIX_CHARACTERS: Final = 4


@dataclass(frozen=True)
class PatternSource(PhotoSource):
    """Zips and plain tars, local or on S3, by a pattern in the last part of `uri`; a photo is called
    `train_a/0001.png`.

    They are listed one after another, so no more is held than for one. `index` is FFHQ's in their folder or
    beside it; one inside an archive counts for that archive.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the archives' photos, sorted by name: that of the archive, without its suffix, comes
        before a photo's own.
        """
        folder, pattern = _split(self.uri)
        refs = (
            replace(ref, name=f"{stem}/{ref.name}")
            for stem, uri in _archives(folder, pattern)
            for ref in self._listing(uri)
        )
        yield from attach_checksums(refs, index_at(self.index), folder.rpartition("/")[2], in_archives=True)

    def _listing(self, uri: str) -> Iterator[PhotoRef]:
        _, check = _KINDS[_suffix(uri)]
        check(uri)
        return self._archive(uri).listing()

    def read(self, ref: PhotoRef) -> bytes:
        """Read a photo as its archive's source does."""
        return self._archive(ref.uri.rpartition("#")[0]).read(ref)

    def _archive(self, uri: str) -> PhotoSource:
        source, _ = _KINDS[_suffix(uri)]
        return source(uri, self.every_file)


def is_pattern(uri: str) -> bool:
    """Tell whether the last part of a place is a pattern, unless something is called so."""
    return any(mark in _split(uri)[1] for mark in _MARKS)


def open_pattern(uri: str, every_file: bool) -> PatternSource:
    """Open the archives in a folder that a pattern names; UsageError if it names none, or anything else.
    None is read yet.
    """
    folder, pattern = _split(uri)
    if not storage.is_dir(folder):
        raise UsageError(
            f"{folder} is not there; expected a folder, with a pattern such as *.zip only after it; check "
            f"the path {uri}"
        )
    _archives(folder, pattern)
    return PatternSource(uri, every_file, find_index(folder))


def _archives(folder: str, pattern: str) -> list[tuple[str, str]]:
    """Return (stem, place) of each archive, in the order of the names of their photos, which begin with
    `stem/`.
    """
    names = storage.find_names(
        folder, partial(_fits, pattern), "".join(takewhile(lambda mark: mark not in _MARKS, pattern))
    )
    if not names:
        raise UsageError(f"{storage.join(folder, pattern)} names nothing; {_nearest(folder, pattern)}")
    other = next((name for name in names if _suffix(name) not in _KINDS), None)
    if other is not None:
        raise UsageError(
            f"{storage.join(folder, pattern)} names {other}, which is no .zip or plain .tar; expected "
            "archives only; "
            f"write *.zip or *.tar, or name a folder for the photos in it"
        )
    ordered = sorted((f"{_utf8(name[:-_SUFFIX_CHARACTERS])}/", name) for name in names)
    for (stem, name), (next_stem, next_name) in pairwise(ordered):
        if stem == next_stem:
            raise UsageError(
                f"{name} and {next_name} in {folder} differ in no more than their suffix; expected one; "
                "rename the other"
            )
    return [(stem.removesuffix("/"), storage.join(folder, name)) for stem, name in ordered]


def _nearest(folder: str, pattern: str) -> str:
    """Say what there is instead of the nothing that a pattern names."""
    archives = storage.find_names(folder, lambda name: _suffix(name) in _KINDS)
    if not archives:
        return f"{folder} holds no .zip or .tar; expected archives of photos; check the path"
    (near,) = get_close_matches(pattern, archives, n=1, cutoff=0.0)
    return (
        f"{folder} holds {len(archives)} archives, the nearest is {near}; expected some of them; correct "
        "the pattern"
    )


def _fits(pattern: str, name: str) -> bool:
    """Match as a shell does: hidden files only if the pattern begins with a dot."""
    return fnmatchcase(name.removesuffix("/"), pattern) and (
        pattern.startswith(".") or not name.startswith(".")
    )


def _split(uri: str) -> tuple[str, str]:
    folder, _, pattern = uri.rpartition("/")
    return folder or "/", pattern


def _suffix(name: str) -> str:
    return name[-_SUFFIX_CHARACTERS:].lower()


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
