"""What an error of S3 means: try again later, one object cannot be had, or rights are missing."""

import sys
from collections.abc import Callable
from typing import Any, Final

from diffbfr.errors import UsageError, one_line
from pipelines.storage.errors import (
    AccessRefusedError,
    ObjectUnavailableError,
    ReplacedError,
    TransportError,
)

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
