"""The tensors of a public checkpoint, compared with those of our network and converted to them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.models.unet import UNet
from diffbfr.unet_spec import UNetSpec

_SHOWN_CHARACTERS: Final = 80


@dataclass(frozen=True)
class Part:
    """One of our tensors in a public checkpoint: its name and shape there, and how it becomes ours."""

    name: str
    shape: tuple[int, ...]
    convert: Callable[[Tensor], Tensor] = lambda tensor: tensor


Layout = Mapping[str, Part]
"""The parts of a checkpoint by our names."""


def our_shapes(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our network's tensors; no memory is taken for them."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in UNet(spec).named_parameters()}


def differences(layout: Layout, tensors: Mapping[str, Tensor], what: str) -> Iterator[str]:
    """How a file's tensors differ from those of `what`, each in words: missing, of another shape, extra."""
    wanted = {part.name: part.shape for part in layout.values()}
    for name, shape in wanted.items():
        if name not in tensors:
            yield f"it lacks {name} of shape {list(shape)}"
        elif tuple(tensors[name].shape) != shape:
            yield f"it has {name} of shape {list(tensors[name].shape)}; {what} has {list(shape)}"
        elif not _holds_numbers(tensors[name]):
            found = tensors[name]
            yield f"it has {name} as {found.dtype} ({found.layout}); expected plain floating-point numbers"
    for name in tensors:
        if name not in wanted:
            yield f"it has {name[:_SHOWN_CHARACTERS]}, which {what} has not"


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type == "cpu"


def convert(layout: Layout, tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Our tensors in float32, from a file without `differences`; UsageError if a number is not finite."""
    weights: dict[str, Tensor] = {}
    for name, part in layout.items():
        tensor = tensors[part.name].to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError(
                f"{path} holds NaN or infinity in {part.name}; expected finite weights; fetch it again"
            )
        weights[name] = part.convert(tensor).contiguous()
    return weights
