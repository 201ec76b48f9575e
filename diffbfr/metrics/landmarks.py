"""The landmark distance: how far the eyes, the nose and the mouth move."""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo

FRAME_PX: Final = 512
Detector: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float64] | None]
"""Eyes, nose and corners of the mouth of a picture (uint8 h w 3), x and y in px; None for no face."""

INFO: Final = MetricInfo(
    name="landmark distance",
    version="1",
    unit="px",
    better="lower",
    protocol="mean Euclidean distance of five landmarks between restoration and ground truth, found in both "
    "by one detector, in px of a picture of 512 px a side",
)


def landmark_distance(
    estimates: Sequence[NDArray[np.uint8]], references: Sequence[NDArray[np.uint8]], detect: Detector
) -> list[float]:
    """The distance of every pair of pictures; NaN where the detector finds no face in one of the two."""
    return [_distance(a, b, detect) for a, b in zip(estimates, references, strict=True)]


def _distance(estimate: NDArray[np.uint8], reference: NDArray[np.uint8], detect: Detector) -> float:
    if estimate.shape != reference.shape:
        raise UsageError(
            f"landmark distance got {estimate.shape} against {reference.shape}; both must have one shape; "
            "resize first"
        )
    found, wanted = detect(estimate), detect(reference)
    if found is None or wanted is None:
        return float("nan")
    return float(np.linalg.norm(found - wanted, axis=1).mean() * FRAME_PX / max(estimate.shape[:2]))
