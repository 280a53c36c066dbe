"""MLLA's attention: 2-D rotation, the positive feature map, and its cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import module_counts

from attnbench.contract import AttentionSite
from attnbench.layers import elu_plus_one, grid_rotation, rotate_pairs
from attnbench.plugins import registry

BACKEND = registry().backend("mlla")


def test_rotated_products_depend_on_the_displacement_only():
    """R(q at p) . R(k at p + d) is the same for every p, for displacements in both axes."""
    grid, width = (6, 8), 12
    q, k = torch.randn(2, width, dtype=torch.float64)
    cos, sin = grid_rotation(grid, torch.arange(3) / 3, q)
    q_map = rotate_pairs(q.expand(48, width), cos, sin).unflatten(0, grid)
    k_map = rotate_pairs(k.expand(48, width), cos, sin).unflatten(0, grid)
    products = (q_map[:-1, :-2] * k_map[1:, 2:]).sum(-1)
    torch.testing.assert_close(products, products[0, 0].expand_as(products), rtol=1e-12, atol=1e-12)
    elsewhere = (q_map[:-2, :-1] * k_map[2:, 1:]).sum(-1)[0, 0]
    assert (elsewhere - products[0, 0]).abs() > 1e-3


def test_rotation_keeps_its_precision_in_half_types():
    """The angles of a far token are those of float64 to fp32 rounding, although the model is bf16."""
    exponents = torch.arange(4) / 4
    low = grid_rotation((1, 200), exponents, torch.empty(0, dtype=torch.bfloat16))
    exact = grid_rotation((1, 200), exponents, torch.empty(0, dtype=torch.float64))
    for a, b in zip(low, exact, strict=True):
        # an angle of 200 rounds by 2^-17, and its frequency by 2^-24 of it
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2**-15)


def test_the_feature_map_stays_positive():
    """elu + 1 of -30 is e^-30, not the 0 that (e^x - 1) + 1 rounds to."""
    x = torch.tensor([-30.0, 0.0, 2.0], requires_grad=True)
    y = elu_plus_one(x)
    torch.testing.assert_close(y.detach(), torch.tensor([9.3576e-14, 1.0, 3.0]), rtol=1e-4, atol=0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([9.3576e-14, 1.0, 1.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "association": "quadratic"}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    counts = module_counts("mlla", options)
    assert len(set(counts)) == 1, counts


def test_widths_without_four_parts_are_refused():
    """2-D rotation needs pairs for rows and for columns."""
    site = AttentionSite(dim=18, num_heads=3, grid=(4, 4))
    reason = BACKEND.supports(site, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "multiple of 4, got 18" in reason
