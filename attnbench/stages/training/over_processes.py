"""Means over all processes that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class MeanOverProcesses(nn.Module):
    """Tensor -> its mean over all processes, the same in each, as AttentionContext.mean_over_processes.

    Build it and call it in every process, in the same order, with tensors of one shape and dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.group = dist.new_group()  # of its own: gradients are averaged in another order
        self.is_alone = False

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean, or the value itself in a process that works alone."""
        return value if self.is_alone else mean_over_processes(value, self.group)

    @torch.compiler.disable  # what follows has shapes that are data, and ends the graph in any case
    @torch.no_grad()
    def gather(self, value: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return all processes' values, [processes, ...], and the place of this one's; no gradient flows."""
        if self.is_alone:
            return value.unsqueeze(0), 0
        own = value.contiguous()
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(everyone, own, group=self.group)
        return torch.stack(everyone), dist.get_rank(self.group)

    def work_alone(self) -> None:
        """Wait for no other process from now on."""
        self.is_alone = True


def mean_over_processes(value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the mean of all processes' values, the same in each, in the value's shape and dtype.

    Training with it gives the gradient of the whole batch. Its loss is T = (1/P) sum_p L_p, where the loss
    L_p of process p may use a mean m = (1/P) sum_q m_q; only process q computes m_q, but every L_p depends
    on it: dT/dm_q = (1/P) sum_p (1/P) dL_p/dm. Backward, the division below leaves (1/P) dL_p/dm in process
    p, and the sum gives process q the sum of these over p, which is P dT/dm_q. What process q passes on to
    its weights is P times too large, as is what it passes on from its own terms of L_q (dL_q = P dT there):
    averaging the gradients over processes, as data-parallel training does, divides both by P.
    """
    total: torch.Tensor = _SumOverProcesses.apply(value, group)
    return total / dist.get_world_size(group)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of every process's tensor; its gradient is the sum of every process's gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(gradients[0], ctx.group), None


def _sum(value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    total = value.clone(memory_format=torch.contiguous_format)  # what a collective takes
    dist.all_reduce(total, group=group)
    return total
