"""The gated delta rule: both forms against the float64 recurrence, at any decay, and what they cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import UserInputError
from attnbench.layers.gated_delta import gated_delta_macs, gated_delta_rule
from attnbench.profiling.counters import count_with_fvcore, count_with_torch

KEY_DIM, VALUE_DIM = 4, 3
GATES = torch.tensor([0.0, -1e-4, -0.05, -1.0, -30.0], dtype=torch.float64)


def draw(tokens, seed, width=KEY_DIM, weights=(1, 1, 1, 1, 1), largest_step=1.0):
    """Inputs in fp32 values kept as float64: unit keys, log decays mixed from GATES, steps up to a limit."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, tokens)
    q, k = (torch.randn(*shape, KEY_DIM, generator=generator) for _ in range(2))
    v, step = torch.randn(*shape, VALUE_DIM, generator=generator), torch.rand(*shape, 1, generator=generator)
    odds = torch.tensor(weights, dtype=torch.float64)
    chosen = torch.multinomial(odds, 4 * tokens * width, replacement=True, generator=generator)
    gates = GATES[chosen].view(*shape, width).float()
    return [z.double() for z in (q, F.normalize(k, dim=-1), v, gates, largest_step * step)]


def loop(q, k, v, log_decay, beta):
    """The recurrence as printed, one token at a time: forget, then move what the key holds towards v."""
    state, rows = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype), []
    for t in range(q.shape[2]):
        state = log_decay[:, :, t].exp()[..., None] * state
        error = v[:, :, t] - torch.einsum("bhk,bhkv->bhv", k[:, :, t], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], beta[:, :, t] * error)
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], state))
    return torch.stack(rows, 2)


def with_gradients(function, inputs, weight):
    """Output and the gradients of its weighted sum."""
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


sizes = {
    "tokens": st.integers(1, 50),
    "chunk": st.sampled_from([1, 2, 8, 32, 64]),
    "width": st.sampled_from([1, KEY_DIM]),
    "mix": st.tuples(*[st.integers(0, 3)] * 5).filter(any),
    "seed": st.integers(0, 999),
    "form": st.sampled_from(["chunked", "chunked", "recurrent"]),
}


@given(**sizes)
@settings(max_examples=12, deadline=None)
def test_both_forms_are_the_recurrence(tokens, chunk, width, mix, seed, form):
    """In float64 outputs and gradients agree, at steps up to 2, where a state is reflected."""
    inputs = draw(tokens, seed, width, mix, largest_step=2.0)
    weight = torch.randn(2, 2, tokens, VALUE_DIM, generator=torch.Generator().manual_seed(seed + 1)).double()

    def ours(*z):
        return gated_delta_rule(*z, form=form, chunk_size=chunk)

    for got, want in zip(*(with_gradients(f, inputs, weight) for f in (ours, loop)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@given(**sizes)
@settings(max_examples=25, deadline=None)
def test_fp32_keeps_to_the_rounding_of_its_sums(tokens, chunk, width, mix, seed, form):
    """Outputs in fp32 err by no more than their additions round, whatever mix of decays (0 to -30).

    Unit keys and steps in [0, 1] make every map of the state a contraction: an error made at one token is
    carried on, never enlarged, and the state is at most the sum of |b v| so far. A token adds less than
    2 (Dk + Dv) + 4 roundings of that in the loop, plus 2 of its own exponent, and as many and 2 C through the
    inverse of a chunk, whose entries are at most 1 and sums of at most C products, log2(C) <= 6 times.
    """
    inputs = draw(tokens, seed, width, mix)
    got = gated_delta_rule(*(z.float() for z in inputs), form=form, chunk_size=chunk)
    q, _, v, _, beta = inputs
    size = q.norm(dim=-1, keepdim=True) * (beta * v).norm(dim=-1, keepdim=True).cumsum(2)
    per_token = 2 * (KEY_DIM + VALUE_DIM) + 6 + (2 * 6 * min(chunk, tokens) if form == "chunked" else 0)
    assert got.isfinite().all()
    assert ((got.double() - loop(*inputs)).abs() <= torch.finfo(torch.float32).eps * per_token * size).all()


def test_total_forgetting_has_finite_gradients():
    """A log decay of -inf drops all that came before, and its gradient is 0, not NaN."""
    q, k, v, g, b = draw(20, 1)
    g[:, :, 7] = -torch.inf
    out, *grads = with_gradients(lambda *z: gated_delta_rule(*z, chunk_size=8), (q, k, v, g, b), 1.0)
    torch.testing.assert_close(out[:, :, 7:], loop(*(z[:, :, 7:] for z in (q, k, v, g, b))))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[3][:, :, 7].any()


def test_one_factor_a_head_is_the_same_factor_in_every_channel():
    """Gated DeltaNet's decay is Kimi Delta Attention's with equal channels."""
    q, k, v, g, b = draw(40, 4, width=1)
    by_channel = gated_delta_rule(q, k, v, g.expand(-1, -1, -1, KEY_DIM), b, chunk_size=16)
    torch.testing.assert_close(gated_delta_rule(q, k, v, g, b, chunk_size=16), by_channel)


def test_a_full_step_is_read_back():
    """With b = 1 and no decay the state gives back for a key what was written for it last."""
    _, k, v, g, b = draw(24, 2)
    k = F.normalize(k, dim=-1)  # unit length in float64
    got = gated_delta_rule(k, k, v, 0 * g, torch.ones_like(b), chunk_size=8)
    torch.testing.assert_close(got, v)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_half_types_compute_in_fp32(form):
    """bf16 inputs give the fp32 result rounded once, and autocast does not round what is inside."""
    inputs = [z.bfloat16() for z in draw(40, 3)]
    exact = gated_delta_rule(*(z.float() for z in inputs), form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gated_delta_rule(*inputs, form=form)
        full = gated_delta_rule(*(z.float() for z in inputs), form=form)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())
    assert torch.equal(full, exact)


class Both(torch.nn.Module):
    """The function as a module, for the counters."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, *inputs):
        return gated_delta_rule(*inputs, **self.options)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 16), (5, 16), (50, 16), (7, 1)])
def test_counts_are_what_executes(form, tokens, chunk):
    """The closed form is what both counters see on the meta device, for one chunk, several and padding."""
    inputs = [torch.empty(2, 3, tokens, d, device="meta") for d in (4, 4, 6, 4, 1)]
    module = Both(form=form, chunk_size=chunk)
    want = 6 * gated_delta_macs(tokens, 4, 6, form, chunk)
    assert count_with_torch(module, inputs).macs == want
    assert count_with_fvcore(module, inputs).macs == want


@pytest.mark.parametrize("chunk", [0, 24])
def test_chunks_are_powers_of_two(chunk):
    """Other chunk sizes are refused with the value and what is allowed."""
    with pytest.raises(UserInputError, match=f"power of two.*got {chunk}"):
        gated_delta_rule(*draw(4, 0), chunk_size=chunk)
