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
import itertools
import os
import re
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from pipelines.storage.errors import ReplacedError, TransportError
from pipelines.storage.s3_errors import is_transient, translate_errors

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
    """Return a page, and the token of the next one or ""; it is read until two readings agree.

    Below a prefix that others write to, no two may. Where readings only grow, the page is what came twice:
    what came once is as if it was written after the listing.
    """
    given = {"Delimiter": delimiter, "ContinuationToken": token}
    options = {"Bucket": bucket, "Prefix": prefix, **{name: value for name, value in given.items() if value}}
    seen: list[list[tuple[str, int, str]]] = []
    token_after = ""
    for _ in range(_READINGS):
        page = client.call_s3("list_objects_v2", **options)
        token_after = page["NextContinuationToken"] if page.get("IsTruncated") else ""
        found = [
            (row["Key"], int(row["Size"]), str(row["ETag"]).strip('"')) for row in page.get("Contents", ())
        ]
        found += [(row["Prefix"], 0, "") for row in page.get("CommonPrefixes", ())]
        if found in seen or not _reads_twice():
            return found, token_after
        seen.append(found)
    times = Counter(itertools.chain.from_iterable(seen))
    twice = {row for row, count in times.items() if count > 1}
    if set(seen[0]) <= twice <= set(seen[-1]):
        return [row for row in seen[-1] if row in twice], token_after
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
