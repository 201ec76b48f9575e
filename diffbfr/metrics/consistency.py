"""The consistency figure: whether a restoration, degraded again, is the input that it was made from.

A restorer may invent detail, but what the input shows must stay: at the resolution of the input, both should
be the same picture.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo

LARGEST_SHARE: Final = 4
"""An input is compared at no more than a fourth of the restoration's side.

Inputs are often stored enlarged to the size of the ground truth: pixels that say nothing.
"""

INFO: Final = MetricInfo(
    name="consistency",
    version="1",
    unit="dB",
    better="higher",
    protocol="PSNR of the restoration against the input, both reduced (bilinear, antialiased) to the "
    f"smaller of the input's side and 1/{LARGEST_SHARE} of the restoration's",
)


def consistency(estimate: NDArray[np.uint8], low_quality: NDArray[np.uint8]) -> float:
    """PSNR in dB at the size that the input resolves; infinite for equal pictures. Both uint8 h w 3."""
    height, width = estimate.shape[:2]
    low_height, low_width = low_quality.shape[:2]
    if height * low_width != width * low_height:
        raise UsageError(
            f"consistency got {width} x {height} against an input of {low_width} x {low_height}; expected "
            "one shape; give the inputs of these restorations"
        )
    share = min(low_height / height, 1 / LARGEST_SHARE)
    size = max(1, round(width * share)), max(1, round(height * share))
    a, b = (
        np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR), np.float64)
        for picture in (estimate, low_quality)
    )
    error = float(np.square(a - b).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))
