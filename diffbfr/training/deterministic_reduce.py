"""Gradients summed in one order for any number of workers, so that elastic trainings agree to the last bit.

A floating-point sum depends on its order, and so on how a batch is spread: one worker adds what its kernels
add, four workers add four sums in the order in which the network delivers them. Training amplifies the
difference, above all with Adam, which divides small gradients by their own size. Here a batch is always
computed in the same number of parts, whose gradients are the leaves of one binary tree: a worker reduces the
subtree of its own parts, and workers then add in pairs, first neighbours, then neighbours of neighbours. A
sum of two numbers is the same in either order.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from diffbfr.errors import UsageError
from diffbfr.training.active_ranks import ActiveRanks
from diffbfr.training.batches import Batch


class TreeAllReduce:
    """All-reduces gradients over a binary tree, instead of DistributedDataParallel.

    `num_leaves` is the number of parts of a global batch, spread evenly over the active ranks. Raises
    UsageError if a part is larger than `micro_batch`, the number of images that may be held at once.
    """

    def __init__(
        self, num_leaves: int, global_batch: int, micro_batch: int | None, active_ranks: ActiveRanks
    ) -> None:
        self._leaf_size = global_batch // num_leaves
        self._leaf_weight = 1 / num_leaves
        if micro_batch is not None and micro_batch < self._leaf_size:
            raise UsageError(
                f"cluster.micro_batch is {micro_batch} and a part of the batch {self._leaf_size} images; "
                "expected no fewer; raise training.reduce_leaves"
            )
        self._active_ranks = active_ranks
        self._pairs = _pair_groups(active_ranks) if active_ranks.num_active > 1 else []

    def backward(
        self, share: Batch, mean_loss: Callable[[Batch], Tensor], parameters: Sequence[nn.Parameter]
    ) -> Tensor:
        """Leave the gradients of the global batch's mean loss in the parameters; return that loss."""
        if self._active_ranks.is_active:
            total = self._reduce_leaves(share, mean_loss, parameters)
        else:
            total = [*(torch.empty_like(p) for p in parameters), torch.empty((), device=share.t.device)]
        self._reduce_ranks(total)
        for p, gradient in zip(parameters, total, strict=False):
            p.grad = gradient
        return total[-1]

    def _reduce_leaves(
        self, share: Batch, mean_loss: Callable[[Batch], Tensor], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """Sum the gradients, and the loss, of this rank's leaves."""
        # The stack holds finished subtrees of falling size; two of one size are added at once, as in a
        # binary counter, so that at most log2(leaves) sets of gradients are held.
        subtrees: list[tuple[int, list[Tensor]]] = []
        for first in range(0, len(share.t), self._leaf_size):
            loss = mean_loss(share.cut(slice(first, first + self._leaf_size))) * self._leaf_weight
            subtree = [*torch.autograd.grad(loss, parameters), loss.detach()]
            num_leaves = 1
            while subtrees and subtrees[-1][0] == num_leaves:
                subtree = list(torch._foreach_add(subtrees.pop()[1], subtree))
                num_leaves *= 2
            subtrees.append((num_leaves, subtree))
        ((_, total),) = subtrees
        return total

    def _reduce_ranks(self, tensors: Sequence[Tensor]) -> None:
        """Sum over the active ranks, in place, pair by pair; the idle ranks receive the result."""
        if self._active_ranks.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        for pair in self._pairs:
            dist.all_reduce(flat, group=pair)
        if self._active_ranks.num_active < self._active_ranks.world:
            dist.broadcast(flat, 0)
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))


def _pair_groups(active_ranks: ActiveRanks) -> list[dist.ProcessGroup]:
    """The groups of this rank and its partner at each height of the tree, from the leaves up."""
    own = []
    distance = 1
    while distance < active_ranks.num_active:
        # `new_group` is collective: every rank must create every group, in the same order.
        for first in range(active_ranks.num_active):
            if not first & distance:
                pair = [first, first | distance]
                group = dist.new_group(pair)
                if active_ranks.rank in pair:
                    own.append(group)
        distance *= 2
    return own
