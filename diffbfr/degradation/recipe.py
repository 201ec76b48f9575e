"""Draw the parameters of Eq. 13 and apply them, in integers: the same JPEG bytes on every machine.

The bytes are a function of face, spec and seed. Order: pipeline before Eq. 13, flip, gray, blur, down-sample,
noise, JPEG. The JPEG's bytes are the low-quality face, at its own low resolution; `images.lq_to_model`
resizes it to a model's size. OpenCV's u8 `GaussianBlur` and `INTER_LINEAR_EXACT` are fixed point; floats,
INTER_AREA and the plain INTER_LINEAR are not portable.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from diffbfr.degradation import float_recipe
from diffbfr.degradation.noise import add_noise
from diffbfr.degradation.pre_augment import run_pipeline
from diffbfr.degradation.spec import DegradationSpec
from diffbfr.errors import UsageError
from diffbfr.variant import DegradationParams, luma, mirror


def sample_seed(recipe_digest: str, source_sha256: str, variant: int) -> bytes:
    """Return the seed of one degraded sample: a function of recipe, photo content and variant alone."""
    return hashlib.sha256(f"diffbfr sample\0{recipe_digest}\0{source_sha256}\0{variant}".encode()).digest()


def draw(spec: DegradationSpec, seed: bytes | int) -> DegradationParams:
    """Draw sigma, r, delta and q uniformly over the spec's ranges, gray and flip with their probabilities.

    Each parameter has its own raw 64-bit Philox word, so that specs that differ in one range share all other
    draws.
    """
    label = seed if isinstance(seed, bytes) else b"int:%d" % seed
    key = int.from_bytes(hashlib.sha256(b"diffbfr draw\0" + label).digest()[:16], "little")
    words = [int(word) for word in np.random.Philox(key=key).random_raw(7)]
    return DegradationParams(
        sigma=_uniform(words[0], spec.sigma),
        r=_uniform(words[1], spec.r),
        delta=_uniform(words[2], spec.delta),
        q=spec.q[0] + (words[3] * (spec.q[1] - spec.q[0] + 1) >> 64),
        gray=_unit(words[4]) < spec.gray_probability,
        flip=_unit(words[5]) < spec.flip_probability,
        noise_seed=words[6] >> 1,
    )


def degrade(hq: NDArray[np.uint8], params: DegradationParams, spec: DegradationSpec) -> bytes:
    """Apply Eq. 13 to a face (uint8, `spec.hq_px` square, 3 channels) and return its JPEG.

    The JPEG is about `hq_px / r` square. A gray face is degraded as one channel, noise and JPEG included, so
    that the low-quality face is as gray as its ground truth.
    """
    if hq.dtype != np.uint8 or hq.ndim != 3 or hq.shape[2] != 3:
        raise ValueError(f"pixels are {hq.dtype} {hq.shape}; expected uint8 h w 3")
    if hq.shape[:2] != (spec.hq_px, spec.hq_px):
        raise UsageError(
            f"the face is {hq.shape[1]} x {hq.shape[0]} px, the degradation is for {spec.hq_px} x "
            f"{spec.hq_px}; "
            "crop the face square and scale the degradation to it with spec.at(px)"
        )
    pixels = run_pipeline(spec.before, hq, params.noise_seed) if spec.before else hq
    pixels = mirror(pixels) if params.flip else pixels
    if spec.arithmetic == "float":
        pixels = float_recipe.luma(pixels) if params.gray else pixels
        px = working_px(params.r, spec)
        pixels = float_recipe.low_quality_pixels(
            pixels, params.sigma, spec.kernel_px, px, params.delta, params.noise_seed
        )
        return _jpeg(pixels, params.q)
    pixels = luma(pixels) if params.gray else pixels
    pixels = _blur(pixels, params.sigma, spec.kernel_px)
    pixels = _resample(pixels, working_px(params.r, spec))
    pixels = add_noise(pixels, params.delta, params.noise_seed)
    return _jpeg(pixels, params.q)


def working_px(r: float, spec: DegradationSpec) -> int:
    """Return the side of the low-quality face: hq_px / r rounded, between 1 and `max_working_px`."""
    return max(1, min(round(spec.hq_px / r), spec.max_working_px))


def _unit(word: int) -> float:
    return (word >> 11) * 2.0**-53


def _uniform(word: int, ends: tuple[float, float]) -> float:
    return ends[0] + (ends[1] - ends[0]) * _unit(word)


def _blur(pixels: NDArray[np.uint8], sigma: float, kernel_px: int) -> NDArray[np.uint8]:
    import cv2

    if sigma == 0:
        return pixels
    return np.asarray(cv2.GaussianBlur(pixels, (kernel_px, kernel_px), sigma), dtype=np.uint8)


def _resample(pixels: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    import cv2

    if pixels.shape[0] == px:
        return pixels
    return np.asarray(cv2.resize(pixels, (px, px), interpolation=cv2.INTER_LINEAR_EXACT), dtype=np.uint8)


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    import cv2

    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    done, encoded = cv2.imencode(
        ".jpg", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options
    )
    if not done:
        raise RuntimeError(f"libjpeg refused {pixels.shape} at quality {quality}")
    return encoded.tobytes()
