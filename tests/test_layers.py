"""The public parts: the focusing power, routed projections, depthwise convolutions, matmul orders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.layers import (
    ReparameterisedConv,
    contraction,
    fuse_reparameterised,
    power_focus,
    routed_projection,
)


def naive_phi(z, gamma):
    """Eq. 5 as printed, in float64."""
    u = z.double().relu()
    power = u**gamma
    return power / power.norm(dim=-1, keepdim=True) * u.norm(dim=-1, keepdim=True)


def test_phi_gradients_pass_gradcheck():
    """The closed-form backward pass is the derivative, dead and mixed rows included."""
    torch.manual_seed(0)
    z = torch.randn(3, 4, 7, dtype=torch.float64)
    z[0, 0] = -z[0, 0].abs()
    gamma = 1 + 3 * torch.rand(3, 4, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(power_focus, (z.requires_grad_(), gamma.requires_grad_()))


def test_phi_gradient_of_one_shared_gamma():
    """A gamma that broadcasts over all rows receives the sum of their gradients."""
    z = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    gamma = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(power_focus, (z, gamma))


@given(
    rows=st.lists(st.lists(st.floats(-4, 4, width=32), min_size=5, max_size=5), min_size=1, max_size=4),
    gamma=st.floats(1, 8, width=32),
    exponent=st.integers(-30, 30),
)
@settings(max_examples=60, deadline=None)
def test_phi_keeps_norms_at_any_scale(rows, gamma, exponent):
    """||phi(z)|| = ||ReLU(z)|| in fp32 from 1e-30 to 1e30, and phi of a dead row is 0, never NaN."""
    z = torch.tensor(rows) * 10.0**exponent
    y = power_focus(z, torch.tensor([[gamma]]))
    want = z.relu().double().norm(dim=-1)
    representable = want > torch.finfo(torch.float32).tiny * 1e6
    assert y.isfinite().all()
    torch.testing.assert_close(y.double().norm(dim=-1)[representable], want[representable], rtol=1e-5, atol=0)
    assert not y[~(z > 0).any(-1)].any()


def test_phi_matches_the_printed_formula():
    """Where Eq. 5 as printed is safe to evaluate, phi agrees with it to fp32 rounding."""
    torch.manual_seed(1)
    z, gamma = torch.randn(200, 16), torch.tensor([[3.0]])
    torch.testing.assert_close(power_focus(z, gamma).double(), naive_phi(z, 3.0), rtol=2e-6, atol=1e-7)


def loop(x, weight, expert):
    return torch.stack(
        [torch.stack([x[t] @ weight[e] for e in row]) for t, row in enumerate(expert.tolist())]
    )


@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 6),
    choices=st.integers(1, 2),
    width=st.sampled_from([(4, 8), (5, 3), (8, 4)]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_routed_projection_is_one_matrix_per_token(tokens, experts, choices, width, seed):
    """Output and gradients equal a loop over tokens, with empty experts and widths grouped_mm refuses."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width[0], generator=generator, requires_grad=True)
    weight = torch.randn(experts, *width, generator=generator, requires_grad=True)
    expert = torch.randint(0, experts, (tokens, choices), generator=generator)
    found = []
    for function in (routed_projection, loop):
        y = function(x, weight, expert)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_routed_projection_takes_an_expanded_gradient():
    """`y.sum()` sends a gradient of stride 0, which grouped_mm alone refuses."""
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(2, 8, 8, requires_grad=True)
    routed_projection(x, weight, torch.tensor([[0], [1], [1], [0], [1], [1]])).sum().backward()
    torch.testing.assert_close(weight.grad[0, :, 0], x.detach()[[0, 3]].sum(0))


def test_routed_projection_is_a_well_behaved_operator():
    """torch's own operator checks: schema, fake kernel, autograd registration, gradcheck in float64."""
    x = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 8, 8, dtype=torch.float64, requires_grad=True)
    expert = torch.randint(0, 3, (9, 2))
    assert torch.autograd.gradcheck(lambda a, b: routed_projection(a, b, expert), (x, weight))
    torch.library.opcheck(torch.ops.attnbench.routed_projection.default, (x, weight, expert))


def test_routed_projection_never_runs_all_experts():
    """The multiply-adds torch counts do not grow with the number of experts."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for experts in (2, 20):
        with FlopCounterMode(display=False) as counter:
            routed_projection(
                torch.randn(16, 8), torch.randn(experts, 8, 8), torch.zeros(16, 1, dtype=torch.long)
            )
        counts.append(counter.get_total_flops() / 2)
    assert counts == [16 * 8 * 8] * 2


def test_branches_fuse_into_one_convolution():
    """With trained-looking BatchNorm statistics, the fused 3x3 agrees to fp32 rounding."""
    torch.manual_seed(0)
    conv = ReparameterisedConv(6).eval()
    for norm in (branch.norm for branch in conv.branches):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 15, 6)
    fused = fuse_reparameterised(torch.nn.ModuleDict({"conv": conv}))["conv"]
    assert [type(child) for child in fused.children()] == [torch.nn.Conv2d]
    torch.testing.assert_close(fused(x, (3, 5)), conv(x, (3, 5)), rtol=1e-5, atol=1e-5)


def test_fusing_leaves_the_original_alone():
    """Fusing returns a copy: training can go on with the branches."""
    model = torch.nn.ModuleDict({"conv": ReparameterisedConv(4)}).train()
    fuse_reparameterised(model)
    assert isinstance(model["conv"], ReparameterisedConv)
    assert model.training


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 1, 8, 5)])
def test_contraction_orders_agree(shape):
    """Both orders of q k^T v give the same sums."""
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(contraction(q, k, v, "linear"), contraction(q, k, v, "quadratic"))
