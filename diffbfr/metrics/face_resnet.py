"""The face network of dlib: a ResNet of 29 layers that maps a crop of 150 px to 128 numbers.

Davis King, dlib_face_recognition_resnet_model_v1 (public domain); He et al., arXiv:1512.03385. Two faces
whose vectors are less than 0.6 apart are taken for one person; the cosine and its angle are of the same
vectors. Convolutions with a stride have no padding, and where a shortcut is smaller or has fewer channels it
is padded with zeros, as dlib does.
"""

from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, normalize, pad, relu

from diffbfr.errors import UsageError
from diffbfr.metrics.crop import Frame, crop_frame
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.weights import load_weights

CROP_PX: Final = 150
NUM_FEATURES: Final = 128
MEAN_RGB: Final = (122.782, 117.001, 104.298)
BLOCKS: Final = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels, blocks, and whether the first block halves the map."""
EYES_IN_CROP: Final = ((47.733, 47.140), (100.281, 47.123))
"""Centres of the eyes, x and y, in dlib's crop with its usual margin of a quarter."""

_PROTOCOL: Final = (
    "dlib's face ResNet on its 150 px crop, cut from the FFHQ frame by the centres of the eyes; {} between "
    "restoration and ground truth"
)
INFO_COSINE: Final = MetricInfo(
    "identity cosine (dlib)", "1", "", "higher", _PROTOCOL.format("cosine of the vectors")
)
INFO_DEGREE: Final = MetricInfo(
    "identity degree (dlib)", "1", "", "lower", _PROTOCOL.format("angle of the vectors in degrees,")
)


class Affine(nn.Module):
    """A factor and a summand per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply both."""
        return x * self.gamma + self.beta


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = nn.Conv2d(in_channels, channels, 3, *((2, 0) if halve else (1, 1)))
        self.affine1 = Affine(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.affine2 = Affine(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """Apply the block; where the shapes differ, the smaller map is padded with zeros."""
        inner = self.affine2(self.conv2(relu(self.affine1(self.conv1(x)))))
        shortcut = avg_pool2d(x, 2) if self.halve else x
        shape = [max(a, b) for a, b in zip(inner.shape[1:], shortcut.shape[1:], strict=True)]
        return relu(_padded(inner, shape) + _padded(shortcut, shape))


class FaceResNet(nn.Module):
    """The network; a face in, 128 numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 7, stride=2)
        self.affine = Affine(32)
        self.blocks = nn.ModuleList()
        width = 32
        for channels, repeats, halve in BLOCKS:
            for index in range(repeats):
                self.blocks.append(ResidualBlock(width, channels, halve and index == 0))
                width = channels
        self.fc = nn.Linear(width, NUM_FEATURES, bias=False)

    def forward(self, crop: Float[Tensor, "b 3 150 150"]) -> Float[Tensor, "b 128"]:
        """The vectors of RGB crops in [0, 255]."""
        mean = crop.new_tensor(MEAN_RGB).view(1, 3, 1, 1)
        x = max_pool2d(relu(self.affine(self.conv((crop - mean) / 256))), 3, 2)
        for block in self.blocks:
            x = block(x)
        vector: Tensor = self.fc(x.mean(dim=(2, 3)))
        return vector


class FaceEmbedding:
    """dlib's vectors of aligned faces, with the weights of one file; build it once, call it on batches."""

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self._network = load_weights(FaceResNet(), weights, "dlib's face ResNet").to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, face: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b 128"]:
        """Vectors of RGB images in [-1, 1], aligned to the FFHQ frame."""
        crop = (dlib_crop(face.float().to(self._device)) + 1) * 127.5
        vector: Tensor = self._network(crop)
        return vector.cpu()


class FaceCosine:
    """The identity cosine of dlib's vectors."""

    def __init__(self, embedding: FaceEmbedding) -> None:
        self._embedding = embedding

    def __call__(
        self, estimate: Float[Tensor, "b 3 px px"], reference: Float[Tensor, "b 3 _px _px"]
    ) -> Float[Tensor, " b"]:
        """Cosine in [-1, 1] of every pair; RGB in [-1, 1], aligned to the FFHQ frame."""
        if estimate.shape != reference.shape:
            raise UsageError(
                f"identity cosine got {tuple(estimate.shape)} against {tuple(reference.shape)}; both must "
                "have one shape; resize first"
            )
        a, b = (normalize(self._embedding(face).double()) for face in (estimate, reference))
        return (a * b).sum(dim=1)


def degrees(cosine: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The angle of an identity cosine in degrees, from 0 (one person) to 180."""
    return cosine.double().clamp(-1, 1).arccos().rad2deg()


def dlib_crop(face: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b 3 150 150"]:
    """Cut dlib's crop out of faces in the FFHQ frame of any size, RGB in [-1, 1]; outside is mid grey."""
    return crop_frame(face, Frame(EYES_IN_CROP, (CROP_PX, CROP_PX)))


def _padded(x: Float[Tensor, "b c h w"], shape: list[int]) -> Float[Tensor, "b _c _h _w"]:
    channels, height, width = (wanted - found for wanted, found in zip(shape, x.shape[1:], strict=True))
    return pad(x, (0, width, 0, height, 0, channels))
