"""The page and its interface over HTTP: hand in a photo, ask how far it is, fetch pictures and files."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from diffbfr.stages import PAPER_FIDELITY
from diffbfr.text import shown
from pipelines.restoration.face_input import MAX_PIXELS
from pipelines.restoration.request import PhotoSettings
from pipelines.serving.guard import Guard
from pipelines.serving.hosts import AllowedHosts
from pipelines.serving.jobs import ENDED, Job
from pipelines.serving.restorer import Restorer
from pipelines.serving.store import ServerFullError
from pipelines.sources.source import MAX_PHOTO_BYTES

MOST_SAMPLES: Final = 8
WAIT_S: Final = 20.0
"""How long a question waits for a change."""
UPLOAD_S: Final = 600.0
_BYTES: Final = "application/octet-stream"
_MOST_NAME: Final = 1024
_PAGE: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}


def make_app(restorer: Restorer, hosts: AllowedHosts) -> FastAPI:
    """The application of a server that answers to these hosts."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _refuse_values)
    app.add_exception_handler(StarletteHTTPException, _refuse)
    for path, (file, media_type) in _PAGE.items():
        app.add_api_route(path, _page_file(file, media_type), methods=["GET"])
    api = _Api(restorer)
    app.add_api_route("/api/server", api.server, methods=["GET"])
    app.add_api_route("/api/photos", api.hand_in, methods=["POST"], status_code=202)
    app.add_api_route("/api/photos/{job_id}", api.state, methods=["GET"])
    app.add_api_route("/api/photos/{job_id}", api.remove, methods=["DELETE"])
    app.add_api_route("/api/photos/{job_id}/before", api.before, methods=["GET"])
    app.add_api_route("/api/photos/{job_id}/pictures/{number}", api.picture, methods=["GET"])
    app.add_api_route("/api/photos/{job_id}/files/{number}", api.file, methods=["GET"])
    return app


class _Api:
    """The answers about photos."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    async def server(self) -> dict[str, Any]:
        """What this server restores with, and what it takes."""
        served, limits = self._restorer.served, self._restorer.store.limits
        return {
            "model": served.model.digest,
            "face_px": served.model.hq_px,
            "note": served.note,
            "mode": served.mode,
            "seed": served.seed,
            "most_bytes": MAX_PHOTO_BYTES,
            "most_pixels": MAX_PIXELS,
            "most_samples": MOST_SAMPLES,
            "keep_s": limits.keep_s,
        }

    async def hand_in(
        self,
        request: Request,
        name: Annotated[str, Query(max_length=_MOST_NAME)] = "",
        fidelity: Annotated[float, Query(ge=0.0, le=1.0)] = PAPER_FIDELITY,
        adaptive: bool = False,
        strength: Annotated[float, Query(ge=0.0, le=1.0)] = 1.0,
        samples: Annotated[int, Query(ge=1, le=MOST_SAMPLES)] = 1,
        file_format: Annotated[Literal["", "png", "jpeg", "webp"], Query(alias="format")] = "",
        min_face: Annotated[float, Query(ge=0.0, le=1e6)] = 8.0,
        any_size: bool = False,
        only: Literal["", "center", "largest"] = "",
        upscale: Literal["1", "2", "4"] = "1",
        keep_metadata: bool = False,
    ) -> dict[str, Any]:
        """Take the photo in the body and begin with it; the answer is its state, with its id."""
        settings = PhotoSettings(
            detector="",
            min_face=min_face,
            any_size=any_size,
            only=only,
            fidelity=fidelity,
            adaptive=adaptive,
            strength=strength,
            upscale=int(upscale),  # type: ignore[arg-type]
            file_format=file_format,
            keep_metadata=keep_metadata,
        )
        if request.headers.get("content-type") != _BYTES:
            raise HTTPException(
                415, f"the photo came without the type {_BYTES}; expected its bytes as the body"
            )
        num_bytes = _announced_bytes(request)
        with self._restorer_has_room(num_bytes):
            data = await _body(request, num_bytes)
            job = Job(name, data, self._restorer.served.request(samples, settings))
            self._restorer.submit(job)
        return self._view(job)

    async def state(self, job_id: str, after: Annotated[int, Query(ge=-1)] = -1) -> dict[str, Any]:
        """The state of a photo; with `after` once its version is another, or after `WAIT_S`."""
        job = self._job(job_id)
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(changed.set)

        if job.when_changed(after, tell):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), WAIT_S)
        return self._view(self._job(job_id))

    async def remove(self, job_id: str) -> Response:
        """Stop and forget a photo."""
        if not self._restorer.store.remove(job_id):
            raise _unknown()
        return Response(status_code=204)

    async def before(self, job_id: str) -> Response:
        """The photo as a picture that every browser shows."""
        return await self._picture(self._job(job_id).data)

    async def picture(self, job_id: str, number: int) -> Response:
        """An output as such a picture."""
        return await self._picture(self._output(job_id, number)[1])

    async def file(self, job_id: str, number: int) -> Response:
        """An output, to be saved."""
        name, data = self._output(job_id, number)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
        return Response(data, media_type=_BYTES, headers=headers)

    def _job(self, job_id: str) -> Job:
        job = self._restorer.store.get(job_id)
        if job is None:
            raise _unknown()
        return job

    def _output(self, job_id: str, number: int) -> tuple[str, bytes]:
        job = self._job(job_id)
        if not 0 <= number < len(job.files):
            raise HTTPException(
                404, f"the photo has {len(job.files)} files; expected a number of one of them"
            )
        return job.view().files[number].name, job.files[number][1]

    async def _picture(self, data: bytes) -> Response:
        shown_bytes = await asyncio.wrap_future(self._restorer.picture(data))
        if shown_bytes is None:
            raise HTTPException(404, "the file cannot be shown as a picture; it can be downloaded")
        return Response(shown_bytes, media_type=_image_type(shown_bytes))

    def _view(self, job: Job) -> dict[str, Any]:
        view = job.view()
        left = view.num_draws - view.num_done
        return asdict(view) | {
            "name": shown(view.name),
            "message": shown(view.message),
            "has_ended": view.state in ENDED,
            "num_before": self._restorer.num_before(job) if view.state == "waiting" else 0,
            "seconds_left": self._restorer.seconds_left(left),
        }

    @contextlib.contextmanager
    def _restorer_has_room(self, num_bytes: int) -> Iterator[None]:
        try:
            with self._restorer.store.room_for(num_bytes):
                yield
        except ServerFullError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "10"}) from error


def _announced_bytes(request: Request) -> int:
    """The length of the body; HTTPException if it is not announced, or too large for a photo."""
    text = request.headers.get("content-length", "")
    if not text.isdigit():
        raise HTTPException(411, "the photo came without its length; expected a Content-Length")
    num_bytes = int(text[:20])
    if num_bytes > MAX_PHOTO_BYTES:
        raise HTTPException(
            413,
            f"the photo has {num_bytes} bytes; at most {MAX_PHOTO_BYTES} are read as a photo; choose a "
            "smaller one",
        )
    return num_bytes


async def _body(request: Request, num_bytes: int) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_S):
            async for piece in request.stream():
                data += piece
                if len(data) > num_bytes:
                    raise HTTPException(413, "the photo has more bytes than it announced")
    except TimeoutError:
        raise HTTPException(408, f"the photo did not arrive within {UPLOAD_S:.0f} s; try again") from None
    except ClientDisconnect:
        raise HTTPException(400, "the photo stopped arriving; try again") from None
    return bytes(data)


@functools.cache
def _page_file(file: str, media_type: str) -> Callable[[], Any]:
    content = Path(__file__).with_name(file).read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=media_type)

    return answer


def _image_type(data: bytes) -> str:
    if data[:4] == b"RIFF":
        return "image/webp"
    return "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"


def _unknown() -> HTTPException:
    return HTTPException(
        404, "there is no such photo here any more; results are kept for a while only; hand it in again"
    )


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    is_ours = isinstance(error, HTTPException)
    line = (
        error.detail if is_ours else f"there is nothing like that here ({error.detail}); open the page at /"
    )
    return JSONResponse({"error": line}, error.status_code, headers=error.headers)


async def _refuse_values(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, found = first["loc"][-1], shown(str(first.get("input"))[:100])
    return JSONResponse({"error": f"{name} is {found!r}; expected: {first['msg']}"}, 422)
