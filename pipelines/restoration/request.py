"""The request of a restoration, pinned in its output: a later run there must ask for the same.

It is written once, before anything else, and again into the record of each unit, so that a damaged copy is
replaced and not a dead end.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from diffbfr.errors import UsageError
from diffbfr.shards import ShardDamagedError
from diffbfr.spec import from_dict
from diffbfr.stages import PAPER_FIDELITY, Mode
from pipelines import storage
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.restoration.access import file_mode

CONTROL: Final = ".diffbfr"
"""Folder inside the output for internal files: the pinned request and the units' records."""

REQUEST: Final = f"{CONTROL}/request.json"

Upscaler: TypeAlias = Literal["bicubic", "realesrgan"]

MIN_CONSISTENCY: Final = 20.0
"""Consistency in dB below which a face is drawn again."""


@dataclass(frozen=True)
class PhotoSettings:
    """How whole photos are restored.

    `detector` is the sha256 of the detector's weights. `min_face` (px between the eyes), `any_size` and
    `only` choose faces (`diffbfr.faces.choose`). `fidelity` in [0, 1] moves the starts of IRM-2 and TEM
    (`StageSpec.start_at`); with `adaptive` each face has its own, by the detail that it kept
    (`diffbfr.faces.detail`). A face whose consistency is below `min_consistency` dB is drawn again.
    `strength` in [0, 1] blends with the photo, `upscale` enlarges it by the `upscaler`, `file_format` is ""
    for the input's. Without `keep_metadata`, date and camera are all that stays of the EXIF.
    """

    detector: str
    min_face: float = 8.0
    any_size: bool = False
    only: Literal["", "center", "largest"] = ""
    fidelity: float = PAPER_FIDELITY
    min_consistency: float = MIN_CONSISTENCY
    strength: float = 1.0
    upscale: Literal[1, 2, 4] = 1
    upscaler: Upscaler = "bicubic"
    upscaler_sha256: str = ""
    file_format: Literal["", "png", "jpeg", "webp"] = ""
    keep_metadata: bool = False
    adaptive: bool = False


@dataclass(frozen=True)
class RestoreRequest:
    """Everything that an output depends on: the input, the model's digest, and how it is used.

    `photos` is None if the inputs are aligned face crops. `licences` are those of weights in the model that
    others trained.
    """

    input: str
    model: str
    mode: Mode
    seed: int
    batch_faces: int
    aligned: bool
    hq_px: int
    samples: int
    photos: PhotoSettings | None = None
    licences: tuple[str, ...] = ()


def decode_request(values: Mapping[str, Any]) -> RestoreRequest:
    """Read a request from plain values; UsageError if a field is missing, unknown or of another type."""
    return from_dict(RestoreRequest, values)


def read_request(output: str) -> RestoreRequest | None:
    """The pinned request, None if there is none; `ShardDamagedError` if it cannot be read as one."""
    place = storage.join(output, REQUEST)
    try:
        return decode_request(read_checksummed_json(place))
    except FileNotFoundError:
        return None
    except (OSError, UsageError) as error:
        if isinstance(error, OSError) and not storage.is_about_one_file(error, writing=False):
            raise
        raise ShardDamagedError(f"{place} is no request of a restoration ({error}); expected one") from error


def pin_request(output: str, request: RestoreRequest, committed: Collection[RestoreRequest]) -> str:
    """Write the request into a new output, or check that an existing one holds the same request.

    `committed` are the requests in the records of finished units, from which a lost or damaged copy is
    written again. Returns what was mended, in words, or "". UsageError for another request.
    """
    place = storage.join(output, REQUEST)
    mended = ""
    try:
        pinned = read_request(output)
    except ShardDamagedError:
        pinned, mended = None, f"{place} was damaged; it is written again"
    if pinned is None and committed:
        mended = mended or f"{place} was lost; it is written again"
        pinned = request if request in committed else next(iter(committed))
    elif pinned is None and not mended:
        _check_empty(output)
    if pinned is not None:
        _check_same(output, pinned, request)
    if mended or pinned is None:
        values = dataclasses.asdict(request)
        mode = file_mode(request.input)
        written = write_checksummed_json(place, values, create_only=not mended, within=output, mode=mode)
        if not written:  # another run began here at the same moment
            return pin_request(output, request, committed)
    return mended


def _check_empty(output: str) -> None:
    others = [name for name in storage.list_dir(output) if name != CONTROL]
    if others:
        raise UsageError(
            f"{output} holds {others[0]} and no restoration; expected a new or empty folder; name another"
        )


def _check_same(output: str, pinned: RestoreRequest, request: RestoreRequest) -> None:
    begun, wanted = _fields(pinned), _fields(request)
    for name in dict.fromkeys([*begun, *wanted]):
        if begun.get(name) != wanted.get(name):
            raise UsageError(
                f"{output} was begun with {name} {begun.get(name)!r}, this request has {wanted.get(name)!r}; "
                "expected the same request to continue it; name another output folder"
            )


def _fields(request: RestoreRequest) -> dict[str, Any]:
    """The fields of a request, with those of its settings for whole photos."""
    plain = dataclasses.asdict(request)
    photos = plain.pop("photos") or {}
    return {**plain, **photos}
