"""The loss of one micro-batch as a module: model, objective, auxiliary losses and teacher in one pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attnbench.contract import AttentionContext
from attnbench.diffusion.objective import Objective
from attnbench.models.experts import DiffMoe
from attnbench.specs import TrainSpec
from attnbench.stages.training.batches import MicroBatch
from attnbench.stages.training.distillation import Distillation
from attnbench.stages.training.over_processes import MeanOverProcesses

Recorder = Callable[[str, torch.Tensor], None]


class TrainingLoss(nn.Module):
    """MicroBatch -> mean loss, a scalar in fp32; auxiliary losses are in the output, so that DDP sees them.

    With several processes, each builds it and calls it on its part, of one size; losses and gradients
    averaged over them are those of all parts together. With `compile`, a pass with a recorder runs
    uncompiled: a recorder is a Python call per tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSpec,
        device: torch.device,
        processes: int,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.shared: dict[str, Any] = {}  # what the model is told where there are several processes
        if processes > 1:
            model.mean_over_processes = MeanOverProcesses()  # there `work_alone` finds it
            self.shared["mean_over_processes"] = model.mean_over_processes
            self.shared["gather_over_processes"] = model.mean_over_processes.gather
        if settings.activation_checkpointing:
            recompute_blocks(model)
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=True
        )
        self.distillation = distillation
        # in a tuple, or it would be a second submodule with the same parameters
        self._fast = (torch.compile(model) if settings.compile else model,)

    def forward(self, part: MicroBatch, recorder: Recorder | None = None) -> torch.Tensor:
        """Return the mean loss of a part, its auxiliary losses and the distances to the teacher."""
        auxiliary: list[torch.Tensor] = []

        def keep(name: str, value: torch.Tensor) -> None:
            auxiliary.append(value)

        def student(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with self.autocast:
                if recorder is None:
                    return self._fast[0](x, t, part.labels, loss_sink=keep, **self.shared)
                return self.model(x, t, part.labels, loss_sink=keep, recorder=recorder, **self.shared)

        def taught(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            assert self.distillation is not None
            lesson = self.distillation.ask(x, t, part.labels, self.autocast)
            with self.distillation.listen() as features:
                output = student(x, t)
            for name, term in self.distillation.terms(output, features, lesson).items():
                keep(f"teacher.{name}", term)
                if recorder is not None:
                    recorder(f"teacher.{name}", term.detach())
            return output

        denoiser = student if self.distillation is None else taught
        losses = self.objective.losses(denoiser, part.x0, part.times, part.noise)
        return sum(auxiliary, start=losses.mean())


def recompute_blocks(model: nn.Module) -> None:
    """Let a model's blocks compute their activations again in the backward pass instead of keeping them."""
    for block in cast("nn.ModuleList", model.blocks):
        block.forward = _Recomputed(block)


class _Recomputed:
    """A block's forward under torch.utils.checkpoint that tells sinks and moving averages nothing twice."""

    def __init__(self, block: nn.Module) -> None:
        self._forward = block.forward
        self._norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        self._following = [module for module in block.modules() if isinstance(module, DiffMoe)]
        self._again = False

    def __call__(self, x: torch.Tensor, context: AttentionContext, *more: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return self._forward(x, context, *more)
        return checkpoint(self._run, x, context, *more, use_reentrant=False, context_fn=self._contexts)

    def _run(self, x: torch.Tensor, context: AttentionContext, *more: torch.Tensor) -> torch.Tensor:
        if self._again:
            context = dataclasses.replace(
                context,
                recorder=None if context.recorder is None else _ignore,
                loss_sink=None if context.loss_sink is None else _ignore,
            )
        return self._forward(x, context, *more)

    def _contexts(self) -> tuple[Any, Any]:
        return contextlib.nullcontext(), self._second_time()

    @contextlib.contextmanager
    def _second_time(self) -> Iterator[None]:
        before = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        self._again = True
        for module in self._following:
            module.moves_statistics = False
        for norm in self._norms:  # running statistics move by nothing and count nothing
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            self._again = False
            for module in self._following:
                module.moves_statistics = True
            for norm, (momentum, count) in zip(self._norms, before, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, count


def _ignore(name: str, value: torch.Tensor) -> None:
    """Take what has been told already."""
