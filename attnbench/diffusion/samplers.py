"""Samplers as generators: each yields one `SamplerStep` per model evaluation, from noise to data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from attnbench.diffusion.ddpm import Denoiser, GaussianDiffusion
from attnbench.diffusion.flow import RectifiedFlow

NoiseAt = Callable[[int], torch.Tensor]  # step index -> [B, C, H, W]


@dataclass(frozen=True, kw_only=True)
class SamplerStep:
    """One step: `x` is the state after it, `x0` the model's guess of the data, both [B, C, H, W]."""

    index: int
    """0 for the first step (pure noise goes in), counting up."""
    timestep: float
    """The time the model saw, in [0, 1000)."""
    x: torch.Tensor
    x0: torch.Tensor


def ddpm_steps(
    denoiser: Denoiser, process: GaussianDiffusion, x: torch.Tensor, noise_at: NoiseAt, *, clip: bool
) -> Iterator[SamplerStep]:
    """Ancestral sampling; `noise_at(index)` is asked for every step but the last.

    Source: arXiv:2006.11239, algorithm 2, respaced as in arXiv:2102.09672 (section 4).
    """
    for index, step, time in _descend(process, x):
        predicted = process.posterior(denoiser(x, time), x, step, clip)
        x = predicted.mean
        if index < process.num_steps - 1:
            x = x + torch.exp(0.5 * predicted.log_variance) * noise_at(index)
        yield SamplerStep(index=index, timestep=float(time[0]), x=x, x0=predicted.x0)


def ddim_steps(
    denoiser: Denoiser, process: GaussianDiffusion, x: torch.Tensor, *, clip: bool
) -> Iterator[SamplerStep]:
    """Deterministic sampling (eta = 0). Source: arXiv:2010.02502, eq. 12."""
    for index, step, time in _descend(process, x):
        x0 = process.posterior(denoiser(x, time), x, step, clip).x0
        noise = process.noise_from_x0(x, step, x0)  # again from x0, which may have been clipped
        kept = process.alphas_cumprod_prev[step].view(-1, 1, 1, 1)
        x = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
        yield SamplerStep(index=index, timestep=float(time[0]), x=x, x0=x0)


def euler_steps(
    denoiser: Denoiser, process: RectifiedFlow, x: torch.Tensor, *, num_steps: int
) -> Iterator[SamplerStep]:
    """Integrate the flow from noise (t = 1) to data (t = 0) in equal Euler steps."""
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    for index, (now, after) in enumerate(itertools.pairwise(times)):
        model_time = process.time_of(torch.full((len(x),), now, dtype=x.dtype, device=x.device))
        velocity = process.velocity(denoiser(x, model_time), x)
        x0 = x - now * velocity
        x = x + (after - now) * velocity
        yield SamplerStep(index=index, timestep=float(model_time[0]), x=x, x0=x0)


def _descend(process: GaussianDiffusion, x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (index, process step [B], time the model sees [B]) from the noisiest step to the last."""
    for index in range(process.num_steps):
        step = torch.full((len(x),), process.num_steps - 1 - index, device=x.device)
        yield index, step, process.time_of(step)
