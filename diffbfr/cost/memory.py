"""What training a network takes of a device's memory, from the shapes of its specification alone: a plan
needs no torch for it.

Counted are the weights and what goes with each of them, and the maps that the forward pass keeps for the
backward pass (autograd's saved tensors, each storage once). Not counted are the inputs of the batch, the
kernels' workspace, gradients of single maps and what an allocator wastes; none of them grows with the depth
of the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from diffbfr.stages import FOLD_PX, UNetSpec

BYTES = 4
"""Of a float32."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device."""

    weights: int
    gradients: int
    moments: int
    """Two of Adam's a weight."""
    averages: int
    """Of the weights."""
    activations: int
    """Maps kept for the backward pass, of the whole batch."""
    recomputed: int
    """Of the largest block that is run again in the backward pass; 0 without recomputing."""
    optimizer: int
    """What a step of Adam over all weights at once holds for a moment, when the maps are gone: one number
    a weight.
    """

    @property
    def total(self) -> int:
        """The highest that is held at once."""
        lasting = self.weights + self.gradients + self.moments + self.averages
        return lasting + max(self.activations + self.recomputed, self.optimizer)


@dataclass(frozen=True)
class _Part:
    """A part of the forward pass on one image: the numbers that it keeps, and those of its input that
    nothing else keeps.
    """

    px: int
    inner: int
    own_input: int
    fresh_input: int
    """Of the input, what is made for this part only (a block's input and skip side by side); it need not
    be kept to make it again.
    """
    is_block: bool = True
    kernels: int = 0
    """Numbers made of the weights and kept, whatever the batch
    (`diffbfr.models.convolution.UpsampleConv`).
    """


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
    kept = again = kernels = 0
    for part in _parts(spec, image_px or spec.image_px):
        if part.is_block and recompute_px is not None and part.px >= recompute_px:
            kept += part.own_input
            again = max(again, part.fresh_input + part.inner)
        else:
            kept += part.inner + (part.fresh_input or part.own_input)
        kernels += part.kernels
    numbers = num_parameters * BYTES
    return TrainingMemory(
        numbers,
        numbers,
        2 * numbers,
        averages * numbers,
        (kept * batch + kernels) * BYTES,
        again * batch * BYTES,
        numbers,
    )


def _parts(spec: UNetSpec, image_px: int) -> Iterator[_Part]:
    """The forward pass of `diffbfr.models.unet.UNet`, in order."""
    widths = [spec.inner_channels * multiplier for multiplier in spec.channel_multipliers]
    top = image_px // spec.patch_px
    yield _Part(top, 0, spec.in_channels * image_px**2, 0, is_block=False)
    channels, skips = widths[0], [widths[0]]
    for level, width in enumerate(widths):
        px = top >> level
        for _ in range(spec.res_blocks[level]):
            yield _block(spec, level, px, channels, width)
            channels = width
            skips.append(channels)
        if level < len(widths) - 1:
            yield _Part(px, 0, channels * px**2, 0, is_block=False)
            skips.append(channels)
    last = len(widths) - 1
    yield _block(spec, last, top >> last, channels, channels, attends=True)
    yield _block(spec, last, top >> last, channels, channels, attends=False)
    for level, width in reversed(list(enumerate(widths))):
        px = top >> level
        for _ in range(spec.res_blocks[level] + 1):
            yield _block(spec, level, px, channels, width, skip=skips.pop())
            channels = width
        if level:
            folds = px >= FOLD_PX
            yield _Part(
                2 * px,
                0,
                channels * (px if folds else 2 * px) ** 2,
                0,
                is_block=False,
                kernels=16 * channels**2 * folds,
            )
    yield _Part(top, 2 * channels * top**2, channels * top**2, 0, is_block=False)


def _block(
    spec: UNetSpec, level: int, px: int, channels: int, width: int, skip: int = 0, attends: bool | None = None
) -> _Part:
    """A residual block: both normalisations, activations and convolutions keep their inputs; attention
    also queries, keys and values.
    """
    wide, narrow = channels + skip, width
    inner = 2 * wide + 3 * narrow
    if spec.scale_shift:
        inner += narrow
    if spec.dropout:
        inner += narrow
    maps = inner * px**2
    if spec.level_px(level) in spec.attention_px if attends is None else attends:
        maps += 6 * narrow * px**2 + (narrow // spec.head_channels if spec.head_channels else 1) * px**2
    return _Part(px, maps, channels * px**2, wide * px**2 if skip else 0)
