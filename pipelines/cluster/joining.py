"""Join a running Ray cluster, and say in one line why that fails."""

import logging
import os
import re
import socket
from collections.abc import Iterable

from diffbfr.errors import UsageError, one_line
from pipelines.cluster.own_ray import kept_signal_handlers, silence_ray

_CONNECT_TIMEOUT_S = 10.0
_FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "DIFFBFR_CACHE",
    "DIFFBFR_CACHE_BYTES",
    "DIFFBFR_S3_READ_TWICE",
)


def join_ray(address: str, settings: Iterable[str]) -> None:
    """Connect this process to the Ray at an address; its workers get the named variables, where they are set.

    UsageError if none is there, or none that this process may or can join.
    """
    import ray

    forwarded = {name: os.environ[name] for name in (*settings, *_FORWARDED) if name in os.environ}
    try:
        _check_connection(address)
        with kept_signal_handlers():
            ray.init(
                address=address,
                runtime_env={"env_vars": forwarded},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            silence_ray()
    # Nobody listens, it is no address, or the cluster runs another version of Ray or Python.
    except (ray.exceptions.AuthenticationError, OSError, ValueError, RuntimeError) as error:
        if refusal := _token_refusal(error):
            raise UsageError(
                f"the Ray cluster at {address} refuses this process ({refusal}); expected its token; set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with it"
            ) from error
        reason = " ".join(str(error).split())
        raise UsageError(
            f"no Ray cluster at {address} ({reason}); expected a running one; check cluster.address"
        ) from error


def _token_refusal(error: BaseException | None) -> str:
    """What Ray says of the token, "" if nothing; a "Failed to connect" has it in its causes."""
    import ray

    while error is not None:
        if isinstance(error, ray.exceptions.AuthenticationError):
            return one_line(error).partition(". ")[0]
        if found := re.search(r"InvalidAuthToken: [^.\n]+", str(error)):
            return found[0]
        error = error.__cause__
    return ""


def _check_connection(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT, which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
