"""What a training step minimises: draw noise and times, then the loss of one of the two processes."""

from __future__ import annotations

from typing import Protocol

import torch

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, Denoiser, GaussianDiffusion
from attnbench.diffusion.flow import Density, RectifiedFlow
from attnbench.specs import TrainSpec


class Objective(Protocol):
    """A training loss of a denoiser on clean examples."""

    def loss(self, denoiser: Denoiser, x0: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, a scalar in fp32; x0 is [B, C, H, W].

        Noise and times come from torch's global generator, before the denoiser is called: whatever
        a model draws afterwards, every model is trained on the same noise.
        """


class DdpmObjective:
    """Epsilon (and variance) prediction at uniform timesteps."""

    def __init__(self, *, learned_variance: bool, device: torch.device) -> None:
        self.process = GaussianDiffusion(learned_variance=learned_variance, device=device)

    def loss(self, denoiser: Denoiser, x0: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, a scalar in fp32; x0 is [B, C, H, W]."""
        noise = torch.randn_like(x0)
        step = torch.randint(NUM_TIMESTEPS, (len(x0),), device=x0.device)
        return self.process.training_loss(denoiser, x0, step, noise).mean()


class FlowObjective:
    """Velocity prediction of rectified flow."""

    def __init__(self, *, density: Density) -> None:
        self.process, self.density = RectifiedFlow(), density

    def loss(self, denoiser: Denoiser, x0: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, a scalar in fp32; x0 is [B, C, H, W]."""
        noise = torch.randn_like(x0)
        times = self.process.draw_times(len(x0), self.density, x0.device)
        return self.process.training_loss(denoiser, x0, times, noise).mean()


def build_objective(train: TrainSpec, *, learned_variance: bool, device: torch.device) -> Objective:
    """Return the objective that the training settings name."""
    if train.objective == "flow":
        return FlowObjective(density=train.timestep_density)
    return DdpmObjective(learned_variance=learned_variance, device=device)
