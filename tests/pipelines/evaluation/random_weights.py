"""Files of random weights for the networks that are small enough for a unit test."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from diffbfr.metrics.face_resnet import FaceResNet
from diffbfr.metrics.lpips import LpipsNetwork


def write_random_weights(folder: Path) -> None:
    """Put LPIPS (Alex) and the face network into a cache's folder of weights, with empty records."""
    torch.manual_seed(0)
    place = folder / "weights"
    place.mkdir(parents=True)
    for name, network in (("lpips-alex", LpipsNetwork("alex")), ("dlib-face-resnet", FaceResNet())):
        state = {key: tensor.abs() / 10 for key, tensor in network.state_dict().items()}
        save_file(state, place / f"{name}.safetensors")
        (place / f"{name}.json").write_text("{}")
