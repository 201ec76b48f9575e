"""A reference to a cascade by its content: taken in the driver, checked by every worker that loads it."""

from dataclasses import dataclass, replace
from pathlib import Path

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.checkpoint import read_stage_spec
from diffbfr.digests import is_model_file
from diffbfr.errors import UsageError
from diffbfr.origin import licences, read_origins
from diffbfr.stages import STAGE_NAMES
from pipelines import storage


@dataclass(frozen=True)
class ModelRef:
    """A cascade folder, the digest of its files, and the side of its input and of its output in pixels.

    `licences` are those of weights in it that others trained, which whatever it makes names.
    """

    folder: str
    digest: str
    lq_px: int
    hq_px: int
    licences: tuple[str, ...] = ()

    def load(self) -> Cascade:
        """Load the cascade, on a GPU if there is one; UsageError if its digest is not the one referred to."""
        import torch

        cascade = Cascade.load(_fetch(self.folder), "cuda" if torch.cuda.is_available() else "cpu")
        if cascade.digest != self.digest:
            raise UsageError(
                f"the cascade in {self.folder} has digest {cascade.digest[:12]}, this run began with "
                f"{self.digest[:12]}; "
                "expected it unchanged; put the old one back, or restore into another output folder"
            )
        return cascade

    def stage_to(self, place: str) -> "ModelRef":
        """Copy a local cascade to a place that workers on other machines reach; one on S3 is not copied."""
        if storage.is_remote(self.folder):
            return self
        if _sizes(self.folder) != _sizes(place):
            storage.put_tree(Path(self.folder), place)
        return replace(self, folder=place)


def pin_model(folder: str | Path) -> ModelRef:
    """A reference to the cascade in a folder, local or on S3; UsageError if it holds none."""
    local = _fetch(storage.absolute(folder))
    digest = cascade_digest(local)
    irm1, irm2, tem = (read_stage_spec(local, stage) for stage in STAGE_NAMES)
    lq_px = irm2.px if irm2.sees_input else irm1.px
    terms = licences(read_origins(local, STAGE_NAMES).values())
    return ModelRef(storage.absolute(folder), digest, lq_px, tem.px, terms)


def _sizes(folder: str) -> dict[str, int]:
    return {entry.path: entry.num_bytes for entry in storage.walk(folder)}


def _fetch(folder: str) -> Path:
    return storage.fetch_tree(folder, storage.cache_folder("cascades"), is_model_file)
