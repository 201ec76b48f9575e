"""Files, local or on S3, behind one set of functions: every place is a path or an `s3://bucket/key` URI.

A half-written file is never visible under its final name. On a disk it is written under a temporary name
beside the target, synced, read back and renamed. Where the target must not exist yet it is hard-linked, or,
on a file system without hard links, renamed over an empty file that was created exclusively. On
S3 a PUT is atomic and carries the MD5, which the server checks before it publishes the object;
`If-None-Match: *` makes it a lock. The endpoint comes from `AWS_ENDPOINT_URL` and is passed explicitly.
Checksum trailers are sent only when required, because some servers refuse them, or store their framing as
data.
"""

from pipelines.storage.checks import check_writable, probe
from pipelines.storage.entry import Entry
from pipelines.storage.errnos import is_about_one_file, place_error, remedy_for
from pipelines.storage.errors import (
    AccessRefusedError,
    ObjectUnavailableError,
    PlaceError,
    ReplacedError,
    StorageError,
    TransportError,
    UnsafePlaceError,
)
from pipelines.storage.fetch import (
    cache_folder,
    check_key,
    fetch_tree,
    make_cache,
)
from pipelines.storage.files import (
    Uri,
    absolute,
    check_folder,
    digest,
    exists,
    is_dir,
    is_remote,
    join,
    list_dir,
    local_copy,
    local_path,
    make_folder,
    modified,
    open_read,
    put_file,
    put_tree,
    read_bytes,
    read_json,
    read_range,
    read_version,
    refuse_link,
    remove_file,
    remove_tree,
    reopen_folder,
    scan,
    size,
    special_kind,
    version,
    walk,
    write_atomic,
    write_json,
)
from pipelines.storage.local import (
    FILE_MODE,
)
from pipelines.storage.names import (
    find_names,
    list_objects,
)
from pipelines.storage.remote_file import (
    RemoteFile,
)
from pipelines.storage.s3_errors import (
    is_transient,
)

__all__ = [
    "FILE_MODE",
    "AccessRefusedError",
    "Entry",
    "ObjectUnavailableError",
    "PlaceError",
    "RemoteFile",
    "ReplacedError",
    "StorageError",
    "TransportError",
    "UnsafePlaceError",
    "Uri",
    "absolute",
    "cache_folder",
    "check_folder",
    "check_key",
    "check_writable",
    "digest",
    "exists",
    "fetch_tree",
    "find_names",
    "is_about_one_file",
    "is_dir",
    "is_remote",
    "is_transient",
    "join",
    "list_dir",
    "list_objects",
    "local_copy",
    "local_path",
    "make_cache",
    "make_folder",
    "modified",
    "open_read",
    "place_error",
    "probe",
    "put_file",
    "put_tree",
    "read_bytes",
    "read_json",
    "read_range",
    "read_version",
    "refuse_link",
    "remedy_for",
    "remove_file",
    "remove_tree",
    "reopen_folder",
    "scan",
    "size",
    "special_kind",
    "version",
    "walk",
    "write_atomic",
    "write_json",
]
