"""Which of a group's ranks compute: a batch is shared evenly, so that any number of workers can take it on.

Workers come and go, and a global batch of 16 has no even shares for three. Then as many compute as there are
even shares for, here two; the others follow them, ready for the day when a fourth comes.
"""

from dataclasses import dataclass

from torch import distributed as dist


@dataclass(frozen=True)
class ActiveRanks:
    """This rank's place in its group: `num_active` of `world` ranks compute, each an equal share of the
    batch.
    """

    rank: int
    world: int
    num_active: int

    @property
    def is_active(self) -> bool:
        """Whether what this rank computes counts."""
        return self.rank < self.num_active

    @property
    def shard_index(self) -> int:
        """Whose share this rank computes: its own, or, if it only follows, that of another."""
        return self.rank % self.num_active

    @property
    def weight(self) -> float:
        """What a rank's loss counts in a mean over all ranks, so that it is the mean over the batch."""
        return self.world / self.num_active if self.is_active else 0.0


def active_ranks(global_batch: int, reduce_leaves: int | None = None) -> ActiveRanks:
    """The active_ranks of the group that this process is in."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return ActiveRanks(rank, world, num_active(world, global_batch, reduce_leaves))


def num_active(world: int, global_batch: int, reduce_leaves: int | None = None) -> int:
    """How many of `world` ranks compute: with `reduce_leaves` a power of two, for their sums are a binary
    tree.
    """
    shares = global_batch if reduce_leaves is None else reduce_leaves
    return max(count for count in range(1, min(world, shares) + 1) if shares % count == 0)
