"""Eq. 13 in 32-bit floats, as other training codes of this field compute it: for parity, and not portable.

Blur, resize and noise round differently from one instruction set, OpenCV build or NumPy version to the next,
so the same parameters may give other JPEG bytes on another machine. Use `recipe` for datasets that are
published. Source of the conventions: the degradation that GFPGAN (Wang et al., CVPR 2021) describes in its
section 3.1 and the codes of GPEN, CodeFormer and DifFace share.
"""

import numpy as np
from numpy.typing import NDArray

LUMA = (0.299, 0.587, 0.114)
"""BT.601."""


def low_quality_pixels(
    pixels: NDArray[np.uint8], sigma: float, kernel_px: int, px: int, delta: float, seed: int
) -> NDArray[np.uint8]:
    """Blur, down-sample to px x px and add noise; uint8 h w 3 or h w in, the same kind out, ready for JPEG.

    A Gaussian kernel of `kernel_px` sampled at whole pixels and normalised, bilinear without antialiasing,
    N(0, (delta / 255)^2) on [0, 1].
    """
    import cv2

    image = pixels.astype(np.float32) / 255
    if sigma > 0:
        kernel = cv2.getGaussianKernel(kernel_px, sigma, cv2.CV_32F)
        image = cv2.sepFilter2D(image, -1, kernel, kernel).astype(np.float32)
    if image.shape[0] != px:
        image = cv2.resize(image, (px, px), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    generator = np.random.Generator(np.random.Philox(key=seed))
    image = image + generator.standard_normal(image.shape, dtype=np.float32) * np.float32(delta / 255)
    noisy: NDArray[np.uint8] = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return noisy


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return BT.601 luma, rounded; uint8 h w 3 to h w."""
    gray: NDArray[np.uint8] = np.round(pixels.astype(np.float32) @ np.array(LUMA, np.float32)).astype(
        np.uint8
    )
    return gray
