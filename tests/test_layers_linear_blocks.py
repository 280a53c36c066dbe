"""Linear attention block by block against the formula in whole operations: values, derivatives, users."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from attnbench.layers import block_workspace, linear_attention, linear_blocks, linear_core, split_heads
from attnbench.layers.linear_blocks import Terms, blocked_attention, unblocked
from attnbench.profiling.cuda_rules import CudaRules

KINDS = ("sums alone", "normalised", "rectified", "a mass of its own")
SIZES = {"self": (70, 70, 4, 4), "wide values, fewer queries": (33, 100, 4, 6)}  # N, M, Dk, Dv


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of 32 tokens, so that 70 make three, the last one shorter."""
    monkeypatch.setattr(block_workspace, "SHORTEST_BLOCK", 32)
    monkeypatch.setattr(block_workspace, "OTHER_ELEMENTS", 1)
    monkeypatch.setattr(block_workspace, "BLOCK_ELEMENTS", {})


def draw(sizes, kind, dtype=torch.float64, *, positive=False):
    """Return inputs [2, 3, N, D] of one kind, and what makes terms of them."""
    n, m, key_dim, value_dim = sizes
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, *shape) for shape in ((n, key_dim), (m, key_dim), (m, value_dim))]
    if kind == "normalised" or positive:
        inputs = [z.abs() for z in inputs]
    if kind == "a mass of its own":
        inputs += [torch.rand(2, 3, n, key_dim), torch.rand(2, 3, m, key_dim)]
    options = {"normalise": kind != "sums alone", "rectify": kind == "rectified", "eps": 1e-2}

    def terms(q, k, v, mass_q=None, mass_k=None):
        return Terms(q, k, v, mass_q, mass_k, **options)

    return [z.to(dtype).requires_grad_() for z in inputs], terms


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_agree_with_the_formula(kind, sizes, short_blocks):
    """In float64: outputs, gradients, and gradients of gradients, to the rounding of a few hundred sums."""
    inputs, terms = draw(sizes, kind)
    outputs = [form(terms(*inputs)) for form in (blocked_attention, unblocked)]
    weight = torch.randn_like(outputs[0])
    direction = [torch.randn_like(z) for z in inputs]
    found = []
    for y in outputs:
        first = torch.autograd.grad((y * weight).sum(), inputs, retain_graph=True)
        again = torch.autograd.grad((y * weight).sum(), inputs, create_graph=True)
        along = sum((a * b).sum() for a, b in zip(again, direction, strict=True))
        second = torch.autograd.grad(along, inputs, allow_unused=True)
        found.append((y, *first, *(z for z in second if z is not None)))
    assert len(found[0]) == len(found[1])
    for ours, formula in zip(*found, strict=True):
        scale = formula.detach().abs().max()
        torch.testing.assert_close(ours / scale, formula / scale, rtol=0, atol=4096 * 2.0**-53)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_rounds_as_often_as_it_says(dtype, short_blocks):
    """On positive numbers a rounding is a relative error of at most u, and nothing cancels.

    Output: a half type rounds a block's part of the state, the state, what is read from it and the quotient:
    4 u of its own. Gradient of v: fp32 until it is stored, 1 u. Sums in fp32: at most u32 for each of their
    terms, of which there are 100 keys or 70 queries, 4 channels, twice (numerator and denominator), and a
    few operations more.
    """
    inputs, terms = draw((70, 100, 4, 6), "normalised", dtype, positive=True)
    exact = [z.detach().double().requires_grad_() for z in inputs]
    y, y_exact = blocked_attention(terms(*inputs)), unblocked(terms(*exact))
    grad = torch.rand_like(y)
    (dv,) = torch.autograd.grad(y, inputs[2], grad)
    (dv_exact,) = torch.autograd.grad(y_exact, exact[2], grad.double())
    own = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0.0
    sums = 256 * torch.finfo(torch.float32).eps / 2
    torch.testing.assert_close(y.double(), y_exact, rtol=1.01 * 4 * own + sums, atol=0)
    torch.testing.assert_close(dv.double(), dv_exact, rtol=1.01 * own + sums, atol=0)


def test_half_gradients_are_no_worse_than_those_of_whole_operations(short_blocks):
    """The backward pass is in fp32, autograd's of the formula rounds between its operations."""
    inputs, terms = draw((70, 70, 4, 4), "rectified", torch.bfloat16)
    exact = [z.detach().double().requires_grad_() for z in inputs]
    weight = torch.randn(2, 3, 70, 4).bfloat16()
    want = torch.autograd.grad(unblocked(terms(*exact)), exact, weight.double())
    errors = []
    for form in (blocked_attention, unblocked):
        got = torch.autograd.grad(form(terms(*inputs)), inputs, weight)
        errors.append([((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)])
    assert all(ours <= whole for ours, whole in zip(*errors, strict=True)), errors


def test_nothing_as_large_as_an_input_is_kept():
    """The backward pass has the inputs and [B, H, D, D + 1] sums; merged heads are a view."""
    qkv = torch.randn(2, 300, 3 * 16, requires_grad=True)
    heads = [split_heads(z, 2) for z in qkv.chunk(3, -1)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: (kept.append(z), z)[1], lambda z: z):
        y = linear_attention(*heads, eps=1e-6, rectify=True)
    assert y.transpose(1, 2).is_contiguous()
    new = {z.untyped_storage().data_ptr(): z.numel() for z in kept}
    assert new.pop(qkv.untyped_storage().data_ptr())
    assert sum(new.values()) == 2 * 2 * 8 * (8 + 1)


def attend(q, k, v):
    """Attend over 300 tokens: enough for blocks."""
    return linear_attention(q, k, v, eps=1e-6)


def heads_of(tokens=300, dtype=torch.float32):
    """Return non-negative q, k, v."""
    return [torch.rand(2, 3, tokens, 4, dtype=dtype) for _ in range(3)]


def test_transforms_see_the_formula():
    """torch.func and forward-mode derivatives go through, and agree with the backward pass."""
    q, k, v = heads_of(dtype=torch.float64)
    along = torch.rand_like(q)
    _, forward = torch.func.jvp(lambda z: attend(z, k, v), (q,), (along,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(attend(forward_ad.make_dual(q, along), k, v)).tangent
    q.requires_grad_()
    (backward,) = torch.autograd.grad(attend(q, k, v).sum(), q)
    assert dual is not None
    torch.testing.assert_close(dual, forward)
    torch.testing.assert_close((backward * along).sum(), forward.sum())
    each = torch.func.vmap(lambda *z: attend(*(x[None] for x in z))[0])(q.detach(), k, v)
    torch.testing.assert_close(each, attend(q, k, v).detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_compilers_and_tracers_see_the_formula(monkeypatch):
    """One graph without a break, and a trace that holds for other numbers: the blocks are not asked."""

    def refuse(terms):
        raise AssertionError("computed in blocks")

    heads = heads_of()
    want = attend(*heads)
    monkeypatch.setattr(linear_core, "blocked_attention", refuse)
    with pytest.raises(AssertionError, match="in blocks"):
        attend(*heads)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*heads), want)
    torch.testing.assert_close(torch.jit.trace(attend, heads, check_trace=False)(*heads), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # whose types are another matter
        attend(*heads)
    attend(*heads_of(tokens=100))
    with CudaRules():  # a plan for a GPU on fake tensors of the CPU
        attend(*heads)


def test_blocks_do_the_multiply_adds_of_the_formula():
    """Both forms count the same, forward and backward."""
    counts = []
    for form in (blocked_attention, unblocked):
        inputs, terms = draw((300, 300, 4, 4), "rectified", torch.float32)
        with FlopCounterMode(display=False) as counter:
            form(terms(*inputs)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 6 * 2 * 2 * 3 * 300 * 4 * 4


def test_an_image_is_computed_as_it_is_alone():
    """To the bit: images of a batch go one by one."""
    heads = heads_of()
    together = attend(*heads)
    for image in range(2):
        assert torch.equal(attend(*(z[image : image + 1] for z in heads)), together[image : image + 1])


def test_a_rectified_mass_is_refused():
    """What ReLU would apply to is not said."""
    q, k, v = heads_of()
    with pytest.raises(ValueError, match="rectify is for"):
        linear_attention(q, k, v, eps=1e-6, mass=(q, k), rectify=True)


def test_blocks_are_computed_by_the_function_that_says_so():
    """The public core asks for blocks from 256 tokens on in fp32."""
    q, k, v = heads_of()
    assert linear_core.takes_blocks(Terms(q, k, v, None, None, normalise=True, rectify=False, eps=0.0))
    assert linear_attention(q, k, v.requires_grad_(), eps=1e-6).grad_fn.name().startswith("_Blocked")
    assert linear_blocks.key_mass is linear_core.key_mass


def test_half_types_take_blocks_where_they_gain():
    """From 512 tokens on, in heads up to 128 wide; sums alone only without a gradient."""

    def taken(width, *, tokens=512, normalise=True, trains=False):
        heads = [torch.rand(1, 1, tokens, width, dtype=torch.bfloat16) for _ in range(3)]
        heads[1].requires_grad_(trains)
        terms = Terms(*heads, None, None, normalise=normalise, rectify=False, eps=0.0)
        return linear_core.takes_blocks(terms)

    assert taken(128)
    assert taken(128, trains=True)
    assert taken(128, normalise=False)
    assert not taken(128, normalise=False, trains=True)
    assert not taken(129)
    assert not taken(128, tokens=511)
