"""What a training step minimises: draw noise and times, then the loss of one of the two processes."""

from __future__ import annotations

from typing import Protocol

import torch

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, Denoiser, GaussianDiffusion
from attnbench.diffusion.flow import Density, RectifiedFlow
from attnbench.specs import TrainSpec

CPU = torch.device("cpu")


class Objective(Protocol):
    """A training loss of a denoiser on clean examples."""

    def draw_times(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the training times of `num` examples from a CPU generator, [num]."""

    def spread_times(self, num: int) -> torch.Tensor:
        """Return the middles of `num` equal parts of the process, [num], as `losses` takes them."""

    def losses(
        self, denoiser: Denoiser, x0: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each example, [B] fp32; x0 and noise are [B, C, H, W], times [B]."""


class DdpmObjective:
    """Epsilon (and variance) prediction at uniform timesteps."""

    def __init__(self, *, learned_variance: bool, device: torch.device) -> None:
        self.process = GaussianDiffusion(learned_variance=learned_variance, device=device)

    def draw_times(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw timesteps int64 [num] in [0, 1000) from a CPU generator."""
        return torch.randint(NUM_TIMESTEPS, (num,), generator=generator)

    def spread_times(self, num: int) -> torch.Tensor:
        """Return the middles of `num` equal parts of the process, rounded down, int64 [num]."""
        return ((torch.arange(num) + 0.5) * NUM_TIMESTEPS / num).long()

    def losses(
        self, denoiser: Denoiser, x0: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each example, [B] fp32; x0 and noise are [B, C, H, W], times int64 [B]."""
        return self.process.training_loss(denoiser, x0, times, noise)


class FlowObjective:
    """Velocity prediction of rectified flow."""

    def __init__(self, *, density: Density) -> None:
        self.process, self.density = RectifiedFlow(), density

    def draw_times(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw times [num] in [0, 1] from a CPU generator."""
        return self.process.draw_times(num, self.density, CPU, generator)

    def spread_times(self, num: int) -> torch.Tensor:
        """Return the middles of `num` equal parts of [0, 1], [num]."""
        return (torch.arange(num) + 0.5) / num

    def losses(
        self, denoiser: Denoiser, x0: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of each example, [B] fp32; x0 and noise are [B, C, H, W], times [B]."""
        return self.process.training_loss(denoiser, x0, times, noise)


def build_objective(train: TrainSpec, *, learned_variance: bool, device: torch.device) -> Objective:
    """Return the objective that the training settings name."""
    if train.objective == "flow":
        return FlowObjective(density=train.timestep_density)
    return DdpmObjective(learned_variance=learned_variance, device=device)
