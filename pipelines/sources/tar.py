"""Photos that are members of a tar: the headers are read once, then each member by its offset."""

import contextlib
import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any, Final

from diffbfr.errors import UsageError, one_line
from diffbfr.shards.tar_headers import TarDamagedError, TarEntry, read_entries, read_sparse
from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import INDEX, Index, attach_checksums, check_published, index_at
from pipelines.sources.skipping import Listing
from pipelines.sources.source import (
    ArchiveUnreadableError,
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    check_size,
    checked,
)

_HEADER_BYTES: Final = 1 << 16  # fetched from S3 to read one header
_SPARSE: Final = "sparse-"
_LOST: Final = "hard-link"
_UNREADABLE: Final = MappingProxyType(
    {
        _LOST: "a hard link to something that is not before it in the tar",
        "symbolic-link": "a link",
        "special-file": "a special file (a device, a pipe)",
    }
)
"""What stands in place of an offset for a member without a content of its own, and what the ledger says."""
_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class TarSource(PhotoSource):
    """The members of a plain tar, local or on S3; `PhotoRef.uri` ends in the offset of the content.

    `index` is the place of FFHQ's index beside the tar, or ""; one inside the tar takes precedence.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the members that may be photos, sorted by name; a repeated name gets `#2` at its second use.

        A hard link has the content of the member that it names; a symbolic link is listed and cannot be read.
        Two tars joined by `cat` are read as one. The fingerprint is that of the whole tar: if one photo
        changes, all count as changed.
        """
        version = storage.version(self.uri)
        inside: list[Index] = []
        refs = sort_refs(self._refs(version, inside))
        first = list(islice(refs, 1))  # all headers are read by then
        if storage.version(self.uri) != version:
            raise UsageError(
                f"{self.uri} changed while it was listed; expected a finished tar; run the command again"
            )
        index = inside[0] if inside else index_at(self.index)
        yield from attach_checksums(chain(first, refs), index, PurePosixPath(self.uri).stem)

    def _refs(self, version: str, inside: list[Index]) -> Iterator[PhotoRef]:
        listing = Listing(self.every_file)
        linked: set[str] = set()
        for entry in _entries(self.uri):
            name = _printable(entry.name)
            if name.rpartition("/")[2] == INDEX and entry.kind == "file":
                inside.append(
                    Index(
                        f"{self.uri}#{name}",
                        version,
                        name.removesuffix(INDEX),
                        open=partial(_open_member, self.uri, entry),
                    )
                )
            if entry.kind == "hard link":
                linked.add(_path(entry.target))
            elif entry.kind != "folder":
                yield from self._listed(listing, version, entry, _place(entry), entry.num_bytes)
        if linked:
            yield from self._hard_links(listing, version, linked)

    def _hard_links(self, listing: Listing, version: str, linked: set[str]) -> Iterator[PhotoRef]:
        """Yield the hard links with the content of the last member before each that has its target's name.

        The headers are read once more: only what is linked to is kept, and most tars have no links.
        """
        contents: dict[str, tuple[str, int]] = {}
        for entry in _entries(self.uri):
            content = (_place(entry), entry.num_bytes)
            if entry.kind == "hard link":
                content = contents.get(_path(entry.target), (_LOST, 0))
                yield from self._listed(listing, version, entry, *content)
            if _path(entry.name) in linked and entry.kind != "folder":
                contents[_path(entry.name)] = content

    def _listed(
        self, listing: Listing, version: str, entry: TarEntry, content: str, num_bytes: int
    ) -> Iterator[PhotoRef]:
        listed = listing.place_of(_printable(entry.name))
        if listed is not None:
            name, skipped = listed
            uri, fingerprint = f"{self.uri}#{content}", f"{version}@{content}"
            yield PhotoRef(uri, name, num_bytes, fingerprint, skipped=skipped)

    def read(self, ref: PhotoRef) -> bytes:
        """Read one member of a tar that has not changed since it was listed.

        A tar has no digest of its members, so each is read twice from S3 (`storage/s3.py`), which doubles
        the traffic.
        """
        check_size(ref)
        version, _, place = ref.fingerprint.rpartition("@")
        if place in _UNREADABLE:
            raise PhotoUnreadableError(f"{ref.name} in {self.uri} is {_UNREADABLE[place]}; expected a photo")
        try:
            if place.startswith(_SPARSE):
                data = checked(ref, self._read_sparse(version, int(place.removeprefix(_SPARSE))))
            else:
                data = checked(ref, storage.read_version(self.uri, version, int(place), ref.bytes))
        except storage.ReplacedError as error:
            raise PhotoUnreadableError(str(error)) from error
        except FileNotFoundError as error:
            raise PhotoUnreadableError(
                f"{self.uri} is gone; expected it as listed; run the command again"
            ) from error
        except TarDamagedError as error:
            raise PhotoUnreadableError(f"{ref.name} in {self.uri} cannot be read ({error})") from error
        except OSError as error:
            if storage.is_remote(self.uri):
                raise
            if not storage.is_about_one_file(error, writing=False):
                raise storage.place_error(self.uri, error, "read") from error
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({error.strerror or error})"
            ) from error
        return check_published(ref, data)

    def _read_sparse(self, version: str, header: int) -> bytes:
        with storage.open_read(self.uri, verified=True) as file:
            data = read_sparse(file, next(read_entries(file, header)))
        if storage.version(self.uri) != version:
            raise storage.ReplacedError(
                f"{self.uri} changed after it was listed; expected the listed content; run the command again"
            )
        return data


def looks_like_tar(path: Path) -> bool:
    """True if the suffix or the first header is that of a tar."""
    with storage.open_read(path) as file:
        return file.read(262)[257:] == b"ustar" or path.name.lower().endswith(_SUFFIXES)


def check_tar(uri: str) -> None:
    """Raise ArchiveUnreadableError unless the first header can be read; `listing` reads the others."""
    try:
        with storage.open_read(uri, _HEADER_BYTES, verified=True) as file:
            next(read_entries(file), None)
    except (TarDamagedError, OSError) as error:
        raise ArchiveUnreadableError(
            f"{uri} is no readable tar ({_reason(error)}); expected a plain, uncompressed tar; unpack it, or "
            "copy it again"
        ) from error


class _Content(io.RawIOBase):
    """The content of a member as a stream."""

    def __init__(self, file: IO[bytes], entry: TarEntry) -> None:
        self._file = file
        self._left = entry.num_bytes
        file.seek(entry.place)

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        data = self._file.read(min(len(view), self._left))
        self._left -= len(data)
        view[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _open_member(uri: str, entry: TarEntry) -> Iterator[IO[bytes]]:
    with storage.open_read(uri, verified=True) as file:
        yield io.BufferedReader(_Content(file, entry))


def _entries(uri: str) -> Iterator[TarEntry]:
    """Yield the members in order; ArchiveUnreadableError if the tar was cut, even between two members."""
    try:
        with storage.open_read(uri, _HEADER_BYTES, verified=True) as file:
            yield from read_entries(file)
    except TarDamagedError as error:
        raise ArchiveUnreadableError(
            f"{uri} cannot be read ({error}); expected a whole tar; copy or download it again"
        ) from error


def _place(entry: TarEntry) -> str:
    """Return where a content lies: an offset, the header of a sparse member, or why there is none."""
    if entry.kind == "sparse":
        return f"{_SPARSE}{entry.header}"
    return str(entry.place) if entry.kind == "file" else entry.kind.replace(" ", "-")


def _path(name: str) -> str:
    """Return a name as `tar` compares the target of a link with the names of members."""
    return posixpath.normpath(name).lstrip("/")


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)
