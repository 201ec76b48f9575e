"""JSON records with a checksum, so that a flipped bit in a record is detected like one in a shard.

A record is a JSON object. Its `seal` is the sha256 of everything else in it, written as JSON with sorted keys
and no spaces. It finds accidents. Whoever changes a record on purpose can compute it again, so what a record
from elsewhere says is checked where it is used. Paths that are not UTF-8 are written with surrogates, as
Python represents them.
"""

import errno
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from diffbfr.documents import decode_json
from diffbfr.shards import ShardDamagedError
from pipelines import storage

SEAL: Final = "seal"
_NO_FILE: Final = (errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""What the system answers if a pipe, a device, a folder or a circle of links is in the place of a file."""
_MAX_BYTES: Final = 1 << 29
_READINGS: Final = 3
"""Number of reads of a record on S3 before it counts as damaged: the bytes may have changed in transit."""


def write_checksummed_json(
    uri: storage.Uri,
    record: Mapping[str, Any],
    create_only: bool = False,
    indent: int | None = 1,
    within: storage.Uri = "",
    mode: int = storage.FILE_MODE,
) -> bool:
    """Write a record with its checksum atomically; False and no write if `create_only` and it exists.

    `within` and `mode` are as in `storage.write_atomic`.
    """
    data = (
        json.dumps({**record, SEAL: _seal(record)}, indent=indent, sort_keys=True, ensure_ascii=False) + "\n"
    )
    return storage.write_atomic(
        uri, data.encode("utf-8", "surrogatepass"), create_only=create_only, within=within, mode=mode
    )


def read_checksummed_json(uri: storage.Uri) -> dict[str, Any]:
    """Read a record without its checksum; `ShardDamagedError` if the checksum does not match.

    `FileNotFoundError` if there is no record.
    """
    found = ""
    for _ in range(_READINGS if storage.is_remote(uri) else 1):
        try:
            data = storage.read_bytes(uri)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            found = error.strerror or "it is no file"
            break
        try:
            record: dict[str, Any] = decode_json(data.decode("utf-8", "surrogatepass"), _MAX_BYTES)
            if record.pop(SEAL) == _seal(record):
                return record
            found = "its seal does not fit its content"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found = f"it is no sealed JSON ({type(error).__name__})"
    raise ShardDamagedError(
        f"{uri} is damaged: {found}; expected the record as it was written; remove it and run the same "
        "command again"
    )


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
