"""How the background of a photo is enlarged: by a bicubic kernel, or by Real-ESRGAN where it is installed."""

import functools

import numpy as np
from PIL import Image

from diffbfr.faces.align import colour_layers
from diffbfr.faces.paste import enlarge
from diffbfr.faces.transparency import alpha_of, filled_colours
from diffbfr.images.photo import PhotoPixels
from pipelines.restoration.realesrgan import FACTOR, RealEsrgan
from pipelines.restoration.request import Upscaler


def enlarged(pixels: PhotoPixels, upscale: int, upscaler: Upscaler) -> PhotoPixels:
    """The photo enlarged by 1, 2 or 4, with its type and channels; a gray one stays gray.

    Real-ESRGAN enlarges by four, and its result is averaged to the size wanted; alpha is bicubic. Its pixels
    have 8 bits (`pipelines.restoration.whole_input` refuses others).
    """
    if upscale == 1 or upscaler == "bicubic":
        return enlarge(pixels, upscale)
    if pixels.dtype != np.uint8:
        raise TypeError("Real-ESRGAN enlarges 8 bits")
    layers = pixels if pixels.ndim == 3 else pixels[..., None]
    colours = colour_layers(pixels) if alpha_of(pixels) is None else filled_colours(pixels)
    large = _network()(np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3))))
    if upscale < FACTOR:
        size = (pixels.shape[1] * upscale, pixels.shape[0] * upscale)
        large = np.asarray(Image.fromarray(large).resize(size, Image.Resampling.BOX))
    if colours.shape[2] == 1:
        large = np.rint(large.mean(axis=2, keepdims=True)).astype(np.uint8)
    if pixels.ndim == 2:
        return large[..., 0]
    if layers.shape[2] in (2, 4):
        return np.dstack([large, enlarge(pixels, upscale)[..., -1]])
    return large


def upscaler_digest(upscaler: Upscaler) -> str:
    """The sha256 of the weights, "" for a kernel; UsageError if it is not installed."""
    return "" if upscaler == "bicubic" else _network().digest


@functools.lru_cache(1)
def _network() -> RealEsrgan:
    return RealEsrgan()
