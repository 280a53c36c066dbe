"""Attention mediators: the schedule, mixed timesteps in one batch, and the declared cost."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.errors import UserInputError
from attnbench.models import build_model, closed_form_macs
from attnbench.models.recipes import load_recipes
from attnbench.plugins import registry
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.specs import AttentionSpec

BACKEND = registry().backend("mediators")
SITE = AttentionSite(dim=12, num_heads=3, grid=(5, 7))
SCHEDULE = ((300.0, 16), (600.0, 9), (1000.0, 4))


def build(**options):
    torch.manual_seed(0)
    return BACKEND.build(SITE, BACKEND.options(**{"schedule": SCHEDULE} | options)).double()


def test_bounds_are_exclusive_and_noise_takes_few():
    """t < bound: 0 takes 16 mediators, 300 and 599 take 9, 600 and 999 take 4."""
    seen = {}
    context = AttentionContext(
        grid=(5, 7), timestep=torch.tensor([600.0, 0.0, 300.0, 999.0, 599.0]), recorder=seen.__setitem__
    )
    build()(torch.randn(5, 35, 12, dtype=torch.float64), context)
    assert seen["blocks.0.mediators"].tolist() == [4, 16, 9, 4, 9]


@pytest.mark.parametrize("position_bias", [True, False])
def test_a_mixed_batch_is_each_image_alone(position_bias):
    """Outputs come back in the batch's order, and gradients are those of the images one by one."""
    module = build(position_bias=position_bias)
    x = torch.randn(5, 35, 12, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([700.0, 10.0, 400.0, 999.0, 20.0])
    together = module(x, AttentionContext(grid=(5, 7), timestep=t))
    alone = torch.cat(
        [
            module(x[i : i + 1], AttentionContext(grid=(5, 7), timestep=time))
            for i, time in enumerate(t.split(1))
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)
    grads = [torch.autograd.grad(y.square().sum(), [x, *module.parameters()]) for y in (together, alone)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-11)


def test_no_timestep_is_an_error_that_says_so():
    """Without a timestep there is no number of mediators to choose."""
    with pytest.raises(UserInputError, match=r"mediators needs context\.timestep"):
        build()(torch.randn(1, 35, 12, dtype=torch.float64), AttentionContext(grid=(5, 7)))


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ((), "rise from above 0 to exactly 1000"),
        (((500.0, 4),), "rise from above 0 to exactly 1000"),
        (((500.0, 16), (500.0, 9), (1000.0, 4)), "rise from above 0 to exactly 1000"),
        (((0.0, 16), (1000.0, 4)), "rise from above 0 to exactly 1000"),
        (((500.0, 8), (1000.0, 4)), "square numbers"),
        (((1000.0, 0),), "square numbers"),
    ],
)
def test_schedules_with_holes_or_odd_numbers_are_refused(schedule, told):
    """A schedule must cover [0, 1000) once, with numbers that pool to a square."""
    with pytest.raises(ValidationError, match=told):
        BACKEND.options(schedule=schedule)


def test_more_mediators_than_tokens_are_refused():
    """The default's 64 mediators do not fit 35 tokens."""
    reason = BACKEND.supports(SITE, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "64 mediators, more than the 35 tokens" in reason


def test_declared_cost_is_that_of_the_largest_number():
    """On the meta device, and with a timestep that selects it, both counters see the closed form."""
    config = load_recipes()["tiny-dit"].model_copy(
        update={"attention": AttentionSpec(name="mediators"), "depth": 2}
    )
    model = build_model(config, 16, 10, device="meta").eval()
    x, y = torch.empty(1, 1, 16, 16, device="meta"), torch.empty(1, dtype=torch.int64, device="meta")
    expected = closed_form_macs(config, 16).full
    assert count_with_torch(model, (x, torch.empty(1, device="meta"), y)).macs == expected
    assert count_with_fvcore(model, (x, torch.empty(1, device="meta"), y)).macs == expected


@pytest.mark.parametrize(("timestep", "number"), [(20.0, 16), (400.0, 9), (980.0, 4)])
def test_cost_follows_the_timestep(timestep, number):
    """A known timestep costs 4 n N C for its own n; the largest n is what macs() declares."""
    options = BACKEND.options(schedule=SCHEDULE)
    module = Bound(BACKEND.build(SITE, options).to("meta"), torch.tensor([timestep]))
    x = torch.empty(1, 35, 12, device="meta")
    linear = 4 * 35 * 12 * 12 + 9 * 35 * 12
    assert count_with_torch(module, (x,)).macs == linear + 4 * number * 35 * 12
    assert count_with_fvcore(module, (x,)).macs == linear + 4 * number * 35 * 12
    assert BACKEND.macs(SITE, options).full == linear + 4 * 16 * 35 * 12


class Bound(torch.nn.Module):
    """A module whose context is fixed, its timestep on the CPU."""

    def __init__(self, module, timestep):
        super().__init__()
        self.module, self.context = module, AttentionContext(grid=(5, 7), timestep=timestep)

    def forward(self, x):
        return self.module(x, self.context)
