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
    return torch.empty(*shape, device="meta", dtype=dtype)


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


def test_grouped_matmul():
    """grouped_mm costs one matrix per row, whatever the number of groups; torch itself counts 0."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    a, b = meta(16, 8, dtype=torch.bfloat16), meta(3, 8, 32, dtype=torch.bfloat16)
    assert macs(lambda a, b: grouped_mm(a, b, offs=ends), a, b) == (16 * 8 * 32, 16 * 8 * 32)


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
        (lambda x: torch.addbmm(x[0], x, x), "addbmm"),
        (lambda x: torch.fft.fft(x).real, "fft"),
        (lambda x: torch.bilinear(x[0], x[0], x, None), "linear"),
    ],
    ids=["cdist", "addbmm", "fft", "bilinear"],
)
def test_heavy_operation_without_formula_is_an_error(count, function, name):
    """torch's own operations that do heavy work and have no formula are errors too."""
    with pytest.raises(UncountedOpError, match=name):
        count(Calls(function), [meta(4, 4, 4)])


def test_ambiguous_einsum_is_an_error():
    """Three operands may be contracted in several orders at several costs."""
    with pytest.raises(UncountedOpError, match="two operands"):
        count_with_fvcore(Calls(lambda x: torch.einsum("ab,bc,cd->ad", x, x, x)), [meta(4, 4)])


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
