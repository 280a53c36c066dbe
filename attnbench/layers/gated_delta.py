"""The gated delta rule: a linear recurrence whose state forgets, and replaces what it held for a key."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import Form, chunk_layout
from attnbench.layers.precision import without_autocast


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    *,
    form: Form = "chunked",
    chunk_size: int = 32,
) -> torch.Tensor:
    """Compute S_t = (I - b_t k_t^T k_t) diag(exp g_t) S_{t-1} + b_t k_t^T v_t and o_t = q_t S_t from S = 0.

    Causal in t. q, k are [B, H, N, Dk], v is [B, H, N, Dv], the log decay g <= 0 is [B, H, N, Dk] (one
    factor per key channel, Kimi Delta Attention) or [B, H, N, 1] (one per head, Gated DeltaNet), the step
    size b is [B, H, N, 1]; returns [B, H, N, Dv] in v's dtype. The caller scales q and gives keys of unit
    length and 0 <= b <= 2, without which the recurrence itself may grow. All maths in at least fp32, under
    autocast too. `recurrent` is the loop over tokens; `chunked` costs O(N C (Dk + Dv) + N C^2 + N Dk Dv)
    for chunks of C tokens and loops over chunks. Raises UserInputError when chunk_size is not a power of two.

    `chunked`: with u_t = b_t (v_t - k_t diag(exp g_t) S_{t-1}), what a token really writes, the state is a
    sum of decayed k_t^T u_t, as in gated linear attention, and the u of a chunk solve a unit lower triangular
    system (I + X) U = b V - (b K, decayed since the chunk's start) S, where X_ts is b_t k_t . k_s, decayed
    from s to t, for s < t. The papers invert I + X by forward substitution, a loop over tokens; here two
    neighbouring blocks of m tokens are merged, m = 1, 2, 4, ... C/2, by
    [[A, 0], [X, B]]^-1 = [[A^-1, 0], [-B^-1 X A^-1, B^-1]], so that all is matmuls which counters see.
    Every block of the inverse is what a row of a product of (I - b k^T k) and decays makes of a key: for
    unit keys and b <= 2 no entry exceeds b, so that no intermediate grows.
    Decays come by the same merging, as in `gated_linear_attention` and for its reasons: no positive
    exponent, no difference of sums, no quotient, at any decay.
    Source: Gated DeltaNet arXiv:2412.06464 (the WY form of DeltaNet arXiv:2406.06484 with decays); Kimi
    Linear arXiv:2510.26692, sec. 3 and listing 1, and flash-linear-attention's naive forms, read.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise UserInputError(f"chunk_size must be a power of two (16, 32, 64, ...), got {chunk_size}")
    dtype = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        q, k, exact, log_decay, beta = (z.to(dtype) for z in (q, k, v, log_decay, beta))
        if form == "recurrent":
            out = _recurrent(q, k, exact, log_decay, beta)
        else:
            out = _chunked(q, k, exact, log_decay, beta, chunk_size)
    return out.to(v.dtype)


def gated_delta_macs(num_tokens: int, key_dim: int, value_dim: int, form: Form, chunk_size: int) -> int:
    """Multiply-adds of the matmuls of one head, as executed, padded tokens included.

    `recurrent`: k S, k^T u and q S a token. `chunked`, a chunk of C tokens: reads of q and of k meet earlier
    keys in C (C-1) / 2 pairs each; merging the inverse takes C/(2m) times 2 m^3 at m = 1, 2, ... C/2,
    together C (C^2 - 1) / 3; the inverse times the values, the scores times what is written. With more than
    one chunk: the inverse times the keys, and q times the state; from the second on the state corrects what
    is written, and to all but the last it is written.

    >>> gated_delta_macs(1024, 32, 64, "recurrent", 32), gated_delta_macs(1024, 32, 64, "chunked", 32)
    (6291456, 12768256)
    """
    if form == "recurrent":
        return 3 * num_tokens * key_dim * value_dim
    chunks, size = chunk_layout(num_tokens, chunk_size)
    within = size * (size - 1) * key_dim + size * (size * size - 1) // 3 + 2 * size * size * value_dim
    if chunks == 1:
        return within
    state = size * key_dim * value_dim
    return chunks * (within + size * size * key_dim + state) + 2 * (chunks - 1) * state


def _recurrent(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])  # [B, H, Dk, Dv]
    outputs = []
    by_token = (z[..., None, :].unbind(2) for z in (q, k, v, beta))  # [B, H, 1, D]
    for q_t, k_t, v_t, b_t, a_t in zip(*by_token, log_decay.exp()[..., None].unbind(2), strict=True):
        state = a_t * state
        written = b_t * (v_t - k_t @ state)
        state = state + k_t.transpose(-1, -2) @ written
        outputs.append(q_t @ state)
    return torch.cat(outputs, dim=2)


def _chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int,
) -> torch.Tensor:
    batch, heads, tokens, _ = q.shape
    chunks, size = chunk_layout(tokens, chunk_size)
    missing = chunks * size - tokens
    if missing:  # tokens that write nothing and forget nothing, after the last one
        q, k, v, log_decay, beta = (F.pad(z, (0, 0, 0, missing)) for z in (q, k, v, log_decay, beta))
    q, k, v, log_decay, beta = (z.reshape(-1, size, z.shape[-1]) for z in (q, k, v, log_decay, beta))
    scores, inverse, reads, k, decay = _within_chunks(q, k, beta, log_decay)
    written = inverse @ (beta * v)  # [R, C, Dv], as if every chunk began with an empty state
    if chunks == 1:
        out = scores @ written
    else:
        q, corrections = reads[:, 0], inverse @ reads[:, 1]
        by_chunk = (batch * heads, chunks)
        written, states = _across_chunks(
            *(z.unflatten(0, by_chunk) for z in (written, corrections, k, decay.transpose(1, 2)))
        )
        out = torch.baddbmm(q @ states.flatten(0, 1), scores, written.flatten(0, 1))
    return out.view(batch, heads, chunks * size, -1)[:, :, :tokens]


def _within_chunks(
    q: torch.Tensor, k: torch.Tensor, beta: torch.Tensor, log_decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge blocks of 1, 2, 4, ... tokens until a block is a chunk; q, k are [R, C, Dk], beta [R, C, 1].

    Returns the lower triangular scores of queries and the inverse of I + X, both [R, C, C]; q and b k
    decayed since the chunk's start, [R, 2, C, Dk]; k decayed up to its end; and the decay of whole chunks
    [R, 1, Dk or 1]. The loop keeps these for blocks of m tokens.
    """
    size, width = q.shape[1:]
    scores = (q * k).sum(-1).reshape(-1, 1, 1)
    inverse = torch.ones_like(scores)
    decay = log_decay.exp()
    reads = torch.stack((q * decay, beta * k * decay), 1)  # the state forgets before it is read
    reads = reads.transpose(1, 2).reshape(-1, 2, 1, width)  # [R C, 2, 1, Dk]
    m = 1
    while m < size:
        early, late = reads.reshape(-1, 2, 2, m, width).unbind(1)  # [R C / 2m, 2, m, Dk]
        k_early, k_late = k.reshape(-1, 2, m, width).unbind(1)
        decay_early, decay_late = decay.reshape(-1, 2, 1, decay.shape[-1]).unbind(1)
        across = late.flatten(1, 2) @ k_early.transpose(1, 2)  # [R C / 2m, 2m, m]
        q_across, k_across = across.unflatten(1, (2, m)).unbind(1)
        scores = _lower(scores, q_across)
        first, second = inverse.reshape(-1, 2, m, m).unbind(1)
        inverse = _lower(inverse, -(second @ (k_across @ first)))
        reads = torch.cat((early, late * decay_early[:, None]), 2)  # [R C / 2m, 2, 2m, Dk]
        k = torch.stack((k_early * decay_late, k_late), 1)
        log_decay = log_decay.reshape(-1, 2, 1, log_decay.shape[-1]).sum(1)
        decay = log_decay.exp()  # of the sum: a product of factors near 1 would round m times
        m *= 2
    return scores, inverse, reads, k.reshape(-1, size, width), decay.reshape(-1, 1, decay.shape[-1])


def _lower(blocks: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Put pairs of [m, m] blocks on the diagonal of [2m, 2m] ones, and `across` below it."""
    m = across.shape[-1]
    early, late = blocks.reshape(-1, 2, m, m).unbind(1)
    return torch.cat((F.pad(early, (0, m)), torch.cat((across, late), 2)), 1)


def _across_chunks(
    written: torch.Tensor, corrections: torch.Tensor, k: torch.Tensor, decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry the state from chunk to chunk; all are [R, T, ...], decay is [R, T, Dk or 1, 1].

    Returns what the tokens of every chunk really write, [R, T, C, Dv], and the state at the start of every
    chunk, [R, T, Dk, Dv].
    """
    first, *others = written.unbind(1)
    state = torch.zeros(*k.shape[:1], k.shape[-1], written.shape[-1], dtype=k.dtype, device=k.device)
    states, corrected = [state], [first]
    later = zip(others, corrections.unbind(1)[1:], k.unbind(1)[:-1], decay.unbind(1)[:-1], strict=True)
    for new, correction, keys, factor in later:  # keys and decay are those of the chunk before
        state = factor * state + keys.transpose(1, 2) @ corrected[-1]
        states.append(state)
        corrected.append(torch.baddbmm(new, correction, state, alpha=-1))
    return torch.stack(corrected, 1), torch.stack(states, 1)
