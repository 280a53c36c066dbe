"""Whole sampling runs of a real small transformer equal diffusers', step by step and seed by seed."""

import functools

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from attnbench.diffusion.ddpm import GaussianDiffusion, space_timesteps
from attnbench.diffusion.flow import RectifiedFlow
from attnbench.diffusion.samplers import ddim_steps, ddpm_steps, dpm_solver_steps, euler_steps, heun_steps
from attnbench.models import build_model
from attnbench.specs import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning:diffusers")
SHAPE = (2, 1, 8, 8)
LABELS = torch.tensor([1, 3])
EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
BETAS = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
LARGEST_INVERSE_SIGNAL = 160  # 1 / sqrt(alphas_cumprod) at the noisiest timestep: x_0 divides by it


@functools.cache
def transformer(learned_variance: bool, dtype: torch.dtype) -> torch.nn.Module:
    """A DiT of two blocks with random weights everywhere (an untrained one gives zeros)."""
    config = ModelConfig(
        name="small",
        depth=2,
        dim=16,
        num_heads=2,
        input="pixel",
        in_channels=1,
        learned_variance=learned_variance,
    )
    model = build_model(config, 8, 10, dtype=dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def denoiser_of(learned_variance: bool, dtype: torch.dtype = torch.float64):
    model = transformer(learned_variance, dtype)
    return lambda x, time: model(x, time.to(dtype), LABELS)


def draw(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def signal64() -> torch.Tensor:
    """alphas_cumprod in fp64, by numpy: diffusers' own table is rounded to fp32."""
    return torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))


def adm_spacing(num_steps: int) -> list[int]:
    """Timesteps of one section: a fractional stride, summed and then rounded (respace.py, in words)."""
    position, kept = 0.0, []
    while len(kept) < num_steps:
        kept.append(round(position))
        position += 999 / (num_steps - 1)
    return kept


@pytest.mark.parametrize("num_steps", [200, 250])
def test_timesteps_are_adms(num_steps):
    """The respaced timesteps are those of ADM's space_timesteps: both ends, uneven strides of 4 and 5."""
    found = space_timesteps(num_steps)
    assert found == adm_spacing(num_steps)
    assert (found[0], found[-1], set(np.diff(found))) == (0, 999, {4, 5} if num_steps == 250 else {5, 6})


@pytest.mark.parametrize("num_steps", [200, 250])
@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_sampling_equals_diffusers(num_steps, clip):
    """250 and 200 steps with learned range variance, in fp64, on the same noise at every step."""
    timesteps = adm_spacing(num_steps)
    scheduler = DDPMScheduler(**BETAS, variance_type="learned_range", clip_sample=clip)
    scheduler.alphas_cumprod = signal64()
    scheduler.set_timesteps(timesteps=timesteps[::-1])
    denoiser, theirs = denoiser_of(True), draw(9999)
    for index, timestep in enumerate(scheduler.timesteps):
        output = denoiser(theirs, timestep.expand(2))
        noise = torch.Generator().manual_seed(index)
        theirs = scheduler.step(output, timestep, theirs, generator=noise).prev_sample
    process = GaussianDiffusion(learned_variance=True, timesteps=timesteps, dtype=torch.float64)
    *_, last = ddpm_steps(denoiser, process, draw(9999), draw, clip=clip)
    # Each step rounds a few times, at most enlarged by 1 / signal; later steps shrink what came before.
    tolerance = 4 * num_steps * LARGEST_INVERSE_SIGNAL * EPS64
    torch.testing.assert_close(last.x, theirs, rtol=tolerance, atol=tolerance)


def test_ddim_equals_diffusers():
    """28 deterministic steps in fp64; diffusers needs a whole stride, which 999 / 27 = 37 is."""
    timesteps = space_timesteps(28)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod = signal64()
    scheduler.num_inference_steps = 1000 // 37  # diffusers steps down by 1000 // this
    denoiser, theirs = denoiser_of(False), draw(0)
    for timestep in reversed(timesteps):
        theirs = scheduler.step(denoiser(theirs, torch.full((2,), timestep)), timestep, theirs).prev_sample
    process = GaussianDiffusion(learned_variance=False, timesteps=timesteps, dtype=torch.float64)
    *_, last = ddim_steps(denoiser, process, draw(0), clip=False)
    tolerance = 4 * 28 * LARGEST_INVERSE_SIGNAL * EPS64
    torch.testing.assert_close(last.x, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_steps", [2, 10, 100])
def test_dpm_solver_equals_diffusers_pipeline(num_steps):
    """The trajectory is the one of diffusers' scheduler fed with epsilon, as its pipelines do."""
    scheduler = DPMSolverMultistepScheduler(**BETAS)
    scheduler.set_timesteps(num_steps)
    denoiser, theirs = denoiser_of(False, torch.float32), draw(0, torch.float32)
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(denoiser(theirs, timestep.expand(2)), timestep, theirs).prev_sample
    process = GaussianDiffusion(learned_variance=False)
    steps = list(dpm_solver_steps(denoiser, process, draw(0, torch.float32), num_steps=num_steps, clip=False))
    assert [step.timestep for step in steps] == scheduler.timesteps.tolist()
    # Their alphas_cumprod is a product of up to 1000 fp32 factors, and x_0 halves its relative error.
    tolerance = 500 * EPS32 * theirs.abs().max().item()
    torch.testing.assert_close(steps[-1].x, theirs, rtol=0, atol=tolerance)


def test_dpm_solver_takes_epsilon_of_a_model_with_variance():
    """A learned variance is cut off, for any number of channels, and x_0 is clipped for pixels."""
    process = GaussianDiffusion(learned_variance=True)
    denoiser = denoiser_of(True, torch.float32)
    steps = dpm_solver_steps(denoiser, process, draw(0, torch.float32), num_steps=5, clip=True)
    assert all(step.x0.abs().max() <= 1 and step.x.shape == SHAPE for step in steps)


def test_dpm_solver_needs_fewer_steps_than_ddim():
    """20 steps of second order come nearer to the limit (999 steps) than 20 of DDIM."""
    denoiser = denoiser_of(False, torch.float32)
    process = GaussianDiffusion(learned_variance=False)

    def solve(num_steps: int) -> torch.Tensor:
        *_, last = dpm_solver_steps(
            denoiser, process, draw(0, torch.float32), num_steps=num_steps, clip=False
        )
        return last.x

    short = GaussianDiffusion(learned_variance=False, timesteps=space_timesteps(20))
    *_, ddim = ddim_steps(denoiser, short, draw(0, torch.float32), clip=False)
    limit = solve(999)
    assert (solve(20) - limit).abs().max() < (ddim.x - limit).abs().max()


def seen(timestep: torch.Tensor) -> torch.Tensor:
    """What our models see of diffusers' timestep: never 1000 itself, but the number below."""
    return timestep.clamp(max=1000 * (1 - EPS32)).expand(2)


@pytest.mark.parametrize("num_steps", [1, 20, 50])
def test_euler_equals_diffusers(num_steps):
    """Equal steps of the flow are FlowMatchEulerDiscreteScheduler's for the same sigmas."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, num_steps + 1)[:-1].tolist())
    denoiser, theirs = denoiser_of(False, torch.float32), draw(0, torch.float32)
    *_, last = euler_steps(denoiser, RectifiedFlow(), theirs, num_steps=num_steps)
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(denoiser(theirs, seen(timestep)), timestep, theirs).prev_sample
    # a few roundings of x in each step
    tolerance = 8 * num_steps * EPS32 * theirs.abs().max().item()
    torch.testing.assert_close(last.x, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_evaluations", [1, 3, 49])
def test_heun_equals_diffusers(num_evaluations):
    """n model evaluations are FlowMatchHeunDiscreteScheduler's for (n + 1) / 2 sigmas."""
    sigmas = torch.linspace(1, 0, (num_evaluations + 1) // 2 + 1)
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    assert len(scheduler.timesteps) == num_evaluations
    denoiser, theirs = denoiser_of(False, torch.float32), draw(0, torch.float32)
    steps = list(heun_steps(denoiser, RectifiedFlow(), theirs, num_evaluations=num_evaluations))
    assert [step.index for step in steps] == list(range(num_evaluations))
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(denoiser(theirs, seen(timestep)), timestep, theirs).prev_sample
    tolerance = 8 * num_evaluations * EPS32 * theirs.abs().max().item()
    torch.testing.assert_close(steps[-1].x, theirs, rtol=0, atol=tolerance)


def test_heun_is_of_second_order():
    """On a smooth velocity, twice the steps leave a quarter of Heun's error and half of Euler's."""

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.sin(x + 2 * time.view(-1, 1, 1, 1) / 1000)

    def error_left(integrate) -> float:
        short, long, limit = (integrate(num_steps) for num_steps in (20, 40, 1000))
        return ((long - limit).norm() / (short - limit).norm()).item()

    def heun(num_steps: int) -> torch.Tensor:
        *_, last = heun_steps(velocity, RectifiedFlow(), draw(0), num_evaluations=2 * num_steps - 1)
        return last.x

    def euler(num_steps: int) -> torch.Tensor:
        *_, last = euler_steps(velocity, RectifiedFlow(), draw(0), num_steps=num_steps)
        return last.x

    assert error_left(heun) == pytest.approx(1 / 4, abs=0.05)
    assert error_left(euler) == pytest.approx(1 / 2, abs=0.05)
