"""Photos in the archives that match a pattern such as `photos/train_*.zip`, each a folder named by its stem.

A worker receives only the pattern, however many archives there are: the URI of a photo names its archive.
"""

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
from pipelines.sources.source import PhotoRef, PhotoSource, printable_name
from pipelines.sources.tar import TarSource, check_tar

_WILDCARDS: Final = "*?["
_KINDS: Final = MappingProxyType({".zip": (ZipSource, check_zip), ".tar": (TarSource, check_tar)})
_SUFFIX_CHARACTERS: Final = 4


@dataclass(frozen=True)
class PatternSource(PhotoSource):
    """Zips and plain tars, local or on S3, that match the pattern in the last part of `uri`.

    A photo is named like `train_a/0001.png`. Archives are listed one after another, in the memory of one.
    `index` is FFHQ's index in their folder or beside it; one inside an archive applies to that archive.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the photos of all archives, sorted by name, which begins with the stem of the archive."""
        folder, pattern = _split(self.uri)
        refs = self._refs(folder, pattern)
        yield from attach_checksums(refs, index_at(self.index), folder.rpartition("/")[2], in_archives=True)

    def _refs(self, folder: str, pattern: str) -> Iterator[PhotoRef]:
        for stem, uri in _archives(folder, pattern):
            _, check = _KINDS[_suffix(uri)]
            check(uri)
            for ref in self._archive(uri).listing():
                yield replace(ref, name=f"{stem}/{ref.name}")

    def read(self, ref: PhotoRef) -> bytes:
        """Read a photo with the source of its archive."""
        return self._archive(ref.uri.rpartition("#")[0]).read(ref)

    def _archive(self, uri: str) -> PhotoSource:
        source, _ = _KINDS[_suffix(uri)]
        return source(uri, self.every_file)


def is_pattern(uri: str) -> bool:
    """True if the last part of a place has a wildcard."""
    return any(wildcard in _split(uri)[1] for wildcard in _WILDCARDS)


def open_pattern(uri: str, every_file: bool) -> PatternSource:
    """Open the archives that match a pattern; UsageError if none does, or something that is no archive.

    No archive is read yet.
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
    """Return (stem, URI) of each archive, sorted by `stem/`, with which the names of its photos begin."""
    prefix = "".join(takewhile(lambda character: character not in _WILDCARDS, pattern))
    names = storage.find_names(folder, partial(_matches, pattern), prefix)
    if not names:
        raise UsageError(f"{storage.join(folder, pattern)} names nothing; {_nearest(folder, pattern)}")
    other = next((name for name in names if _suffix(name) not in _KINDS), None)
    if other is not None:
        raise UsageError(
            f"{storage.join(folder, pattern)} names {other}, which is no .zip or plain .tar; expected "
            "archives only; "
            f"write *.zip or *.tar, or name a folder for the photos in it"
        )
    ordered = sorted((f"{printable_name(name[:-_SUFFIX_CHARACTERS])}/", name) for name in names)
    for (stem, name), (next_stem, next_name) in pairwise(ordered):
        if stem == next_stem:
            raise UsageError(
                f"{name} and {next_name} in {folder} differ in no more than their suffix; expected one; "
                "rename the other"
            )
    return [(stem.removesuffix("/"), storage.join(folder, name)) for stem, name in ordered]


def _nearest(folder: str, pattern: str) -> str:
    """Return the archive whose name is nearest to a pattern without a match, as part of an error message."""
    archives = storage.find_names(folder, lambda name: _suffix(name) in _KINDS)
    if not archives:
        return f"{folder} holds no .zip or .tar; expected archives of photos; check the path"
    (near,) = get_close_matches(pattern, archives, n=1, cutoff=0.0)
    return (
        f"{folder} holds {len(archives)} archives, the nearest is {near}; expected some of them; correct "
        "the pattern"
    )


def _matches(pattern: str, name: str) -> bool:
    """True if a name matches as in a shell: hidden files only if the pattern begins with a dot."""
    return fnmatchcase(name.removesuffix("/"), pattern) and (
        pattern.startswith(".") or not name.startswith(".")
    )


def _split(uri: str) -> tuple[str, str]:
    folder, _, pattern = uri.rpartition("/")
    return folder or "/", pattern


def _suffix(name: str) -> str:
    return name[-_SUFFIX_CHARACTERS:].lower()
