"""The selective scan (S6): a linear recurrence with a decay of its own for every channel, state and token."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import Form
from attnbench.layers.precision import without_autocast
from attnbench.layers.selective_scan_chunks import backward, forward, plain

LOG2_E = 1 / math.log(2)


class ScanInputs(NamedTuple):
    """x and steps [B, G, N, E], a [G, S, E], b and c [B, G, N, S], as `selective_scan` takes them."""

    x: torch.Tensor
    steps: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor


def selective_scan(
    inputs: ScanInputs, *, form: Form = "chunked", chunk_size: int | None = None
) -> torch.Tensor:
    """Compute h_t = exp(d_t a) h_{t-1} + d_t b_t^T x_t and y_t = c_t h_t from h = 0, causal in t.

    The steps d >= 0 and a <= 0; the state h is [S, E], channel by channel, for each of G sequences of its own
    a. Returns [B, G, N, E] in x's dtype. All maths in at least fp32, under autocast too. `recurrent` is the
    loop over tokens. `chunked` runs over the positions of a chunk, all chunks at once, and over the chunks:
    of N tokens in chunks of C (None: the power of two next to sqrt(N)) it takes 2 C + N / C steps, so 96 for
    1,024 tokens. Raises UserInputError when chunk_size is not a power of two.

    A decay differs by token, channel and state, so that nothing of the scan but the reading c h is a matmul;
    S6 is bound by elementwise work, and in eager torch by the number of calls. First every chunk runs from
    h = 0 to see what it adds; then the states at the chunks' borders follow, with exp(a sum d) for a whole
    chunk; last the chunks run again from those. Within a chunk that is the recurrence itself, with its
    roundings; there is no positive exponent, no difference and no quotient. exp(z) is taken as
    2^(z log2(e)), which vectorises better on CPUs and is as exact: the exponent's additional rounding moves
    e^z by eps |z| e^z / 2 < eps / 5. Outside compilers and tracers the backward pass keeps the inputs and the
    border states alone and computes the rest again, and both passes go through the images in portions.
    Source: Mamba arXiv:2312.00752, sec. 3.2 and 3.3.2 (recomputation); selective_scan_ref
    (selective_scan_interface.py of state-spaces/mamba) read, the CUDA kernel not.
    """
    if chunk_size is not None and (chunk_size < 1 or chunk_size & (chunk_size - 1)):
        raise UserInputError(f"chunk_size must be a power of two (8, 16, 32, ...), got {chunk_size}")
    x, tokens = inputs.x, inputs.x.shape[2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x):
        x_, steps, a, b, c = (z.to(dtype) for z in inputs)
        terms = (x_ * steps, steps, a * LOG2_E, b, c)
        if form == "recurrent":
            return _recurrent(*terms).to(x.dtype)
        chunks, size = scan_layout(tokens, chunk_size)
        missing = chunks * size - tokens
        if missing:  # tokens that write nothing and forget nothing, after the last one
            x_, steps, b, c = (F.pad(terms[i], (0, 0, 0, missing)) for i in (0, 1, 3, 4))
            terms = (x_, steps, terms[2], b, c)
        if _followed():
            out = plain(*terms, size)
        elif torch.is_grad_enabled() and any(z.requires_grad for z in terms):
            out = _Chunked.apply(*terms, size)
        else:
            out = forward(*terms, size)[0]
    return out[:, :, :tokens].to(x.dtype)


def selective_scan_macs(
    num_tokens: int, channels: int, state_dim: int, form: Form, chunk_size: int | None
) -> int:
    """Multiply-adds of the matmuls of one sequence, as executed: c h of every token, padded ones included.

    >>> [selective_scan_macs(1000, 128, 16, form, None) for form in ("recurrent", "chunked")]
    [2048000, 2097152]
    """
    chunks, size = scan_layout(num_tokens, chunk_size)
    tokens = num_tokens if form == "recurrent" else chunks * size
    return tokens * state_dim * channels


def scan_layout(num_tokens: int, chunk_size: int | None) -> tuple[int, int]:
    """Return how many chunks N tokens are padded to, and their size.

    >>> [scan_layout(n, None) for n in (1, 16, 63, 256, 1024)], scan_layout(5, 32)
    ([(1, 1), (4, 4), (8, 8), (16, 16), (32, 32)], (1, 8))
    """
    size = chunk_size or 1 << round(math.log2(num_tokens) / 2)
    size = min(size, 1 << (num_tokens - 1).bit_length())
    return -(-num_tokens // size), size


def _recurrent(
    u: torch.Tensor, steps: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """The token loop, decays and inputs made beforehand for all tokens, as in selective_scan_ref."""
    decay = torch.exp2(steps.unsqueeze(3) * a.unsqueeze(1))  # [B, G, N, S, E]
    written = u.unsqueeze(3) * b.unsqueeze(4)
    state = torch.zeros_like(decay[:, :, 0])
    outputs = []
    for decay_t, new, c_t in zip(decay.unbind(2), written.unbind(2), c.unbind(2), strict=True):
        state = torch.addcmul(new, decay_t, state)
        outputs.append(c_t.unsqueeze(2) @ state)  # [B, G, 1, E]
    return torch.cat(outputs, 2)


def _followed() -> bool:
    """Say whether somebody follows single operations: a compiler, a tracer, torch.func, forward-mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        out, borders = forward(*inputs)
        ctx.save_for_backward(*inputs[:5], borders)
        ctx.size = inputs[5]
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        u, steps, a, b, c, borders = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates twice: leave that to autograd
            terms = (u, steps, a, b, c)
            wanted = [z for z in terms if z.requires_grad]
            out = plain(u, steps, a, b, c, ctx.size)
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            return (*(next(found) if z.requires_grad else None for z in terms), None)
        return (*backward(u, steps, a, b, c, ctx.size, borders, grad), None)
