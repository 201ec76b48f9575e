"""The face detector of this machine: where its weights lie, and the digest that a dataset records."""

import os
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.faces.weights import find_weights
from pipelines import storage

DETECTOR_VARIABLE: Final = "DIFFBFR_FACE_DETECTOR"


def detectors_folder() -> Path:
    """Where detectors are kept on this machine."""
    return storage.cache_folder("faces")


def detector_weights(file: str | None = None) -> Path:
    """The weights of the detector for whole photos: a file, `DIFFBFR_FACE_DETECTOR`, or what the cache has.

    `UsageError` if there are none.
    """
    given = file or os.environ.get(DETECTOR_VARIABLE)
    if not given:
        return find_weights(detectors_folder())
    path = Path(given).expanduser()
    if not path.is_file():
        raise UsageError(
            f'no face detector {given}; expected a file of weights; run "diffbfr setup faces", or name '
            "another"
        )
    return path
