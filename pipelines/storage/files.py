"""The operations on files, each for a path on this machine or an `s3://bucket/key` URI."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from diffbfr.documents import decode_json
from diffbfr.errors import UsageError, one_line
from pipelines.storage import local, s3
from pipelines.storage.drafts import is_abandoned, is_draft
from pipelines.storage.entry import Entry
from pipelines.storage.errors import UnsafePlaceError, corrupt_error
from pipelines.storage.names import find_names
from pipelines.storage.regular import kind_of, open_regular
from pipelines.storage.remote_file import RemoteFile
from pipelines.storage.s3 import connect

Uri = str | Path

_READ_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_SINGLE_PUT_BYTES = 1 << 30  # s3fs splits at twice this size
_MAX_JSON_BYTES = 1 << 28
_BUCKET = re.compile(r"(?:[a-zA-Z0-9._-]{1,255}|arn:[a-zA-Z0-9:._-]{1,255}(?:/[a-zA-Z0-9-]+)*)(?:/|$)")


def is_remote(uri: Uri) -> bool:
    """True if the place is on S3; UsageError if it names no bucket, such as one with a password in it."""
    if not isinstance(uri, str) or not uri.startswith(s3.SCHEME):
        return False
    if not _BUCKET.match(uri, len(s3.SCHEME)):
        raise UsageError(
            f"{uri} names no bucket; expected s3://bucket/prefix; credentials come from the environment or "
            "~/.aws"
        )
    return True


def local_path(uri: Uri) -> Path:
    """Turn a plain path or a `file://` URI into a `Path`; UsageError for any other scheme."""
    if isinstance(uri, Path):
        return uri
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme == "file":
        return Path(unquote(urlsplit(uri).path))
    if scheme:
        raise UsageError(
            f"{uri} is not on this machine's disks; expected a path or s3://; copy it here first"
        )
    return Path(uri)


def absolute(uri: Uri) -> str:
    """Return the place in full, so that a worker with another current folder finds it too."""
    return (
        uri.rstrip("/")
        if isinstance(uri, str) and is_remote(uri)
        else str(local_path(uri).expanduser().absolute())
    )


def join(uri: Uri, *parts: str) -> str:
    """Append path parts to a place."""
    if is_remote(uri):
        return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])
    return str(local_path(uri).joinpath(*parts))


def exists(uri: Uri) -> bool:
    """True if a file or a folder is there."""
    return bool(connect().exists(str(uri))) if is_remote(uri) else local_path(uri).exists()


def is_dir(uri: Uri) -> bool:
    """True if a folder is there; on S3, if any key starts with this prefix."""
    return bool(connect().isdir(str(uri))) if is_remote(uri) else local_path(uri).is_dir()


def special_kind(uri: Uri) -> str:
    """Say in words what a place on this machine is if not a file or a folder (`a named pipe`); else ""."""
    if is_remote(uri):
        return ""
    try:
        return kind_of(local_path(uri).stat().st_mode)
    except OSError:
        return ""


def size(uri: Uri) -> int:
    """Return the size of a file in bytes; FileNotFoundError if there is none."""
    return int(connect().size(str(uri))) if is_remote(uri) else local_path(uri).stat().st_size


def version(uri: Uri) -> str:
    """Return a text that changes with the content of a file: ETag, or size and time of the last change.

    The file is not read. FileNotFoundError if there is none.
    """
    if is_remote(uri):
        return str(connect().info(str(uri))["ETag"]).strip('"')
    return local.version_of(local_path(uri).stat())


def modified(uri: Uri) -> float:
    """Return when a file was last written, in seconds since 1970; FileNotFoundError if there is none."""
    return (
        float(connect().modified(str(uri)).timestamp()) if is_remote(uri) else local_path(uri).stat().st_mtime
    )


def read_bytes(uri: Uri) -> bytes:
    """Return the content of a file; FileNotFoundError if there is none, OSError if it is no regular file."""
    if is_remote(uri):
        return cast(bytes, connect().cat_file(str(uri)))
    with open_regular(local_path(uri)) as file:
        return file.read()


def read_json(uri: Uri) -> Any:
    """Return the parsed content of a JSON file of ours; UsageError if it is none, or breaks a limit."""
    try:
        return decode_json(read_bytes(uri), _MAX_JSON_BYTES)
    except ValueError as error:
        raise UsageError(
            f"{uri} is damaged ({one_line(error)}); expected JSON as it was written; remove it, or put "
            "a copy back"
        ) from error


def read_range(uri: Uri, start: int, length: int) -> bytes:
    """Return `length` bytes of the current file from `start` on, fewer at its end.

    FileNotFoundError if there is none.
    """
    with open_read(uri, length) as file:
        file.seek(start)
        return file.read(length)


def read_version(uri: Uri, listed: str, start: int = 0, length: int | None = None) -> bytes:
    """Return a file, or `length` bytes from `start` on, of the version that was listed.

    On S3 the bytes are verified by a checksum or by a second reading (`storage/s3.py`). `ReplacedError` if
    the file has another version, or changes while it is read; FileNotFoundError if there is none.
    """
    if is_remote(uri):
        if length is None:
            return s3.read_whole(connect(), str(uri), listed)
        return s3.read_verified(connect(), str(uri), listed, start, start + length)
    return local.read_version(local_path(uri), listed, start, length)


def open_read(uri: Uri, block_bytes: int = _BLOCK_BYTES, verified: bool = False) -> BinaryIO:
    """Open a file for reading, with seek: for archives whose members are read one at a time.

    S3 is read `block_bytes` at a time. `verified` is for content without a digest of its own: each block is
    read until two readings agree, which doubles the traffic. OSError if it is no regular file.
    """
    if is_remote(uri):
        return cast(BinaryIO, RemoteFile(connect(), str(uri), block_bytes, verified))
    return open_regular(local_path(uri))


def digest(uri: Uri) -> str:
    """Return the sha256 of a file in hex, read in pieces."""
    summer = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(_READ_BYTES):
            summer.update(piece)
    return summer.hexdigest()


def list_dir(uri: Uri) -> list[str]:
    """Return the names of the files and folders in a folder, sorted; none if there is no folder.

    Files that are still being written are left out.
    """
    if is_remote(uri):
        prefix = str(uri).rstrip("/")
        try:
            keys = [key.rstrip("/") for key in connect().ls(prefix, detail=False)]
        except FileNotFoundError:
            return []
        found = [key.rsplit("/", 1)[-1] for key in keys if key != prefix[len(s3.SCHEME) :]]
    else:
        path = local_path(uri)
        found = [child.name for child in path.iterdir()] if path.is_dir() else []
    return sorted(name for name in found if not is_draft(name))


def walk(uri: Uri) -> Iterator[Entry]:
    """Yield every file under a folder, sorted by relative path, which is written with `/`.

    Files that are still being written are left out. S3 is listed a page at a time, in the order of UTF-8,
    which is also the order of Python's strings.
    """
    if is_remote(uri):
        bucket, _, key = str(uri).rstrip("/")[len(s3.SCHEME) :].partition("/")
        prefix = f"{key}/" if key else ""
        for name, num_bytes, etag in s3.list_keys(connect(), bucket, prefix):
            if not name.endswith("/") and not is_draft(name.rpartition("/")[2]):
                yield Entry(name[len(prefix) :], num_bytes, etag)
        return
    yield from sorted(scan(uri), key=attrgetter("path"))


def scan(uri: Uri) -> Iterator[Entry]:
    """Yield what `walk` does, in no order, so that no name is held."""
    if is_remote(uri):
        yield from walk(uri)
        return
    waiting = [("", str(local_path(uri)))]
    while waiting:
        prefix, folder = waiting.pop()
        # a folder that is not there, or may not be read, has no files
        gone = contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError)
        with gone, os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((f"{prefix}{entry.name}/", entry.path))
                elif not is_draft(entry.name) and (found := _file_entry(entry, prefix)) is not None:
                    yield found


def _file_entry(entry: "os.DirEntry[str]", prefix: str) -> Entry | None:
    """The entry of a file, also behind a link; None for anything else, or if it is gone."""
    try:
        status = entry.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Entry(f"{prefix}{entry.name}", status.st_size, str(status.st_mtime_ns))


def write_atomic(
    uri: Uri, data: bytes, create_only: bool = False, within: Uri = "", mode: int = local.FILE_MODE
) -> bool:
    """Write a file whole or not at all, and read it back; StorageError if it reads back different.

    With `create_only`, False and no change if the file exists: of several writers exactly one gets True.
    Below the folder `within` no link is followed or replaced; `UnsafePlaceError` if there is one. `mode`
    holds the permission bits of a local file; the umask is taken off them.
    """
    if is_remote(uri):
        return _write_s3(str(uri), data, create_only)
    return local.write(local_path(uri), data, create_only, _rules(within, mode))


def write_json(
    uri: Uri, value: Any, create_only: bool = False, within: Uri = "", mode: int = local.FILE_MODE
) -> bool:
    """Write a value as JSON with sorted keys, as `write_atomic` does."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return write_atomic(uri, text.encode(), create_only=create_only, within=within, mode=mode)


def put_file(source: Path, uri: Uri, within: Uri = "", mode: int = local.FILE_MODE) -> None:
    """Copy a local file to a place as `write_atomic` writes; memory holds a piece at a time."""
    if is_remote(uri):
        connect().put_file(str(source), str(uri))
        if not _reads_back(lambda: digest(uri) == digest(source)):
            connect().rm_file(str(uri))
            raise corrupt_error(uri)
    elif local_path(uri).absolute() != source.absolute():
        local.copy(source, local_path(uri), _rules(within, mode))


def put_tree(folder: Path, uri: Uri, last: str = "") -> None:
    """Copy a local folder to a place with `put_file`, in sorted order, and the file named `last` at the end.

    A reader that finds `last` therefore finds all files.
    """
    for entry in sorted(walk(folder), key=lambda entry: (entry.path == last, entry.path)):
        put_file(folder / entry.path, join(uri, entry.path))


@contextlib.contextmanager
def local_copy(uri: Uri) -> Iterator[Path]:
    """Yield the path of a file on this machine: its own, or that of a temporary copy from S3.

    The copy is removed with the context. FileNotFoundError if there is no such file.
    """
    if not is_remote(uri):
        if not local_path(uri).exists():
            raise FileNotFoundError(str(uri))
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="diffbfr-copy-") as folder:
        connect().get_file(str(uri), str(Path(folder) / "file"))
        yield Path(folder) / "file"


def remove_tree(uri: Uri) -> None:
    """Remove a file, or a folder and all below it, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(uri):
            connect().rm(str(uri), recursive=True)
        elif local_path(uri).is_dir():
            shutil.rmtree(local_path(uri))
        else:
            local_path(uri).unlink()


def remove_file(uri: Uri, within: Uri) -> bool:
    """Remove one file that lies below `within`, never a folder; False if there is none.

    `UnsafePlaceError` if the place lies outside, or if it or a folder on the way is a link.
    """
    if not is_remote(uri):
        return local.remove_file(local_path(uri), local_path(within))
    if not str(uri).startswith(f"{str(within).rstrip('/')}/"):
        raise UnsafePlaceError(f"{uri} does not lie in {within}; expected a place inside it; report this")
    with contextlib.suppress(FileNotFoundError):
        connect().rm_file(str(uri))
        return True
    return False


def refuse_link(uri: Uri) -> None:
    """Raise `UnsafePlaceError` if the place is a link on this machine."""
    if not is_remote(uri):
        local.refuse_links(local_path(uri), local_path(uri).parent)


def make_folder(uri: Uri, mode: int = 0o777) -> None:
    """Make a folder on this machine, with these permission bits less the umask, unless it exists."""
    if not is_remote(uri) and not local_path(uri).exists():
        local_path(uri).parent.mkdir(parents=True, exist_ok=True)
        local_path(uri).mkdir(mode=mode, exist_ok=True)


def reopen_folder(uri: Uri) -> None:
    """Take over a folder that an earlier run wrote, if there is one.

    `UnsafePlaceError` for a link below it. Files that dead writers left unfinished are removed.
    """
    if not is_remote(uri):
        local.reopen_folder(local_path(uri))
        return
    for name in find_names(str(uri), is_draft, prefix=".diffbfr-"):
        place = join(uri, name)
        with contextlib.suppress(FileNotFoundError):
            if is_abandoned(name, modified(place)):
                connect().rm_file(place)


def check_folder(uri: Uri) -> None:
    """Raise UsageError if the place is a file on this machine; a place that does not exist passes."""
    if not is_remote(uri) and local_path(uri).is_file():
        raise UsageError(f"{uri} is a file; expected a folder, or a place for one; name another with --root")


def _rules(within: Uri, mode: int) -> local.WriteRules:
    return local.WriteRules(local_path(within) if within else None, mode)


def _write_s3(uri: str, data: bytes, create_only: bool) -> bool:
    """Write an object with one PUT that carries its MD5, then read it back."""
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    options: dict[str, Any] = {"ContentMD5": md5} if len(data) < _SINGLE_PUT_BYTES else {}
    try:
        connect().pipe_file(
            uri, data, chunksize=_SINGLE_PUT_BYTES, mode="create" if create_only else "overwrite", **options
        )
    except FileExistsError:
        return False
    except OSError as error:
        if create_only and "PreconditionFailed" in str(error.__cause__ or error):
            return False
        raise
    if not _reads_back(lambda: read_bytes(uri) == data):
        connect().rm_file(uri)
        raise corrupt_error(uri)
    return True


def _reads_back(compare: Callable[[], bool]) -> bool:
    """Compare, and compare once more if that fails: the bytes may have been altered on their way back."""
    return compare() or compare()
