"""The samplers: exact models give back the data's distribution; steps are numbered and timed."""

import pytest
import torch

from attnbench.diffusion.ddpm import GaussianDiffusion, space_timesteps
from attnbench.diffusion.flow import RectifiedFlow
from attnbench.diffusion.samplers import ddim_steps, ddpm_steps, dpm_solver_steps, euler_steps, heun_steps

MEAN, STD = 0.3, 0.5  # of the Gaussian data
SHAPE = (20, 1, 32, 32)
COUNT = 20 * 32 * 32
SIGNAL = GaussianDiffusion(learned_variance=False).alphas_cumprod


def best_noise(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """E[noise | x_t] for Gaussian data."""
    signal = SIGNAL[time.long()].view(-1, 1, 1, 1)
    return (1 - signal).sqrt() * (x - signal.sqrt() * MEAN) / (signal * STD**2 + 1 - signal)


def best_velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """E[noise - x_0 | x_t] for Gaussian data on straight paths."""
    t = (time / 1000).view(-1, 1, 1, 1)
    centred = (x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2)
    return t * centred - (MEAN + (1 - t) * STD**2 * centred)


def start() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def assert_is_data(x: torch.Tensor, discretisation: float) -> None:
    """Mean and spread are the data's within four standard errors and the integrator's own error."""
    error = STD / COUNT**0.5
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * error + discretisation)
    assert x.std().item() == pytest.approx(STD, abs=4 * error + discretisation)


def test_ancestral_sampling_gives_the_data():
    """DDPM with the exact epsilon gives back mean and spread (of the chain's own first-order error)."""
    process = GaussianDiffusion(learned_variance=False)
    generator = torch.Generator().manual_seed(1)
    steps = ddpm_steps(
        best_noise, process, start(), lambda i: torch.randn(SHAPE, generator=generator), clip=False
    )
    *_, last = steps
    assert_is_data(last.x, discretisation=0.01)


def test_ddim_gives_the_data():
    """DDIM with the exact epsilon gives back mean and spread; 500 steps err at the percent level."""
    process = GaussianDiffusion(learned_variance=False, timesteps=space_timesteps(500))
    *_, last = ddim_steps(best_noise, process, start(), clip=False)
    assert_is_data(last.x, discretisation=0.01)


def test_dpm_solver_gives_the_data():
    """DPM-Solver++ with the exact epsilon gives back mean and spread, in 50 steps to a percent."""
    process = GaussianDiffusion(learned_variance=False)
    *_, last = dpm_solver_steps(best_noise, process, start(), num_steps=50, clip=False)
    assert_is_data(last.x, discretisation=0.01)


def test_heun_gives_the_data():
    """Heun with the exact velocity gives back mean and spread, in 39 evaluations to a percent."""
    *_, last = heun_steps(best_velocity, RectifiedFlow(), start(), num_evaluations=39)
    assert_is_data(last.x, discretisation=0.01)


def test_euler_gives_the_data():
    """Euler with the exact velocity gives back mean and spread, and errs less with more steps."""
    errors = []
    for num_steps in (10, 100):
        *_, last = euler_steps(best_velocity, RectifiedFlow(), start(), num_steps=num_steps)
        errors.append(abs(last.x.std().item() - STD))
    assert_is_data(last.x, discretisation=0.01)
    assert errors[1] < errors[0] / 3  # first order: a tenth, but for the samples' own error


def test_euler_is_exact_on_one_point():
    """All data at one point make straight paths: a single Euler step lands on it."""
    noise = torch.randn(3, 2, 4, 4)
    *_, last = euler_steps(lambda x, t: noise - 0.7, RectifiedFlow(), noise, num_steps=1)
    torch.testing.assert_close(last.x, torch.full_like(noise, 0.7))


def test_steps_are_numbered_and_timed():
    """Every sampler yields one step per evaluation, index rising, timestep falling within [0, 1000)."""
    process = GaussianDiffusion(learned_variance=False, timesteps=space_timesteps(5))
    whole = GaussianDiffusion(learned_variance=False)
    x = torch.zeros(2, 1, 2, 2)
    zero = torch.zeros_like
    runs = [
        list(ddpm_steps(lambda x, t: zero(x), process, x, lambda i: zero(x), clip=True)),
        list(ddim_steps(lambda x, t: zero(x), process, x, clip=True)),
        list(euler_steps(lambda x, t: zero(x), RectifiedFlow(), x, num_steps=5)),
        list(heun_steps(lambda x, t: zero(x), RectifiedFlow(), x, num_evaluations=5)),
        list(dpm_solver_steps(lambda x, t: zero(x), whole, x, num_steps=5, clip=True)),
    ]
    for steps in runs:
        times = [step.timestep for step in steps]
        assert [step.index for step in steps] == list(range(5))
        assert times == sorted(times, reverse=True)
        assert 999 <= times[0] < 1000
        assert times[-1] >= 0


def test_ancestral_noise_is_asked_for_every_step_but_the_last():
    """The last step adds no noise and asks for none."""
    asked: list[int] = []
    process = GaussianDiffusion(learned_variance=False, timesteps=space_timesteps(4))
    x = torch.zeros(1, 1, 2, 2)

    def noise_at(index: int) -> torch.Tensor:
        asked.append(index)
        return torch.ones_like(x)

    *_, last = ddpm_steps(lambda x, t: torch.zeros_like(x), process, x, noise_at, clip=False)
    assert asked == [0, 1, 2]
    torch.testing.assert_close(last.x, last.x0)


def test_clipping_keeps_the_guess_in_range():
    """With `clip`, the guess of the data stays in [-1, 1] whatever the model says."""
    process = GaussianDiffusion(learned_variance=False, timesteps=space_timesteps(3))
    for step in ddim_steps(lambda x, t: 9 * x, process, torch.randn(2, 1, 4, 4), clip=True):
        assert step.x0.abs().max() <= 1


def test_dpm_solver_takes_up_to_999_distinct_timesteps():
    """With the most steps that are allowed no timestep comes twice, which would divide by zero."""
    process = GaussianDiffusion(learned_variance=False)
    x = torch.randn(1, 1, 1, 1)
    steps = list(dpm_solver_steps(lambda x, t: 0 * x, process, x, num_steps=999, clip=True))
    assert len({step.timestep for step in steps}) == 999
    assert steps[-1].x.isfinite().all()


@pytest.mark.parametrize("sampler", [ddpm_steps, ddim_steps, euler_steps, heun_steps])
def test_no_step_asks_the_device_for_a_number(sampler, monkeypatch):
    """Reading one value of a tensor on a GPU waits for everything before it: no step does."""
    x = torch.zeros(2, 1, 4, 4, device="meta")  # it has no values: reading one is an error
    process = GaussianDiffusion(learned_variance=False, device="meta")
    if sampler in (euler_steps, heun_steps):
        count = {"num_steps": 3} if sampler is euler_steps else {"num_evaluations": 3}
        steps = sampler(lambda x, time: x, RectifiedFlow(), x, **count)
    else:
        noise = {"noise_at": lambda index: x} if sampler is ddpm_steps else {}
        steps = sampler(lambda x, time: x, process, x, clip=False, **noise)
    first = next(steps)
    assert first.timestep == pytest.approx(999.9999 if sampler in (euler_steps, heun_steps) else 999)
    assert next(steps).timestep < first.timestep
