"""Mamba, Mamba-2, MambaOut's and DiffuSSM's mixers: initialisation, orders, forms, counts, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from references import FILES

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.models import build_model
from attnbench.models.recipes import load_recipes
from attnbench.plugins import registry
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.specs import AttentionSpec

DEVICE = torch.device("cpu")


def build(name, grid=(3, 5), layer_idx=0, **options):
    """A float64 module with every parameter moved off its initial value."""
    torch.manual_seed(layer_idx)
    backend = registry().backend(name)
    site = AttentionSite(dim=8, num_heads=2, grid=grid, layer_idx=layer_idx, depth=8)
    module = backend.build(site, backend.options(**options)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def in_a_model(name, **options):
    """The attention of the second of two blocks, as the skeleton leaves it."""
    config = load_recipes()["tiny-dit"].model_copy(
        update={"attention": AttentionSpec(name=name, options=options), "depth": 2}
    )
    return build_model(config, 8, 10).blocks[1].attn


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("scan", ["transposed", "zigma"])
def test_every_layer_scans_in_its_order(name, scan):
    """Eight layers agree with the reference that walks the grid, on an oblong one, too."""
    for layer_idx in range(8):
        module = build(name, layer_idx=layer_idx, scan=scan, state_dim=2)
        x = torch.randn(1, 15, 8, dtype=torch.float64)
        context = AttentionContext(grid=(3, 5))
        with torch.no_grad():
            want = FILES[name].reference(module, x, context, layer_idx)
            torch.testing.assert_close(module(x, context), want)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_last_token_reaches_the_first_both_ways_only(name):
    """Forward alone, a token depends on those before it; both ways, on all."""
    x = torch.randn(1, 15, 8, dtype=torch.float64)
    moved = x.clone()
    moved[:, -1] += 1
    context = AttentionContext(grid=(3, 5))
    for options, reached in (({}, True), ({"directions": "forward"}, False)):
        module = build(name, **options)
        change = (module(moved, context) - module(x, context)).abs().amax(-1)[0]
        assert bool((change[:-1] > 0).all()) == reached
        assert bool((change[:-1] > 0).any()) == reached
        assert change[-1] > 0


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (8, 8)])
def test_chunked_equals_recurrent(name, grid):
    """The two forms of one module differ by rounding only, for one token, padding and whole chunks."""
    chunked, recurrent = build(name, grid, chunk_size=8), build(name, grid, form="recurrent")
    x, context = torch.randn(2, grid[0] * grid[1], 8, dtype=torch.float64), AttentionContext(grid=grid)
    torch.testing.assert_close(chunked(x, context), recurrent(x, context))


def test_heads_of_one_channel_are_scanned():
    """As wide a model as it has heads, on more tokens than a block."""
    backend = registry().backend("mamba2")
    site = AttentionSite(dim=4, num_heads=4, grid=(3, 3))
    module = backend.build(site, backend.options()).double()
    x, context = torch.randn(1, 9, 4, dtype=torch.float64), AttentionContext(grid=(3, 3))
    torch.testing.assert_close(module(x, context), FILES["mamba2"].reference(module, x, context, 0))


def test_the_bias_of_mambas_steps_is_added_in_fp32():
    """Under autocast a step of a projection of 0 is softplus(bias) to the rounding of fp32."""
    way = build("mamba").float().ways[0]
    with torch.no_grad():
        way.step.weight.zero_()
        way.step.bias.uniform_(-7, -2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            steps = way(torch.randn(1, 15, 16)).steps
        assert steps.dtype == torch.float32
        # two softplus of a few roundings each, by how many are computed at once; bf16 is off by up to 2^-8
        eps = torch.finfo(torch.float32).eps
        torch.testing.assert_close(steps, F.softplus(way.step.bias).expand_as(steps), rtol=8 * eps, atol=0)


def test_directions_of_mamba_differ_by_a_half():
    """DiS adds what Vim averages."""
    x, context = torch.randn(1, 15, 8, dtype=torch.float64), AttentionContext(grid=(3, 5))
    averaged, summed = build("mamba"), build("mamba", directions="summed")
    torch.testing.assert_close(2 * averaged(x, context), summed(x, context))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_released_initialisation_survives_the_skeleton(name):
    """Steps, A and D start as released, projections as torch's, the last one over sqrt(depth)."""
    module = in_a_model(name)
    if name == "mamba":
        way = module.ways[1]
        steps, rank = F.softplus(way.step.bias), way.step.weight.shape[1]
        assert torch.allclose(way.log_a.exp(), torch.arange(1.0, 17.0)[:, None])
        assert 0.9 * rank**-0.5 < way.step.weight.abs().max() <= rank**-0.5
        skip = way.skip
    else:
        steps, skip = F.softplus(module.step_bias), module.skip
        assert (module.log_a.exp() >= 1).all()
        assert (module.log_a.exp() <= 16).all()
    assert (steps > 0.000999).all()
    assert (steps < 0.1001).all()
    assert torch.equal(skip, torch.ones_like(skip))
    for projection, divisor in ((module.into, 1.0), (module.out, 2**0.5)):
        limit = projection.weight.shape[1] ** -0.5 / divisor  # Kaiming-uniform with a = sqrt(5)
        assert 0.9 * limit < projection.weight.abs().max() <= limit


def test_other_initialisations_survive_the_skeleton():
    """MambaOut's weights have a deviation of 0.02; S4D has decays of 1/2 and frequencies pi n."""
    conv = in_a_model("gated-conv")
    for layer in (conv.into, conv.out, conv.conv.conv):
        assert 0.015 < layer.weight.std() < 0.025
        assert not layer.bias.any()
    ssm = in_a_model("diffussm").ssm
    assert torch.allclose(ssm.log_decay.exp(), torch.tensor(0.5))
    assert torch.allclose(ssm.frequency[0], torch.pi * torch.arange(32))
    assert (ssm.log_step.exp() >= 0.000999).all()
    assert (ssm.log_step.exp() <= 0.1001).all()


class Alone(torch.nn.Module):
    """Attention without a skeleton, for the counters."""

    def __init__(self, attention, grid):
        super().__init__()
        self.attention, self.grid = attention, grid

    def forward(self, x):
        return self.attention(x, AttentionContext(grid=self.grid))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mamba", {"form": "recurrent", "expand": 1}),
        ("mamba", {"chunk_size": 16, "directions": "forward"}),
        ("mamba2", {"form": "recurrent"}),
        ("mamba2", {"chunk_size": 16, "directions": "forward", "conv_size": 2}),
        ("gated-conv", {"conv_ratio": 0.5, "kernel_size": 3}),
        ("diffussm", {"hourglass": 4, "expand": 1, "chunk_size": 16}),
    ],
)
def test_counts_are_what_executes(name, options):
    """Closed form and both counters agree to the last multiply-add beside the defaults, too."""
    backend, grid = registry().backend(name), (7, 9)
    site = AttentionSite(dim=24, num_heads=3, grid=grid, layer_idx=2)
    with torch.device("meta"):
        module = Alone(backend.build(site, backend.options(**options)), grid)
        x = torch.empty(1, grid[0] * grid[1], 24)
    want = backend.macs(site, backend.options(**options)).full
    assert (count_with_torch(module, [x]).macs, count_with_fvcore(module, [x]).macs) == (want, want)


def test_diffussm_counts_as_its_paper():
    """The dense layers of the hourglass cost 7.5 L C^2 at M = 2, for L tokens of the state-space model."""
    backend = registry().backend("diffussm")
    site = AttentionSite(dim=1152, num_heads=16, grid=(16, 16))
    assert backend.macs(site, backend.options()).linear == 7.5 * (2 * 256) * 1152**2


def test_rejected_options_are_explained():
    """What cannot be is refused with what, got, and what would do."""
    site = AttentionSite(dim=12, num_heads=4, grid=(4, 4))
    for name, options, parts in (
        ("gated-conv", {"conv_ratio": 3.0}, ("36 convolved", "32 hidden", "int(conv_ratio x 12) is 1 to 32")),
        ("gated-conv", {"conv_ratio": 0.01}, ("0 convolved", "int(conv_ratio x 12) is 1 to 32")),
        ("gated-conv", {"expansion": 0.05}, ("expansion 0.05 of dim 12", "no hidden channel", "at least 1")),
        ("diffussm", {"hourglass": 5}, ("hourglass 5", "dim 12", "choose one of [1, 2, 3, 4, 6, 12]")),
    ):
        backend = registry().backend(name)
        reason = backend.supports(site, backend.options(**options), torch.float32, DEVICE)
        assert all(part in reason for part in parts)
        assert backend.supports(site, backend.options(), torch.float32, DEVICE) is None
    for name in ("mamba", "mamba2", "diffussm"):
        with pytest.raises(ValidationError, match="power of two"):
            registry().backend(name).options(chunk_size=48)
    for name in ("mamba", "mamba2"):
        with pytest.raises(ValidationError, match="chunk_size: 16 does nothing with form: recurrent"):
            registry().backend(name).options(form="recurrent", chunk_size=16)
    for states, words in ((7, "even, got 7.*choose 6 or 8"), (1, "even, got 1.*choose 2$|choose 2 ")):
        with pytest.raises(ValidationError, match=words):
            registry().backend("diffussm").options(state_dim=states)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("gated-conv", "expansion"),
        ("gated-conv", "conv_ratio"),
        ("gated-deltanet", "expand_k"),
        ("gated-deltanet", "expand_v"),
        ("dig", "expand_k"),
    ],
)
def test_a_width_beyond_all_is_refused_as_an_option(name, option, value):
    """Not an OverflowError where widths are made."""
    with pytest.raises(ValidationError, match=rf"{option}\n.*(finite|less than or equal to 64)"):
        registry().backend(name).options(**{option: value})


def test_no_number_of_any_backend_is_infinite():
    """Where an option has no upper bound of its own, too."""
    with pytest.raises(ValidationError, match="finite"):
        registry().backend("mhla").options(eps=float("inf"))
