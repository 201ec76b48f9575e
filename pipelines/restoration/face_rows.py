"""The table of faces of a restored archive: one row for each face that was found in a photo."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from diffbfr.faces.choose import Reason
from pipelines import storage
from pipelines.dataset.tables import stream_rows, write_rows

FACES: Final = "faces.parquet"


@dataclass(frozen=True, slots=True)
class FaceRow:
    """A face of a photo, as it was found, judged and restored.

    `photo` is the input's name in the ledger; a duplicate's faces are those of its original. `face` counts
    from 0, the highest score first. `left` to `bottom` and `points` (x and y of the eyes, the nose and the
    corners of the mouth) are in pixels of the upright photo, `eyes_px` is the distance between the eyes.
    `verdict` is why the face was or was not chosen (`diffbfr.faces.choose`); `turn`, `contrast` and `detail`
    are what it judged by. `status`: `restored`, `left_alone` by its verdict, or `failed`, and then the photo
    keeps its own pixels there. `consistency` in dB compares the restored face with the photo at the photo's
    resolution; a face below the threshold was drawn again at a higher `fidelity`, and is `low_confidence` if
    it stayed below. `identity` is the cosine of the embeddings before and after, None without its weights.
    The digests are sha256 of the pixels that went into the cascade and that came out; `seconds` is the face's
    part of the cascade's time.
    """

    photo: str
    face: int
    status: Literal["restored", "left_alone", "failed"]
    verdict: Reason
    message: str
    left: float
    top: float
    right: float
    bottom: float
    points: tuple[float, ...]
    score: float
    eyes_px: float
    turn: float
    contrast: float | None
    detail: float | None
    consistency: float | None
    low_confidence: bool
    fidelity: float | None
    attempts: int
    identity: float | None
    input_sha256: str
    output_sha256: str
    seconds: float


def write_faces(output: str, rows: Iterable[FaceRow], mode: int) -> None:
    """Write the table into an output folder."""
    write_rows(storage.join(output, FACES), FaceRow, rows, output, mode)


def read_faces(output: str) -> list[FaceRow]:
    """Read the table of an output folder."""
    return list(stream_rows(storage.join(output, FACES), FaceRow))
