"""Gradients of a global batch added in one order for any number of workers: elastic invariance to the last
bit.

Floating-point sums depend on their order, and with it on how a batch is spread: one worker adds what its
kernels add, four add four sums, in the order in which the network delivers them. A training amplifies that,
by Adam above all, which divides small gradients by their own size. Here the batch is always computed in the
same reduce_leaves, and their gradients are the leaves of one binary tree: a worker adds the subtree that it
holds, and workers add in pairs, first neighbours, then neighbours of neighbours. A sum of two numbers has no
order.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from diffbfr.errors import UsageError
from diffbfr.training.active_ranks import ActiveRanks
from diffbfr.training.batches import Batch


class TreeAllReduce:
    """Takes the place of DistributedDataParallel: `reduce_leaves` of each global batch, spread evenly over
    the ranks that have a shard_index.
    """

    def __init__(
        self, reduce_leaves: int, global_batch: int, micro_batch: int | None, active_ranks: ActiveRanks
    ) -> None:
        self._size = global_batch // reduce_leaves
        self._scale = 1 / reduce_leaves
        if micro_batch is not None and micro_batch < self._size:
            raise UsageError(
                f"cluster.micro_batch is {micro_batch} and a part of the batch {self._size} images; expected "
                "no fewer; raise training.reduce_leaves"
            )
        self._seats = active_ranks
        self._pairs = _pairs(active_ranks) if active_ranks.num_active > 1 else []

    def backward(
        self, share: Batch, mean_loss: Callable[[Batch], Tensor], parameters: Sequence[nn.Parameter]
    ) -> Tensor:
        """Leave the gradients of the global batch's mean loss in the parameters; returns that loss."""
        if not self._seats.is_active:
            total = [*(torch.empty_like(p) for p in parameters), torch.empty((), device=share.t.device)]
        else:
            total = self._subtree(share, mean_loss, parameters)
        self._add_over_ranks(total)
        for p, gradient in zip(parameters, total, strict=False):
            p.grad = gradient
        return total[-1]

    def _subtree(
        self, share: Batch, mean_loss: Callable[[Batch], Tensor], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """The sum of the gradients, and of the loss, of this rank's reduce_leaves."""
        tree: list[tuple[int, list[Tensor]]] = []
        for first in range(0, len(share.t), self._size):
            loss = mean_loss(share.cut(slice(first, first + self._size))) * self._scale
            leaf = [*torch.autograd.grad(loss, parameters), loss.detach()]
            leaves = 1
            while tree and tree[-1][0] == leaves:
                leaf = list(torch._foreach_add(tree.pop()[1], leaf))
                leaves *= 2
            tree.append((leaves, leaf))
        ((_, total),) = tree
        return total

    def _add_over_ranks(self, tensors: Sequence[Tensor]) -> None:
        """Add, in place, what every rank holds, in pairs of ranks and of their sums; ranks without a
        shard_index are told the end.
        """
        if self._seats.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        for pair in self._pairs:
            dist.all_reduce(flat, group=pair)
        if self._seats.num_active < self._seats.world:
            dist.broadcast(flat, 0)
        for tensor, piece in zip(
            tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(piece.view(tensor.shape))


def _pairs(active_ranks: ActiveRanks) -> list[dist.ProcessGroup]:
    """This rank's partner at each height of the tree, as a group of two; every rank makes every group, in
    the same order.
    """
    mine = []
    distance = 1
    while distance < active_ranks.num_active:
        for one in range(active_ranks.num_active):
            if not one & distance:
                group = dist.new_group([one, one | distance])
                if active_ranks.rank in (one, one | distance):
                    mine.append(group)
        distance *= 2
    return mine
