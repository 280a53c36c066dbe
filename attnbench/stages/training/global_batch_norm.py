"""BatchNorm over the batch of all processes, so that their number changes no number."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.stages.training.over_processes import MeanOverProcesses, mean_over_processes


class GlobalBatchNorm(_BatchNorm):
    """A BatchNorm whose statistics in training are those of all processes' inputs together.

    x [B, C, ...] of the same B in every process; statistics in fp32 (fp64 for fp64), in two passes. What
    torch.nn.SyncBatchNorm is on GPUs, for any process group; outside training it is the plain layer.
    """

    group: dist.ProcessGroup
    plain_class: type[_BatchNorm]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised input, in its dtype and shape."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [dim for dim in range(x.ndim) if dim != 1]
        mean = self._mean(x, dims)
        centred = x - _column(mean, x.ndim)
        variance = self._mean(centred.square(), dims)
        if self.track_running_stats:
            count = x.numel() // x.shape[1] * dist.get_world_size(self.group)
            self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        y = centred * _column((variance + self.eps).rsqrt(), x.ndim)
        if self.affine:
            y = torch.addcmul(_column(self.bias, x.ndim), y, _column(self.weight, x.ndim))
        return y.to(input.dtype)

    def _mean(self, x: torch.Tensor, dims: list[int]) -> torch.Tensor:
        return mean_over_processes(x.mean(dims), self.group)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        rate = self.momentum
        if rate is None:
            assert self.num_batches_tracked is not None
            rate = 1 / float(self.num_batches_tracked)
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now.to(running.dtype), rate)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Take any number of dimensions."""


def use_global_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm of a model see the batch of all processes; call it in all of them."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    group = dist.new_group()  # of their own: gradients are summed in another order
    for norm in norms:
        norm.plain_class = type(norm)  # type: ignore[assignment]
        norm.__class__ = GlobalBatchNorm
        norm.group = group


def work_alone(model: nn.Module) -> None:
    """Let a model, its BatchNorm and auxiliary losses included, run in this process without the others."""
    for module in model.modules():
        if isinstance(module, GlobalBatchNorm):
            module.__class__ = module.plain_class  # type: ignore[assignment]
        elif isinstance(module, MeanOverProcesses):
            module.work_alone()


def _column(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """Return per-channel values [C] as [1, C, 1, ...] with `ndim` dimensions."""
    return values.view(1, -1, *[1] * (ndim - 2))
