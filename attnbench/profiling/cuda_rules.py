"""What a pass does differently on a GPU, as far as its memory depends on it, for fake tensors on the CPU.

A pass is planned on fake tensors of the CPU whatever its target is: fake CUDA tensors end the process in a
torch that was built without CUDA (2.13). Three things differ: which operations autocast computes in fp32,
that fused attention takes any mask, and what code does for a CPU alone (`Tensor.is_cpu` is false).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# torch's documentation, "Automatic Mixed Precision", CUDA operations that autocast to float32
# fmt: off
_IN_FP32 = frozenset({
    "acos", "asin", "cdist", "cosh", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist",
    "erfinv", "exp", "expm1", "group_norm", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p",
    "log2", "log_softmax", "mse_loss", "nll_loss", "norm", "normalize", "pow", "__pow__", "__rpow__",
    "__rdiv__", "__rtruediv__", "prod", "reciprocal", "renorm", "rsqrt", "sinh", "smooth_l1_loss",
    "softmax", "softmin", "softplus", "sum", "tan",
})
# fmt: on


_IS_CPU = torch.Tensor.is_cpu.__get__  # type: ignore[attr-defined]


class CudaRules(TorchFunctionMode):
    """Choose types and attention kernels as on a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, with these exceptions."""
        kwargs = kwargs or {}
        if func == _IS_CPU:
            return False
        if func is F.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return _fused_attention(*args, **kwargs)
        if getattr(func, "__name__", "") in _IN_FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(torch.Tensor, _in_fp32, (args, kwargs))
        return func(*args, **kwargs)


def _in_fp32(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if half else tensor


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(half) for x in (query, key, value))
    output: torch.Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return output


class _FusedAttention(torch.autograd.Function):
    """The tensors of flash (half types) and memory-efficient attention (fp32), without the numbers.

    Forward: the output, laid out [B, N, H, D], and a log-sum-exp per query in fp32. Backward: the gradients,
    a sum per query, and in half types an fp32 sum of the query's gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        row_sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, row_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, _, row_sums = ctx.saved_tensors
        kept = [torch.empty_like(row_sums)]
        if query.dtype != torch.float32:
            kept.append(torch.empty_like(query, dtype=torch.float32))
        wanted = [
            torch.empty_like(x) if needed else None
            for x, needed in zip((query, key, value, mask), ctx.needs_input_grad, strict=True)
        ]
        del kept
        return tuple(wanted)
