"""The feature map elu + 1 and what its attention costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backend_counts import module_counts

from attnbench.layers import elu_plus_one


def test_phi_is_elu_plus_one():
    """phi and its gradient are those of torch's elu plus one, at zero too."""
    z = torch.cat([torch.linspace(-8, 8, 41, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    z.requires_grad_()
    phi, expected = elu_plus_one(z), F.elu(z) + 1
    (grad,), (grad_expected,) = (torch.autograd.grad(y.sum(), z) for y in (phi, expected))
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(phi, expected, rtol=0, atol=8 * eps)
    torch.testing.assert_close(grad, grad_expected, rtol=0, atol=8 * eps)


def test_phi_stays_positive_in_bf16():
    """A very negative entry keeps its relative precision in bf16, where elu + 1 has become 0."""
    z = torch.tensor([-20.0, -8.0], dtype=torch.bfloat16)
    exact = z.double().exp()
    assert not (F.elu(z) + 1).any()
    torch.testing.assert_close(elu_plus_one(z).double(), exact, rtol=torch.finfo(torch.bfloat16).eps, atol=0)


@pytest.mark.parametrize("grid", [(7, 9), (2, 3)])
@pytest.mark.parametrize("association", ["auto", "linear", "quadratic"])
def test_macs(association, grid):
    """The closed form is what executes, in either order of the matmuls."""
    assert len(set(module_counts("elu", {"association": association}, grid))) == 1
