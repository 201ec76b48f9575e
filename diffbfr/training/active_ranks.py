"""Which ranks of a group compute: a batch is split evenly, so that any number of workers can take part.

Workers come and go, and a global batch of 16 has no even shares for three of them. Then as many ranks compute
as there are even shares for, here two. The other ranks stay in step with them, so that they can compute as
soon as a fourth joins.
"""

from dataclasses import dataclass

from torch import distributed as dist


@dataclass(frozen=True)
class ActiveRanks:
    """The role of this rank: `num_active` of `world` ranks compute, each an equal share of the batch."""

    rank: int
    world: int
    num_active: int

    @property
    def is_active(self) -> bool:
        """Whether this rank's gradients count."""
        return self.rank < self.num_active

    @property
    def shard_index(self) -> int:
        """Index of the share that this rank reads; an idle rank reads that of an active one."""
        return self.rank % self.num_active

    @property
    def weight(self) -> float:
        """Weight of this rank's loss in a mean over all ranks, so that it is the mean over the batch."""
        return self.world / self.num_active if self.is_active else 0.0


def active_ranks(global_batch: int, reduce_leaves: int | None = None) -> ActiveRanks:
    """The active ranks of this process's group, and the role of this process among them."""
    is_distributed = dist.is_initialized()
    rank = dist.get_rank() if is_distributed else 0
    world = dist.get_world_size() if is_distributed else 1
    return ActiveRanks(rank, world, num_active(world, global_batch, reduce_leaves))


def num_active(world: int, global_batch: int, reduce_leaves: int | None = None) -> int:
    """Number of `world` ranks compute; a power of two with `reduce_leaves`, whose sums form a binary tree."""
    shares = global_batch if reduce_leaves is None else reduce_leaves
    return max(count for count in range(1, min(world, shares) + 1) if shares % count == 0)
