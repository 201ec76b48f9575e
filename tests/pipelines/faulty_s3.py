"""A proxy before an S3 server that misbehaves as networks and servers do: refusals, resets, cut, slow and
altered bodies.
"""

import contextlib
import http.client
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

Fault: TypeAlias = Literal[
    "503", "reset", "truncated", "slow", "stall", "flip", "flip-put", "lost-answer", "411", "403"
]
"""`slow` dawdles over a body, `stall` says nothing for longer than the client of these tests waits
(`IMPATIENT_S`).
"""
Chooser: TypeAlias = Callable[[str, str], Fault | None]
"""(method, path) -> what goes wrong with this request."""

IMPATIENT_S = 0.8
_STALL_S = 1.2
_BODY_FAULTS: tuple[Fault, ...] = ("truncated", "slow", "flip")
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_UNSIZED = b"<?xml version='1.0'?><Error><Code>MissingContentLength</Code><Message>No length was given.</Message></Error>"


@contextlib.contextmanager
def faulty(endpoint: str, choose: Chooser) -> Iterator[tuple[str, list[tuple[Fault, str, str]]]]:
    """Yield the endpoint of the proxy, and the list of the faults that it made."""
    made: list[tuple[Fault, str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(urlsplit(endpoint).netloc, choose, made))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def now_and_then(seed: int, rate: float, faults: tuple[Fault, ...]) -> Chooser:
    """Choose faults at random, never two in a row for the same thing, as retries would otherwise run out now
    and then.

    Those that have not been are chosen first, so that all are soon.
    """
    rng, last, lock, unseen = random.Random(seed), set[tuple[str, str]](), threading.Lock(), set(faults)

    def choose(method: str, path: str) -> Fault | None:
        with lock:
            if (method, path) in last:
                last.discard((method, path))
                return None
            if rng.random() >= rate:
                return None
            last.add((method, path))
            possible = [fault for fault in faults if method == "GET" or fault not in _BODY_FAULTS]
            chosen = rng.choice([fault for fault in possible if fault in unseen] or possible)
            unseen.discard(chosen)
            return chosen

    return choose


def _handler(
    upstream: str, choose: Chooser, made: list[tuple[Fault, str, str]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = choose(self.command, self.path)
            if fault is not None:
                made.append((fault, self.command, self.path))
            if fault == "503":
                self._answer(503, {"Content-Type": "application/xml"}, _BUSY)
                return
            if fault == "403":  # of an object that this user may not read
                self._answer(403, {"Content-Type": "application/xml"}, _DENIED)
                return
            if fault == "411":  # of a server that wants no chunked bodies
                self._answer(411, {"Content-Type": "application/xml"}, _UNSIZED)
                return
            if fault == "reset":
                self._reset()
                return
            if fault == "flip-put" and body:
                body = _flip(body)
            status, headers, answer = self._forward(body)
            if fault == "stall":
                time.sleep(_STALL_S)
            if fault == "lost-answer":
                self._reset()
            elif fault == "truncated" and len(answer) > 1:
                self._answer(status, headers, answer, sent=len(answer) // 2)
                self._reset()
            elif fault == "slow":
                self._answer(status, headers, answer, pause_s=0.05)
            else:
                self._answer(status, headers, _flip(answer) if fault == "flip" and answer else answer)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=60)
            try:
                connection.request(
                    self.command,
                    self.path,
                    body,
                    {name: value for name, value in self.headers.items() if name != "Host"},
                )
                response = connection.getresponse()
                answer = response.read()
                kept = {name: value for name, value in response.getheaders() if name.lower() not in _OURS}
                if self.command == "HEAD":
                    kept["Content-Length"] = response.getheader("Content-Length") or "0"
                return response.status, kept, answer
            finally:
                connection.close()

        def _answer(
            self,
            status: int,
            headers: dict[str, str],
            body: bytes,
            sent: int | None = None,
            pause_s: float = 0.0,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers and status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            shown = body[:sent]
            for start in range(0, len(shown), max(1, len(shown) // 4) if pause_s else max(1, len(shown))):
                time.sleep(pause_s)
                self.wfile.write(shown[start : start + (max(1, len(shown) // 4) if pause_s else len(shown))])
            self.wfile.flush()

        def _reset(self) -> None:
            """End the connection without a word, as a dying machine does."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    return Handler


_PLACES = itertools.count(673, 101)
_OURS = {"connection", "transfer-encoding", "content-length", "server", "date"}


def _flip(body: bytes) -> bytes:
    """Flip one bit, another one each time, as networks do."""
    place = next(_PLACES) * len(body) // 1009 % len(body)
    return body[:place] + bytes([body[place] ^ 8]) + body[place + 1 :]
