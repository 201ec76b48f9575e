"""An object on S3 as a file with seek."""

import io
from typing import Any

from pipelines.storage.s3 import Client, read_once, read_verified


class RemoteFile(io.RawIOBase):
    """An object as a file with seek, fetched a block at a time.

    It is one version of the object: `ReplacedError` if the object has changed. Blocks are fetched with
    `read_verified` while `verified` is set, else with `read_once`.
    """

    def __init__(self, client: Client, uri: str, block_bytes: int, verified: bool) -> None:
        info = client.info(uri)
        self.uri = uri
        self.version = str(info["ETag"]).strip('"')
        self.num_bytes = int(info["size"])
        self.verified = verified
        self._client = client
        self._block_bytes = block_bytes
        self._position = 0
        self._block = b""
        self._block_start = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        if base + offset < 0:
            raise OSError(f"{self.uri} has no byte {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, target: Any) -> int:
        """Fill the target as far as the object goes; returns the number of bytes."""
        view = memoryview(target).cast("B")
        wanted = max(0, min(len(view), self.num_bytes - self._position))
        done = 0
        while done < wanted:
            piece = self._piece(wanted - done)
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def forget(self) -> None:
        """Drop the fetched block, because it came altered."""
        self._block = b""

    def _piece(self, wanted: int) -> bytes:
        """Return at least one and at most `wanted` bytes from the position on; fetch a block if needed."""
        offset = self._position - self._block_start
        if not 0 <= offset < len(self._block):
            stop = min(self.num_bytes, self._position + max(wanted, self._block_bytes))
            read = read_verified if self.verified else read_once
            self._block = read(self._client, self.uri, self.version, self._position, stop)
            self._block_start = self._position
            offset = 0
        return self._block[offset : offset + wanted]
