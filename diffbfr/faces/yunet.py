"""YuNet (Wu et al., Machine Intelligence Research 2023) through OpenCV; the ONNX file is the user's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.faces.detect import Face, as_points
from diffbfr.images import Pixels


class YuNet:
    """YuNet with the weights of one file, the fixed-size export of 640 x 640; it takes images of any size."""

    sizes = (8.0, 320.0)
    min_score = 0.6

    def __init__(self, path: str | Path) -> None:
        """Read the model; `UsageError` for a file that is missing or that OpenCV cannot read."""
        import cv2

        file = Path(path)
        if not file.is_file():
            raise UsageError(
                f'no file {file}; expected YuNet as .onnx; run "diffbfr setup faces", or set '
                "DIFFBFR_FACE_DETECTOR to the file"
            )
        data = file.read_bytes()
        self.name = f"yunet {hashlib.sha256(data).hexdigest()[:12]}"
        # From memory: OpenCV on Windows does not open paths with letters beyond ASCII.
        model, no_config = np.frombuffer(data, np.uint8), np.empty(0, np.uint8)
        try:
            # OpenCV reads any ONNX file here; another network than YuNet fails on its first image.
            self._network: Any = cv2.FaceDetectorYN.create("onnx", model, no_config, (64, 64))
            self._network.detect(np.zeros((64, 64, 3), np.uint8))
        except cv2.error as error:
            raise UsageError(
                f"OpenCV cannot read {file} ({len(data)} bytes); expected YuNet's 640 x 640 export; run "
                '"diffbfr setup faces" again'
            ) from error

    def detect(self, pixels: Pixels, min_score: float | None = None) -> Sequence[Face]:
        """Faces of an image (uint8 h w 3, RGB), the best first."""
        import cv2

        height, width = pixels.shape[:2]
        self._network.setInputSize((width, height))
        self._network.setScoreThreshold(self.min_score if min_score is None else min_score)
        _, rows = self._network.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        faces = [] if rows is None else [_face(row) for row in rows.astype(np.float64)]
        return sorted(faces, key=lambda face: -face.score)


def _face(row: np.ndarray) -> Face:
    left, top, width, height = (float(value) for value in row[:4])
    return Face(
        (left, top, left + width, top + height), as_points(row[4:14].reshape(5, 2)), float(min(row[14], 1.0))
    )
