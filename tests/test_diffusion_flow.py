"""Rectified flow: the path, its times and its loss."""

import pytest
import torch

from attnbench.diffusion.flow import RectifiedFlow
from attnbench.errors import UserInputError


def test_path_runs_from_data_to_noise():
    """t = 0 is the data, t = 1 the noise, one half their mean."""
    x0, noise = torch.randn(2, 3, 1, 2, 2)
    x = RectifiedFlow().add_noise(x0, torch.tensor([0.0, 0.5, 1.0]), noise)
    torch.testing.assert_close(x, torch.stack([x0[0], (x0[1] + noise[1]) / 2, noise[2]]))


def test_loss_is_zero_for_the_true_velocity():
    """The target is noise - x_0; one off everywhere costs exactly one."""
    x0, noise = torch.randn(2, 4, 1, 2, 2)
    t = torch.rand(4)
    flow = RectifiedFlow()
    assert flow.training_loss(lambda x, time: noise - x0, x0, t, noise).tolist() == [0, 0, 0, 0]
    off = flow.training_loss(lambda x, time: noise - x0 + 1, x0, t, noise)
    torch.testing.assert_close(off, torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_time_stays_below_a_thousand(dtype: torch.dtype):
    """The model sees 1000 t, but never 1000 itself, in any dtype."""
    times = RectifiedFlow().time_of(torch.tensor([0.0, 0.5, 1.0], dtype=dtype))
    assert times[:2].tolist() == [0, 500]
    assert 990 < times[2].item() < 1000


@pytest.mark.parametrize(("density", "deviation"), [("uniform", 12**-0.5), ("logit-normal", 0.2083)])
def test_time_densities(density: str, deviation: float):
    """Both densities have mean one half; the logit-normal is the narrower (0.2083 by quadrature)."""
    torch.manual_seed(0)
    times = RectifiedFlow().draw_times(20_000, density, torch.device("cpu"))
    error = 0.3 / 20_000**0.5
    assert times.mean().item() == pytest.approx(0.5, abs=4 * error)
    assert times.std().item() == pytest.approx(deviation, abs=4 * error)
    assert times.min() >= 0
    assert times.max() <= 1


def test_variance_channels_are_refused():
    """A model that predicts a variance is told to switch it off, not silently cut."""
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(UserInputError, match="learned_variance to false"):
        RectifiedFlow().velocity(torch.zeros(2, 2, 4, 4), x)
