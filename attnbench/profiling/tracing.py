"""What torch and its tracer need help with to run any module on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RECORDED_CONVOLUTION = "attnbench::recorded_convolution"
RECORDED_GROUPED_MM = "attnbench::recorded_grouped_mm"


def _forms(name: str) -> tuple[Callable[..., Any], ...]:
    """Return every function under which an operation of torch's can be called."""
    packet = getattr(torch.ops.aten, name)
    return (getattr(torch, name), packet, *(getattr(packet, overload) for overload in packet.overloads()))


_CONVOLUTIONS: dict[Callable[..., Any], bool] = {  # function: is it transposed
    form: name.startswith("conv_transpose")
    for name in (*(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3)))
    for form in _forms(name)
}
_ANY_CONVOLUTION = _forms("convolution")  # its argument `transposed` says
_GROUPED_MM = _forms("_grouped_mm")  # what F.grouped_mm calls
_SIZES: tuple[Callable[..., Any], ...] = (
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.size,
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.__len__,
)


@torch.library.custom_op(RECORDED_CONVOLUTION, mutates_args=())
def _recorded_convolution(
    x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, transposed: bool
) -> torch.Tensor:
    """Stand for a convolution in a trace; `output` holds its result."""
    return output.clone()


@_recorded_convolution.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, transposed: bool) -> torch.Tensor:
    return torch.empty_like(output)


@torch.library.custom_op(RECORDED_GROUPED_MM, mutates_args=())
def _recorded_grouped_mm(a: torch.Tensor, b: torch.Tensor, groups: int) -> torch.Tensor:
    """Stand for grouped_mm on the meta device, where nothing is computed."""
    raise NotImplementedError("recorded_grouped_mm is for the meta device alone")


@_recorded_grouped_mm.register_fake
def _(a: torch.Tensor, b: torch.Tensor, groups: int) -> torch.Tensor:
    if a.ndim == b.ndim:  # one matrix of each per group, or a sum over each group's part of K
        return a.new_empty(groups, a.shape[-2], b.shape[-1])
    return a.new_empty(a.shape[-2], b.shape[-1])


class MetaGroupedMm(TorchFunctionMode):
    """Let grouped_mm run on the meta device in every type and alignment that it computes in.

    torch's own (2.13) takes fp32 and fp16 on a CPU, and on the meta device bf16 alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, with this exception."""
        kwargs = kwargs or {}
        if func in _GROUPED_MM and args[0].is_meta:
            a, b = args[:2]
            offsets = args[2] if len(args) > 2 else kwargs.get("offs")
            groups = a.shape[0] if offsets is None else offsets.shape[0]
            output = _recorded_grouped_mm(a, b, groups)
            dtype = args[4] if len(args) > 4 else kwargs.get("out_dtype")
            return output if dtype is None else output.to(dtype)
        return func(*args, **kwargs)


class MetaTracing(TorchFunctionMode):
    """Make torch.jit's tracer record convolutions and leave sizes as integers.

    On the meta device a convolution never reaches `aten::_convolution`, the only name under which
    the tracer records one: it would vanish from the graph. And a traced size is a tensor, which
    arithmetic on shapes (`math.isqrt`, dictionary keys, a custom op's int) cannot take.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, with the two exceptions."""
        kwargs = kwargs or {}
        if func in _SIZES:
            with _tracing_paused():
                return func(*args, **kwargs)
        if func in _CONVOLUTIONS or func in _ANY_CONVOLUTION:
            with _tracing_paused():
                output = func(*args, **kwargs)
            x, weight = (args[i] if i < len(args) else kwargs[k] for i, k in enumerate(("input", "weight")))
            transposed = _CONVOLUTIONS.get(func)
            if transposed is None:
                transposed = args[6] if len(args) > 6 else kwargs["transposed"]
            return _recorded_convolution(x, weight, output, transposed)
        return func(*args, **kwargs)


@contextmanager
def _tracing_paused() -> Iterator[None]:
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
