"""Begins the server at an address and ends it: no thread, child process or file is left behind."""

import contextlib
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from diffbfr.errors import UsageError
from pipelines.serving.hosts import allowed_hosts
from pipelines.serving.restorer import Restorer
from pipelines.serving.web import make_app

BACKLOG = 4096
_MOST_FILES = 8192
_STOP_S = 3.0
_KEEP_ALIVE_S = 30


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this machine; UsageError if that is not to be had."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"the server cannot listen at {host}, port {port} ({getattr(error, 'strerror', None) or error}); "
            "expected an address of this machine and a free port; choose another --port, 0 for any free one"
        ) from error


def address_of(listening: socket.socket) -> str:
    """The address of the page, for a browser."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextlib.contextmanager
def serving(restorer: Restorer, listening: socket.socket, host: str) -> Iterator[threading.Event]:
    """Answer requests on a thread until the block ends; the event is set if it ended before, by a bug.

    The restorer and the socket are closed then.
    """
    config = uvicorn.Config(
        make_app(restorer, allowed_hosts(host)),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()

    def answer() -> None:
        try:
            server.run(sockets=[listening])
        finally:
            ended.set()

    # in a thread, uvicorn leaves the signals to the main thread
    thread = threading.Thread(target=answer, name="answer-requests", daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        server.should_exit = True
        restorer.close()
        thread.join(_STOP_S)
        listening.close()


def serve(make_restorer: Callable[[], Restorer], host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, which come as KeyboardInterrupt; the address is said once it answers."""
    _allow_connections()
    listening = listen(host, port)
    with serving(make_restorer(), listening, host) as ended:
        say(address_of(listening))
        # not `Thread.join`: a KeyboardInterrupt within it takes the thread for ended (CPython 3.11)
        while not ended.wait(1.0):
            pass


def _allow_connections() -> None:
    """Let this process hold more connections than the 1,024 open files that many systems begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
