"""A real server in this process, with a fake cascade and faces of dots, and a client for it."""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pipelines.restoration.model import RestorationModel
from pipelines.serving.restorer import Restorer, ServedCascade
from pipelines.serving.server import address_of, listen, serving
from pipelines.serving.store import StoreLimits

DETECTOR_SHA256 = "ab" * 32
BYTES = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server at an address (with `/` at its end)."""

    restorer: Restorer
    address: str

    @property
    def port(self) -> int:
        return int(self.address.rstrip("/").rpartition(":")[2])

    def ask(self, path: str, data: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.address + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def hand_in(self, data: bytes, **options: object) -> Answer:
        return self.ask(f"api/photos?{urlencode(options)}", data, **BYTES)

    def restore(self, data: bytes, **options: object) -> Any:
        """Hand a photo in and wait for its end; the last state."""
        answer = self.hand_in(data, **options)
        assert answer.status == 202, answer.body
        state = answer.json
        while not state["has_ended"]:
            state = self.ask(f"api/photos/{state['id']}?after={state['version']}").json
        return state

    def files(self, state: Any) -> list[bytes]:
        """The outputs of a photo."""
        return [
            self.ask(f"api/photos/{state['id']}/files/{number}").body for number in range(len(state["files"]))
        ]


@contextlib.contextmanager
def served(model: RestorationModel, weights: Path = Path("dots"), **limits: Any) -> Iterator[Served]:
    """A server on a free port."""
    cascade = ServedCascade(model, weights, DETECTOR_SHA256)
    with listen("127.0.0.1", 0) as listening:
        restorer = Restorer(cascade, StoreLimits(**limits))
        with serving(restorer, listening, "127.0.0.1"):
            yield Served(restorer, address_of(listening))


async def exchange(port: int, method: str, path: str, body: bytes = b"") -> Answer:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    )
    writer.write(f"{head}Content-Type: {BYTES['Content-Type']}\r\n\r\n".encode() + body)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head_bytes.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, content)
