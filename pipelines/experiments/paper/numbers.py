"""The figures of the paper's Tables 2, 3 and 4 (arXiv:2305.04517), on its own 3,000 images at 512 px."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

METRICS: Final = ("ssim", "psnr", "fid", "niqe", "lpips_alex")
"""The columns of the three tables. The paper does not say which trunk its LPIPS has."""
N1S: Final = (200, 600, 1000, 1400, 1800)
N2S: Final = (80, 100, 120, 150)
CHOSEN_N1: Final = 1000
CHOSEN_N2: Final = 100
PAPER_PX: Final = 512

PAPER: Final[Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "lq": (0.6460, 24.921, 93.56, 9.141, 0.5953),  # Table 1
        "irm-s": (0.5266, 22.8438, 31.3126, 6.3403, 0.4873),
        "irm-c": (0.5879, 21.5117, 24.2364, 5.8538, 0.3378),
        "n1-200": (0.6759, 25.4322, 22.5438, 5.6177, 0.2759),
        "n1-600": (0.6604, 25.0672, 18.5485, 5.5000, 0.2617),
        "n1-1000": (0.6494, 24.727, 19.6023, 5.4831, 0.2546),  # IRM-c-t
        "n1-1400": (0.6395, 24.2919, 21.4712, 5.4669, 0.2725),
        "n1-1800": (0.62746, 23.2766, 22.8638, 5.6274, 0.2880),
        "n2-80": (0.6555, 24.7671, 16.4227, 5.5868, 0.2534),
        "n2-100": (0.6553, 24.7485, 16.4902, 5.5990, 0.2535),  # TEM-w
        "n2-120": (0.6550, 24.7236, 16.5395, 5.5956, 0.2540),
        "n2-150": (0.6535, 24.6658, 16.8194, 5.6041, 0.2551),
    }
)
"""Arm -> the figures in the order of `METRICS`."""


def paper_value(arm: str, metric: str) -> float | None:
    """The paper's figure, None for a metric that its tables do not have."""
    return PAPER[arm][METRICS.index(metric)] if metric in METRICS else None
