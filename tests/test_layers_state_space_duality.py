"""State-space duality: chunks against the float64 recurrence at any decay, and what they cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import UserInputError
from attnbench.layers.state_space_duality import state_space_duality, state_space_duality_macs
from attnbench.profiling.counters import count_with_fvcore, count_with_torch

HEADS, WIDTH, STATES = 2, 3, 4
DECAYS = torch.tensor([0.0, -1e-4, -0.05, -1.0, -30.0], dtype=torch.float64)


def draw(tokens, seed, weights=(1, 1, 1, 1, 1), width=WIDTH):
    """x, log_decay, b, c in fp32 values kept as float64; log decays mixed from DECAYS by weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, HEADS, width, generator=generator)
    b, c = (torch.randn(2, tokens, STATES, generator=generator) for _ in range(2))
    odds = torch.tensor(weights, dtype=torch.float64)
    chosen = torch.multinomial(odds, 2 * tokens * HEADS, replacement=True, generator=generator)
    return [z.double() for z in (x, DECAYS[chosen].view(2, tokens, HEADS).float(), b, c)]


def loop(x, log_decay, b, c):
    """The recurrence as printed, one token at a time."""
    state, rows = torch.zeros(2, HEADS, STATES, x.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        new = torch.einsum("bs,bhp->bhsp", b[:, t], x[:, t])
        state = log_decay[:, t].exp()[..., None, None] * state + new
        rows.append(torch.einsum("bs,bhsp->bhp", c[:, t], state))
    return torch.stack(rows, 1)


def with_gradients(function, inputs, weight):
    """Output and the gradients of its weighted sum."""
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


@given(
    tokens=st.integers(1, 75),
    chunk=st.sampled_from([1, 2, 8, 32, 64]),
    mix=st.tuples(*[st.integers(0, 3)] * 5).filter(any),
    width=st.sampled_from([1, WIDTH]),
    seed=st.integers(0, 999),
    form=st.sampled_from(["chunked", "chunked", "recurrent"]),
)
@settings(max_examples=20, deadline=None)
def test_fp32_is_the_recurrence_at_any_decay(tokens, chunk, mix, width, seed, form):
    """Outputs and gradients in fp32 keep to the rounding of their sums, whatever mix of decays (0 to -30).

    With absolute values in place of all factors the recurrence gives the sum of their sizes, of which
    summing n terms in any order errs by n eps at most: 2 N + S + H P additions, the gradient of a decay
    adding up over tokens twice, and N + 4 log2(C) products. An exponent x, rounded in at most log2(C) = 6
    additions, moves e^x by 6 eps |x| e^x / 2 at most, and |x| e^x < 0.74 e^(x / 2): the sums with half the
    log decay.
    """
    inputs = draw(tokens, seed, mix, width)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed + 1)).double()

    def ours(*z):
        return state_space_duality(*z, form=form, chunk_size=chunk)

    found = with_gradients(ours, [z.float() for z in inputs], weight.float())
    exact = with_gradients(loop, inputs, weight)
    x, g, b, c = inputs
    size = with_gradients(loop, (x.abs(), g, b.abs(), c.abs()), weight.abs())
    moved = with_gradients(loop, (x.abs(), g / 2, b.abs(), c.abs()), weight.abs())
    roundings = 3 * tokens + STATES + HEADS * width + 4 * 6
    for got, want, scale, more in zip(found, exact, size, moved, strict=True):
        limit = torch.finfo(torch.float32).eps * (roundings * scale + 3 * more) + 1e-30  # 1e-30: underflow
        assert got.isfinite().all()
        assert ((got.double() - want).abs() <= limit).all()


def test_a_weak_decay_after_strong_ones_keeps_its_digits():
    """After 40 tokens of -30, a decay of -1e-3 is as accurate as alone: no difference of running sums."""
    x, g, b, c = draw(64, 0)
    g = torch.full_like(g, -30.0)
    g[:, 40:] = -1e-3
    got = state_space_duality(*(z.float() for z in (x, g, b, c)), chunk_size=64)
    size = loop(x.abs(), g, b.abs(), c.abs())
    # 24 tokens of 4 products; a running sum of -1200 would be off by 6e-5 alone
    assert ((got.double() - loop(x, g, b, c)).abs() / size).max() < 2e-6


def test_gradients_pass_gradcheck():
    """The backward pass is the derivative, with padding, blocks merged and several chunks."""
    inputs = [z[:1].clone().requires_grad_() for z in draw(37, 2, (1, 0, 2, 2, 0))]
    assert torch.autograd.gradcheck(lambda *z: state_space_duality(*z, chunk_size=16), inputs, fast_mode=True)


@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_heads_of_one_channel_are_the_recurrence(tokens):
    """Blocks of such heads are merged like others, one block, two, and several chunks."""
    inputs = draw(tokens, 4, width=1)
    torch.testing.assert_close(state_space_duality(*inputs, chunk_size=16), loop(*inputs))


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_half_types_compute_in_fp32(form):
    """bf16 inputs give the fp32 result rounded once, and autocast does not round what is inside."""
    inputs = [z.bfloat16() for z in draw(40, 3)]
    exact = state_space_duality(*(z.float() for z in inputs), form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = state_space_duality(*inputs, form=form)
        full = state_space_duality(*(z.float() for z in inputs), form=form)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())
    assert torch.equal(full, exact)


class Both(torch.nn.Module):
    """The function as a module, for the counters."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, *inputs):
        return state_space_duality(*inputs, **self.options)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 16), (5, 16), (64, 64), (100, 32), (7, 1)])
def test_counts_are_what_executes(form, tokens, chunk):
    """The closed form is what both counters see on the meta device, for one chunk, several and padding."""
    shapes = [(2, tokens, 3, 6), (2, tokens, 3), (2, tokens, 5), (2, tokens, 5)]
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    module = Both(form=form, chunk_size=chunk)
    want = 2 * state_space_duality_macs(tokens, 3, 6, 5, form, chunk)
    assert count_with_torch(module, inputs).macs == want
    assert count_with_fvcore(module, inputs).macs == want


@pytest.mark.parametrize("chunk", [0, -4, 24])
def test_chunks_are_powers_of_two(chunk):
    """Other chunk sizes are refused with the value and what is allowed."""
    with pytest.raises(UserInputError, match=f"power of two.*got {chunk}"):
        state_space_duality(*draw(4, 0), chunk_size=chunk)
