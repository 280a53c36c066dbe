"""Samplers as generators: each yields one `SamplerStep` per model evaluation, from noise to data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, Denoiser, GaussianDiffusion, linear_betas
from attnbench.diffusion.flow import RectifiedFlow

NoiseAt = Callable[[int], torch.Tensor]  # step index -> [B, C, H, W]


@dataclass(frozen=True, kw_only=True)
class SamplerStep:
    """One model evaluation: `x` is the state after it, `x0` the guess of the data, both [B, C, H, W]."""

    index: int
    """Model evaluations before this one: 0 for the first (pure noise goes in)."""
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
    for index, step, timestep in _descend(process, x):
        predicted = process.posterior(denoiser(x, process.time_of(step)), x, step, clip)
        x = predicted.mean
        if index < process.num_steps - 1:
            x = x + torch.exp(0.5 * predicted.log_variance) * noise_at(index)
        yield SamplerStep(index=index, timestep=timestep, x=x, x0=predicted.x0)


def ddim_steps(
    denoiser: Denoiser, process: GaussianDiffusion, x: torch.Tensor, *, clip: bool
) -> Iterator[SamplerStep]:
    """Deterministic sampling (eta = 0). Source: arXiv:2010.02502, eq. 12."""
    for index, step, timestep in _descend(process, x):
        x0 = process.posterior(denoiser(x, process.time_of(step)), x, step, clip).x0
        noise = process.noise_from_x0(x, step, x0)  # again from x0, which may have been clipped
        kept = process.alphas_cumprod_prev[step].view(-1, 1, 1, 1)
        x = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
        yield SamplerStep(index=index, timestep=timestep, x=x, x0=x0)


def dpm_solver_steps(
    denoiser: Denoiser, process: GaussianDiffusion, x: torch.Tensor, *, num_steps: int, clip: bool
) -> Iterator[SamplerStep]:
    """DPM-Solver++(2M), deterministic, by diffusers; `process` is the whole chain of 1000 steps.

    The timesteps are the library's (`linspace`: 999 first, then one first-order step to sigma 0), and
    so are its coefficients. Source: arXiv:2211.01095, algorithm 2.
    """
    from diffusers import DPMSolverMultistepScheduler

    first_beta, last_beta = linear_betas()[[0, -1]].tolist()
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=first_beta,
        beta_end=last_beta,
        beta_schedule="linear",
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="sample",  # x_0 comes from our process, which knows clipping and learned variance
    )
    solver.set_timesteps(num_steps)
    for index, timestep in enumerate(solver.timesteps.tolist()):
        step = torch.full((len(x),), timestep, device=x.device)
        x0 = process.posterior(denoiser(x, process.time_of(step)), x, step, clip).x0
        x = solver.step(x0, timestep, x).prev_sample
        yield SamplerStep(index=index, timestep=float(timestep), x=x, x0=x0)


def euler_steps(
    denoiser: Denoiser, process: RectifiedFlow, x: torch.Tensor, *, num_steps: int
) -> Iterator[SamplerStep]:
    """Integrate the flow from noise (t = 1) to data (t = 0) in equal Euler steps."""
    for index, (now, after) in enumerate(_equal_intervals(num_steps)):
        velocity, timestep = _velocity(denoiser, process, x, now)
        x0 = x - now * velocity
        x = x + (after - now) * velocity
        yield SamplerStep(index=index, timestep=timestep, x=x, x0=x0)


def heun_steps(
    denoiser: Denoiser, process: RectifiedFlow, x: torch.Tensor, *, num_evaluations: int
) -> Iterator[SamplerStep]:
    """Integrate the flow in (`num_evaluations` + 1) / 2 equal Heun steps, the last one an Euler step.

    Two evaluations a step, an Euler prediction and its trapezoidal correction, and one for the last;
    so `num_evaluations` is odd. Each evaluation yields; x after the first of a pair is the prediction.
    Source: arXiv:2206.00364, algorithm 1, on the velocity of a flow, in equal steps of t.
    """
    index = 0
    for now, after in _equal_intervals((num_evaluations + 1) // 2):
        slope, timestep = _velocity(denoiser, process, x, now)
        predicted = x + (after - now) * slope
        yield SamplerStep(index=index, timestep=timestep, x=predicted, x0=x - now * slope)
        index += 1
        if after == 0:
            return
        end_slope, timestep = _velocity(denoiser, process, predicted, after)
        x = x + (after - now) * (slope + end_slope) / 2
        yield SamplerStep(index=index, timestep=timestep, x=x, x0=predicted - after * end_slope)
        index += 1


def _equal_intervals(num: int) -> Iterable[tuple[float, float]]:
    """Return the `num` pairs of times from 1 to 0."""
    return itertools.pairwise(torch.linspace(1, 0, num + 1, dtype=torch.float64).tolist())


def _velocity(
    denoiser: Denoiser, process: RectifiedFlow, x: torch.Tensor, now: float
) -> tuple[torch.Tensor, float]:
    """Return the model's velocity at time `now`, and the time that it saw."""
    seen = process.time_of(torch.tensor(now, dtype=x.dtype)).item()  # asking the device would wait for it
    time = torch.full((len(x),), seen, dtype=x.dtype, device=x.device)
    return process.velocity(denoiser(x, time), x), seen


def _descend(process: GaussianDiffusion, x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, float]]:
    """Yield (index, process step [B], time the model sees) from the noisiest step to the last."""
    for index in range(process.num_steps):
        step = process.num_steps - 1 - index
        yield index, torch.full((len(x),), step, device=x.device), float(process.timestep_list[step])
