"""Every built-in backend against its slow float64 reference: outputs, gradients, hard inputs."""

from __future__ import annotations

import copy

import pytest
import torch
from references import CASES, FILES

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

# 63 tokens on a non-square grid; heads that do not divide the tokens
GRID = (7, 9)


def context(images=slice(None), *, batch=3, **more):
    """What the skeleton hands over for a batch of images at different timesteps (or for some of them)."""
    conditioning = torch.randn(batch, 12, generator=torch.Generator().manual_seed(0)).double()
    return AttentionContext(
        grid=GRID,
        timestep=torch.linspace(20.0, 980.0, batch)[images],
        conditioning=conditioning[images],
        **more,
    )


def build(case, *, dim=12, num_heads=3, grid=GRID, seed=0, continuous=False):
    """A module in float64 with every parameter moved off its special initial value."""
    name, options = CASES[case]
    if continuous:
        options = getattr(FILES[name], "continuous", dict)(options)
    backend = registry().backend(name)
    torch.manual_seed(seed)
    site = AttentionSite(dim=dim, num_heads=num_heads, grid=grid, layer_idx=1, depth=3)
    module = backend.build(site, backend.options(**options)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module, name


def close(actual, expected, dtype=torch.float64, terms=4096):
    """Agreement to the rounding of `terms` additions in `dtype`, relative to the largest value."""
    scale = expected.abs().max().clamp_min(1e-30)
    error = ((actual.double() - expected.double()).abs().max() / scale).item()
    limit = torch.finfo(dtype).eps * terms
    assert error <= limit, f"relative error {error:.3g} above {limit:.3g}"


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_match_the_reference(case):
    """In float64 the backend and the paper's formula agree on the output and on every gradient."""
    module, name = build(case)
    x = torch.randn(2, 63, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 63, 12, dtype=torch.float64)
    found = []
    for function in (
        lambda: module(x, context(batch=2)),
        lambda: FILES[name].reference(module, x, context(batch=2)),
    ):
        y = function()
        inputs = [x, *module.parameters()]
        found.append((y, torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True)))
    (y, grads), (y_ref, grads_ref) = found
    close(y, y_ref)
    for label, grad, ref in zip(
        ["x", *(n for n, _ in module.named_parameters())], grads, grads_ref, strict=True
    ):
        assert (grad is None) == (ref is None or not ref.any()) or (grad is not None and not grad.any()), (
            label
        )
        if grad is not None and ref is not None and ref.any():
            close(grad, ref)


def projections(module):
    """The shared QKV projection, or where there is none every matrix that x may be multiplied with."""
    if hasattr(module, "qkv"):
        return [module.qkv.qkv.weight]
    return [p for p in module.parameters() if p.ndim > 1]


@pytest.mark.parametrize("case", CASES)
def test_all_negative_rows_stay_finite(case):
    """A row whose query and key are nonpositive everywhere gives finite output and gradients."""
    module, _ = build(case)
    with torch.no_grad():
        for parameter in projections(module):
            parameter.copy_(-parameter.abs())
    x = torch.rand(1, 63, 12, dtype=torch.float64)
    x[0, 5] = 0
    x.requires_grad_()
    y = module(x, context(batch=1))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def routing(module, x):
    """Every discrete choice the module makes on x."""
    seen = {}
    y = module(x, context(batch=len(x), recorder=lambda name, t: seen.__setitem__(name, t.clone())))
    return y, {name: t for name, t in seen.items() if not t.is_floating_point()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_within_its_rounding(case, dtype):
    """fp32 and bf16 differ from float64 by a few roundings of what the module itself stores.

    The yardstick is the float64 module fed with inputs and weights rounded to `dtype` and then
    perturbed by one more rounding of the input: the error of the low-precision run may be at most 16
    times that (16 stored intermediates lie between input and output at the most). DyDiLA has one
    kernel and one factor here: rounding Q flips an argmax, and an argmax is not continuous.
    """
    module, _ = build(case, continuous=True)
    module.eval()
    low = copy.deepcopy(module).to(dtype)
    exact = copy.deepcopy(low).double()
    x = torch.randn(2, 63, 12).to(dtype)
    y_low, choices_low = routing(low, x)
    y, choices = routing(exact, x.double())
    assert all(torch.equal(choices[name], choices_low[name]) for name in choices)
    error = (y_low.double() - y).norm() / y.norm()
    noise = perturbed_error(exact, x.double(), y, torch.finfo(dtype).eps)
    assert y_low.dtype == dtype
    assert error <= 16 * noise


def perturbed_error(module, x, y, eps):
    """Relative change of the output when the input moves by one rounding (the module's condition)."""
    worst = 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1
        moved, _ = routing(module, x * (1 + eps * sign / 2))
        worst = max(worst, ((moved - y).norm() / y.norm()).item())
    return max(worst, eps)


@pytest.mark.parametrize("case", CASES)
def test_one_image_does_not_see_another(case):
    """In eval mode the output of an image is the same alone and in a batch."""
    module, _ = build(case)
    module.eval()
    x = torch.randn(3, 63, 12, dtype=torch.float64)
    together = module(x, context())
    alone = torch.cat([module(x[i : i + 1], context(slice(i, i + 1))) for i in range(3)])
    close(together, alone)


@pytest.mark.parametrize("case", ["linear", "focused", "dydila-token", "dydila-map"])
def test_both_association_orders_agree(case):
    """(q k^T) v and q (k^T v) differ by rounding only."""
    module, _ = build(case)
    x = torch.randn(1, 63, 12, dtype=torch.float64)
    results = []
    for order in ("linear", "quadratic"):
        module.options = module.options.model_copy(update={"association": order})
        results.append(module(x, context(batch=1)))
    close(*results)


@pytest.mark.parametrize("case", CASES)
def test_bf16_autocast_trains(case):
    """Under bf16 autocast the forward and backward pass run and stay finite."""
    name, options = CASES[case]
    backend = registry().backend(name)
    module = backend.build(
        AttentionSite(dim=12, num_heads=3, grid=GRID, layer_idx=1, depth=3), backend.options(**options)
    )
    x = torch.randn(2, 63, 12, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x, context(batch=2))
    y.float().square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_every_builtin_has_a_reference():
    """A backend without a float64 reference does not get in."""
    builtins = {name for name, provided in registry().backends.items() if provided.origin == "built-in"}
    assert builtins == set(FILES)


def test_xformers_says_why_it_cannot_run():
    """On the CPU xformers is unsupported with a reason, never a silent fallback to another kernel."""
    backend = registry().backend("softmax")
    site = AttentionSite(dim=32, num_heads=2, grid=(4, 4))
    reason = backend.supports(
        site, backend.options(implementation="xformers"), torch.float32, torch.device("cpu")
    )
    assert "xformers" in reason
