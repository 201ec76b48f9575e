"""A cascade named by its content: pinned once in the driver, loaded by each worker, refused if it is
another by then.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.checkpoint import read_stage_spec
from diffbfr.errors import UsageError
from pipelines import storage


@dataclass(frozen=True)
class ModelRef:
    """Where a cascade folder lies, the digest of what is in it, and the sides of its input and output."""

    folder: str
    digest: str
    lq_px: int
    hq_px: int

    def load(self) -> Cascade:
        """Load it here, on a GPU if there is one."""
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
        """Copy a local cascade to a place on S3, so that workers on other machines find it; one on S3
        stays where it is.
        """
        if storage.is_remote(self.folder) or not storage.is_remote(place):
            return self
        ours, theirs = (
            {entry.path: entry.num_bytes for entry in storage.walk(where)} for where in (self.folder, place)
        )
        if ours != theirs:
            storage.put_tree(Path(self.folder), place)
        return replace(self, folder=place)


def pin_model(folder: str | Path) -> ModelRef:
    """Pin a cascade folder, local or on S3; UsageError if it is none."""
    local = _fetch(storage.absolute(folder))
    irm1, tem = read_stage_spec(local, "irm1"), read_stage_spec(local, "tem")
    return ModelRef(storage.absolute(folder), cascade_digest(local), irm1.px, tem.px)


def _fetch(folder: str) -> Path:
    return storage.fetch_tree(folder, storage.cache_folder("cascades"))
