"""Gated linear attention: a linear recurrence whose state forgets, one factor per key channel."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from attnbench.errors import UserInputError
from attnbench.layers.precision import without_autocast

Form = Literal["chunked", "recurrent"]


def gated_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    form: Form = "chunked",
    chunk_size: int = 32,
) -> torch.Tensor:
    """Compute S_t = diag(exp g_t) S_{t-1} + k_t^T v_t and o_t = q_t S_t from S = 0, causal in t.

    q, k, log_decay g <= 0 are [B, H, N, Dk], v is [B, H, N, Dv]; returns [B, H, N, Dv] in v's dtype.
    The caller scales q. All maths in at least fp32, under autocast too. `recurrent` is the loop over
    tokens; `chunked` costs O(N C (Dk + Dv) + N Dk Dv) for chunks of C tokens and loops over chunks.
    Raises UserInputError when chunk_size is not a power of two.

    Numerics of `chunked`: o_t sums q_t diag(exp(g_{s+1} + ... + g_t)) k_s^T v_s over s <= t. The
    textbook split into q_t exp(G_t) and k_s exp(-G_s), G the running sum, overflows once -G > 88,
    and even the difference G_t - G_s of two large sums loses the digits of a small one. Here no
    positive exponent, no difference and no quotient occurs. Two neighbouring blocks of m tokens meet at
    their border: queries of the later block carry the decay since the border, keys of the earlier one
    the decay up to it, and blocks of 2 m carry the products on (m = 1, 2, 4, ... C/2). An exponent x
    is a sum of numbers <= 0, so that its rounding moves e^x by eps |x| e^x < eps, and a decay is a
    product of at most 2 log2(C) + N/C such factors <= 1: right to about that many eps whatever g
    is, where the token loop's N factors round N times. A factor underflows to 0 only in a product that
    is smaller still.
    The backward pass multiplies by the same factors and divides by none; the derivative of exp is
    exp, so that even g = -inf (forget all) has a finite gradient.
    Source: recurrence, GLA arXiv:2312.06635, sec. 4; the pairwise scheme takes the place of its
    secondary chunking.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise UserInputError(f"chunk_size must be a power of two (16, 32, 64, ...), got {chunk_size}")
    dtype = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        inputs = (q.to(dtype), k.to(dtype), v.to(dtype), log_decay.to(dtype))
        out = _recurrent(*inputs) if form == "recurrent" else _chunked(*inputs, chunk_size)
    return out.to(v.dtype)


def gated_linear_macs(num_tokens: int, key_dim: int, value_dim: int, form: Form, chunk_size: int) -> int:
    """Multiply-adds of the matmuls of one head, as executed, padded tokens included.

    Per chunk of C tokens: C (C-1) / 2 scores (the diagonal is an elementwise sum), a C x C matrix of
    scores times the values and, if there is more than one chunk, the state written and read.

    >>> gated_linear_macs(1024, 32, 64, "recurrent", 32), gated_linear_macs(1024, 32, 64, "chunked", 32)
    (4194304, 6799360)
    """
    if form == "recurrent":
        return 2 * num_tokens * key_dim * value_dim
    chunks, size = chunk_layout(num_tokens, chunk_size)
    within = size * (size - 1) // 2 * key_dim + size * size * value_dim
    across = 2 * size * key_dim * value_dim if chunks > 1 else 0
    return chunks * (within + across)


def chunk_layout(num_tokens: int, chunk_size: int) -> tuple[int, int]:
    """Return how many chunks N tokens are padded to, and their size; a chunk is no longer than needed.

    >>> chunk_layout(100, 32), chunk_layout(5, 32)
    ((4, 32), (1, 8))
    """
    size = min(chunk_size, 1 << (num_tokens - 1).bit_length())
    return -(-num_tokens // size), size


def _recurrent(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])  # [B, H, Dk, Dv]
    outputs = []
    for q_t, k_t, v_t, a_t in zip(*(z.unbind(2) for z in (q, k, v, log_decay.exp())), strict=True):
        state = a_t[..., None] * state + k_t[..., None] @ v_t[..., None, :]
        outputs.append(q_t[..., None, :] @ state)  # [B, H, 1, Dv]
    return torch.cat(outputs, dim=2)


def _chunked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    batch, heads, tokens, _ = q.shape
    chunks, size = chunk_layout(tokens, chunk_size)
    missing = chunks * size - tokens
    if missing:  # tokens that write nothing and forget nothing, after the last one
        q, k, v, log_decay = (F.pad(z, (0, 0, 0, missing)) for z in (q, k, v, log_decay))
    q, k, v, log_decay = (z.reshape(-1, size, z.shape[-1]) for z in (q, k, v, log_decay))  # [R, C, D]
    scores, q, k, decay = _within_chunks(q, k, log_decay)
    if chunks == 1:
        out = scores @ v
    else:
        by_chunk = (batch * heads, chunks)
        written = (k.transpose(1, 2) @ v).unflatten(0, by_chunk)  # [B H, chunks, Dk, Dv]
        states = _states_before(written, decay.transpose(1, 2).unflatten(0, by_chunk))
        out = torch.baddbmm(q @ states.flatten(0, 1), scores, v)
    return out.view(batch, heads, chunks * size, -1)[:, :, :tokens]


def _within_chunks(
    q: torch.Tensor, k: torch.Tensor, log_decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge blocks of 1, 2, 4, ... tokens until a block is a chunk; q, k, log_decay are [R, C, Dk].

    Returns the lower triangular scores [R, C, C], q decayed since the chunk's start, k decayed up to its
    end, and the decay of whole chunks [R, 1, Dk]. The loop keeps these four for blocks of m tokens.
    """
    size, width = q.shape[1:]  # reshape, not view: heads split from one projection are strided
    scores = (q * k).sum(-1).reshape(-1, 1, 1)
    decay = log_decay.exp()
    q = q * decay  # the state forgets before it is read
    m = 1
    while m < size:
        q_early, q_late = q.reshape(-1, 2, m, width).unbind(1)  # [R C / 2m, m, Dk]
        k_early, k_late = k.reshape(-1, 2, m, width).unbind(1)
        scores_early, scores_late = scores.reshape(-1, 2, m, m).unbind(1)
        decay_early, decay_late = decay.reshape(-1, 2, 1, width).unbind(1)
        across = q_late @ k_early.transpose(1, 2)  # [R C / 2m, m, m]
        scores = torch.cat((F.pad(scores_early, (0, m)), torch.cat((across, scores_late), 2)), 1)
        q = torch.stack((q_early, q_late * decay_early), 1)
        k = torch.stack((k_early * decay_late, k_late), 1)
        log_decay = log_decay.reshape(-1, 2, 1, width).sum(1)
        decay = log_decay.exp()  # of the sum: a product of factors near 1 would round m times
        m *= 2
    return scores, q.reshape(-1, size, width), k.reshape(-1, size, width), decay


def _states_before(written: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """State at the start of every chunk: written [R, T, Dk, Dv] and decay [R, T, Dk, 1] by chunk."""
    state = torch.zeros_like(written[:, 0])
    states = [state]
    for new, factor in zip(written.unbind(1)[:-1], decay.unbind(1)[:-1], strict=True):
        state = torch.addcmul(new, factor, state)
        states.append(state)
    return torch.stack(states, 1)
