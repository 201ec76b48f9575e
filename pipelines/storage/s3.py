"""S3 as it is: a network that fails, a server that is busy, bytes that arrive altered, objects that are
replaced while they are read.

An answer to GET carries the ETag of the very bytes that it brings, so a replaced object is noticed without
If-Match, on any server. An ETag that is the MD5 of a whole object proves its bytes. What has no digest is
read twice, both at once, and counts when two readings agree: ranges of a tar, objects that came in parts or
are encrypted with a key of their own, pages of a listing. That costs twice the traffic and no time that a
network with room to spare would notice; a photo that has a digest is read once.
"""

import asyncio
import functools
import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from diffbfr.errors import UsageError
from pipelines.storage.errors import ReplacedError, TransportError

SCHEME: Final = "s3://"
READ_TIMEOUT_S = 15.0
"""How long a server may say nothing."""

_TRIES: Final = 5
_PAUSE_S: Final = 0.1  # before the second try; each further one waits twice as long
_READINGS: Final = 5  # of what has no digest, until two agree
_FETCHES: Final = 2  # of what has one, until it fits
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_ALTERED_CODES: Final = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
_BUSY_CODES: Final = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
_NOT_PASSING: Final = 501  # the server cannot do it, today or tomorrow


class Client:
    """The s3fs client of this process and thread, whose errors tell a passing fault from what the user
    must mend.
    """

    def __init__(self, files: Any) -> None:
        self.files = files

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.files, name)

        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            place = next(
                (
                    argument
                    for argument in arguments
                    if isinstance(argument, str) and argument.startswith(SCHEME)
                ),
                "S3",
            )
            return telling(place, lambda: method(*arguments, **options))

        return call


class RemoteFile(io.RawIOBase):
    """An object as a file with seek, fetched a block at a time and on from where the last block ended.

    It is one version of the object: `ReplacedError` if another lies there. While `twice` is set, each block
    is read until two agree.
    """

    def __init__(self, client: Client, uri: str, block_bytes: int, twice: bool) -> None:
        facts = client.info(uri)
        self.uri, self.version, self.num_bytes, self.twice = (
            uri,
            str(facts["ETag"]).strip('"'),
            int(facts["size"]),
            twice,
        )
        self._client, self._block_bytes = client, block_bytes
        self._position = self._start = 0
        self._block = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        if base + offset < 0:
            raise OSError(f"{self.uri} has no byte {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, target: Any) -> int:
        """Fill the target, but for the end of the object."""
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
        """Drop what was fetched: it came altered."""
        self._block = b""

    def _piece(self, wanted: int) -> bytes:
        """Return some of the bytes from here on: those at hand, or fetched ones."""
        offset = self._position - self._start
        if not 0 <= offset < len(self._block):
            stop = min(self.num_bytes, self._position + max(wanted, self._block_bytes))
            read = read_verified if self.twice else read_once
            self._block, self._start, offset = (
                read(self._client, self.uri, self.version, self._position, stop),
                self._position,
                0,
            )
        return self._block[offset : offset + wanted]


def connect() -> Client:
    """Return the client of this process and thread (fsspec keeps one each); listings are never cached,
    they go stale between workers.
    """
    import s3fs  # here, because it is half a second that a local run need not pay

    checksums = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return Client(
        s3fs.S3FileSystem(
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
            use_listings_cache=False,
            config_kwargs={**checksums, "read_timeout": READ_TIMEOUT_S},
        )
    )


def is_transient(error: BaseException | None) -> bool:
    """Tell whether the network or the server is at fault, so that the same call may succeed later:
    timeouts, resets, refusals, 5xx.
    """
    if isinstance(error, TransportError | ConnectionError | TimeoutError):
        return True
    answer = getattr(error, "response", None) or getattr(getattr(error, "__cause__", None), "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = status in (408, 429) or (status >= 500 and status != _NOT_PASSING)
        return busy or answer.get("Error", {}).get("Code") in (*_ALTERED_CODES, *_BUSY_CODES)
    if "s3fs" not in sys.modules:
        return False
    from s3fs.core import S3_RETRYABLE_ERRORS

    return isinstance(error, S3_RETRYABLE_ERRORS)


def telling(place: str, call: Callable[[], Any]) -> Any:
    """Return what the call returns; a passing fault becomes a `TransportError`, missing rights a
    `UsageError`.
    """
    try:
        return call()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, TransportError | ReplacedError):
            raise
        if is_transient(error):
            raise TransportError(
                f"{place} did not answer as it should ({reason}); expected an answer; run the same command "
                "again"
            ) from error
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise UsageError(
                f"{place} is refused ({reason}); expected the right to it; check credentials, endpoint and "
                "policy"
            ) from error
        raise


def read_once(client: Client, uri: str, etag: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes [start, stop) of the object that has this ETag, or all; `ReplacedError` if another
    lies there.
    """
    return bytes(_run(client, uri, _get(client.files, uri, etag, start, stop)))


def read_verified(client: Client, uri: str, etag: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the same for bytes without a digest: what two readings agree on."""
    return bytes(_run(client, uri, _agreed(lambda: _get(client.files, uri, etag, start, stop), uri)))


def read_whole(client: Client, uri: str, etag: str) -> bytes:
    """Return a whole object, checked by the MD5 that its ETag is; if that is no MD5, by a second reading.

    An ETag is no MD5 if the object came in parts (then it has a hyphen), or is encrypted with a key of its
    own, as its HEAD tells.
    """
    if not _MD5.fullmatch(etag):
        return read_verified(client, uri, etag)
    for _ in range(_FETCHES):
        data = read_once(client, uri, etag)
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
            return data
        facts = client.call_s3("head_object", **place_of(uri))
        if "aws:kms" in str(facts.get("ServerSideEncryption")) or "SSECustomerAlgorithm" in facts:
            return read_verified(client, uri, etag)
    raise ReplacedError(
        f"{uri} came {_FETCHES} times with other bytes than its ETag {etag} says; expected the listed "
        "content; copy it to the bucket again"
    )


def list_keys(
    client: Client, bucket: str, prefix: str, delimiter: str = ""
) -> Iterator[tuple[str, int, str]]:
    """Yield (key, bytes, ETag) of the objects below a prefix, in order, a page at a time; with a
    delimiter, folders in place of theirs.
    """
    page, token = _list_page(client, bucket, prefix, "", delimiter)
    yield from page
    while token:
        page, token = _list_page(client, bucket, prefix, token, delimiter)
        yield from page


def place_of(uri: str) -> dict[str, str]:
    """Name an object as S3 does."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return {"Bucket": bucket, "Key": key}


def _list_page(
    client: Client, bucket: str, prefix: str, token: str, delimiter: str
) -> tuple[list[tuple[str, int, str]], str]:
    """Return a page and the token of the next one ("" after the last); read until two readings agree."""
    given = {"Delimiter": delimiter, "ContinuationToken": token}
    options = {"Bucket": bucket, "Prefix": prefix, **{name: value for name, value in given.items() if value}}
    seen: list[Any] = []
    for _ in range(_READINGS):
        page = client.call_s3("list_objects_v2", **options)
        found = [
            (facts["Key"], int(facts["Size"]), str(facts["ETag"]).strip('"'))
            for facts in page.get("Contents", ())
        ]
        found += [(facts["Prefix"], 0, "") for facts in page.get("CommonPrefixes", ())]
        if found in seen:
            return found, page["NextContinuationToken"] if page.get("IsTruncated") else ""
        seen.append(found)
    raise _disagreement(f"{SCHEME}{bucket}/{prefix}")


async def _get(files: Any, uri: str, etag: str, start: int, stop: int | None) -> bytes:
    """GET, tried again while the fault is a passing one."""
    place = place_of(uri)
    last = start if stop == start else (stop or 0) - 1  # of nothing one byte is fetched, for its ETag
    options = place if stop is None else {**place, "Range": f"bytes={start}-{last}"}
    for attempt in range(_TRIES):
        try:
            await files.set_session()
            answer = await (await files.get_s3(place["Bucket"])).get_object(**options)
            async with answer["Body"] as body:
                data: bytes = await body.read()
        except Exception as error:
            if attempt == _TRIES - 1 or not is_transient(error):
                raise
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        else:
            if str(answer.get("ETag")).strip('"') != etag:
                raise ReplacedError(
                    f"{uri} changed after it was listed; expected ETag {etag}; run the command again"
                )
            return b"" if stop == start else data
    raise AssertionError


async def _agreed(get: Callable[[], Any], uri: str) -> bytes:
    seen: list[bytes] = list(await asyncio.gather(get(), get()))
    if seen[0] == seen[1]:
        return seen[0]
    while len(seen) < _READINGS:
        data: bytes = await get()
        if data in seen:
            return data
        seen.append(data)
    raise _disagreement(uri)


def _disagreement(uri: str) -> TransportError:
    return TransportError(
        f"{uri} came {_READINGS} times, each time with other bytes; expected two alike; check the network"
    )


def _run(client: Client, uri: str, reading: Any) -> Any:
    from fsspec.asyn import sync
    from s3fs.errors import translate_boto_error

    async def translated() -> Any:
        try:
            return await reading
        except Exception as error:
            known = translate_boto_error(error)  # itself, if it is no answer of the server
            if known is error:
                raise
            raise known from error

    return telling(uri, lambda: sync(client.files.loop, translated))
