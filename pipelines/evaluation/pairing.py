"""Pair the pictures of two or three folders by name, and refuse what does not pair."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffbfr.errors import UsageError
from diffbfr.images import ImageRefused, Pixels
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError, open_source
from pipelines.sources.sandboxed_images import decode_sandboxed

_NUM_NAMED = 3


@dataclass(frozen=True)
class Pair:
    """The files of one picture; `key` is their common name without the suffix."""

    key: str
    restored: PhotoRef
    reference: PhotoRef
    lq: PhotoRef | None = None


@dataclass(frozen=True)
class PairedFolders:
    """Two or three sources and their pairs, sorted by key."""

    restored: PhotoSource
    reference: PhotoSource
    lq: PhotoSource | None
    pairs: tuple[Pair, ...]


def pair_folders(restored: str, reference: str, lq: str | None = None) -> PairedFolders:
    """Open the places and pair their pictures by relative name without suffix.

    UsageError if one of them is empty, holds a name twice, lacks a picture or has one too many.
    """
    sources = [open_source(place) for place in (restored, reference, *([lq] if lq else []))]
    listings = [list_pictures(source) for source in sources]
    wanted = listings[1]
    for source, listing in zip(sources, listings, strict=True):
        _check_same(source, listing, sources[1], wanted)
    inputs = listings[2] if lq else {}
    pairs = (Pair(key, listings[0][key], wanted[key], inputs.get(key)) for key in sorted(wanted))
    return PairedFolders(sources[0], sources[1], sources[2] if lq else None, tuple(pairs))


def list_pictures(source: PhotoSource) -> dict[str, PhotoRef]:
    """The pictures of a source by name without suffix; UsageError if two differ only in the suffix."""
    found: dict[str, PhotoRef] = {}
    for ref in source.refs():
        if ref.skipped:
            continue
        key = posixpath.splitext(ref.name)[0]
        if key in found:
            raise UsageError(
                f"{source.uri} holds {found[key].name} and {ref.name}; expected one picture of that name; "
                "remove the other"
            )
        found[key] = ref
    return found


def read_picture(source: PhotoSource, ref: PhotoRef) -> Pixels:
    """Read and decode one picture in the sandbox; UsageError that names it if it cannot be used.

    A figure over fewer pictures would look like a result.
    """
    try:
        return decode_sandboxed(source.read(ref))
    except (PhotoUnreadableError, ImageRefused) as error:
        raise UsageError(
            f"{ref.name} of {source.uri} cannot be used: {error}; expected a whole 8-bit picture; make it "
            "again"
        ) from error


def _check_same(
    source: PhotoSource,
    listing: Mapping[str, PhotoRef],
    other: PhotoSource,
    wanted: Mapping[str, PhotoRef],
) -> None:
    if missing := sorted(wanted.keys() - listing.keys()):
        raise UsageError(
            f"{source.uri} lacks {_named(missing)} of {other.uri}; expected one picture for each of the "
            f"{len(wanted)}, of the same name; add {_them(missing)}, or remove {_them(missing)} there"
        )
    if extra := sorted(listing.keys() - wanted.keys()):
        raise UsageError(
            f"{source.uri} holds {_named(extra)}, without a partner in {other.uri}; expected its "
            f"{len(wanted)} names alone; remove {_them(extra)}, or add {_them(extra)} there"
        )


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
    return ", ".join(keys[:_NUM_NAMED]) + more


def _them(keys: Sequence[str]) -> str:
    return "it" if len(keys) == 1 else "them"


def chunks(pairs: Sequence[Pair], size: int) -> Iterator[tuple[Pair, ...]]:
    """The pairs in groups of `size`."""
    return (tuple(pairs[start : start + size]) for start in range(0, len(pairs), size))
