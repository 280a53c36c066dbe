"""What torch.jit needs help with to trace any module on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RECORDED_CONVOLUTION = "attnbench::recorded_convolution"

_CONVOLUTIONS: dict[Callable[..., Any], bool] = {  # function: is it transposed
    torch.conv1d: False,
    torch.conv2d: False,
    torch.conv3d: False,
    torch.conv_transpose1d: True,
    torch.conv_transpose2d: True,
    torch.conv_transpose3d: True,
}
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
        if func in _CONVOLUTIONS:
            with _tracing_paused():
                output = func(*args, **kwargs)
            x, weight = (args[i] if i < len(args) else kwargs[k] for i, k in enumerate(("input", "weight")))
            return _recorded_convolution(x, weight, output, _CONVOLUTIONS[func])
        return func(*args, **kwargs)


@contextmanager
def _tracing_paused() -> Iterator[None]:
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
