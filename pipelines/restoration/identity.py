"""The identity cosine of a restored face and the photo's own, where a face network is set up."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffbfr.images import Pixels, to_tensor
from diffbfr.metrics.face_resnet import FaceCosine, FaceEmbedding


class IdentityCheck:
    """Compares faces in the FFHQ frame; the weights are loaded once."""

    def __init__(self, weights: Path) -> None:
        self._cosine = FaceCosine(FaceEmbedding(weights))

    def __call__(self, seen: Pixels, restored: Pixels) -> float:
        """The cosine in [-1, 1] of a face of the photo, of any size, and its restoration, uint8 h w 3."""
        px = restored.shape[0]
        enlarged = np.asarray(Image.fromarray(seen).resize((px, px), Image.Resampling.BICUBIC))
        return float(self._cosine(to_tensor([restored]), to_tensor([enlarged]))[0])
