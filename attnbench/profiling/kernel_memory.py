"""What torch's kernels take for themselves while they run and no tensor of the program shows, by formula.

Read in torch's sources (2.13) and held against its allocator: `reports/memory` says how near it comes. Left
out is what libraries below torch decide by themselves, such as oneDNN's copies for products in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

aten = torch.ops.aten
_CUBLAS_WORKSPACE = 32 * 2**20  # Hopper's, the largest that torch asks for (CublasHandlePool.cpp)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a pass runs, as far as its memory depends on it."""

    device: str
    threads: int = 1
    """Of a CPU: some kernels have a buffer for each."""

    def allocated(self, num_bytes: int) -> int:
        """Return what torch's allocator hands out for so many bytes: CUDA's deals in units of 512."""
        return -(-num_bytes // 512) * 512 if self.device == "cuda" else num_bytes

    @property
    def workspace(self) -> int:
        """Bytes that stay allocated from the first matmul on."""
        return _CUBLAS_WORKSPACE if self.device == "cuda" else 0


def hidden_bytes(func: Any, args: tuple[Any, ...], output: Any, machine: Machine) -> int:
    """Return the bytes that a kernel holds, beside its inputs and outputs, at most at once."""
    formula = _CPU.get(func) if machine.device == "cpu" else None
    if formula is not None:
        return formula(args, output, machine)
    if torch.Tag.pointwise in func.tags and machine.device == "cpu":
        return _converted(args, output)
    return 0


def _converted(args: tuple[Any, ...], output: Any) -> int:
    """Copies of operands in the type that a pointwise kernel computes in; a GPU converts as it reads."""
    dtype = output.dtype if isinstance(output, torch.Tensor) else None
    if dtype is None or not dtype.is_floating_point:
        return 0
    operands = [x for x in args if isinstance(x, torch.Tensor) and x.ndim and x.dtype != dtype]
    return sum(x.numel() * dtype.itemsize for x in operands if x.is_floating_point())


def _safe_softmax(args: tuple[Any, ...], output: torch.Tensor, machine: Machine) -> int:
    """Which scores are -inf, and which rows are so throughout: a byte each."""
    return output.numel() + output.numel() // output.shape[args[1]]


def _contiguous_input(args: tuple[Any, ...], output: Any, machine: Machine) -> int:
    """A layer norm's contiguous copy of an input that is not."""
    return 0 if args[0].is_contiguous() else _size(args[0])


def _convolution(args: tuple[Any, ...], output: torch.Tensor, machine: Machine) -> int:
    """Copies in the layout that oneDNN works in (Convolution.cpp, mkldnn/Conv.cpp).

    Channels last where image or weights are (one image alone never counts as that): the weights once more.
    Else image, weights and output in blocks, of which the output stays until it is copied back. Small ones
    are not oneDNN's: they unfold an image.
    """
    image, weight = args[:2]
    copies = _in_layout(image, weight)
    if not _in_onednn(image, weight, args[8]):
        return copies + _unfolded(weight, output)
    if _channels_last(image, weight):
        return copies + _size(weight)
    return copies + max(_size(image) + _size(weight), _size(output))


def _convolution_backward(args: tuple[Any, ...], output: Any, machine: Machine) -> int:
    """The same for gradients, as far as it is larger than the weights: what oneDNN does with those varies."""
    grad, image, weight = args[:3]
    copies = _in_layout(image, weight, grad)
    if not _in_onednn(image, weight, args[9]):
        return copies + _unfolded(weight, grad)
    if _channels_last(image, weight) or _size(weight) > max(_size(image), _size(grad)):
        return 0
    return copies + _size(grad) + _size(image)


def _in_onednn(image: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    return groups > 1 or min(weight.shape[2:]) > 3 or len(image) > 1 or image.numel() > 20_480


def _unfolded(weight: torch.Tensor, output: torch.Tensor) -> int:
    """What every place of one image's output multiplies with the weights."""
    return weight[0].numel() * output[0, 0].numel() * weight.itemsize


def _channels_last(image: torch.Tensor, weight: torch.Tensor) -> bool:
    formats = [suggest_memory_format(x) for x in (image, weight)]
    return image.ndim == 4 and len(image) > 1 and torch.channels_last in formats


def _in_layout(image: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor) -> int:
    layout = torch.channels_last if _channels_last(image, weight) else torch.contiguous_format
    given = (image, weight, *others)
    return sum(_size(x) for x in given if not x.is_contiguous(memory_format=layout))


def _blocks(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Queries and keys that one thread of fused attention works on at a time (FlashAttentionKernel.cpp)."""
    queries = 256 if query.shape[2] >= 768 else 64 if query.shape[2] >= 192 else 32
    return min(queries, query.shape[2]), min(512, key.shape[2])


def _fused_attention(args: tuple[Any, ...], output: Any, machine: Machine) -> int:
    """Every thread's fp32 scores, maxima, sums and outputs of a block; its scores again in a half type."""
    rows, columns = _blocks(*args[:2])
    half = 2 * rows * columns if args[0].itemsize == 2 else 0
    return machine.threads * (4 * rows * (columns + 2 + args[0].shape[3]) + half)


def _fused_attention_backward(args: tuple[Any, ...], output: Any, machine: Machine) -> int:
    """Every thread's fp32 scores of a block and their gradients, again in a half type; and row sums."""
    rows, columns = _blocks(*args[1:3])
    half = 4 * rows * columns if args[0].itemsize == 2 else 0
    return machine.threads * (8 * rows * columns + 4 * rows + half)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


_CPU: dict[Any, Callable[[tuple[Any, ...], Any, Machine], int]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten._safe_softmax.default: _safe_softmax,
    aten.native_layer_norm.default: _contiguous_input,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _fused_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _fused_attention_backward,
}
