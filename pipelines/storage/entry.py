"""One file in a listing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file under a folder: relative path, size, and a version that changes with the content.

    The version is the ETag on S3 and the time of the last change on a disk.
    """

    path: str
    num_bytes: int
    version: str
