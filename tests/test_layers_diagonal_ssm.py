"""S4D: powers and Toeplitz matrices, chunks against the recurrence, gradients, cost."""

from __future__ import annotations

import pytest
import torch
from references.diffussm import scan

from attnbench.errors import UserInputError
from attnbench.layers.diagonal_ssm import DiagonalStateSpace, diagonal_ssm_macs, powers_of, toeplitz
from attnbench.profiling.counters import count_with_fvcore, count_with_torch


def layer(chunk_size, channels=3, state_dim=6):
    torch.manual_seed(0)
    return DiagonalStateSpace(channels, state_dim, chunk_size)


@pytest.mark.parametrize("chunk_size", [1, 4, 16, 64])
@pytest.mark.parametrize("tokens", [1, 13, 32])
def test_chunks_are_the_recurrence(chunk_size, tokens):
    """In float64, output and gradients are those of the complex recurrence, at any size of chunks."""
    ssm = layer(chunk_size).double()
    x = torch.randn(2, tokens, 3, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, *ssm.parameters()], torch.randn(2, tokens, 3, dtype=torch.float64)
    found, want = ssm(x), torch.stack([scan(ssm, slice(None), image) for image in x])
    torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-11)
    for got, exact in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)


def test_fast_phases_keep_their_digits():
    """Powers in fp32 of a factor that turns by 3 radians a token are right to a few roundings at token 255.

    A power is a product of at most 8 factors, each rounded once and multiplied with 2 more roundings (a sum
    of two products, sqrt(2) as large at most): 8 * 3 * sqrt(2) * eps / 2. An fp32 angle of 765 radians would
    be off by 765 eps / 2.
    """
    angle = torch.linspace(0.1, 3.0, 50, dtype=torch.float64)
    factor = torch.stack((angle.cos(), angle.sin()))
    found, whole = powers_of(factor, 256, torch.float32)
    phase = angle[:, None] * torch.arange(256)
    error = (found.double() - torch.stack((phase.cos(), phase.sin()))).abs().max()
    assert error < 17 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(whole, torch.stack(((256 * angle).cos(), (256 * angle).sin())))


def test_toeplitz_matrices_convolve():
    """Row t holds the kernel from t back to 0, and nothing beyond."""
    kernel = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert toeplitz(kernel)[0].tolist() == [[1, 0, 0], [2, 1, 0], [3, 2, 1]]
    assert toeplitz(kernel)[1].tolist() == [[4, 0, 0], [5, 4, 0], [6, 5, 4]]


@pytest.mark.parametrize(("tokens", "chunk_size"), [(1, 16), (16, 16), (50, 16), (7, 1)])
def test_counts_are_what_executes(tokens, chunk_size):
    """The closed form is what both counters see on the meta device, for one chunk, several and padding."""
    ssm, x = layer(chunk_size).to("meta"), torch.empty(2, tokens, 3, device="meta")
    want = 2 * diagonal_ssm_macs(tokens, 3, 6, chunk_size)
    assert (count_with_torch(ssm, [x]).macs, count_with_fvcore(ssm, [x]).macs) == (want, want)


def test_chunks_are_powers_of_two():
    """Other chunk sizes are refused with the value and what is allowed."""
    with pytest.raises(UserInputError, match=r"power of two.*got 24"):
        layer(24)
