"""Formulas the two counters lack: for torch's FlopCounterMode (operations) and fvcore (multiply-adds)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from fvcore.nn import jit_handles
from torch.utils import flop_counter

from attnbench.errors import UncountedOpError
from attnbench.profiling.tracing import RECORDED_CONVOLUTION, RECORDED_GROUPED_MM

aten = torch.ops.aten
Shape = Sequence[int]
Handle = Callable[[list[Any], list[Any]], float]  # inputs and outputs of a traced operation to MACs

# fvcore gives these a count of its own; here only matmuls and convolutions count.
_NOT_CONTRACTIONS = (
    "aten::batch_norm",
    "aten::group_norm",
    "aten::layer_norm",
    "aten::instance_norm",
    "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d",
    "aten::adaptive_avg_pool2d",
    "aten::grid_sampler",
)


def _mv_flops(matrix: Shape, vector: Shape, out_shape: Any = None, **_: Any) -> int:
    return 2 * prod(matrix)


def _dot_flops(a: Shape, b: Shape, out_shape: Any = None, **_: Any) -> int:
    return 2 * prod(a)


def _addmv_flops(bias: Shape, matrix: Shape, vector: Shape, out_shape: Any = None, **_: Any) -> int:
    return 2 * prod(matrix)


def _addbmm_flops(bias: Shape, a: Shape, b: Shape, out_shape: Any = None, **_: Any) -> int:
    return 2 * prod(a) * b[-1]


def _grouped_mm_flops(a: Shape, b: Shape, *_args: Any, out_shape: Any = None, **_: Any) -> int:
    """One matrix for each row of `a` [.., M, K], each column of `b` [.., K, N], or each part of K.

    Two stacks are as many whole products; else each row, column or part meets one matrix of the other.
    """
    stacked = a[0] if len(a) == len(b) == 3 else 1
    return 2 * stacked * a[-2] * a[-1] * b[-1]


def _sdpa_flops(query: Shape, key: Shape, value: Shape, *_args: Any, out_shape: Any = None, **_: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


# Given to FlopCounterMode for one count, so that torch's own registry stays as it is.
EXTRA_TORCH_FORMULAS: Mapping[Any, Callable[..., int]] = {
    aten.mv: _mv_flops,
    aten.dot: _dot_flops,
    aten.vdot: _dot_flops,
    aten.addmv: _addmv_flops,
    aten.addbmm: _addbmm_flops,
    aten._grouped_mm: _grouped_mm_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops,
    torch.ops.attnbench.recorded_grouped_mm: _grouped_mm_flops,
}


def fvcore_handles() -> dict[str, Handle]:
    """Return a handle for every operation that can be counted in a trace.

    A custom operation gets its handle from the formula registered for it with
    torch.utils.flop_counter.register_flop_formula: whoever adds one registers once for both counters.
    """
    handles: dict[str, Handle] = dict.fromkeys(_NOT_CONTRACTIONS, _zero)
    handles |= {
        "aten::linear": jit_handles.linear_flop_jit,
        "aten::_convolution": _convolution,
        RECORDED_CONVOLUTION: _recorded_convolution,
        "aten::scaled_dot_product_attention": _scaled_dot_product_attention,
        "aten::einsum": _einsum,
        "aten::_grouped_mm": _grouped_mm,
        RECORDED_GROUPED_MM: _grouped_mm,
        "aten::inner": _inner,
        "aten::tensordot": _tensordot,
        "aten::addbmm": _addbmm,
    }
    products = ("matmul", "mm", "bmm", "mv", "dot", "vdot")
    handles |= dict.fromkeys((f"aten::{product}" for product in products), _matmul)
    handles |= dict.fromkeys(("aten::addmm", "aten::baddbmm", "aten::addmv"), _added_matmul)
    for op, formula in flop_counter.flop_registry.items():
        name = getattr(op, "_qualified_op_name", "aten::")  # Triton kernels have none, nor enter a trace
        if not name.startswith("aten::"):
            handles[name] = _handle_from_formula(op, formula)
    return handles


def _zero(inputs: list[Any], outputs: list[Any]) -> float:
    return 0


def _shape(value: Any) -> list[int]:
    shape: list[int] | None = jit_handles.get_shape(value)
    if shape is None:
        raise UncountedOpError(f"the shape of an input of {value.node().kind()} is unknown in the trace")
    return shape


def _matmul(inputs: list[Any], outputs: list[Any]) -> float:
    """fvcore's own forgets operands that broadcast; the output's size never does."""
    return prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _added_matmul(inputs: list[Any], outputs: list[Any]) -> float:
    return _matmul(inputs[1:], outputs)


def _addbmm(inputs: list[Any], outputs: list[Any]) -> float:
    """The output has no batch: its products are summed."""
    return prod(_shape(inputs[1])) * _shape(inputs[2])[-1]


def _inner(inputs: list[Any], outputs: list[Any]) -> float:
    """Every last axis of one against every last axis of the other; a scalar is multiplied elementwise."""
    left, right = _shape(inputs[0]), _shape(inputs[1])
    return prod(_shape(outputs[0])) * left[-1] if left and right else 0


def _tensordot(inputs: list[Any], outputs: list[Any]) -> float:
    """An axis of length 1 against a longer one is no contraction: the longer one is summed first."""
    left, right = _shape(inputs[0]), _shape(inputs[1])
    pairs = zip(_python_value(inputs[2]), _python_value(inputs[3]), strict=True)
    return prod(_shape(outputs[0])) * prod(left[i] for i, j in pairs if left[i] == right[j])


def _grouped_mm(inputs: list[Any], outputs: list[Any]) -> float:
    return _grouped_mm_flops(_shape(inputs[0]), _shape(inputs[1])) // 2


def _convolution(inputs: list[Any], outputs: list[Any]) -> float:
    return _convolution_macs(inputs, outputs, transposed=inputs[6].toIValue())


def _recorded_convolution(inputs: list[Any], outputs: list[Any]) -> float:
    return _convolution_macs(inputs, outputs, transposed=inputs[3].toIValue())


def _convolution_macs(inputs: list[Any], outputs: list[Any], *, transposed: bool) -> float:
    """Each weight meets every output position (input position, if transposed) of every image once."""
    weight, positions = _shape(inputs[1]), _shape(inputs[0] if transposed else outputs[0])
    batched = len(positions) == len(weight)
    batch = positions[0] if batched else 1
    return batch * prod(weight) * prod(positions[-(len(weight) - 2) :])


def _scaled_dot_product_attention(inputs: list[Any], outputs: list[Any]) -> float:
    """The output has the batch and heads of all three; fewer heads of keys and values are repeated."""
    query, key, value = (_shape(v) for v in inputs[:3])
    return prod(_shape(outputs[0])[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(inputs: list[Any], outputs: list[Any]) -> float:
    """Two operands: torch sums what only one operand has, then multiplies batches of matrices.

    An axis of length 1 is one that the operand does not have.
    """
    equation = inputs[0].toIValue().replace(" ", "")
    operands = [_shape(v) for v in inputs[1].node().inputs()]
    if len(operands) == 1:
        return 0
    if len(operands) > 2 or "->" not in equation:
        raise UncountedOpError(
            f"einsum {equation!r} is not counted: the order of contraction of more than two operands is "
            "torch's choice; write it as einsums of two operands with an explicit '->'"
        )
    left, _, kept = equation.partition("->")
    sizes = [_letter_sizes(term, shape) for term, shape in zip(left.split(","), operands, strict=True)]
    kept_names = {*_letter_sizes(kept, _shape(outputs[0]))}
    shared = sizes[0].keys() & sizes[1].keys()
    if not shared - kept_names:
        return 0  # nothing is summed over both: an elementwise product
    joint = sizes[0] | sizes[1]
    return prod(size for name, size in joint.items() if name in shared or name in kept_names)


def _letter_sizes(term: str, shape: Shape) -> dict[str, int]:
    """Name each axis: its letter, or its place (from the right) in the ellipsis."""
    before, dots, after = term.partition("...")
    hidden = len(shape) - len(before) - len(after) if dots else 0
    names = [*before, *(f"...{i}" for i in range(hidden, 0, -1)), *after]
    return {name: size for name, size in zip(names, shape, strict=True) if size > 1}


def _handle_from_formula(packet: Any, formula: Callable[..., int]) -> Handle:
    """Turn a formula of torch's (arguments of the call to operations) into a handle of fvcore's."""
    schema = getattr(packet, packet.overloads()[0])._schema

    def handle(inputs: list[Any], outputs: list[Any]) -> float:
        values = dict(zip(schema.arguments, (_python_value(v) for v in inputs), strict=True))
        positional = [value for argument, value in values.items() if not argument.kwarg_only]
        named = {argument.name: value for argument, value in values.items() if argument.kwarg_only}
        results = [_python_value(v) for v in outputs]
        result = results[0] if len(results) == 1 else tuple(results)
        return formula(*positional, **named, out_val=result) // 2

    return handle


def _python_value(value: Any) -> Any:
    """Return what a value of a trace stands for: tensors as meta tensors, constants as themselves."""
    if value.isCompleteTensor():
        return torch.empty(value.type().sizes(), dtype=value.type().dtype(), device="meta")
    node = value.node()
    if node.kind() == "prim::Constant":
        return value.toIValue()
    if node.kind() in ("prim::ListConstruct", "prim::TupleConstruct"):
        return [_python_value(item) for item in node.inputs()]
    raise UncountedOpError(f"an argument made by {node.kind()} is unknown in the trace")
