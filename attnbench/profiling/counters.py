"""Multiply-adds of one forward pass by two independent counters, and the demand that all agree."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from attnbench.errors import PluginError, UncountedOpError
from attnbench.profiling.formulas import EXTRA_TORCH_FORMULAS, Handle, fvcore_handles
from attnbench.profiling.heavy_ops import refuse_uncounted
from attnbench.profiling.tracing import MetaGroupedMm, MetaTracing

Inputs = Sequence[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Multiply-adds of matmuls and convolutions, in total and by operation, as the counter calls it."""

    macs: int
    by_op: Mapping[str, int]


class _Watcher(TorchDispatchMode):
    """Collect every operation that runs."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def count_with_torch(model: nn.Module, inputs: Inputs) -> Counted:
    """Count the multiply-adds of `model(*inputs)` with torch's FlopCounterMode.

    Put model and inputs on the meta device: nothing is computed there, and attention is seen as its
    two matmuls, whichever kernel a real device would take.
    Raises UncountedOpError naming an operation that does heavy or hidden work and has no formula.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(EXTRA_TORCH_FORMULAS))
    watcher = _Watcher()
    # the watcher sees what is left after decomposition
    with _refusing("torch's counter"), torch.no_grad(), MetaGroupedMm(), watcher, counter:
        model(*inputs)
    formulas = flop_registry.keys() | EXTRA_TORCH_FORMULAS.keys()
    packets = {getattr(op, "_overloadpacket", op) for op in watcher.seen}
    refuse_uncounted("torch's counter", (_op_name(op) for op in packets - formulas))
    by_op = {_op_name(op): flops // 2 for op, flops in counter.get_flop_counts().get("Global", {}).items()}
    return Counted(macs=sum(by_op.values()), by_op=by_op)


_NOT_WITHOUT_A_DEVICE = {  # a function of torch's: how it is called, and what to do instead
    "flex_attention": (
        "flex_attention",
        "put the call into an operation of your own (torch.library.custom_op) with a formula from "
        "torch.utils.flop_counter.register_flop_formula, which both counters read",
    ),
    "compile_wrapper": (
        "torch.compile",
        "leave it out of the module: `train: {compile: true}` and the check `compile` compile it as a whole",
    ),
}


@contextlib.contextmanager
def _refusing(counter: str) -> Iterator[None]:
    """Name what cannot run where it is counted, and leave nothing of its failure behind.

    flex_attention fails inside a counter in the middle of torch's compiler, and from then on every call of
    it in this process fails, too (torch 2.13), until the compiler is reset.
    """
    try:
        yield
    except UncountedOpError:
        raise
    except Exception as error:
        functions = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        found = next((known for name, known in _NOT_WITHOUT_A_DEVICE.items() if name in functions), None)
        if found is None:
            raise
        torch.compiler.reset()
        name, advice = found
        told = " ".join(str(error).split())[:200]
        raise UncountedOpError(
            f"{counter} cannot run {name} ({type(error).__name__}: {told}); {advice}"
        ) from error


def _op_name(op: Any) -> str:
    """`namespace::name` of an operation, higher-order ones included."""
    return str(getattr(op, "_qualified_op_name", None) or f"{op.namespace}::{op.name()}")


def count_with_fvcore(model: nn.Module, inputs: Inputs) -> Counted:
    """Count the multiply-adds of `model(*inputs)` with fvcore, on a trace of torch.jit.

    Differs from fvcore as it comes: norms, pooling and interpolation count nothing, attention,
    broadcast matmuls and einsum count fully, and a custom operation counts by its formula for torch.
    Raises UncountedOpError naming an operation that does heavy or hidden work and has no formula.
    """
    handles = fvcore_handles()
    unknown: set[str] = set()
    counts, unsupported = _analyse(model, inputs, handles)
    functions = {op for op in unsupported if _is_python_function(op)}
    if functions:  # their names are known only now, and their work is in a graph of their own
        handles |= dict.fromkeys(functions, _inside_function(handles, unknown))
        counts, unsupported = _analyse(model, inputs, handles)
    refuse_uncounted("fvcore", unsupported | unknown)
    return Counted(macs=sum(counts.values()), by_op=counts)


def _analyse(
    model: nn.Module, inputs: Inputs, handles: Mapping[str, Handle]
) -> tuple[dict[str, int], set[str]]:
    """Trace once; return multiply-adds by operation and the operations without a handle."""
    analysis = FlopCountAnalysis(model, tuple(inputs)).clear_op_handles().set_op_handle(**handles)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with _refusing("fvcore"), torch.no_grad(), MetaGroupedMm(), MetaTracing():
        counts = {op: int(macs) for op, macs in analysis.by_operator().items() if macs}
    return counts, set(analysis.unsupported_ops())


def _is_python_function(op: str) -> bool:
    return op.startswith("prim::PythonOp")


def _inside_function(handles: Mapping[str, Handle], unknown: set[str]) -> Handle:
    """Return a handle for torch.autograd.Functions: it counts the graph that the tracer kept of one.

    The tracer writes what a nested function does into the graphs of all functions around it, and the
    nested function itself once more beside them, where nothing uses its result.
    """

    def count(inputs: list[Any], outputs: list[Any]) -> float:
        if not any(output.uses() for output in outputs):
            return 0
        total = 0.0
        for node in outputs[0].node().g("Subgraph").nodes():
            if node.kind() == "prim::PythonOp":
                continue
            if node.kind() in handles:
                total += handles[node.kind()](list(node.inputs()), list(node.outputs()))
            else:
                unknown.add(node.kind())
        return total

    return count


def check_agreement(closed_form: int, fvcore: int, torch: int, rtol: float = 1e-3) -> None:
    """Raise PluginError naming the three counts when any two differ by more than `rtol`."""
    counts = {"closed form": closed_form, "fvcore": fvcore, "torch": torch}
    low, high = min(counts.values()), max(counts.values())
    if high - low > rtol * high:
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise PluginError(
            f"the counts of multiply-adds differ by {(high - low) / high:.2%} (allowed {rtol:.1%}): {shown}; "
            "correct the backend's macs() where the two counters agree, or register the missing formula"
        )
