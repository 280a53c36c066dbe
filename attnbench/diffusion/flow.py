"""Rectified flow: straight paths between data and noise, and the velocity the model learns.

Sources: arXiv:2209.03003; logit-normal times arXiv:2403.03206 (section 3.1).
"""

from __future__ import annotations

from typing import Literal

import torch

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, Denoiser
from attnbench.errors import UserInputError

Density = Literal["uniform", "logit-normal"]


class RectifiedFlow:
    """x_t = (1 - t) x_0 + t noise for t in [0, 1]; the model predicts v = noise - x_0."""

    def time_of(self, t: torch.Tensor) -> torch.Tensor:
        """Return what the model sees: 1000 t, kept in [0, 1000) like a DDPM's timestep, [B]."""
        return (t * NUM_TIMESTEPS).clamp(max=NUM_TIMESTEPS * (1 - torch.finfo(t.dtype).eps))

    def draw_times(
        self, num: int, density: Density, device: torch.device, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Draw training times from a generator of that device (none: torch's global one), [num] in [0, 1]."""
        if density == "uniform":
            return torch.rand(num, device=device, generator=generator)
        return torch.randn(num, device=device, generator=generator).sigmoid()

    def add_noise(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return x_t, [B, C, H, W]."""
        return torch.lerp(x0, noise, t.view(-1, 1, 1, 1))

    def velocity(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Check a model's output; raises UserInputError when it is not shaped like its input."""
        if output.shape != x.shape:
            raise UserInputError(
                f"a flow's denoiser must return {list(x.shape)}, got {list(output.shape)}; "
                "rectified flow learns no variance: set the model's learned_variance to false"
            )
        return output

    def training_loss(
        self, denoiser: Denoiser, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean squared error of the velocity, [B] fp32."""
        x = self.add_noise(x0, t, noise)
        velocity = self.velocity(denoiser(x, self.time_of(t)).to(x.dtype), x)
        return (noise - x0 - velocity).square().flatten(1).mean(1)
