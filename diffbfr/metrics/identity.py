"""The identity cosine: whether a face network takes the restored face for the same person.

MobileFaceNet (Chen et al., arXiv:1804.07573) maps a crop of 112 x 96 px to a unit vector; the metric is the
cosine between those of the restoration and the ground truth. The weights are the user's: an .npz file with
the names of this module. Faces are aligned to the FFHQ frame, so one similarity maps every face to the crop
of Liu et al. (SphereFace, arXiv:1704.08063), and no landmark of a blurred face is estimated.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from diffbfr.errors import UsageError
from diffbfr.metrics.crop import Frame, crop_frame
from diffbfr.metrics.info import MetricInfo

NUM_FEATURES: Final = 256
"""Of a picture and its mirror."""
CROP: Final = (112, 96)
"""Height and width of the network's input."""
CROP_POINTS: Final = (
    (30.2946, 51.6963),
    (65.5318, 51.5014),
    (48.0252, 71.7366),
    (33.5493, 92.3655),
    (62.7299, 92.2041),
)
"""`FFHQ_POINTS` in SphereFace's crop."""
BLOCKS: Final = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Expansion, width, repeats and first stride of the bottlenecks (Table 1 of the paper)."""

INFO = MetricInfo(
    name="identity cosine",
    version="1",
    unit="",
    better="higher",
    protocol="MobileFaceNet (weights supplied by the user) on the 112 x 96 px SphereFace crop, "
    "cut from the FFHQ frame by one similarity; "
    "embeddings of the picture and its mirror side by side; cosine between restoration and ground truth; in "
    "[-1, 1]",
)


class ConvUnit(nn.Module):
    """Convolution, batch normalisation and, unless linear, PReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        padding = 1 if kernel == 3 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.prelu = nn.Identity() if linear else nn.PReLU(out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """Apply the three in turn."""
        out: Tensor = self.prelu(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """Expand by 1 x 1, convolve each channel, project; added to its input where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """Apply the bottleneck."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileFaceNet(nn.Module):
    """The embedding network; 128 numbers per crop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvUnit(3, 64, 3, 2)
        self.dw_conv1 = ConvUnit(64, 64, 3, groups=64)
        blocks: list[nn.Module] = []
        channels = 64
        for expansion, width, repeats, first_stride in BLOCKS:
            for i in range(repeats):
                blocks.append(Bottleneck(channels, width, first_stride if i == 0 else 1, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = ConvUnit(channels, 512, 1)
        self.linear7 = ConvUnit(512, 512, (7, 6), groups=512, linear=True)
        self.linear1 = ConvUnit(512, 128, 1, linear=True)

    def forward(self, crop: Float[Tensor, "b 3 112 96"]) -> Float[Tensor, "b 128"]:
        """Embed RGB crops in [-1, 1]."""
        features = self.conv2(self.blocks(self.dw_conv1(self.conv1(crop))))
        embedding: Tensor = self.linear1(self.linear7(features))
        return embedding.flatten(1)


class IdentityCosine:
    """The identity cosine with the weights of one file; build it once, call it on batches."""

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self._network = load_mobilefacenet(Path(weights)).to(device)
        self._device = device

    def __call__(
        self, estimate: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Cosine in [-1, 1] of every image of a batch; RGB in [-1, 1], aligned to the FFHQ frame."""
        if estimate.shape != reference.shape:
            raise UsageError(
                f"identity cosine got {tuple(estimate.shape)} against {tuple(reference.shape)}; both must "
                "have one shape; resize first"
            )
        return (self.embed(estimate) * self.embed(reference)).sum(1)

    @torch.inference_mode()
    def embed(self, face: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 256"]:
        """Unit vectors of RGB images in [-1, 1], aligned to the FFHQ frame."""
        crop = ffhq_crop(face.float().to(self._device))
        return normalize(torch.cat([self._network(crop), self._network(crop.flip(3))], dim=1)).cpu()


def ffhq_crop(face: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b 3 112 96"]:
    """Cut SphereFace's crop out of faces in the FFHQ frame of any size, RGB in [-1, 1]; outside is grey."""
    return crop_frame(face, Frame(CROP_POINTS, CROP))


def load_mobilefacenet(weights: Path) -> MobileFaceNet:
    """The network with the weights of an .npz file; names as `blocks.0.conv.0.weight`."""
    if not weights.is_file():
        raise UsageError(
            f"no file {weights}; expected MobileFaceNet as .npz; set evaluate.identity or DIFFBFR_IDENTITY "
            "to it, or unset both"
        )
    network = MobileFaceNet()
    with np.load(weights, allow_pickle=False) as arrays:
        state = {}
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name not in arrays or arrays[name].shape != tuple(tensor.shape):
                found = arrays[name].shape if name in arrays else "nothing"
                raise UsageError(
                    f"{weights} has {found} for {name}, expected {tuple(tensor.shape)}; give the weights of "
                    "MobileFaceNet"
                )
            state[name] = torch.from_numpy(np.asarray(arrays[name], dtype=np.float32))
    network.load_state_dict(state, strict=False)
    return network.eval().requires_grad_(False)
