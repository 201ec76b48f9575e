"""A reference to a file of weights by its content: taken in the driver, checked by every worker."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from pipelines import storage

DETECTOR: Final = "face detector"


@dataclass(frozen=True)
class WeightsRef:
    """A file, local or on S3, the sha256 of its bytes, and what it holds, for error lines."""

    place: str
    sha256: str
    what: str = DETECTOR

    def fetch(self) -> Path:
        """The file on this machine; UsageError if it is not there, or not the one referred to."""
        folder, _, name = self.place.rpartition("/")
        try:
            local = storage.fetch_tree(
                folder, storage.cache_folder("weights-of-runs"), lambda key: key == name
            )
            found = hashlib.sha256((local / name).read_bytes()).hexdigest()
        except FileNotFoundError as error:
            raise UsageError(
                f"no {self.what} at {self.place} on this machine; expected the file that the run began "
                "with; put it there, or run the command again"
            ) from error
        if found != self.sha256:
            raise UsageError(
                f"the {self.what} {self.place} has sha256 {found[:12]}, this run began with "
                f"{self.sha256[:12]}; expected it unchanged; put the old one back, or name another output"
            )
        return local / name

    def stage_to(self, folder: str) -> "WeightsRef":
        """Copy a local file to a folder that workers on other machines reach; one on S3 is not copied."""
        if storage.is_remote(self.place):
            return self
        name = self.place.rpartition("/")[2]
        place = storage.join(folder, f"{self.sha256[:12]}-{name}")
        if not storage.exists(place):
            storage.put_file(Path(self.place), place)
        return replace(self, place=place)


def pin_weights(weights: Path, what: str = DETECTOR) -> WeightsRef:
    """A reference to the weights in a local file; UsageError if there is none."""
    try:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"{weights} cannot be read ({error.strerror}); expected the weights of a {what}; run "
            '"diffbfr setup faces" or "diffbfr setup metrics", or name a file that can be read'
        ) from error
    return WeightsRef(str(weights.absolute()), digest, what)
