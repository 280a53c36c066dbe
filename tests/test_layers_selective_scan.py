"""The selective scan against the float64 recurrence: chunks, its own backward pass, memory, cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import UserInputError
from attnbench.layers import selective_scan_chunks
from attnbench.layers.selective_scan import ScanInputs, selective_scan, selective_scan_macs
from attnbench.profiling.counters import count_with_fvcore, count_with_torch

GROUPS, CHANNELS, STATES = 2, 3, 4


def draw(tokens, seed, scale=1.0):
    """x, steps, a, b, c in fp32 values kept as float64; steps up to `scale`, decays down to e^(-4 scale)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, GROUPS, tokens, CHANNELS, generator=generator)
    steps = scale * torch.rand(2, GROUPS, tokens, CHANNELS, generator=generator) ** 4
    a = -4 * torch.rand(GROUPS, STATES, CHANNELS, generator=generator)
    b, c = (torch.randn(2, GROUPS, tokens, STATES, generator=generator) for _ in range(2))
    return [z.double() for z in (x, steps, a, b, c)]


def loop(x, steps, a, b, c, decaying=None):
    """The recurrence as printed, one token at a time; the steps in the decays may be others."""
    decaying = steps if decaying is None else decaying
    state, rows = torch.zeros(2, *a.shape, dtype=x.dtype), []
    for t in range(x.shape[2]):
        new = (steps[:, :, t] * x[:, :, t])[:, :, None] * b[:, :, t, :, None]
        state = torch.exp(decaying[:, :, t, None] * a) * state + new
        rows.append((c[:, :, t, :, None] * state).sum(2))
    return torch.stack(rows, 2)


def with_gradients(function, inputs, weight):
    """Output and the gradients of its weighted sum."""
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


def scan(*inputs, **options):
    return selective_scan(ScanInputs(*inputs), **options)


@given(
    tokens=st.integers(1, 70),
    chunk=st.sampled_from([None, None, 1, 2, 8, 64]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 999),
    form=st.sampled_from(["chunked", "chunked", "recurrent"]),
)
@settings(max_examples=20, deadline=None)
def test_fp32_is_the_recurrence_at_any_decay(tokens, chunk, scale, seed, form):
    """Outputs and gradients in fp32 keep to the rounding of their sums, from no decay to e^-120 a token.

    With absolute values in place of all factors the recurrence gives the sum of their sizes; a step's
    gradient has two parts of unlike sign, from what it writes and what it lets decay. A term passes through
    at most N decays, each with its own rounding, 3 N additions (over tokens before, tokens after, and for a
    over all) and S + E + 8 more operations. A decay's exponent z is rounded twice and a chunk's sum C times,
    which moves e^z by (C + 2) eps |z| e^z / 2 at most, and |z| e^z < 0.74 e^(z / 2): the sums with half of a,
    of which the gradient of a step has but half the factor a.
    """
    inputs = draw(tokens, seed, scale)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed + 1)).double()
    found = with_gradients(
        lambda *z: scan(*z, form=form, chunk_size=chunk), [z.float() for z in inputs], weight.float()
    )
    exact = with_gradients(loop, inputs, weight)
    largest = chunk or 8  # next to the root of 70
    for got, want, size, more in zip(
        found, exact, sizes(inputs, weight), sizes(inputs, weight, 0.5), strict=True
    ):
        roundings = 4 * tokens + STATES + CHANNELS + 8
        limit = torch.finfo(torch.float32).eps * (roundings * size + 2 * (largest + 2) * more) + 1e-30
        assert got.isfinite().all()
        assert ((got.double() - want).abs() <= limit).all()


def sizes(inputs, weight, share=1.0):
    """Sums of absolute values that outputs and gradients are made of, with this share of a."""
    x, steps, a, b, c = inputs
    parts = (x.abs(), steps, share * a, b.abs(), c.abs(), steps)
    *found, decaying = with_gradients(loop, parts, weight.abs())
    found[2] = found[2].abs() + decaying.abs()
    return found


@pytest.mark.parametrize("chunk", [1, 4, None, 16])
def test_the_backward_pass_is_that_of_the_formula(chunk, monkeypatch):
    """In float64 its gradients are autograd's of the token loop, in one portion and in the smallest ones."""
    inputs = draw(13, 1)
    weight = torch.randn(inputs[0].shape, dtype=torch.float64)
    want = with_gradients(loop, inputs, weight)
    for numbers, channels in ((1 << 17, 64), (1, 2)):
        monkeypatch.setattr(selective_scan_chunks, "PORTION", {"cpu": numbers})
        monkeypatch.setattr(selective_scan_chunks, "FEWEST_CHANNELS", channels)
        for got, exact in zip(
            with_gradients(lambda *z: scan(*z, chunk_size=chunk), inputs, weight), want, strict=True
        ):
            torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_it_can_be_differentiated_twice():
    """Second derivatives go through the formula that autograd follows."""
    inputs = [z[:1, :, :5] if z.ndim == 4 else z for z in draw(5, 2)]
    inputs = [z.clone().requires_grad_() for z in inputs]
    assert torch.autograd.gradgradcheck(lambda *z: scan(*z, chunk_size=2), inputs, fast_mode=True)


def test_the_backward_pass_keeps_no_state_of_a_token():
    """What is kept for it is inputs and border states: a sixteenth of one state per token at most."""
    x, steps, a, b, c = (z.float().requires_grad_() for z in draw(1024, 3))
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(x, steps, a, b, c)
    states = 4 * 2 * GROUPS * 1024 * STATES * CHANNELS
    inputs = sum(4 * z.numel() for z in (x, x, steps, a, a, b, c))  # x, too, times the steps; a in log 2
    assert sum(kept.values()) <= inputs + states // 16


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_half_types_compute_in_fp32(form):
    """bf16 inputs give the fp32 result rounded once, and autocast does not round what is inside."""
    inputs = [z.bfloat16() for z in draw(40, 4)]
    exact = scan(*(z.float() for z in inputs), form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = scan(*inputs, form=form)
        full = scan(*(z.float() for z in inputs), form=form)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())
    assert torch.equal(full, exact)


class Scan(torch.nn.Module):
    """The function as a module, for the counters."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, *inputs):
        return scan(*inputs, **self.options)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize(("tokens", "chunk"), [(1, None), (50, None), (50, 16), (7, 1)])
def test_counts_are_what_executes(form, tokens, chunk):
    """The closed form is what both counters see on the meta device, for one chunk, several and padding."""
    shapes = [(1, 2, tokens, 6), (1, 2, tokens, 6), (2, 5, 6), (1, 2, tokens, 5), (1, 2, tokens, 5)]
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    module = Scan(form=form, chunk_size=chunk)
    want = 2 * selective_scan_macs(tokens, 6, 5, form, chunk)
    assert count_with_torch(module, inputs).macs == want
    assert count_with_fvcore(module, inputs).macs == want


@pytest.mark.parametrize("chunk", [0, -4, 24])
def test_chunks_are_powers_of_two(chunk):
    """Other chunk sizes are refused with the value and what is allowed."""
    with pytest.raises(UserInputError, match=f"power of two.*got {chunk}"):
        scan(*draw(4, 0), chunk_size=chunk)
