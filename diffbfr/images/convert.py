"""Decoded pixels: encode, resize, digest, and the one conversion to and from model tensors.

Pixels are uint8 [h, w, 3] in [0, 255]; tensors are float32 [b, 3, h, w] in [-1, 1].
"""

import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

from diffbfr.errors import DiffBFRError, UsageError
from diffbfr.images.errors import ImageRefused

if TYPE_CHECKING:
    from torch import Tensor

Pixels: TypeAlias = NDArray[np.uint8]
Kernel: TypeAlias = Literal["bilinear", "bicubic"]
Codec: TypeAlias = Literal["webp", "png"]
"""Codec of the ground truths; its name is also the suffix of the files."""

CODECS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "png": MappingProxyType({"compress_level": 4}),
        "stored_png": MappingProxyType({"compress_level": 0}),
        "quick_png": MappingProxyType({"compress_level": 1, "compress_type": zlib.Z_RLE}),
        "webp": MappingProxyType({"quality": 0, "method": 0}),
    }
)
"""Effort of the encoders. It changes bytes, never a pixel."""


def encode_png(pixels: Pixels, compress_level: int = CODECS["png"]["compress_level"]) -> bytes:
    """Encode losslessly as PNG; the same pixels give the same bytes."""
    return _encode(pixels, format="PNG", compress_level=compress_level)


def encode_stored_png(pixels: Pixels) -> bytes:
    """Encode as PNG without compression, for small images that are read often.

    It decodes in half the time, for 1.8 times the bytes.
    """
    return encode_png(pixels, CODECS["stored_png"]["compress_level"])


def encode_webp(pixels: Pixels) -> bytes:
    """Encode losslessly as WebP; the same pixels give the same bytes.

    At the lowest effort: 12 ms for a photo of 512 px and 220 kB, where four times as long would save 9 % of
    the bytes.
    """
    return _encode(pixels, format="WEBP", lossless=True, exact=True, **CODECS["webp"])


def encode_truth(pixels: Pixels, codec: Codec) -> bytes:
    """Encode a ground truth losslessly, at the lowest effort.

    PNG is read by more programs; at 512 px WebP takes half of its time to write (5 to 7 ms for 11), up to a
    third less to read, and on real photos 0.8 of its bytes. QOI is not offered: Pillow decodes it in Python,
    in 190 ms.
    """
    return encode_webp(pixels) if codec == "webp" else _encode(pixels, format="PNG", **CODECS["quick_png"])


def resize(pixels: Pixels, px: int, kernel: Kernel) -> Pixels:
    """Resize a square image to px x px with Pillow's antialiased fixed-point kernels.

    The bytes are the same on every machine. `ImageRefused` if the image is not square.
    """
    if kernel not in get_args(Kernel):
        raise UsageError(
            f"resize kernel {kernel!r} is unknown; expected one of {', '.join(get_args(Kernel))}"
        )
    height, width = _checked(pixels).shape[:2]
    if height != width:
        raise ImageRefused(
            "not_square", f"the picture is {width} x {height}; a square one is wanted; crop it first"
        )
    if height == px:
        return pixels.copy()
    resampling = Image.Resampling.BILINEAR if kernel == "bilinear" else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((px, px), resampling))


def resize_alpha(alpha: UInt8[np.ndarray, "h w"], px: int) -> UInt8[np.ndarray, "px px"]:
    """Resize the opacity of an image to px x px, bicubic."""
    return np.array(Image.fromarray(alpha).resize((px, px), Image.Resampling.BICUBIC))


def center_square(pixels: Pixels) -> Pixels:
    """Cut out the largest centred square."""
    height, width = _checked(pixels).shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def lq_to_model(lq_pixels: Pixels, px: int) -> Pixels:
    """Resize a low-quality image to the model's size px x px.

    Training, conditioning and restoration all make x_0 in this way.
    """
    return resize(lq_pixels, px, "bilinear")


def to_tensor(pixels: Pixels | Sequence[Pixels]) -> 'Float[Tensor, "b 3 h w"]':
    """Convert one image [h, w, 3], a batch [b, h, w, 3] or a list of images of one size to [-1, 1]."""
    import torch

    batch = list(pixels[None] if isinstance(pixels, np.ndarray) and pixels.ndim == 3 else pixels)
    shapes = sorted({_checked(picture).shape for picture in batch})
    if len(shapes) != 1:
        raise UsageError(
            f"the pictures of a batch are {' and '.join(map(str, shapes)) or 'none'}; expected one size; "
            "resize them first"
        )
    planes = np.empty((len(batch), 3, *shapes[0][:2]), np.float32)
    # One pass from bytes to floats; the scaling below is done in place.
    for plane, picture in zip(planes, batch, strict=True):
        plane[...] = picture.transpose(2, 0, 1)
    return torch.from_numpy(planes).div_(127.5).sub_(1.0)


def to_pixels(tensor: 'Float[Tensor, "b 3 h w"]') -> UInt8[np.ndarray, "b h w 3"]:
    """Convert a model's [-1, 1] to pixels, rounded and clamped; the inverse of `to_tensor`."""
    import torch

    if tensor.ndim != 4 or tensor.shape[1] != 3:
        raise ValueError(f"the tensor is {tuple(tensor.shape)}; expected b 3 h w")
    if not torch.isfinite(tensor).all():
        raise DiffBFRError(
            "the model's output holds NaN or infinity; expected finite values; check the checkpoint and its "
            "precision"
        )
    levels = (tensor.detach().to("cpu", torch.float32) + 1.0) * 127.5
    hwc: Pixels = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return hwc


def pixel_digest(pixels: Pixels) -> str:
    """Sha256 of the shape and the bytes: equal for equal images, from whatever file."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _checked(pixels: Pixels) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; expected uint8 h w 3")
    return pixels


def _encode(pixels: Pixels, **options: str | int | bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(_checked(pixels))).save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
