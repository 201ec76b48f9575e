"""The squeezenet distance: how different two images are to an ImageNet classifier.

Channel-normalised features of SqueezeNet 1.0 (Iandola et al., arXiv:1602.07360) are compared as in Zhang et
al. (CVPR 2018), but without learnt weights: the numbers rank restorations of one data set and cannot be
compared with published ones. The weights are the user's: an .npz file of the Caffe model (BGR input, mean 104
/ 117 / 123).
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo

SQUEEZE = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}
POOLED_AFTER = (4, 8)
TAPS = (3, 4, 5, 6, 7, 8, 9)
MEAN_BGR = (104.0, 117.0, 123.0)
SMALLEST_PX = 32

INFO = MetricInfo(
    name="squeezenet distance",
    version="1",
    unit="",
    better="lower",
    protocol="SqueezeNet 1.0 (ImageNet, Caffe weights supplied by the user), "
    "pictures at own size; outputs of fire3 to fire9 scaled to "
    "unit length over channels; squared Euclidean difference, mean over positions, then over the seven "
    "layers; in [0, 2], "
    "not calibrated on human judgement",
)


class Fire(nn.Module):
    """Squeeze by 1 x 1, expand by 1 x 1 and 3 x 3 side by side; every convolution is followed by a ReLU."""

    def __init__(self, in_channels: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand_1 = nn.Conv2d(squeeze, 4 * squeeze, 1)
        self.expand_3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        """Features after the expansion, 8 times as many channels as the squeeze keeps."""
        squeezed = relu(self.squeeze(x))
        return torch.cat([relu(self.expand_1(squeezed)), relu(self.expand_3(squeezed))], dim=1)


class SqueezeNetFeatures(nn.Module):
    """The trunk of SqueezeNet 1.0; returns the outputs of the fire modules in `TAPS`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        self.fires = nn.ModuleDict()
        channels = 96
        for index, squeeze in SQUEEZE.items():
            self.fires[f"fire{index}"] = Fire(channels, squeeze)
            channels = 8 * squeeze

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _h _w"]]:
        """Features of RGB pictures in [-1, 1]."""
        mean = torch.tensor(MEAN_BGR, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
        x = _pool(relu(self.conv1((image.flip(1) + 1) * 127.5 - mean)))
        features = []
        for index in SQUEEZE:
            x = self.fires[f"fire{index}"](x)
            if index in TAPS:
                features.append(x)
            if index in POOLED_AFTER:
                x = _pool(x)
        return features


class SqueezeNetDistance:
    """The squeezenet distance with the weights of one file; build it once, call it on batches."""

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self._features = load_squeezenet(Path(weights)).to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(
        self, estimate: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance in [0, 2] of every picture of a batch; RGB in [-1, 1]; 0 for equal pictures."""
        if estimate.shape != reference.shape:
            raise UsageError(
                f"squeezenet distance got {tuple(estimate.shape)} against {tuple(reference.shape)}; both "
                "must have one shape; resize first"
            )
        if min(estimate.shape[2:]) < SMALLEST_PX:
            found = f"{estimate.shape[2]} x {estimate.shape[3]}"
            raise UsageError(
                f"squeezenet distance got pictures of {found}; it needs {SMALLEST_PX} px a side; use larger "
                "ones"
            )
        pairs = zip(
            *(self._features(image.float().to(self._device)) for image in (estimate, reference)), strict=True
        )
        layers = [(_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs]
        return torch.stack(layers).mean(dim=0).cpu()


def load_squeezenet(weights: Path) -> SqueezeNetFeatures:
    """The trunk with the weights of an .npz file of the Caffe model; names as `fire2/conv1x1_1.weight`."""
    if not weights.is_file():
        raise UsageError(
            f"no file {weights}; expected SqueezeNet 1.0 as .npz; set evaluate.squeezenet or "
            "DIFFBFR_SQUEEZENET to it, or unset both"
        )
    network = SqueezeNetFeatures()
    with np.load(weights, allow_pickle=False) as arrays:
        state = {}
        for name, tensor in network.state_dict().items():
            stored = _stored_name(name)
            if stored not in arrays or arrays[stored].shape != tuple(tensor.shape):
                found = arrays[stored].shape if stored in arrays else "nothing"
                raise UsageError(
                    f"{weights} has {found} for {stored}, expected {tuple(tensor.shape)}; give the weights "
                    "of SqueezeNet 1.0"
                )
            state[name] = torch.from_numpy(np.asarray(arrays[stored], dtype=np.float32))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _stored_name(name: str) -> str:
    for ours, theirs in (("squeeze", "conv1x1_1"), ("expand_1", "conv1x1_2"), ("expand_3", "conv3x3_2")):
        name = name.replace(f".{ours}.", f"/{theirs}.")
    return name.removeprefix("fires.")


def _pool(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _h _w"]:
    """Caffe's pooling: 3 x 3, stride 2, the last window may hang over the edge."""
    return max_pool2d(x, 3, stride=2, ceil_mode=True)


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
