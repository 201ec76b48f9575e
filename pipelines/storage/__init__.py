"""Files, local or on S3, behind one set of functions: every place is a path or an `s3://bucket/key` URI.

Nothing half-written is ever visible under its final name. Locally that is a temporary name beside the target,
fsync, read-back, rename (or hard link, where the target must not exist yet). On S3 a PUT is atomic, carries
the MD5 that the server checks before it publishes, and `If-None-Match: *` is the lock. The S3 endpoint comes
from `AWS_ENDPOINT_URL` and is passed explicitly; checksum trailers are sent only when required, because
servers exist that refuse them, or store their framing as data.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from diffbfr.errors import UsageError
from pipelines.storage import local, s3
from pipelines.storage.errors import ReplacedError as ReplacedError
from pipelines.storage.errors import StorageError as StorageError
from pipelines.storage.errors import TransportError as TransportError
from pipelines.storage.errors import corrupt_error
from pipelines.storage.names import find_names as find_names
from pipelines.storage.s3 import RemoteFile as RemoteFile
from pipelines.storage.s3 import connect as _s3
from pipelines.storage.s3 import is_transient as is_transient

Uri = str | Path

_READ_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_SINGLE_PUT_BYTES = 1 << 30  # s3fs splits at twice this size
_PROBE_NAME = ".diffbfr-probe"


@dataclass(frozen=True)
class Entry:
    """One file under a folder: path relative to it, size, and a version tag that changes when the content
    does (ETag or mtime).
    """

    path: str
    num_bytes: int
    version: str


def is_remote(uri: Uri) -> bool:
    """Tell whether the place is on S3."""
    return isinstance(uri, str) and uri.startswith(s3.SCHEME)


def local_path(uri: Uri) -> Path:
    """Turn a plain path or a `file://` URI into a `Path`; a place on S3 is refused."""
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
    """Write the place in full, so that a worker with another current folder finds it too."""
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
    """Tell whether a file or a folder is there."""
    return bool(_s3().exists(str(uri))) if is_remote(uri) else local_path(uri).exists()


def is_dir(uri: Uri) -> bool:
    """Tell whether a folder is there; on S3, whether any key starts with this prefix."""
    return bool(_s3().isdir(str(uri))) if is_remote(uri) else local_path(uri).is_dir()


def size(uri: Uri) -> int:
    """Size of a file in bytes; FileNotFoundError if there is none."""
    return int(_s3().size(str(uri))) if is_remote(uri) else local_path(uri).stat().st_size


def version(uri: Uri) -> str:
    """What changes when the content of a file does, without reading it: ETag, or size and time;
    FileNotFoundError if there is none.
    """
    if is_remote(uri):
        return str(_s3().info(str(uri))["ETag"]).strip('"')
    return local.version_of(local_path(uri).stat())


def modified(uri: Uri) -> float:
    """When a file was last written, in seconds since 1970; FileNotFoundError if there is none."""
    return float(_s3().modified(str(uri)).timestamp()) if is_remote(uri) else local_path(uri).stat().st_mtime


def read_bytes(uri: Uri) -> bytes:
    """Whole content of a file; FileNotFoundError if there is none."""
    return cast(bytes, _s3().cat_file(str(uri))) if is_remote(uri) else local_path(uri).read_bytes()


def read_json(uri: Uri) -> Any:
    """Whole content of a JSON file, parsed."""
    return json.loads(read_bytes(uri))


def read_range(uri: Uri, start: int, length: int) -> bytes:
    """Return `length` bytes of a file from `start` on, fewer at its end, of whatever lies there now;
    FileNotFoundError if there is none.
    """
    with open_read(uri, length) as file:
        file.seek(start)
        return file.read(length)


def read_version(uri: Uri, listed: str, start: int = 0, length: int | None = None) -> bytes:
    """Return a file, or `length` bytes from `start` on, of the version that was listed; `ReplacedError` if it
    is another or becomes one.

    On S3 the bytes are proved by the object's MD5 or by a second reading (`storage/s3.py`). FileNotFoundError
    if there is none.
    """
    if is_remote(uri):
        if length is None:
            return s3.read_whole(_s3(), str(uri), listed)
        return s3.read_verified(_s3(), str(uri), listed, start, start + length)
    return local.read_version(local_path(uri), listed, start, length)


def open_read(uri: Uri, block_bytes: int = _BLOCK_BYTES, twice: bool = False) -> BinaryIO:
    """Open a file for reading, with seek: for archives whose members are read one at a time.

    S3 is read `block_bytes` at a time; `twice` is for what carries no digest, and costs twice the traffic.
    """
    if is_remote(uri):
        return cast(BinaryIO, RemoteFile(_s3(), str(uri), block_bytes, twice))
    return local_path(uri).open("rb")


def digest(uri: Uri) -> str:
    """Sha256 of a file in hex, read in pieces."""
    summer = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(_READ_BYTES):
            summer.update(piece)
    return summer.hexdigest()


def list_dir(uri: Uri) -> list[str]:
    """Names of the files and folders in a folder, sorted; files still being written are left out; no
    folder, no names.
    """
    if is_remote(uri):
        prefix = str(uri).rstrip("/")
        try:
            keys = [key.rstrip("/") for key in _s3().ls(prefix, detail=False)]
        except FileNotFoundError:
            return []
        found = [key.rsplit("/", 1)[-1] for key in keys if key != prefix[len(s3.SCHEME) :]]
    else:
        path = local_path(uri)
        found = [child.name for child in path.iterdir()] if path.is_dir() else []
    return sorted(name for name in found if not _is_temporary(name))


def walk(uri: Uri) -> Iterator[Entry]:
    """Every file under a folder, sorted by relative path (always with `/`); files still being written are
    left out.

    S3 is listed a page at a time, in the order of UTF-8, which is Python's.
    """
    if is_remote(uri):
        bucket, _, key = str(uri).rstrip("/")[len(s3.SCHEME) :].partition("/")
        prefix = f"{key}/" if key else ""
        for name, num_bytes, etag in s3.list_keys(_s3(), bucket, prefix):
            if not name.endswith("/") and not _is_temporary(name):
                yield Entry(name[len(prefix) :], num_bytes, etag)
        return
    root = local_path(uri)
    for path in sorted(
        (path for path in root.rglob("*") if path.is_file()),
        key=lambda path: path.relative_to(root).as_posix(),
    ):
        if not _is_temporary(path.name):
            facts = path.stat()
            yield Entry(path.relative_to(root).as_posix(), facts.st_size, str(facts.st_mtime_ns))


def write_atomic(uri: Uri, data: bytes, create_only: bool = False) -> bool:
    """Write a file whole or not at all, verified. False, and nothing touched, if `create_only` and
    somebody was first.
    """
    return (
        _write_s3(str(uri), data, create_only)
        if is_remote(uri)
        else local.write(local_path(uri), data, create_only)
    )


def write_json(uri: Uri, value: Any, create_only: bool = False) -> bool:
    """Write a value as JSON, keys sorted, whole or not at all."""
    return write_atomic(
        uri, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(), create_only
    )


def put_file(source: Path, uri: Uri) -> None:
    """Copy a local file to a place, whole and read back; a piece at a time is held."""
    if is_remote(uri):
        _s3().put_file(str(source), str(uri))
        if not _reads_back(lambda: digest(uri) == digest(source)):
            _s3().rm_file(str(uri))
            raise corrupt_error(uri)
    elif local_path(uri).absolute() != source.absolute():
        local.copy(source, local_path(uri))


def put_tree(folder: Path, uri: Uri, last: str = "") -> None:
    """Copy a local folder to a place, each file whole and read back, in sorted order; a file named `last`
    at the end, as a seal.
    """
    for entry in sorted(walk(folder), key=lambda entry: (entry.path == last, entry.path)):
        put_file(folder / entry.path, join(uri, entry.path))


@contextlib.contextmanager
def local_copy(uri: Uri) -> Iterator[Path]:
    """Yield where a file lies on this machine: itself, or a copy from S3 that ends with the context;
    FileNotFoundError if there is none.
    """
    if not is_remote(uri):
        if not local_path(uri).exists():
            raise FileNotFoundError(str(uri))
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="diffbfr-copy-") as folder:
        _s3().get_file(str(uri), str(Path(folder) / "file"))
        yield Path(folder) / "file"


def cache_folder(room: str) -> Path:
    """Where copies from S3 lie on this machine: `DIFFBFR_CACHE`, else `~/.cache/diffbfr`."""
    return Path(os.environ.get("DIFFBFR_CACHE", "~/.cache/diffbfr")).expanduser() / room


def fetch_tree(uri: Uri, cache: Path) -> Path:
    """Bring a folder to this machine and return where it lies: itself if local, else a copy under `cache`
    that follows the versions.
    """
    if not is_remote(uri):
        return local_path(uri)
    target = cache / hashlib.sha256(absolute(uri).encode()).hexdigest()[:20]
    versions = cache / f"{target.name}.json"
    known = read_json(versions) if versions.exists() else {}
    now = {entry.path: entry for entry in walk(uri)}
    if not now:
        raise FileNotFoundError(str(uri))
    for path, entry in now.items():
        place = target / path
        if known.get(path) == entry.version and place.exists() and place.stat().st_size == entry.num_bytes:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = local.temporary(place)
        try:
            _s3().get_file(join(uri, path), str(temporary))
            if temporary.stat().st_size != entry.num_bytes:
                raise StorageError(
                    f"{join(uri, path)} came as {temporary.stat().st_size} bytes, expected "
                    f"{entry.num_bytes}; rerun"
                )
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
    write_json(versions, {path: entry.version for path, entry in now.items()})
    return target


def remove_tree(uri: Uri) -> None:
    """Remove a folder or file and all below it; nothing there is fine."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(uri):
            _s3().rm(str(uri), recursive=True)
        elif local_path(uri).is_dir():
            shutil.rmtree(local_path(uri))
        else:
            local_path(uri).unlink()


def check_folder(uri: Uri) -> None:
    """UsageError if the place is a file on this machine; it need not be there yet."""
    if not is_remote(uri) and local_path(uri).is_file():
        raise UsageError(f"{uri} is a file; expected a folder, or a place for one; name another with --root")


def check_writable(uri: Uri) -> None:
    """Write, read back and remove a small file; UsageError that says why if the place refuses."""
    probe = join(uri, f"{_PROBE_NAME}-{uuid.uuid4().hex}")
    try:
        write_atomic(probe, b"diffbfr")
        remove_tree(probe)
    except (
        Exception
    ) as error:  # every storage client has errors of its own, and each means the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"cannot write to {uri} ({reason}); expected a writable folder or bucket; name another with "
            "--root"
        ) from error


def _is_temporary(name: str) -> bool:
    return name.endswith(local.TEMPORARY) or _PROBE_NAME in name


def _write_s3(uri: str, data: bytes, create_only: bool) -> bool:
    """One PUT with its MD5, then a read-back of size and bytes."""
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    options: dict[str, Any] = {"ContentMD5": md5} if len(data) < _SINGLE_PUT_BYTES else {}
    try:
        _s3().pipe_file(
            uri, data, chunksize=_SINGLE_PUT_BYTES, mode="create" if create_only else "overwrite", **options
        )
    except FileExistsError:
        return False
    except OSError as error:
        if create_only and "PreconditionFailed" in str(error.__cause__ or error):
            return False
        raise
    if not _reads_back(lambda: read_bytes(uri) == data):
        _s3().rm_file(uri)
        raise corrupt_error(uri)
    return True


def _reads_back(compare: Callable[[], bool]) -> bool:
    """Compare, and once more if that fails: a reading may have been altered on its way."""
    return compare() or compare()
