"""One training over several processes (one a GPU): each embeds its share of a step's texts, all of them see all
embeddings.

The batch, its in-batch negatives and the loss are those of one process; only the work of the backbone is divided.
Processes are started by torchrun, found by accelerate, and differ in nothing but their rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from d2llm.run.errors import ConfigError

Rows = list[tuple[int, ...]]


class Shares:
    """Divides rows among `world` processes, of which this is number `rank`."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def embed(self, rows: Rows, embed: Callable[[Rows], Tensor]) -> Tensor:
        """Embeddings (n, d) of rows sorted by length: every process embeds each `world`-th, so that all have as much to
        do.

        Raises ConfigError where there are fewer rows than processes.
        """
        if len(rows) < self.world:
            raise ConfigError(
                f"training.processes: {self.world} processes, but a step has {len(rows)} different texts; lower it"
            )
        own = embed(rows[self.rank :: self.world])
        return _Gather.apply(own, len(rows), self.rank, self.world)

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """After the backward pass: the mean over processes of every gradient, which is the gradient of the
        whole batch.
        """
        members = [p for p in parameters if p.requires_grad]
        there = torch.tensor([p.grad is not None for p in members], dtype=torch.int32, device=members[0].device)
        distributed.all_reduce(there, op=distributed.ReduceOp.MAX)
        used = [p for p, has in zip(members, there.tolist(), strict=True) if has]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in used])
        distributed.all_reduce(flat)
        flat /= self.world
        for p, part in zip(used, flat.split([p.numel() for p in used]), strict=True):
            p.grad = part.view_as(p).clone()


class _Gather(torch.autograd.Function):
    """All processes' embeddings in the order of the rows.

    Every process takes the same loss of them all, so the gradient at its own is complete here; it is sent on `world`
    times as large, because the parts' gradients are averaged in the end and belong added up, while those of the scorer
    are whole everywhere.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int, rank: int, world: int) -> Tensor:
        ctx.rank, ctx.world = rank, world
        longest = -(-count // world)
        padded = own.new_zeros(longest, own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(world)]
        distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient[ctx.rank :: ctx.world] * ctx.world, None, None, None
