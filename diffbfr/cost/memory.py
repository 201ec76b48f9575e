"""Memory that training a network takes of a device, counted before anyone trains it.

Counted are the weights with their gradients, moments and averages, and the maps that the forward pass keeps
for the backward pass: every storage that autograd saves, once. Not counted are the inputs of the batch, the
kernels' workspace, gradients of single maps and what an allocator wastes; none of them grows with the depth
of the network.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from diffbfr.models.unet import Block, UNet
from diffbfr.unet_spec import UNetSpec

BYTES = 4
"""Of a float32."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device."""

    weights: int
    gradients: int
    moments: int
    """The two moments that Adam keeps of each weight."""
    averages: int
    """Averaged weights."""
    activations: int
    """Maps of the whole batch that are kept for the backward pass."""
    recomputed: int
    """Maps of the largest block that is run again in the backward pass; 0 without recomputing."""
    optimizer: int
    """Temporary memory of an Adam step, one number a weight, when the maps are freed already."""

    @property
    def total(self) -> int:
        """The most that is held at once."""
        lasting = self.weights + self.gradients + self.moments + self.averages
        return lasting + max(self.activations + self.recomputed, self.optimizer)


def training_memory(
    spec: UNetSpec,
    num_parameters: int,
    batch: int,
    *,
    averages: int = 1,
    recompute_px: int | None = None,
    image_px: int | None = None,
) -> TrainingMemory:
    """Memory of a training step over `batch` images of `image_px` (the specification's) in float32 with Adam.

    Blocks whose maps are at least `recompute_px` wide keep their input only and are run again, one at a time
    (`UNet.recompute_px`).
    """
    kept, recomputed = _saved_bytes(spec, batch, image_px or spec.image_px, recompute_px)
    weights = num_parameters * BYTES
    return TrainingMemory(
        weights=weights,
        gradients=weights,
        moments=2 * weights,
        averages=averages * weights,
        activations=kept,
        recomputed=recomputed,
        optimizer=weights,
    )


@lru_cache
def _saved_bytes(spec: UNetSpec, batch: int, px: int, recompute_px: int | None) -> tuple[int, int]:
    """Bytes that one forward pass saves, and those that the largest block saves when it is run again.

    The network runs on fake tensors of the CPU, which have shapes and storages but no memory. On the meta
    device attention saves its whole matrix, unlike on a CPU or GPU: the estimate is up to 9 % too high there.
    """
    saved: list[Tensor] = []
    saved_in_blocks: dict[nn.Module, list[Tensor]] = {}
    block_hooks = ExitStack()

    def enter(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Inside a checkpoint the hooks around it see nothing, so a block that is run again has its own.
        if recompute_px is not None and inputs[0].shape[-1] >= recompute_px:
            block_hooks.enter_context(_collect(saved_in_blocks.setdefault(block, [])))

    def leave(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        block_hooks.close()

    with FakeTensorMode():
        net = UNet(spec).train()
        net.recompute_px = recompute_px
        for module in net.modules():
            if isinstance(module, Block):
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(leave)
        y = torch.empty(batch, spec.in_channels, px, px).contiguous(memory_format=torch.channels_last)
        with _collect(saved):
            net(y, torch.empty(batch), torch.empty(batch, dtype=torch.int64))
    own = _storages(net.parameters()).keys()
    kept = {place: size for place, size in _storages(saved).items() if place not in own}
    recomputed = 0
    for tensors in saved_in_blocks.values():
        storages = _storages(tensors)
        recomputed = max(recomputed, sum(storages[place] for place in storages.keys() - own - kept.keys()))
    return sum(kept.values()), recomputed


def _collect(saved: list[Tensor]) -> saved_tensors_hooks:
    """A context that appends every tensor that autograd saves to a list."""

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    return saved_tensors_hooks(pack, lambda tensor: tensor)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each storage behind these tensors, by its identity."""
    return {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
