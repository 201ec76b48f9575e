"""An aligned face crop: each of its draws is an image of the cascade's size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffbfr.keys import draw_keys
from pipelines.restoration.face_input import FaceInput
from pipelines.restoration.face_queue import FaceDraw, Failure
from pipelines.restoration.identity import IdentityCheck
from pipelines.restoration.provenance import Provenance, encode_signed_png
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.samples import other_outputs, pixel_std, std_heatmap
from pipelines.restoration.work import Finished, ReadFile


@dataclass(frozen=True, eq=False)
class AlignedPhoto:
    """A face crop that was decoded; its outputs are PNG."""

    file: ReadFile
    read: FaceInput
    draws: Sequence[FaceDraw]

    def finish(self, request: RestoreRequest, identity: IdentityCheck | None = None) -> Finished:
        """Encode the draws and their spread; one failed draw fails the face."""
        row = replace(
            self.file.row("restored", message="; ".join(self.read.notes)),
            num_faces=1,
            samples=request.samples,
            width=self.read.width,
            height=self.read.height,
            seconds=self.file.seconds + sum(draw.seconds for draw in self.draws),
        )
        images = []
        for draw in self.draws:
            if isinstance(draw.result, Failure):
                reason, message = draw.result.reason, draw.result.message
                failed = replace(row, status="failed", reason=reason, message=message)
                return Finished(replace(failed, num_faces=0, samples=1))
            assert draw.result is not None
            images.append(draw.result)
        made_by = Provenance(request.model, self.file.sha256, request.mode, request.seed, request.licences)
        kept = self.read.kept
        pngs = [
            encode_signed_png(image, made_by, kept.icc, exif=kept.exif, dpi=kept.dpi, alpha=kept.alpha)
            for image in images
        ]
        if request.samples > 1:
            spread = pixel_std(images)
            pngs.append(encode_signed_png(std_heatmap(spread), made_by, kept.icc))
            row = replace(row, spread=float(spread.mean()))
        output = self.file.item.output
        names = (output, *other_outputs(output, request.samples))
        return Finished(row, dict(zip(names, pngs, strict=True)))


def open_aligned(file: ReadFile, read: FaceInput, request: RestoreRequest) -> AlignedPhoto:
    """The draws of a face crop."""
    keys = draw_keys(file.sha256, request.samples, seed=request.seed)
    return AlignedPhoto(file, read, [FaceDraw(read.pixels, key) for key in keys])
