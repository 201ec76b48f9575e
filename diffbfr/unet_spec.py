"""The shape of a network, as Table 6 gives it; importing it imports no torch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffbfr.documents import abridged, check_whole
from diffbfr.errors import UsageError
from diffbfr.spec import LATER

MAX_IMAGE_PX, MAX_PATCH_PX, MAX_ATTENTION_PX = 2048, 16, 128
MAX_LEVELS, MAX_BLOCKS, MAX_CHANNELS = 10, 16, 4096
"""Bounds of a specification, some times what Table 6 has: specifications come from others too."""


@dataclass(frozen=True)
class UNetSpec:
    """One network.

    Level i works at `image_px / patch_px / 2**i` pixels a side with `inner_channels * channel_multipliers[i]`
    channels.
    """

    image_px: int
    in_channels: int
    out_channels: int
    inner_channels: int
    channel_multipliers: tuple[int, ...]
    res_blocks: tuple[int, ...]
    """Residual blocks of each level of the encoder; the decoder has one more, which consumes the skips."""
    attention_px: tuple[int, ...]
    """Levels of these side lengths, in pixels of the feature map, have self-attention."""
    norm_groups: int = 32
    dropout: float = 0.0
    time: Literal["noise_level", "step"] = "noise_level"
    scale_shift: bool = False
    """Time scales and shifts the second normalisation (TEM) instead of being added before it (SR3)."""
    head_channels: int | None = None
    """Channels of an attention head; None is one head (SR3)."""
    patch_px: int = 1
    """Side of the pixel blocks that the stem folds into channels and the head unfolds.

    The paper has 1; 2 makes small networks cheap.
    """
    first_step: int = dataclasses.field(default=1, metadata=LATER)
    """Number by which a network whose `time` is the step knows the first step, 1..T or 0..T - 1.

    The paper counts from 1; the networks of guided diffusion were trained counting from 0.
    """

    def __post_init__(self) -> None:
        levels = len(self.channel_multipliers)
        self._check_bounds(levels)
        if len(self.res_blocks) != levels:
            raise UsageError(
                f"unet has {len(self.res_blocks)} entries in res_blocks; expected one a level, {levels}"
            )
        if self.image_px % self.coarsest_px:
            raise UsageError(
                f"unet has image_px={self.image_px}; expected a multiple of {self.coarsest_px} for {levels} "
                "levels of "
                f"patch_px={self.patch_px}"
            )
        for multiplier in self.channel_multipliers:
            channels = self.inner_channels * multiplier
            if channels % self.norm_groups:
                raise UsageError(
                    f"unet has {channels} channels in a level; expected a multiple of "
                    f"norm_groups={self.norm_groups}"
                )
        for px in (self.level_px(levels - 1), *self.attention_px):
            if px > MAX_ATTENTION_PX:
                raise UsageError(
                    f"unet has attention over maps of {px} px; expected at most {MAX_ATTENTION_PX}; the "
                    "middle attends over the coarsest level"
                )

    def _check_bounds(self, levels: int) -> None:
        """Refuse sizes that no network has, before anything is computed from them."""
        check_whole("unet", "levels in channel_multipliers", levels, 1, MAX_LEVELS)
        for field, most in (
            ("image_px", MAX_IMAGE_PX),
            ("in_channels", MAX_CHANNELS),
            ("out_channels", MAX_CHANNELS),
            ("inner_channels", MAX_CHANNELS),
            ("norm_groups", MAX_CHANNELS),
            ("patch_px", MAX_PATCH_PX),
        ):
            check_whole("unet", field, getattr(self, field), 1, most)
        if self.head_channels is not None:
            check_whole("unet", "head_channels", self.head_channels, 1, MAX_CHANNELS)
        for blocks in self.res_blocks:
            check_whole("unet", "res_blocks", blocks, 1, MAX_BLOCKS)
        _check_all_positive("attention_px", self.attention_px)
        _check_all_positive("channel_multipliers", self.channel_multipliers)
        widest = self.inner_channels * max(self.channel_multipliers)
        check_whole("unet", "channels in its widest level", widest, 1, MAX_CHANNELS)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"unet has dropout={self.dropout}; expected a probability in [0, 1)")
        check_whole("unet", "first_step", self.first_step, 0, 1)
        if not self.first_step and self.time != "step":
            raise UsageError(
                f"unet has first_step=0 with time={self.time}; expected 1, its time is no step; leave it out"
            )

    def level_px(self, level: int) -> int:
        """Side length (px) of a level's feature maps."""
        return self.image_px // self.patch_px >> level

    @property
    def coarsest_px(self) -> int:
        """Side (px of the image) of the area that one pixel of the coarsest feature map covers."""
        return self.patch_px << len(self.channel_multipliers) - 1

    @property
    def time_channels(self) -> int:
        """Width of the time embedding that every residual block receives."""
        return self.inner_channels * (4 if self.time == "step" else 1)


def _check_all_positive(field: str, values: Sequence[int]) -> None:
    if len(values) > MAX_LEVELS or any(value < 1 for value in values):
        raise UsageError(
            f"unet has {field}={abridged(values)}; expected positive numbers, one a level at most"
        )
