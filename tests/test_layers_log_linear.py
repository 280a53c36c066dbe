"""Log-linear attention: chunks against all pairs in float64, at any decay, and what it costs."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import UserInputError
from attnbench.layers.log_linear import log_linear_attention, log_linear_macs, num_levels
from attnbench.profiling.counters import count_with_fvcore, count_with_torch

KEY_DIM, VALUE_DIM = 4, 3
GATES = torch.tensor([0.0, -1e-4, -0.05, -1.0, -30.0], dtype=torch.float64)


def draw(tokens, seed, weights=(1, 1, 1, 1, 1)):
    """q, k, v, log decays and level weights in fp32 values kept as float64; decays mixed from GATES."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, tokens)
    widths = (KEY_DIM, KEY_DIM, VALUE_DIM, num_levels(tokens))
    q, k, v, levels = (torch.randn(*shape, width, generator=generator) for width in widths)
    odds = torch.tensor(weights, dtype=torch.float64)
    chosen = torch.multinomial(odds, 4 * tokens, replacement=True, generator=generator)
    gates = GATES[chosen].view(*shape, 1).float()
    return [z.double() for z in (q, k, v, gates, levels)]


def pairs(q, k, v, log_decay, weights):
    """All pairs as printed: the level at which two tokens meet, and the decays between them."""
    n = q.shape[2]
    levels = torch.tensor([[(i ^ j).bit_length() for j in range(n)] for i in range(n)])
    i, j, t = torch.meshgrid(*[torch.arange(n)] * 3, indexing="ij")
    between = ((j < t) & (t <= i)) | ((i <= t) & (t < j))
    decay = torch.einsum("ijt,bht->bhij", between.double(), log_decay[..., 0]).exp()
    scores = (q @ k.transpose(-1, -2)) * weights.gather(-1, levels.expand(*q.shape[:2], -1, -1)) * decay
    return scores @ v


def with_gradients(function, inputs, weight):
    """Output and the gradients of its weighted sum."""
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


@given(
    tokens=st.integers(1, 40),
    chunk=st.sampled_from([1, 2, 4, 8, 32]),
    mix=st.tuples(*[st.integers(0, 3)] * 5).filter(any),
    seed=st.integers(0, 999),
)
@settings(max_examples=20, deadline=None)
def test_fp32_is_the_sum_over_all_pairs(tokens, chunk, mix, seed):
    """Outputs and gradients in fp32 keep to the rounding of their sums, whatever mix of decays (0 to -30).

    With absolute values in place of all factors the same sums give their sizes; n terms in any order err by
    at most n eps of that. A term passes through no more than N + Dk + Dv additions of each of two matmuls,
    2 log2(N) <= 12 merges and reads, and as many products. An exponent, summed in at most N additions of one
    sign, moves e^x by N eps |x| e^x / 2 at the most, and |x| e^x < 0.74 e^(x/2): the size of the same sums
    with half the log decay.
    """
    inputs = draw(tokens, seed, mix)
    weight = torch.randn(2, 2, tokens, VALUE_DIM, generator=torch.Generator().manual_seed(seed + 1)).double()

    def ours(*z):
        return log_linear_attention(*z, chunk_size=chunk)

    found = with_gradients(ours, [z.float() for z in inputs], weight.float())
    exact = with_gradients(pairs, inputs, weight)
    q, k, v, g, w = inputs
    absolute = (q.abs(), k.abs(), v.abs())
    size = with_gradients(pairs, (*absolute, g, w.abs()), weight.abs())
    moved = with_gradients(pairs, (*absolute, g / 2, w.abs()), weight.abs())
    roundings = 2 * (tokens + KEY_DIM + VALUE_DIM) + 24
    for got, want, scale, more in zip(found, exact, size, moved, strict=True):
        limit = (
            torch.finfo(torch.float32).eps * (roundings * scale + tokens * more) + 1e-30
        )  # 1e-30: underflow
        assert got.isfinite().all()
        assert ((got.double() - want).abs() <= limit).all()


def test_the_mirror_image_of_whole_blocks_is_the_mirror_image():
    """Over 2^m tokens a reversed sequence gives the reversed output: the tree is the same from both ends."""
    inputs = draw(32, 1)
    forward = log_linear_attention(*inputs, chunk_size=4)
    backward = log_linear_attention(*(z.flip(2) for z in inputs), chunk_size=4).flip(2)
    torch.testing.assert_close(forward, backward)


def test_equal_weights_and_no_decay_are_linear_attention():
    """With every weight 1 and nothing forgotten, a token reads the sum of all k^T v."""
    q, k, v, g, w = draw(21, 2)
    got = log_linear_attention(q, k, v, 0 * g, torch.ones_like(w), chunk_size=4)
    torch.testing.assert_close(got, q @ (k.transpose(-1, -2) @ v))


def test_total_forgetting_has_finite_gradients():
    """A log decay of -inf parts the tokens on its two sides, and its gradient is 0, not NaN."""
    inputs = draw(20, 3)
    inputs[3][:, :, 7] = -torch.inf
    found = with_gradients(lambda *z: log_linear_attention(*z, chunk_size=4), inputs, 1.0)
    assert all(z.isfinite().all() for z in found)
    assert not found[4][:, :, 7].any()


class Module(torch.nn.Module):
    """The function as a module, for the counters."""

    def __init__(self, chunk_size):
        super().__init__()
        self.chunk_size = chunk_size

    def forward(self, *inputs):
        return log_linear_attention(*inputs, chunk_size=self.chunk_size)


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 16), (5, 16), (50, 16), (7, 1)])
def test_counts_are_what_executes(tokens, chunk):
    """The closed form is what both counters see on the meta device, for one chunk, several and padding."""
    inputs = [torch.empty(2, 3, tokens, d, device="meta") for d in (4, 4, 6, 1, num_levels(tokens))]
    want = 6 * log_linear_macs(tokens, 4, 6, chunk)
    assert count_with_torch(Module(chunk), inputs).macs == want
    assert count_with_fvcore(Module(chunk), inputs).macs == want


def test_each_doubling_of_the_tokens_adds_a_level():
    """N log N: twice the tokens cost twice as much and N Dk Dv more."""
    costs = [log_linear_macs(n, 32, 64, 32) for n in (1024, 2048, 4096)]
    assert [b - 2 * a for a, b in itertools.pairwise(costs)] == [2048 * 32 * 64, 4096 * 32 * 64]


def test_what_does_not_fit_is_refused():
    """Chunks that are no power of two, and weights of another number of levels."""
    q, k, v, g, w = draw(4, 0)
    with pytest.raises(UserInputError, match=r"power of two.*got 24"):
        log_linear_attention(q, k, v, g, w, chunk_size=24)
    with pytest.raises(UserInputError, match="4 tokens have 3 levels, got weights of 2"):
        log_linear_attention(q, k, v, g, w[..., :2])
