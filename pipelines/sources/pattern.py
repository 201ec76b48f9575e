"""Photos in the archives that match a pattern, each a folder named by its stem.

A pattern has wildcards in its last part, such as `photos/train_*.zip`, or braces, such as `{000..099}.tar`.
A worker receives only the pattern, however many archives there are: the URI of a photo names its archive.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, islice, pairwise, takewhile
from posixpath import commonprefix
from types import MappingProxyType
from typing import Final

from diffbfr.errors import UsageError, one_line
from pipelines import storage
from pipelines.sources.archive import ZipSource, check_zip
from pipelines.sources.braces import expand_braces
from pipelines.sources.published import attach_checksums, find_index, index_at
from pipelines.sources.source import (
    ArchiveUnreadableError,
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    printable_name,
)
from pipelines.sources.tar import TarSource, check_tar

_WILDCARDS: Final = "*?["
_KINDS: Final = MappingProxyType({".zip": (ZipSource, check_zip), ".tar": (TarSource, check_tar)})
_SUFFIX_CHARACTERS: Final = 4


@dataclass(frozen=True)
class PatternSource(PhotoSource):
    """Zips and plain tars, local or on S3, that match the pattern `uri`.

    A photo is named like `train_a/0001.png`; where braces name several folders, like `train/a/0001.png`. An
    archive that cannot be listed is one input, named like `train_a/`, that cannot be read.
    Archives are listed one after another, in the memory of one.
    `index` is FFHQ's index in their folder or beside it; one inside an archive applies to that archive.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the photos of all archives, sorted by name, which begins with the stem of the archive."""
        place = _common_folder(_patterns(self.uri)).rpartition("/")[2]
        yield from attach_checksums(self._refs(), index_at(self.index), place, in_archives=True)

    def _refs(self) -> Iterator[PhotoRef]:
        for stem, uri in _archives(self.uri):
            if special := storage.special_kind(uri):
                yield PhotoRef(uri, f"{stem}/", 0, f"{uri} is {special}; expected an archive of photos")
                continue
            refs = self._archive(uri).listing()
            try:
                _KINDS[_suffix(uri)][1](uri)
                first = list(islice(refs, 1))  # the whole index of the archive is read by then
            except ArchiveUnreadableError as error:
                yield PhotoRef(uri, f"{stem}/", 0, one_line(error))
                continue
            for ref in chain(first, refs):
                yield replace(ref, name=f"{stem}/{ref.name}")

    def read(self, ref: PhotoRef) -> bytes:
        """Read a photo with the source of its archive."""
        if _suffix(ref.uri) in _KINDS:  # an archive itself, not a member of one
            raise PhotoUnreadableError(ref.fingerprint)
        return self._archive(ref.uri.rpartition("#")[0]).read(ref)

    def _archive(self, uri: str) -> PhotoSource:
        source, _ = _KINDS[_suffix(uri)]
        return source(uri, self.every_file)


def is_pattern(uri: str) -> bool:
    """True if a place has braces to expand, or its last part has a wildcard."""
    return expand_braces(uri) != [uri] or _has_wildcard(_split(uri)[1])


def open_pattern(uri: str, every_file: bool) -> PatternSource:
    """Open the archives that match a pattern; UsageError if none does, or something that is no archive.

    No archive is read yet.
    """
    patterns = _patterns(uri)
    for folder in patterns:
        if not storage.is_dir(folder):
            raise UsageError(
                f"{folder} is not there; expected a folder, with a pattern such as *.zip only after it; "
                f"check the path {uri}"
            )
    _archives(uri)
    return PatternSource(uri, every_file, find_index(_common_folder(patterns)))


def _patterns(uri: str) -> dict[str, list[str]]:
    """Return the folders that a pattern names, and for each the names or patterns of archives in it."""
    patterns: dict[str, list[str]] = {}
    for place in expand_braces(uri):
        folder, pattern = _split(place)
        patterns.setdefault(folder, []).append(pattern)
    return patterns


def _archives(uri: str) -> list[tuple[str, str]]:
    """Return (stem, URI) of each archive, sorted by `stem/`, with which the names of its photos begin."""
    patterns = _patterns(uri)
    common = _common_folder(patterns)
    found: list[tuple[str, str]] = []
    for folder, wanted in patterns.items():
        inside = folder.removeprefix(common).strip("/")
        for name in _matching(folder, wanted):
            stem = printable_name(name[:-_SUFFIX_CHARACTERS])
            found.append((f"{inside}/{stem}/" if inside else f"{stem}/", storage.join(folder, name)))
    found.sort()
    for (stem, place), (next_stem, next_place) in pairwise(found):
        if stem == next_stem:
            folder, name = _split(place)
            raise UsageError(
                f"{name} and {_split(next_place)[1]} in {folder} differ in no more than their suffix; "
                "expected one; rename the other"
            )
    return [(stem.removesuffix("/"), place) for stem, place in found]


def _matching(folder: str, patterns: list[str]) -> list[str]:
    """Return the archives in a folder that match; UsageError if a pattern or a name matches nothing.

    The folder is listed once, however many names there are.
    """
    plain = {pattern for pattern in patterns if not _has_wildcard(pattern)}
    wild = [pattern for pattern in patterns if pattern not in plain]

    def is_wanted(name: str) -> bool:
        return name.removesuffix("/") in plain or any(_matches(pattern, name) for pattern in wild)

    names = storage.find_names(folder, is_wanted, commonprefix([_fixed_part(name) for name in patterns]))
    missing = sorted(plain.difference(name.removesuffix("/") for name in names))
    missing += [pattern for pattern in wild if not list(filter(partial(_matches, pattern), names))]
    if missing:
        others = f", nor {len(missing) - 1} more of {len(patterns)}" if len(missing) > 1 else ""
        raise UsageError(
            f"{storage.join(folder, missing[0])} names nothing{others}; {_nearest(folder, missing[0])}"
        )
    other = next((name for name in names if _suffix(name) not in _KINDS), None)
    if other is not None:
        raise UsageError(
            f"{storage.join(folder, patterns[0])} names {other}, which is no .zip or plain .tar; expected "
            "archives only; write *.zip or *.tar, or name a folder for the photos in it"
        )
    return names


def _common_folder(folders: Iterable[str]) -> str:
    """Return the folder in which all of some folders are."""
    parts = [folder.split("/") for folder in folders]
    shared = takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False))
    return "/".join(same[0] for same in shared) or "/"


def _has_wildcard(pattern: str) -> bool:
    return any(wildcard in pattern for wildcard in _WILDCARDS)


def _fixed_part(pattern: str) -> str:
    return "".join(takewhile(lambda character: character not in _WILDCARDS, pattern))


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
