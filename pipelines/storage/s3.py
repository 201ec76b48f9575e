"""Reading from S3 despite failing networks, busy servers, altered bytes and objects that are replaced.

The answer to a GET carries the ETag of the bytes that it brings, so a replaced object is noticed without
If-Match, on any server. Bytes are verified by the ETag, where it is the MD5 of the whole object, or by a
checksum that the server sends with a whole object (CRC32, SHA-1 or SHA-256). What has neither is read until
two readings agree: ranges of a tar, objects uploaded in parts or encrypted with a key of their own, pages of
a listing. That doubles their traffic. `DIFFBFR_S3_READ_TWICE=0` turns it off where the connection verifies
what it carries, as TLS does.
"""

import asyncio
import base64
import functools
import hashlib
import io
import os
import re
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from diffbfr.errors import UsageError, one_line
from pipelines.storage.errors import (
    AccessRefusedError,
    ObjectUnavailableError,
    ReplacedError,
    TransportError,
)

SCHEME: Final = "s3://"
READ_TIMEOUT_S = 15.0
"""How long a server may send nothing."""
READ_TWICE_VARIABLE: Final = "DIFFBFR_S3_READ_TWICE"

_TRIES: Final = 5
_PAUSE_S: Final = 0.1  # before the second try; each further one waits twice as long
_READINGS: Final = 5  # of what has no digest, until two agree
_FETCHES: Final = 2  # of what has one, until it fits
_PART_BYTES: Final = 64 << 20
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_ALTERED_CODES: Final = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
_BUSY_CODES: Final = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
_OBJECT_CODES: Final = (
    "InvalidArgument",
    "InvalidObjectState",
    "InvalidRequest",
    "InvalidURI",
    "KeyTooLongError",
    "MethodNotAllowed",
)
"""Refusals that concern one object: it is in Glacier, encrypted with a customer's key, deleted."""
_REFUSED: Final = "AccessDenied"
"""What rights say, of an object or of all; other codes say that the credentials are bad."""
_NO_CONNECTION: Final = ("ConnectTimeoutError", "EndpointConnectionError", "ProxyConnectionError")
"""What botocore raises where no server answers at all: it is stopped, cut off, or has no address."""
_NOT_IMPLEMENTED: Final = 501  # the one status of 500 and above that a retry cannot change
_CHECKSUMS: Final[Mapping[str, Callable[[bytes], bytes]]] = MappingProxyType(
    {
        "ChecksumSHA256": lambda data: hashlib.sha256(data).digest(),
        "ChecksumSHA1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
        "ChecksumCRC32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    }
)
"""What a server may send of a whole object, in base64, and the standard library computes."""


class _AlteredError(ConnectionError):
    """Bytes that do not have the checksum that came with them."""


@dataclass(frozen=True)
class _Body:
    """The bytes of one answer, and whether a checksum of the server verified them."""

    data: bytes
    verified: bool


class Client:
    """The s3fs client of this process and thread, with its errors translated by `translate_errors`."""

    def __init__(self, files: Any) -> None:
        self.files = files

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.files, name)

        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            places = [text for text in arguments if isinstance(text, str) and text.startswith(SCHEME)]
            return translate_errors(places[0] if places else "S3", lambda: method(*arguments, **options))

        return call


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


def connect() -> Client:
    """Return the client of this process and thread; fsspec keeps one each.

    Listings are not cached: they would go stale when another worker writes.
    """
    import s3fs  # here, because a local run need not spend half a second on it

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
    """True if the same call may succeed later: timeouts, resets, refused connections, 429, 5xx."""
    if isinstance(error, TransportError | ConnectionError | TimeoutError) or _has_no_connection(error):
        return True
    answer = getattr(error, "response", None) or getattr(getattr(error, "__cause__", None), "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = status in (408, 429) or (status >= 500 and status != _NOT_IMPLEMENTED)
        return busy or answer.get("Error", {}).get("Code") in (*_ALTERED_CODES, *_BUSY_CODES)
    if "s3fs" not in sys.modules:
        return False
    from s3fs.core import S3_RETRYABLE_ERRORS

    return isinstance(error, S3_RETRYABLE_ERRORS)


def _has_no_connection(error: BaseException | None) -> bool:
    return any(type(it).__name__ in _NO_CONNECTION for it in (error, getattr(error, "__cause__", None)))


def _code(error: BaseException) -> str:
    """Return the code of the server's answer, such as `AccessDenied`; "" if the error is no answer."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def translate_errors(place: str, call: Callable[[], Any]) -> Any:
    """Return the result of a call; TransportError for a transient error, UsageError for missing rights."""
    try:
        return call()
    except Exception as error:
        reason = one_line(error)
        if isinstance(error, TransportError | ReplacedError | ObjectUnavailableError):
            raise
        if _has_no_connection(error):
            raise TransportError(
                f"no S3 server answers for {place} ({reason}); expected a running one; start it or correct "
                "AWS_ENDPOINT_URL, then run the same command again"
            ) from error
        if is_transient(error):
            raise TransportError(
                f"{place} did not answer as it should ({reason}); expected an answer; run the same command "
                "again"
            ) from error
        code = _code(error)
        if code in _OBJECT_CODES or code.startswith("KMS."):
            raise ObjectUnavailableError(
                f"{place} cannot be read ({reason}); expected one that can be fetched as it is; take it "
                "out of its archive (Glacier), or copy it under a plain key and encryption"
            ) from error
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            kind = AccessRefusedError if code == _REFUSED else UsageError
            raise kind(
                f"{place} is refused ({reason}); expected the right to it; check credentials, endpoint and "
                "policy"
            ) from error
        raise


def read_once(client: Client, uri: str, etag: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes [start, stop) of an object, or all; `ReplacedError` if it has another ETag."""
    body: _Body = _run(client, uri, _get(client.files, uri, etag, start, stop))
    return body.data


def read_verified(client: Client, uri: str, etag: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the same, verified by a checksum of the server or by a second reading that agrees.

    Where `DIFFBFR_S3_READ_TWICE=0`, what came without a checksum is not read again.
    """
    return bytes(_run(client, uri, _get_verified(client.files, uri, etag, start, stop)))


def read_whole(client: Client, uri: str, etag: str) -> bytes:
    """Return a whole object, verified by its ETag if that is an MD5, else by `read_verified`.

    An ETag is no MD5 if the object was uploaded in parts (then it has a hyphen), or is encrypted with a key
    of its own, as the answer to HEAD says.
    """
    if not _MD5.fullmatch(etag):
        return read_verified(client, uri, etag)
    for _ in range(_FETCHES):
        data = read_once(client, uri, etag)
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
            return data
        head = client.call_s3("head_object", **place_of(uri))
        if "aws:kms" in str(head.get("ServerSideEncryption")) or "SSECustomerAlgorithm" in head:
            return read_verified(client, uri, etag)
    raise ReplacedError(
        f"{uri} came {_FETCHES} times with other bytes than its ETag {etag} says; expected the listed "
        "content; copy it to the bucket again"
    )


def fetch(client: Client, uri: str, etag: str, num_bytes: int, file: BinaryIO) -> str:
    """Write a whole object to a file, verified as `read_whole` does; return its sha256.

    Memory holds one part. `ReplacedError` if the object has another ETag.
    """
    if _MD5.fullmatch(etag):
        sha256, md5 = _fetch_parts(client, uri, etag, num_bytes, file, read_once)
        if md5 == etag:
            return sha256
    # altered on the way, or the ETag is no MD5
    sha256, _ = _fetch_parts(client, uri, etag, num_bytes, file, read_verified)
    return sha256


def _fetch_parts(
    client: Client, uri: str, etag: str, num_bytes: int, file: BinaryIO, read: Callable[..., bytes]
) -> tuple[str, str]:
    """Write an object part by part over a file; return its sha256 and MD5."""
    file.seek(0)
    file.truncate()
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for start in range(0, num_bytes, _PART_BYTES):
        part = read(client, uri, etag, start, min(num_bytes, start + _PART_BYTES))
        file.write(part)
        sha256.update(part)
        md5.update(part)
    return sha256.hexdigest(), md5.hexdigest()


def list_keys(
    client: Client, bucket: str, prefix: str, delimiter: str = ""
) -> Iterator[tuple[str, int, str]]:
    """Yield (key, bytes, ETag) of the objects below a prefix, in order, a page at a time.

    With a delimiter, folders are yielded as (prefix, 0, "") in place of their objects.
    """
    page, token = _list_page(client, bucket, prefix, "", delimiter)
    yield from page
    while token:
        page, token = _list_page(client, bucket, prefix, token, delimiter)
        yield from page


def place_of(uri: str) -> dict[str, str]:
    """Return bucket and key of an object as the parameters of S3's calls."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return {"Bucket": bucket, "Key": key}


def _list_page(
    client: Client, bucket: str, prefix: str, token: str, delimiter: str
) -> tuple[list[tuple[str, int, str]], str]:
    """Return a page, and the token of the next one or ""; it is read until two readings agree."""
    given = {"Delimiter": delimiter, "ContinuationToken": token}
    options = {"Bucket": bucket, "Prefix": prefix, **{name: value for name, value in given.items() if value}}
    seen: list[Any] = []
    for _ in range(_READINGS):
        page = client.call_s3("list_objects_v2", **options)
        found = [
            (row["Key"], int(row["Size"]), str(row["ETag"]).strip('"')) for row in page.get("Contents", ())
        ]
        found += [(row["Prefix"], 0, "") for row in page.get("CommonPrefixes", ())]
        if found in seen or not _reads_twice():
            return found, page["NextContinuationToken"] if page.get("IsTruncated") else ""
        seen.append(found)
    raise _disagreement(f"{SCHEME}{bucket}/{prefix}")


def _reads_twice() -> bool:
    """True unless the user turned the second reading off."""
    return os.environ.get(READ_TWICE_VARIABLE, "1") != "0"


async def _get(
    files: Any, uri: str, etag: str, start: int, stop: int | None, with_checksum: bool = False
) -> _Body:
    """GET with retries while the error is transient; a checksum is asked for only `with_checksum`."""
    place = place_of(uri)
    last = start if stop == start else (stop or 0) - 1  # an empty range fetches one byte, for its ETag
    options = place if stop is None else {**place, "Range": f"bytes={start}-{last}"}
    if with_checksum:
        options = {**options, "ChecksumMode": "ENABLED"}
    for attempt in range(_TRIES):
        try:
            await files.set_session()
            answer = await (await files.get_s3(place["Bucket"])).get_object(**options)
            async with answer["Body"] as body:
                data: bytes = await body.read()
            verified = with_checksum and _check(answer, data)
        except Exception as error:
            altered = type(error).__name__ == "FlexibleChecksumError"  # the same check, made by botocore
            if attempt == _TRIES - 1 or not (altered or is_transient(error)):
                raise
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        else:
            if str(answer.get("ETag")).strip('"') != etag:
                raise ReplacedError(
                    f"{uri} changed after it was listed; expected ETag {etag}; run the command again"
                )
            return _Body(b"" if stop == start else data, verified)
    raise AssertionError


def _check(answer: dict[str, Any], data: bytes) -> bool:
    """True if the answer has a checksum of its whole object and the data fit; `_AlteredError` if they do not.

    A checksum with a hyphen is one of the checksums of the parts, which does not help.
    """
    for name, compute in _CHECKSUMS.items():
        sent = answer.get(name)
        if isinstance(sent, str) and "-" not in sent:
            if base64.b64encode(compute(data)).decode() != sent:
                raise _AlteredError(f"the bytes do not have the {name} that came with them")
            return True
    return False


async def _get_verified(files: Any, uri: str, etag: str, start: int, stop: int | None) -> bytes:
    """GET until a checksum or a second reading verifies the bytes.

    The two readings of a range run at once; a whole object is read again only if it came without a checksum.
    """
    get: Callable[[], Awaitable[_Body]] = partial(_get, files, uri, etag, start, stop, stop is None)
    if stop is None:
        first = await get()
        if first.verified or not _reads_twice():
            return first.data
        bodies = [first, await get()]
    elif not _reads_twice():
        return (await get()).data
    else:
        bodies = list(await asyncio.gather(get(), get()))
    if bodies[0].data == bodies[1].data:
        return bodies[0].data
    seen = [body.data for body in bodies]
    while len(seen) < _READINGS:
        data = (await get()).data
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

    return translate_errors(uri, lambda: sync(client.files.loop, translated))
