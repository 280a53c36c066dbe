"""Gated linear attention: both forms against the float64 recurrence, at any decay, and what they cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import gated_linear_attention, gated_linear_macs
from attnbench.profiling.counters import count_with_fvcore, count_with_torch

KEY_DIM, VALUE_DIM = 4, 3
GATES = torch.tensor([0.0, -1e-4, -0.05, -1.0, -30.0], dtype=torch.float64)


def draw(tokens, seed, weights=(1, 1, 1, 1, 1)):
    """q, k, v, log_decay in fp32 values kept as float64; log decays mixed from GATES by weight."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, tokens)
    q, k = (torch.randn(*shape, KEY_DIM, generator=generator) for _ in range(2))
    v = torch.randn(*shape, VALUE_DIM, generator=generator)
    odds = torch.tensor(weights, dtype=torch.float64)
    chosen = torch.multinomial(odds, 4 * tokens * KEY_DIM, replacement=True, generator=generator)
    gates = GATES[chosen].view(*shape, KEY_DIM).float()
    return [z.double() for z in (q, k, v, gates)]


def loop(q, k, v, log_decay):
    """The recurrence as printed, one token at a time."""
    state, rows = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype), []
    for t in range(q.shape[2]):
        written = torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        state = log_decay[:, :, t].exp()[..., None] * state + written
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], state))
    return torch.stack(rows, 2)


def with_gradients(function, inputs, weight):
    """Output and the gradients of its weighted sum."""
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


mixes = st.tuples(*[st.integers(0, 3)] * 5).filter(any)


@given(
    tokens=st.integers(1, 75),
    chunk=st.sampled_from([1, 2, 8, 32, 64]),
    mix=mixes,
    seed=st.integers(0, 999),
    form=st.sampled_from(["chunked", "chunked", "recurrent"]),
)
@settings(max_examples=60, deadline=None)
def test_fp32_is_the_recurrence_at_any_decay(tokens, chunk, mix, seed, form):
    """Outputs and gradients in fp32 keep to the rounding of their sums, whatever mix of decays (0 to -30).

    Every output and gradient is a sum of products; with absolute values in place of all factors, the
    recurrence gives the sum of their sizes. Summing n terms in any order errs by at most n eps of
    that; a term here passes through no more than 2 N + Dk + Dv additions and 4 log2(C) + N products.
    An exponent x, rounded in at most log2(C) = 6 additions, moves e^x by 6 eps |x| e^x / 2 at the most, and
    |x| e^x < 0.74 e^(x/2): the size of the same sums with half the log decay.
    """
    inputs = draw(tokens, seed, mix)
    weight = torch.randn(2, 2, tokens, VALUE_DIM, generator=torch.Generator().manual_seed(seed + 1)).double()

    def ours(q, k, v, g):
        return gated_linear_attention(q, k, v, g, form=form, chunk_size=chunk)

    found = with_gradients(ours, [z.float() for z in inputs], weight.float())
    exact = with_gradients(loop, inputs, weight)
    q, k, v, g = inputs
    size = with_gradients(loop, (q.abs(), k.abs(), v.abs(), g), weight.abs())
    moved = with_gradients(loop, (q.abs(), k.abs(), v.abs(), g / 2), weight.abs())
    roundings = 3 * tokens + KEY_DIM + VALUE_DIM + 4 * 6
    for got, want, scale, more in zip(found, exact, size, moved, strict=True):
        limit = torch.finfo(torch.float32).eps * (roundings * scale + 3 * more) + 1e-30  # 1e-30: underflow
        assert got.isfinite().all()
        assert ((got.double() - want).abs() <= limit).all()


def test_a_weak_decay_after_strong_ones_keeps_its_digits():
    """After 40 tokens of -30, a decay of -1e-3 is as accurate as alone: no difference of running sums."""
    q, k, v, g = draw(64, 0)
    g = torch.full_like(g, -30.0)
    g[:, :, 40:] = -1e-3
    got = gated_linear_attention(*(z.float() for z in (q, k, v, g)), chunk_size=64)
    size = loop(q.abs(), k.abs(), v.abs(), g)
    # 24 tokens of at most 4 x 3 products; a running sum of -1200 would be off by 6e-5 alone
    assert ((got.double() - loop(q, k, v, g)).abs() / size).max() < 2e-6


def test_weak_decays_lose_less_than_in_the_token_loop():
    """Over 512 tokens of one decay near 1, sums of logarithms beat a factor that is rounded 512 times."""
    q = torch.zeros(1, 1, 512, 1)
    k, v = q.clone(), torch.ones(1, 1, 512, 1)
    q[..., -1, :] = k[..., 0, :] = 1  # the last token reads what the first one wrote
    g = torch.full_like(q, -1e-3 / 3)
    want = torch.exp(511 * g[0, 0, 0, 0].double())
    error = {
        form: abs(gated_linear_attention(q, k, v, g, form=form)[0, 0, -1, 0].double() - want) / want
        for form in ("chunked", "recurrent")
    }
    factors = 2 * 5 + 512 // 32
    assert error["chunked"] <= factors * torch.finfo(torch.float32).eps
    assert error["chunked"] <= error["recurrent"]


def test_total_forgetting_has_finite_gradients():
    """A log decay of -inf drops all that came before, and its gradient is 0, not NaN."""
    q, k, v, g = draw(20, 1)
    g[:, :, 7] = -torch.inf
    out, *grads = with_gradients(lambda *z: gated_linear_attention(*z, chunk_size=8), (q, k, v, g), 1.0)
    torch.testing.assert_close(out[:, :, 7:], loop(*(z[:, :, 7:] for z in (q, k, v, g))))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[3][:, :, 7].any()


def test_gradients_pass_gradcheck():
    """The backward pass is the derivative, with padding and several chunks."""
    inputs = [z[:1, :1].clone().requires_grad_() for z in draw(11, 2, (1, 0, 2, 2, 0))]
    assert torch.autograd.gradcheck(lambda *z: gated_linear_attention(*z, chunk_size=4), inputs)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_half_types_compute_in_fp32(form):
    """bf16 inputs give the fp32 result rounded once, and autocast does not round what is inside."""
    inputs = [z.bfloat16() for z in draw(40, 3)]
    exact = gated_linear_attention(*(z.float() for z in inputs), form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gated_linear_attention(*inputs, form=form)
        full = gated_linear_attention(*(z.float() for z in inputs), form=form)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())
    assert torch.equal(full, exact)


@pytest.mark.parametrize("tokens", [1, 16, 40])
@pytest.mark.parametrize("batch", [1, 2])
def test_heads_split_from_a_projection_are_taken_as_they_are(batch, tokens):
    """Strided views [B, H, N, D] of [B, N, C] give what contiguous copies give, for one chunk and several."""
    inputs = [z[:batch] for z in draw(tokens, 5)]
    strided = [z.transpose(1, 2).contiguous().transpose(1, 2) for z in inputs]
    found = [gated_linear_attention(*z, chunk_size=16) for z in (inputs, strided)]
    torch.testing.assert_close(*found)


class Both(torch.nn.Module):
    """The function as a module, for the counters."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, *inputs):
        return gated_linear_attention(*inputs, **self.options)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 16), (5, 16), (16, 16), (50, 16), (7, 1)])
def test_counts_are_what_executes(form, tokens, chunk):
    """The closed form is what both counters see on the meta device, for one chunk, several and padding."""
    inputs = [torch.empty(2, 3, tokens, d, device="meta") for d in (4, 4, 6, 4)]
    module = Both(form=form, chunk_size=chunk)
    want = 6 * gated_linear_macs(tokens, 4, 6, form, chunk)
    assert count_with_torch(module, inputs).macs == want
    assert count_with_fvcore(module, inputs).macs == want


def test_compiles_as_one_graph():
    """The chunked form has no graph break, and traced it computes the same."""
    inputs = [z.float() for z in draw(40, 4)]
    compiled = torch.compile(Both(chunk_size=16), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), gated_linear_attention(*inputs, chunk_size=16))


@pytest.mark.parametrize("chunk", [0, -4, 24])
def test_chunks_are_powers_of_two(chunk):
    """Other chunk sizes are refused with the value and what is allowed."""
    with pytest.raises(UserInputError, match=f"power of two.*got {chunk}"):
        gated_linear_attention(*draw(4, 0), chunk_size=chunk)
