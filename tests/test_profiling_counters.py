"""Both counters against hand counts, and everything they must refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from attnbench.errors import PluginError, UncountedOpError
from attnbench.profiling.counters import check_agreement, count_with_fvcore, count_with_torch

COUNTERS = [count_with_torch, count_with_fvcore]


class Calls(nn.Module):
    """A module that is one function."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def macs(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> tuple[int, int]:
    return tuple(count(Calls(function), inputs).macs for count in COUNTERS)


# name: function, input shapes, multiply-adds by hand
BY_HAND = {
    "linear": (lambda x, w: F.linear(x, w), [(2, 5, 8), (3, 8)], 2 * 5 * 8 * 3),
    "matmul": (lambda a, b: a @ b, [(2, 4, 5), (2, 5, 3)], 2 * 4 * 5 * 3),
    "matmul, first broadcast": (lambda a, b: a @ b, [(4, 5), (3, 5, 2)], 3 * 4 * 5 * 2),
    "matmul, second broadcast": (lambda a, b: a @ b, [(6, 4, 5), (5, 2)], 6 * 4 * 5 * 2),
    "matrix x vector": (lambda a, b: a @ b, [(3, 4, 5), (5,)], 3 * 4 * 5),
    "vector x vector": (lambda a, b: a @ b, [(5,), (5,)], 5),
    "baddbmm": (torch.baddbmm, [(2, 4, 3), (2, 4, 5), (2, 5, 3)], 2 * 4 * 5 * 3),
    "einsum, kv": (lambda k, v: torch.einsum("bnd,bne->bde", k, v), [(2, 7, 3), (2, 7, 5)], 2 * 7 * 3 * 5),
    "einsum, ellipsis": (lambda a, b: torch.einsum("...nd,de->...ne", a, b), [(2, 3, 7, 5), (5, 4)], 42 * 20),
    "einsum, elementwise": (lambda a, b: torch.einsum("bnd,bn->bnd", a, b), [(2, 7, 3), (2, 7)], 0),
    "conv": (lambda x, w: F.conv2d(x, w, padding=1), [(1, 4, 5, 6), (8, 4, 3, 3)], 30 * 8 * 4 * 9),
    "conv, depthwise": (
        lambda x, w: F.conv2d(x, w, padding=1, groups=8),
        [(1, 8, 5, 6), (8, 1, 3, 3)],
        30 * 8 * 9,
    ),
    "conv, grouped": (
        lambda x, w: F.conv2d(x, w, padding=1, groups=2),
        [(1, 8, 5, 6), (6, 4, 3, 3)],
        30 * 6 * 36,
    ),
    "conv, stride": (lambda x, w: F.conv2d(x, w, stride=2), [(1, 4, 8, 8), (6, 4, 2, 2)], 16 * 6 * 16),
    "conv, same": (lambda x, w: F.conv2d(x, w, padding="same"), [(1, 4, 5, 5), (6, 4, 3, 3)], 25 * 6 * 36),
    "conv, unbatched": (lambda x, w: F.conv2d(x, w, padding=1), [(4, 5, 5), (6, 4, 3, 3)], 25 * 6 * 36),
    "conv1d": (lambda x, w: F.conv1d(x, w, padding=1), [(2, 4, 9), (6, 4, 3)], 2 * 9 * 6 * 12),
    "conv, transposed": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        [(1, 3, 5, 5), (3, 4, 2, 2)],
        25 * 48,
    ),
    "attention": (
        F.scaled_dot_product_attention,
        [(1, 2, 7, 4), (1, 2, 5, 4), (1, 2, 5, 3)],
        2 * 7 * 5 * (4 + 3),
    ),
    "attention, grouped heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        [(1, 8, 7, 4), (1, 2, 5, 4), (1, 2, 5, 3)],
        8 * 7 * 5 * (4 + 3),
    ),
    "attention, queries broadcast": (
        F.scaled_dot_product_attention,
        [(1, 2, 7, 4), (3, 2, 5, 4), (3, 2, 5, 4)],
        3 * 2 * 7 * 5 * (4 + 4),
    ),
    "matmul, both broadcast": (torch.matmul, [(2, 1, 4, 5), (1, 3, 5, 6)], 2 * 3 * 4 * 5 * 6),
    "vector x matrices": (torch.matmul, [(5,), (3, 5, 6)], 3 * 5 * 6),
    "vdot": (torch.vdot, [(5,), (5,)], 5),
    "inner": (torch.inner, [(2, 4, 5), (3, 5)], 2 * 4 * 3 * 5),
    "inner of vectors": (torch.inner, [(5,), (5,)], 5),
    "inner with a scalar": (torch.inner, [(4, 5), ()], 0),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=2), [(3, 4, 5), (4, 5, 6)], 3 * 6 * 4 * 5),
    "tensordot, named axes": (
        lambda a, b: torch.tensordot(a, b, dims=([0, 2], [1, 0])),
        [(3, 4, 5), (5, 3, 6)],
        4 * 6 * 3 * 5,
    ),
    "addmm": (torch.addmm, [(3,), (4, 5), (5, 3)], 4 * 5 * 3),
    "addmv": (torch.addmv, [(4,), (4, 5), (5,)], 4 * 5),
    "addbmm": (torch.addbmm, [(4, 3), (2, 4, 5), (2, 5, 3)], 2 * 4 * 5 * 3),
    "einsum, summed first": (lambda a, b: torch.einsum("abx,bc->ac", a, b), [(4, 5, 9), (5, 6)], 4 * 5 * 6),
    "einsum, axis of length 1": (lambda a, b: torch.einsum("ab,bc->ac", a, b), [(4, 1), (5, 6)], 0),
    "einsum, broadcast ellipsis": (
        lambda a, b: torch.einsum("...ab,...bc->...ac", a, b),
        [(3, 1, 4, 5), (2, 5, 6)],
        3 * 2 * 4 * 5 * 6,
    ),
    "einsum, axes in lists": (
        lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [0, 2]),
        [(4, 5), (5, 6)],
        4 * 5 * 6,
    ),
    "conv, by its operation": (torch.ops.aten.conv2d, [(1, 4, 5, 6), (8, 4, 3, 3)], 3 * 4 * 8 * 4 * 9),
    "conv, by its general form": (
        lambda x, w: torch.convolution(x, w, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
        [(1, 3, 5, 5), (3, 4, 2, 2)],
        25 * 3 * 4 * 4,
    ),
    "conv, transposed and grouped": (
        lambda x, w: F.conv_transpose2d(x, w, groups=2),
        [(1, 4, 5, 5), (4, 3, 2, 2)],
        25 * 4 * 3 * 4,
    ),
    "conv1d, transposed": (
        lambda x, w: F.conv_transpose1d(x, w, stride=2),
        [(2, 4, 9), (4, 6, 3)],
        2 * 9 * 4 * 6 * 3,
    ),
    "outer": (torch.outer, [(4,), (5,)], 0),
    "layer norm": (lambda x, w: F.layer_norm(x, (8,), w, w), [(2, 5, 8), (8,)], 0),
    "group norm": (lambda x: F.group_norm(x, 2), [(2, 8, 5)], 0),
    "softmax": (lambda x: x.softmax(-1), [(2, 5, 8)], 0),
    "interpolation": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [(1, 2, 4, 4)], 0),
    "pooling": (lambda x: F.adaptive_avg_pool2d(x, 2), [(1, 2, 4, 4)], 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_count_by_hand(name):
    """Both counters give the hand count of matmuls and convolutions, and 0 for everything else."""
    function, shapes, expected = BY_HAND[name]
    assert macs(function, *(meta(*shape) for shape in shapes)) == (expected, expected)


def test_batch_norm_counts_nothing():
    """A BatchNorm in inference is no matmul, though fvcore as it comes counts two per element."""
    assert [
        count(nn.BatchNorm2d(8, device="meta").eval(), [meta(1, 8, 4, 4)]).macs for count in COUNTERS
    ] == [0, 0]


# shapes of a and b, groups, shape of the result, multiply-adds by hand
GROUPED = {
    "rows": ((16, 8), (3, 8, 32), 3, (16, 32), 16 * 8 * 32),
    "columns": ((3, 16, 8), (8, 32), 3, (16, 32), 16 * 8 * 32),
    "parts of the sum": ((16, 8), (8, 32), 3, (3, 16, 32), 16 * 8 * 32),
    "stacks": ((3, 16, 8), (3, 8, 32), None, (3, 16, 32), 3 * 16 * 8 * 32),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", GROUPED)
def test_grouped_matmul(name, dtype):
    """grouped_mm costs one matrix per row, column or group, in any type."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    a, b, groups, shape, expected = GROUPED[name]
    ends = None if groups is None else torch.empty(groups, dtype=torch.int32, device="meta")

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = grouped_mm(a, b, offs=ends)
        assert (y.shape, y.dtype) == (shape, dtype)
        return y

    assert macs(product, meta(*a, dtype=dtype), meta(*b, dtype=dtype)) == (expected, expected)


def test_grouped_matmul_counts_on_a_cpu_too():
    """Where it is computed, torch's counter sees torch's own operation."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    a, b, ends = torch.ones(16, 8), torch.ones(3, 8, 32), torch.tensor([4, 8, 16], dtype=torch.int32)
    assert count_with_torch(Calls(lambda a, b: grouped_mm(a, b, offs=ends)), [a, b]).macs == 16 * 8 * 32


@pytest.mark.parametrize("count", COUNTERS)
def test_flex_attention_is_refused_by_name_and_leaves_nothing_behind(count):
    """Inside a counter torch's flex_attention fails, and without a reset every later call would fail, too."""
    from torch.nn.attention.flex_attention import flex_attention

    for q in (meta(1, 2, 16, 8), torch.ones(1, 2, 16, 8)):
        with pytest.raises(UncountedOpError, match=r"run flex_attention .*register_flop_formula"):
            count(Calls(lambda q: flex_attention(q, q, q)), [q])
    assert flex_attention(*3 * [torch.ones(1, 2, 16, 8)]).shape == (1, 2, 16, 8)


@torch.library.custom_op("attnbench_test::flex", mutates_args=())
def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """flex_attention as the refusal advises to write it."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v).clone()


@flex.register_fake
def _(q, k, v):
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@register_flop_formula(torch.ops.attnbench_test.flex)
def _flex_flops(q, k, v, *, out_shape=None):
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def test_flex_attention_counts_as_an_operation_with_a_formula():
    """What the refusal advises works in both counters, and computes."""
    assert macs(flex, meta(1, 2, 7, 4), meta(1, 2, 5, 4), meta(1, 2, 5, 4)) == (560, 560)
    assert flex(*3 * [torch.ones(1, 2, 16, 8)]).shape == (1, 2, 16, 8)


def test_compiled_parts_are_refused_by_name():
    """fvcore's trace does not see into torch.compile; the error says so, and what to do."""
    with pytest.raises(UncountedOpError, match=r"torch\.compile .*leave it out of the module"):
        count_with_fvcore(Calls(torch.compile(torch.mm)), [meta(4, 5), meta(5, 6)])


def test_errors_of_the_module_stay_what_they_are():
    """Shapes that do not fit are no question of counting."""
    for count in COUNTERS:
        with pytest.raises(RuntimeError, match="reduction dim"):
            count(Calls(torch.mm), [meta(4, 5), meta(4, 5)])


@settings(max_examples=20, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 2),
)
def test_any_convolution(groups, per_group, kernel, stride, dilation, batch):
    """A convolution costs one multiply-add per weight of its group and output value, however it strides."""
    conv = nn.Conv2d(
        groups * per_group[0],
        groups * per_group[1],
        kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        device="meta",
    )
    x = meta(batch, groups * per_group[0], 11, 12)
    expected = conv(x).numel() * per_group[0] * kernel[0] * kernel[1]
    assert [count(conv, [x]).macs for count in COUNTERS] == [expected, expected]


def test_traced_sizes_are_integers():
    """A module may do arithmetic on its input's shape that a tracer's tensor-sizes would break."""

    def by_shape(x: torch.Tensor) -> torch.Tensor:
        side = {16: 4}[x.shape[1]]
        assert type(len(x)) is int
        return x.reshape(x.size(0), side, side, -1) @ x.new_empty(x.shape[-1], x.numel() // 16)

    assert macs(by_shape, meta(1, 16, 8)) == (16 * 8 * 8, 16 * 8 * 8)


class _Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu() @ x.mT

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class _Nested(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return _Squares.apply(x) @ x

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_Squares.apply, 6 * 6 * 4),
        (_Nested.apply, 2 * 6 * 6 * 4),
        (lambda x: _Nested.apply(x) + _Squares.apply(x) @ x, 4 * 6 * 6 * 4),
    ],
    ids=["one", "nested", "both"],
)
def test_autograd_functions_are_looked_into(function, expected):
    """The matmuls inside a torch.autograd.Function count once, also when another function calls it."""
    assert macs(function, meta(6, 4)) == (expected, expected)


@torch.library.custom_op("attnbench_test::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    """An operation nobody registered a formula for."""
    return x @ x.mT


@opaque.register_fake
def _(x):
    return x.new_empty(x.shape[0], x.shape[0])


@torch.library.custom_op("attnbench_test::known", mutates_args=())
def known(x: torch.Tensor, weights: list[torch.Tensor], times: int, *, scale: float) -> torch.Tensor:
    """An operation with a formula, tensors in a list, and an argument that is keyword-only."""
    return x.clone()


@known.register_fake
def _(x, weights, times, *, scale):
    return torch.empty_like(x)


@register_flop_formula(torch.ops.attnbench_test.known)
def _known_flops(x, weights, times, *, scale, out_shape=None):
    assert scale == 0.5
    assert tuple(out_shape) == tuple(x)
    return 2 * times * x[0] * sum(w[0] * w[1] for w in weights)


class _HidesOpaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return opaque(x)

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


@pytest.mark.parametrize("count", COUNTERS)
@pytest.mark.parametrize("function", [opaque, _HidesOpaque.apply], ids=["plain", "in a function"])
def test_custom_operation_without_formula_is_an_error(count, function):
    """An operation no counter knows is named in an error and never counted as zero."""
    with pytest.raises(UncountedOpError, match="attnbench_test::opaque"):
        count(Calls(function), [meta(6, 4)])


def test_one_formula_serves_both_counters():
    """A formula registered with torch counts in fvcore too, with lists and keyword-only arguments."""
    counted = macs(lambda x, a, b: known(x, [a, b], 3, scale=0.5), meta(5, 4), meta(2, 7), meta(1, 6))
    assert counted == (3 * 5 * (14 + 6), 3 * 5 * (14 + 6))


@pytest.mark.parametrize("count", COUNTERS)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.cdist(x, x), "cdist"),
        (lambda x: torch.pdist(x[0]), "pdist"),
        (lambda x: torch.fft.fft(x).real, "fft"),
        (lambda x: torch.bilinear(x[0], x[0], x, None), "linear"),
        (lambda x: torch.svd(x).S, "svd"),
        (torch.cholesky, "cholesky"),
        (torch.linalg.pinv, "pinv"),
        (torch.inverse, "inv"),
        (lambda x: torch.linalg.solve_triangular(x, x, upper=True), "solve_triangular"),
        (torch.matrix_exp, "matrix_exp"),
    ],
    ids=["cdist", "pdist", "fft", "bilinear", "svd", "cholesky", "pinv", "inverse", "triangular", "exp"],
)
def test_heavy_operation_without_formula_is_an_error(count, function, name):
    """torch's own operations that do heavy work and have no formula are errors too."""
    with pytest.raises(UncountedOpError, match=name):
        count(Calls(function), [meta(4, 4, 4)])


def test_ambiguous_einsum_is_an_error():
    """Three operands may be contracted in several orders at several costs."""
    with pytest.raises(UncountedOpError, match="two operands"):
        count_with_fvcore(Calls(lambda x: torch.einsum("ab,bc,cd->ad", x, x, x)), [meta(4, 4)])


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda a, b, c: torch.einsum("ab,bc,cd->ad", a, b, c), "einsum"),
        (torch.chain_matmul, "chain_matmul"),
        (lambda *matrices: torch.linalg.multi_dot(matrices), "multi_dot"),
    ],
    ids=["einsum", "chain_matmul", "multi_dot"],
)
def test_chains_are_counted_as_executed_or_refused_by_name(function, name):
    """torch's counter sees the order that torch takes; the trace does not tell it, so fvcore refuses."""
    matrices = [meta(40, 5), meta(5, 60), meta(60, 1)]
    if name == "einsum":  # in the order of the operands unless opt_einsum is installed
        assert count_with_torch(Calls(function), matrices).macs in (40 * 5 * 60 + 40 * 60, 5 * 60 + 40 * 5)
    else:
        assert count_with_torch(Calls(function), matrices).macs == 5 * 60 + 40 * 5
    with pytest.raises(UncountedOpError, match=name):
        count_with_fvcore(Calls(function), matrices)


def test_agreement_within_a_thousandth_passes():
    """Counts that differ by at most 0.1 % agree."""
    check_agreement(1_000_000, 1_000_999, 1_000_500)
    check_agreement(0, 0, 0)


@pytest.mark.parametrize("counts", [(990, 1000, 1000), (1000, 990, 1000), (1000, 1000, 990)])
def test_disagreement_names_the_three_counts(counts):
    """Any one count that differs by more is an error with all three in it."""
    with pytest.raises(PluginError) as caught:
        check_agreement(*counts)
    for name, count in zip(("closed form", "fvcore", "torch"), counts, strict=True):
        assert f"{name} {count:,}" in str(caught.value)
