"""Photos that are members of a tar: the headers are read once, then each member by its offset."""

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import INDEX, Index, attach_checksums, check_published, index_at
from pipelines.sources.source import (
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    check_size,
    checked,
    is_photo,
)

_HEADER_BYTES: Final = 1 << 16  # fetched from S3 to read one header
_LINK: Final = "link"
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

        A link is listed and cannot be read. The fingerprint is that of the whole tar: if one photo changes,
        all count as changed.
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
        for member in _members(self.uri):
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if name.rpartition("/")[2] == INDEX and member.isreg():
                inside.append(
                    Index(
                        f"{self.uri}#{name}",
                        version,
                        name.removesuffix(INDEX),
                        open=partial(_open_member, self.uri, member),
                    )
                )
            if member.isdir() or not (self.every_file or is_photo(name)):
                continue
            place = str(member.offset_data) if member.isreg() and not member.issparse() else _LINK
            yield PhotoRef(f"{self.uri}#{place}", name, member.size, f"{version}@{place}")

    def read(self, ref: PhotoRef) -> bytes:
        """Read one member of a tar that has not changed since it was listed.

        A tar has no digest of its members, so each is read twice from S3 (`storage/s3.py`), which doubles
        the traffic.
        """
        check_size(ref)
        version, _, place = ref.fingerprint.rpartition("@")
        if place == _LINK:
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} is a link or a special file; expected a photo"
            )
        try:
            data = checked(ref, storage.read_version(self.uri, version, int(place), ref.bytes))
        except storage.ReplacedError as error:
            raise PhotoUnreadableError(str(error)) from error
        except FileNotFoundError as error:
            raise PhotoUnreadableError(
                f"{self.uri} is gone; expected it as listed; run the command again"
            ) from error
        return check_published(ref, data)


def looks_like_tar(path: Path) -> bool:
    """True if the suffix or the first header is that of a tar."""
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar" or path.name.lower().endswith(_SUFFIXES)


def check_tar(uri: str) -> None:
    """Raise UsageError unless the first header can be read; `listing` reads the others."""
    try:
        with (
            storage.open_read(uri, _HEADER_BYTES, verified=True) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            tar.next()
    except (tarfile.TarError, OSError) as error:
        raise UsageError(
            f"{uri} is no readable tar ({error}); expected a plain, uncompressed tar; unpack or copy it again"
        ) from error


@contextlib.contextmanager
def _open_member(uri: str, member: tarfile.TarInfo) -> Iterator[IO[bytes]]:
    with storage.open_read(uri, verified=True) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        yield cast(IO[bytes], tar.extractfile(member))


def _members(uri: str) -> Iterator[tarfile.TarInfo]:
    """Yield the headers in order; UsageError at the end if the tar was cut, even between two members."""
    with storage.open_read(uri, _HEADER_BYTES, verified=True) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    yield member
                    # as its documentation advises: otherwise `tar` would keep every header
                    tar.members = []  # type: ignore[attr-defined]
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
        except tarfile.TarError as error:
            raise UsageError(
                f"{uri} cannot be read ({error}); expected a whole tar; copy or download it again"
            ) from error
    if end != bytes(tarfile.BLOCKSIZE):
        raise UsageError(
            f"{uri} ends without its end mark, so it was cut; expected a whole tar; copy or download it again"
        )
