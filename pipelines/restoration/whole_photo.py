"""A whole photo: its faces are restored and pasted back, or the file is passed on as it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np
from PIL import Image

from diffbfr.faces.align import FRAME_PX, Frame
from diffbfr.faces.choose import Verdict
from diffbfr.faces.detail import adaptive_fidelity
from diffbfr.faces.paste import RestoredFace, paste
from diffbfr.images import Pixels, encode_png
from diffbfr.images.photo import PhotoPixels, SourcePhoto
from diffbfr.keys import draw_keys
from pipelines.restoration.enlarging import enlarged
from pipelines.restoration.face_queue import FaceDraw, Failure
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.identity import IdentityCheck
from pipelines.restoration.output_names import copied_name
from pipelines.restoration.photo_output import encode_photo, written_format
from pipelines.restoration.provenance import Provenance
from pipelines.restoration.request import PhotoSettings, RestoreRequest
from pipelines.restoration.samples import SpreadOfPhoto, other_outputs, std_heatmap
from pipelines.restoration.whole_input import WholeInput
from pipelines.restoration.work import Finished, ReadFile

_LEAST_SEEN_PX: Final = 8


@dataclass(frozen=True, eq=False)
class WholeFace:
    """A face of a photo with its verdict; `draws` is empty if it is left alone."""

    verdict: Verdict
    frame: Frame
    draws: tuple[FaceDraw, ...] = ()

    @property
    def failure(self) -> Failure | None:
        """Why one of its draws failed, None if none did."""
        return next((draw.result for draw in self.draws if isinstance(draw.result, Failure)), None)

    @property
    def is_restored(self) -> bool:
        """Whether it is to be pasted."""
        return bool(self.draws) and self.failure is None

    def restored(self, number: int) -> RestoredFace:
        """The face of one draw."""
        pixels = self.draws[number].result
        assert isinstance(pixels, np.ndarray)
        return RestoredFace(self.frame, pixels)


@dataclass(frozen=True, eq=False)
class WholePhoto:
    """A photo that was decoded and searched for faces."""

    file: ReadFile
    read: WholeInput
    settings: PhotoSettings
    faces: tuple[WholeFace, ...]

    @property
    def draws(self) -> Sequence[FaceDraw]:
        """Every restoration of every chosen face."""
        return list(chain.from_iterable(face.draws for face in self.faces))

    def finish(self, request: RestoreRequest, identity: IdentityCheck | None = None) -> Finished:
        """Paste the faces of each draw, or pass on the file; a face that failed keeps the photo's pixels."""
        name = self.file.item.ref.name
        rows = tuple(_row(name, number, face, identity) for number, face in enumerate(self.faces))
        restored = [face for face in self.faces if face.is_restored]
        failed = [face.failure for face in self.faces if face.failure is not None]
        if failed:
            message = f"{len(failed)} of {len(failed) + len(restored)} faces failed: {failed[0].message}"
            row = self.file.row("failed", failed[0].reason, message)
        elif restored:
            row = self.file.row("restored")
        else:
            row = self.file.row("no_face", *self._why_none())
        row = replace(
            row,
            width=self.read.width,
            height=self.read.height,
            num_faces=len(restored),
            samples=request.samples,
            seconds=self.file.seconds + sum(draw.seconds for draw in self.draws),
        )
        photo = self.read.photo
        if photo is None:
            name = self._own_name()
            others = other_outputs(name, request.samples)
            files = dict.fromkeys((name, *others[:-1]), self.file.data)
            if others:
                files[others[-1]] = _encoded_spread(np.zeros((self.read.height, self.read.width)))
            return Finished(row, files, rows)
        made_by = Provenance(request.model, self.file.sha256, request.mode, request.seed, request.licences)
        file_format = written_format(photo.format, self.settings.file_format or None)
        pictures, spread = self._compose(photo, restored, request.samples)
        is_made = bool(restored) and self.settings.strength > 0
        encoded = [
            encode_photo(photo, pixels, made_by if is_made else None, file_format) for pixels in pictures
        ]
        is_own = file_format == photo.format.lower()
        name = self._own_name() if is_own else self.file.item.output
        files = {name: encoded[0].data}
        if spread is not None:
            contents = [*(one.data for one in encoded[1:]), _encoded_spread(spread)]
            files.update(zip(other_outputs(name, request.samples), contents, strict=True))
            row = replace(row, spread=float(spread.mean()))
        notes = (row.message, *self.read.notes, *encoded[0].notes)
        return Finished(replace(row, message="; ".join(note for note in notes if note)), files, rows)

    def _compose(
        self, photo: SourcePhoto, restored: Sequence[WholeFace], samples: int
    ) -> "tuple[list[PhotoPixels], np.ndarray[tuple[int, int], np.dtype[np.float64]] | None]":
        """The photo with the faces of each draw, and the deviation of its pixels over several."""
        settings = self.settings
        kept = [face.frame for face in self.faces if not face.is_restored]
        background = enlarged(photo.pixels, settings.upscale, settings.upscaler)
        if not restored:
            return [background] * samples, np.zeros(background.shape[:2]) if samples > 1 else None
        pictures = []
        deviation = SpreadOfPhoto()
        for number in range(samples):
            pasted = paste(
                photo.pixels,
                [face.restored(number) for face in restored],
                keep=kept,
                strength=settings.strength,
                upscale=settings.upscale,
                background=background,
            )
            pictures.append(pasted)
            deviation.add(pasted)
        return pictures, deviation.value() if samples > 1 else None

    def _own_name(self) -> str:
        """The name of an output in the format of the input."""
        item = self.file.item
        return item.output if self.settings.file_format else copied_name(item.output, item.ref.name)

    def _why_none(self) -> tuple[str, str]:
        """Reason and message of a photo none of whose faces is restored."""
        if not self.faces:
            return "no_face", "no face was found"
        reasons = ", ".join(dict.fromkeys(face.verdict.reason for face in self.faces))
        return "none_chosen", f"{len(self.faces)} found and left alone: {reasons}"


def open_whole(file: ReadFile, read: WholeInput, request: RestoreRequest) -> WholePhoto:
    """The draws of a photo's chosen faces, each keyed by the photo's content and the face's number."""
    settings = request.photos
    assert settings is not None
    crops, details = iter(read.crops), iter(read.details)
    faces = []
    for number, (verdict, frame) in enumerate(zip(read.verdicts, read.frames, strict=True)):
        draws: tuple[FaceDraw, ...] = ()
        if verdict.is_chosen:
            crop = next(crops)
            fidelity = adaptive_fidelity(next(details)) if settings.adaptive else settings.fidelity
            keys = draw_keys(file.sha256, request.samples, number, request.seed)
            draws = tuple(
                FaceDraw(crop, key, fidelity, _seen(crop, frame), settings.min_consistency) for key in keys
            )
        faces.append(WholeFace(verdict, frame, draws))
    return WholePhoto(file, read, settings, tuple(faces))


def _seen(crop: Pixels, frame: Frame) -> Pixels:
    """A crop reduced to the resolution that its photo has, if that is less."""
    px = max(_LEAST_SEEN_PX, round(frame.scale * FRAME_PX))
    if px >= crop.shape[0]:
        return crop
    return np.asarray(Image.fromarray(crop).resize((px, px), Image.Resampling.BILINEAR))


def _row(photo: str, number: int, face: WholeFace, identity: IdentityCheck | None) -> FaceRow:
    found, failure = face.verdict.face, face.failure
    first = face.draws[0] if face.draws else None
    measured = [draw.consistency for draw in face.draws if draw.consistency is not None]
    left, top, right, bottom = found.box
    return FaceRow(
        photo=photo,
        face=number,
        status="left_alone" if first is None else "failed" if failure is not None else "restored",
        verdict=face.verdict.reason,
        message="" if failure is None else failure.message,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        points=tuple(chain.from_iterable(found.points)),
        score=found.score,
        eyes_px=face.verdict.eyes_px,
        turn=face.verdict.turn,
        contrast=face.verdict.contrast,
        detail=face.verdict.detail,
        consistency=min(measured, default=None),
        low_confidence=any(draw.is_doubtful for draw in face.draws),
        fidelity=None if first is None else first.taken_fidelity,
        attempts=sum(draw.attempts for draw in face.draws),
        identity=None if identity is None or not face.is_restored else _cosine(face, identity),
        input_sha256="" if first is None else _digest(first.pixels),
        output_sha256=_digest(first.result) if first is not None and face.is_restored else "",
        seconds=sum(draw.seconds for draw in face.draws),
    )


def _cosine(face: WholeFace, identity: IdentityCheck) -> float:
    """The cosine of the first draw."""
    return identity(face.draws[0].pixels, face.restored(0).pixels)


def _digest(pixels: object) -> str:
    assert isinstance(pixels, np.ndarray)
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _encoded_spread(spread: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> bytes:
    return encode_png(std_heatmap(spread))
