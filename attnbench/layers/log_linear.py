"""Log-linear attention: gated linear attention weighted by where two tokens meet in a binary tree."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import chunk_layout
from attnbench.layers.precision import without_autocast


def num_levels(num_tokens: int) -> int:
    """Levels of the binary tree over N tokens, the token itself included.

    >>> [num_levels(n) for n in (1, 2, 3, 16, 17)]
    [1, 2, 3, 5, 6]
    """
    return (num_tokens - 1).bit_length() + 1


def log_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    weights: torch.Tensor,
    *,
    chunk_size: int = 32,
) -> torch.Tensor:
    """Compute o_i = sum_j w_i[l(i, j)] d(i, j) (q_i . k_j) v_j over all tokens j, before and after i.

    q, k are [B, H, N, Dk], v is [B, H, N, Dv], the log decay g <= 0 is [B, H, N, 1], the weights of the
    levels are [B, H, N, num_levels(N)]; returns [B, H, N, Dv] in v's dtype. The level l(i, j) is the number
    of binary digits of i xor j: 0 for the token itself, m for tokens that meet first in a block of 2^m of
    the binary tree over positions 0, 1, 2, ... A token that comes later in its block reads the earlier half
    (the bucket of a Fenwick tree, in a causal scan), one that comes earlier the later half: one half of a
    block at every level, so that every pair counts once. d(i, j) is the exponential of the sum of g over
    j + 1 .. i for j < i, as in a scan from the first token, and over i .. j - 1 for j > i, its mirror image.

    All maths in at least fp32, under autocast too. O(N C (Dk + Dv) + N Dk Dv log(N / C)) for chunks of C
    tokens; loops over levels, not over tokens or chunks. Within a chunk scores are formed; above it the
    states k^T v of chunks are merged pair by pair, and at every level each chunk reads the state of its
    sibling. No positive exponent, no difference, no quotient: every exponent is a sum of log decays.
    Raises UserInputError when chunk_size is not a power of two or `weights` has not as many levels.
    Source: arXiv:2506.04761, abstract; its released code (HanGuo97/log-linear-attention) and
    flash-linear-attention's naive form, read, for one direction; both at once are ours.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise UserInputError(f"chunk_size must be a power of two (16, 32, 64, ...), got {chunk_size}")
    if weights.shape[-1] != num_levels(q.shape[2]):
        raise UserInputError(
            f"{q.shape[2]} tokens have {num_levels(q.shape[2])} levels, got weights of {weights.shape[-1]}"
        )
    dtype = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        q, k, exact, log_decay, weights = (z.to(dtype) for z in (q, k, v, log_decay, weights))
        out = _by_chunks(q, k, exact, log_decay, weights, chunk_size)
    return out.to(v.dtype)


def log_linear_macs(num_tokens: int, key_dim: int, value_dim: int, chunk_size: int) -> int:
    """Multiply-adds of the matmuls of one head, as executed, padded tokens included.

    A chunk of C tokens: C x C scores, and they times the values. With T > 1 chunks: two states, one for each
    direction, and a read at each of the ceil(log2 T) levels above the chunk.

    >>> log_linear_macs(1024, 32, 64, 32)
    17825792
    """
    chunks, size = chunk_layout(num_tokens, chunk_size)
    products = 2 + (chunks - 1).bit_length() if chunks > 1 else 0
    return chunks * (size * size * (key_dim + value_dim) + products * size * key_dim * value_dim)


def _by_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    weights: torch.Tensor,
    chunk_size: int,
) -> torch.Tensor:
    batch, heads, tokens, _ = q.shape
    chunks, size = chunk_layout(tokens, chunk_size)
    missing = chunks * size - tokens
    if missing:  # tokens that write nothing and forget nothing, after the last one
        q, k, v, log_decay, weights = (F.pad(z, (0, 0, 0, missing)) for z in (q, k, v, log_decay, weights))
    shape = (batch * heads, chunks, size, -1)
    q, k, v, log_decay, weights = (z.reshape(shape) for z in (q, k, v, log_decay, weights))  # [R, T, C, D]
    own = (q @ k.transpose(2, 3)) * _mask(log_decay, weights)
    out = own @ v
    if chunks > 1:
        out = out + _above_chunks(q, k, v, log_decay, weights[..., num_levels(size) :])
    return out.reshape(batch, heads, chunks * size, -1)[:, :, :tokens]


def _mask(log_decay: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weights times decays between the tokens of a chunk: [..., C, 1] and [..., C, L] to [..., C, C]."""
    place = torch.arange(log_decay.shape[-2], device=log_decay.device)
    row, column = place[:, None], place[None, :]
    forward = log_decay.masked_fill(row <= column, 0).cumsum(-2)  # over j + 1 .. i, zero for j >= i
    backward = log_decay.masked_fill(row >= column, 0).flip(-2).cumsum(-2).flip(-2)  # over i .. j - 1
    digits = torch.arange(weights.shape[-1], device=place.device)
    levels = ((row ^ column)[..., None] >> digits).gt(0).sum(-1)  # [C, C]
    chosen = weights.gather(-1, levels.expand(*weights.shape[:-1], -1))
    return chosen * (forward + backward).exp()


def _above_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What tokens read from other chunks: all [R, T, C, ...], `weights` those of the levels above a chunk.

    The first axis of `states` and `totals` tells forward (decayed to a block's end) from backward (to its
    start); blocks are of 1, 2, 4, ... chunks. Late chunks of a block read the forward state of its early
    half, early ones the backward state of its late half.
    """
    chunks = q.shape[1]
    since_start, until_end = log_decay.cumsum(2), log_decay.flip(2).cumsum(2).flip(2)  # own decay included
    before = F.pad(since_start[:, :, :-1], (0, 0, 1, 0))  # without it
    after = F.pad(until_end[:, :, 1:], (0, 0, 0, 1))
    keys = k * torch.stack((after, before)).exp()
    states = keys.transpose(3, 4) @ v  # [2, R, T, Dk, Dv]
    totals = since_start[:, :, -1:]  # [R, T, 1, 1], of both directions
    out, block = torch.zeros_like(v), torch.arange(chunks, device=q.device)
    for level in range(weights.shape[-1]):
        if states.shape[2] % 2:  # a block without a sibling: an empty one
            states, totals = F.pad(states, (0, 0, 0, 0, 0, 1)), F.pad(totals, (0, 0, 0, 0, 0, 1))
        early, late = states.unflatten(2, (-1, 2)).unbind(3)  # [2, R, T', Dk, Dv]
        totals_early, totals_late = totals.unflatten(1, (-1, 2)).unbind(2)
        is_late = (block % 2 == 1)[:, None, None]
        read = torch.where(is_late, since_start, until_end).exp() * weights[..., level : level + 1]
        sibling = torch.stack((late[1], early[0]), 2).flatten(1, 2)  # [R, 2 T', Dk, Dv]
        out = out + (q * read) @ sibling[:, block]
        states = torch.stack(
            (late[0] + totals_late.exp() * early[0], early[1] + totals_early.exp() * late[1])
        )
        block = block // 2
        since_start = since_start + torch.where(is_late, totals_early[:, block], 0)
        until_end = until_end + torch.where(is_late, 0, totals_late[:, block])
        totals = totals_early + totals_late
    return out
