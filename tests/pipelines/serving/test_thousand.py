"""Many requests at once through one server: each gets the face of its own photo, and no other's."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.cascade import Restoration
from diffbfr.faces import photo as photo_module
from diffbfr.faces.similarity import Similarity
from pipelines.serving.server import _allow_connections
from tests.counts import count
from tests.diffbfr.faces.dots import DotDetector, draw
from tests.pipelines.dot_photos import encoded, find_dots
from tests.pipelines.fake_cascade import FakeCascade, FakeModel
from tests.pipelines.serving.served import Served, exchange, served

NUM = count(250, 1000)
PX = 64
SCALE = 0.11
LEVELS = np.arange(10) * 6 + 105
"""Of each channel of a face: none is near a dot's, and neighbours differ by far more than the cascade's noise."""
CENTRE = slice(31, 35), slice(40, 45)
"""Rows and columns of a cheek, away from all dots."""


class GatedCascade(FakeCascade):
    """Waits with its first batch until all requests are there, and counts the photos of each batch."""

    gate = threading.Event()
    photos_of_batches: ClassVar[list[int]] = []

    def restore(self, x_0: Any, noise_keys: Sequence[str], *rest: Any) -> Restoration:
        assert self.gate.wait(300)
        self.photos_of_batches.append(len({key.split("/")[0] for key in noise_keys}))
        return super().restore(x_0, noise_keys, *rest)


class GatedModel(FakeModel):
    def load(self) -> FakeCascade:
        return GatedCascade(self.hq_px, (), (), 0.0, "", False)


def colour_of(number: int) -> NDArray[np.uint8]:
    return np.array([LEVELS[number // 100], LEVELS[number // 10 % 10], LEVELS[number % 10]], np.uint8)


def photo_of(number: int) -> bytes:
    """A gray photo, the same for all, with a face of the colour of its number."""
    photo = np.full((PX, PX, 3), 128, np.uint8)
    centre = (PX // 2, PX // 2)
    cv2.circle(photo, centre, 24, tuple(map(int, colour_of(number))), -1)
    draw(photo, Similarity(SCALE, 0.0, PX / 2 - SCALE * 256, PX / 2 - SCALE * 300))
    return encoded(photo, "PNG")


@pytest.mark.slow
def test_each_of_many_concurrent_requests_gets_its_own_face(monkeypatch: pytest.MonkeyPatch) -> None:
    find_dots(monkeypatch)
    # the faces are upright: one look is enough
    monkeypatch.setattr(photo_module, "_finder", lambda *_: DotDetector())
    monkeypatch.setattr(GatedCascade, "gate", threading.Event())
    monkeypatch.setattr(GatedCascade, "photos_of_batches", [])
    _allow_connections()
    photos = [photo_of(number) for number in range(NUM)]
    with served(GatedModel(lq_px=64, hq_px=64), Path("dots")) as server:
        found = asyncio.run(_restore_all(server, photos))

    assert len({output for output, _ in found}) == NUM
    for number, (output, states) in enumerate(found):
        assert states[-1] == "done"
        pixels = cv2.imdecode(np.frombuffer(output, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        mean = pixels[CENTRE].reshape(-1, 3).mean(0)
        # the nearest colour of all is that of the request
        assert (np.abs(mean - colour_of(number)) < 2.9).all(), (number, mean, colour_of(number))
        assert output != photos[number]
    # while the first batch waited others were read: then batches were full, each of as many photos
    assert GatedCascade.photos_of_batches.count(4) >= 2


async def _restore_all(server: Served, photos: Sequence[bytes]) -> list[tuple[bytes, list[str]]]:
    handed_in = asyncio.Semaphore(0)

    async def restore(number: int) -> tuple[bytes, list[str]]:
        state = (await exchange(server.port, "POST", f"/api/photos?name={number}.png", photos[number])).json
        handed_in.release()
        states = [state["state"]]
        while not state["has_ended"]:
            place = f"/api/photos/{state['id']}?after={state['version']}"
            state = (await exchange(server.port, "GET", place)).json
            states.append(state["state"])
        return (await exchange(server.port, "GET", f"/api/photos/{state['id']}/files/0")).body, states

    async def open_gate() -> None:
        for _ in photos:
            await handed_in.acquire()
        GatedCascade.gate.set()

    results, _ = await asyncio.gather(
        asyncio.gather(*(restore(number) for number in range(len(photos)))), open_gate()
    )
    return list(results)
