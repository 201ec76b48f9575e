"""Images: decode untrusted files or our own, encode, resize, and convert to model tensors.

`decode` is for untrusted bytes, `trusted` for files whose digest was checked, `convert` for all else; no
other module does this. Pixels are uint8 RGB [h, w, 3] in [0, 255]; model tensors are float32 [b, 3, h, w] in
[-1, 1].
"""

from diffbfr.images.convert import (
    CODECS,
    Codec,
    Kernel,
    Pixels,
    center_square,
    encode_png,
    encode_stored_png,
    encode_truth,
    encode_webp,
    lq_to_model,
    pixel_digest,
    resize,
    resize_alpha,
    to_pixels,
    to_tensor,
)
from diffbfr.images.decode import Decoded, decode
from diffbfr.images.errors import REASONS, ImageRefused, Reason
from diffbfr.images.rgb import AlphaPolicy
from diffbfr.images.trusted import decode_trusted

__all__ = [
    "CODECS",
    "REASONS",
    "AlphaPolicy",
    "Codec",
    "Decoded",
    "ImageRefused",
    "Kernel",
    "Pixels",
    "Reason",
    "center_square",
    "decode",
    "decode_trusted",
    "encode_png",
    "encode_stored_png",
    "encode_truth",
    "encode_webp",
    "lq_to_model",
    "pixel_digest",
    "resize",
    "resize_alpha",
    "to_pixels",
    "to_tensor",
]
