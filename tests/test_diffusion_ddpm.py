"""The Gaussian process: tables and steps equal diffusers', the loss equals its formulas."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from attnbench.diffusion.ddpm import GaussianDiffusion, linear_betas, space_timesteps
from attnbench.errors import UserInputError

SHAPE = (3, 2, 4, 4)


def diffusers_ddpm(variance_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        variance_type=variance_type,
        clip_sample=False,
    )


def test_signal_table_equals_diffusers():
    """alphas_cumprod agrees with diffusers, which accumulates in fp32: 1000 factors, eps each."""
    ours = GaussianDiffusion(learned_variance=True, dtype=torch.float64).alphas_cumprod
    theirs = diffusers_ddpm("learned_range").alphas_cumprod.double()
    torch.testing.assert_close(ours, theirs, rtol=1000 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("step", [1, 17, 500, 999])
@pytest.mark.parametrize("kind", ["learned_range", "fixed_small"])
def test_posterior_equals_diffusers_step(step: int, kind: str):
    """Mean and variance of one reverse step are diffusers' (noise of one and zero seed apart)."""
    torch.manual_seed(step)
    learned = kind == "learned_range"
    x = torch.randn(SHAPE)
    output = torch.randn(3, 4 if learned else 2, 4, 4)
    ours = GaussianDiffusion(learned_variance=learned).posterior(output, x, torch.full((3,), step))
    scheduler = diffusers_ddpm(kind)
    result = scheduler.step(output, step, x, generator=torch.Generator().manual_seed(0)).prev_sample
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    mine = ours.mean + torch.exp(0.5 * ours.log_variance) * noise
    # x0 divides by the signal, 0.006 at step 999: fp32 rounding (and that of their table) times 160.
    torch.testing.assert_close(mine, result, rtol=1e-4, atol=1e-4)


def slow_bound(raw: float, eps: float, x0: float, noise: float, step: int) -> float:
    """One dimension's term of the bound in bits, written from the formulas in Python floats."""
    betas = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
    signal = [math.prod(1 - b for b in betas[: i + 1]) for i in (*range(0, 2), step)]
    now, before = signal[2], math.prod(1 - b for b in betas[:step])
    beta = betas[step]
    x = math.sqrt(now) * x0 + math.sqrt(1 - now) * noise
    guess = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)

    def mean(clean: float) -> float:
        of_x0 = math.sqrt(before) * beta / (1 - now)
        return of_x0 * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x

    small = beta * (1 - before) / (1 - now) if step else betas[1] * (1 - signal[0]) / (1 - signal[1])
    variance = math.exp((raw + 1) / 2 * math.log(beta) + (1 - raw) / 2 * math.log(small))
    if step:
        ratio = small / variance
        distance = (mean(x0) - mean(guess)) ** 2 / variance
        return 0.5 * (ratio + distance - 1 - math.log(ratio)) / math.log(2)

    def cdf(z: float) -> float:
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    std = math.sqrt(variance)
    upper = 1.0 if x0 > 0.999 else cdf((x0 - mean(guess) + 1 / 255) / std)
    lower = 0.0 if x0 < -0.999 else cdf((x0 - mean(guess) - 1 / 255) / std)
    return -math.log(max(upper - lower, 1e-12)) / math.log(2)


@pytest.mark.parametrize("step", [0, 1, 2, 300, 999])
@pytest.mark.parametrize("x0", [-1.0, 0.2, 1.0])
def test_bound_equals_slow_transcription(step: int, x0: float):
    """The variational term equals a scalar transcription of its formulas, both in fp64."""
    raw, eps, noise = -0.3, 0.4, 0.6
    process = GaussianDiffusion(learned_variance=True, dtype=torch.float64)

    def full(value: float) -> torch.Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float64)

    steps = torch.tensor([step])
    x = process.add_noise(full(x0), steps, full(noise))
    predicted = process.posterior(torch.cat([full(eps), full(raw)], dim=1), x, steps)
    bound = process.variational_bound(predicted, full(x0), x, steps)
    assert bound.item() == pytest.approx(slow_bound(raw, eps, x0, noise, step), rel=1e-8)


def test_loss_is_mse_plus_bound():
    """The training loss of a sample is the mean squared error of epsilon plus its bound."""
    torch.manual_seed(0)
    process = GaussianDiffusion(learned_variance=True, dtype=torch.float64)
    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64)
    output, step = torch.randn(3, 4, 4, 4, dtype=torch.float64), torch.tensor([0, 400, 999])
    loss = process.training_loss(lambda x, time: output, x0, step, noise)
    x = process.add_noise(x0, step, noise)
    bound = process.variational_bound(process.posterior(output, x, step), x0, x, step)
    mse = (output[:, :2] - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, mse + bound)


def test_bound_gives_epsilon_no_gradient():
    """Epsilon's gradient is that of the squared error alone; the variance gets one of its own."""
    torch.manual_seed(0)
    process = GaussianDiffusion(learned_variance=True)
    x0, noise = torch.randn(2, *SHAPE)
    output = torch.randn(3, 4, 4, 4, requires_grad=True)
    process.training_loss(lambda x, t: output, x0, torch.tensor([3, 400, 999]), noise).sum().backward()
    numel = x0[0].numel()
    torch.testing.assert_close(output.grad[:, :2], 2 * (output[:, :2] - noise).detach() / numel)
    assert output.grad[:, 2:].abs().min() > 0


@pytest.mark.parametrize(("learned", "channels"), [(True, 2), (False, 4), (True, 3)])
def test_wrong_output_shape_is_told(learned: bool, channels: int):
    """An output without (or with an unwanted) variance is one error naming the setting."""
    process = GaussianDiffusion(learned_variance=learned)
    with pytest.raises(UserInputError, match="learned_variance"):
        process.split_output(torch.zeros(3, channels, 4, 4), torch.zeros(SHAPE))


def test_respacing_keeps_both_ends_and_the_signal():
    """A respaced chain holds the first and last timestep and the original signal at each kept one."""
    timesteps = space_timesteps(25)
    assert (timesteps[0], timesteps[-1], len(set(timesteps))) == (0, 999, 25)
    short = GaussianDiffusion(learned_variance=True, timesteps=timesteps)
    whole = GaussianDiffusion(learned_variance=True)
    assert torch.equal(short.alphas_cumprod, whole.alphas_cumprod[timesteps])
    assert short.time_of(torch.tensor([24])).item() == 999
    assert space_timesteps(1000) == list(range(1000))


@pytest.mark.parametrize("num_steps", [1, 1001])
def test_impossible_respacing_is_told(num_steps: int):
    """Numbers of steps that no respacing gives are errors, not other numbers of steps."""
    with pytest.raises(UserInputError, match=f"got {num_steps}"):
        space_timesteps(num_steps)


def test_betas_are_fp64():
    """The schedule is made in fp64: its first value is 1e-4 to 16 digits."""
    assert linear_betas()[0].item() == 1e-4
