"""State-space duality: a linear recurrence whose state forgets by one factor per head and token."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import Form, chunk_layout
from attnbench.layers.precision import without_autocast

BLOCK = 8
"""Tokens in a block whose matrix is made head by head."""


def state_space_duality(
    x: torch.Tensor,
    log_decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    form: Form = "chunked",
    chunk_size: int = 64,
) -> torch.Tensor:
    """Compute S_t = exp(g_t) S_{t-1} + b_t^T x_t and y_t = c_t S_t from S = 0, causal in t, for every head.

    x is [B, N, H, P], log_decay g <= 0 [B, N, H], b and c are [B, N, S] and shared by the heads; returns
    [B, N, H, P] in x's dtype. All maths in at least fp32, under autocast too. `recurrent` is the loop over
    tokens; `chunked` costs O(N C (S + H P) + N S H P) for chunks of C tokens and loops over chunks alone.
    Raises UserInputError when chunk_size is not a power of two.

    Numerics of `chunked`: the duality's matrix holds exp(g_{s+1} + ... + g_t), which the paper's listing
    takes from running sums. Here no difference of sums, no positive exponent and no quotient occurs: blocks
    of 1, 2, 4, ... tokens are merged, and the sum across their border is what the later block has added up
    so far plus what the earlier one still will. In blocks of up to 8 tokens the matrix of each head is made;
    across longer ones, the scores c b^T of all heads together meet values decayed up to the border, and
    what comes out decays from there. An exponent x is rounded in at most log2(C) additions, which moves e^x
    by log2(C) eps |x| e^x / 2 < log2(C) eps / 5 at most.
    Source: Mamba-2 arXiv:2405.21060, sec. 6 and listing 1; ssd_minimal.py of the released code read.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise UserInputError(f"chunk_size must be a power of two (16, 32, 64, ...), got {chunk_size}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x):
        inputs = (x.to(dtype), log_decay.to(dtype), b.to(dtype), c.to(dtype))
        out = _recurrent(*inputs) if form == "recurrent" else _chunked(*inputs, chunk_size)
    return out.to(x.dtype)


def state_space_duality_macs(
    num_tokens: int, num_heads: int, head_dim: int, state_dim: int, form: Form, chunk_size: int
) -> int:
    """Multiply-adds of the matmuls of one sequence, as executed, padded tokens included.

    Per chunk of C tokens: the scores c b^T within blocks of 8 tokens and across the borders of longer
    ones, (C + 8) / 2 for each token, made once for all heads, and with them as many values; if there is
    more than one chunk, the state written and read. The factors between are elementwise.

    >>> [state_space_duality_macs(1024, 4, 32, 16, form, 64) for form in ("recurrent", "chunked")]
    [4194304, 9502720]
    """
    width = num_heads * head_dim
    if form == "recurrent":
        return 2 * num_tokens * state_dim * width
    chunks, size = chunk_layout(num_tokens, chunk_size)
    within = size * (size + min(size, BLOCK)) // 2 * (state_dim + width)
    across = 2 * size * state_dim * width if chunks > 1 else 0
    return chunks * (within + across)


def states_before(written: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """State at the start of every chunk [R, T, ...], from what each chunk writes and its decay."""
    state = torch.zeros_like(written[:, 0])
    states = [state]
    for new, factor in zip(written.unbind(1)[:-1], decay.unbind(1)[:-1], strict=True):
        state = torch.addcmul(new, factor, state)
        states.append(state)
    return torch.stack(states, 1)


def _recurrent(x: torch.Tensor, log_decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    heads, width = x.shape[2:]
    state = x.new_zeros(x.shape[0], b.shape[-1], heads * width)  # [B, S, H P]
    decay = log_decay.exp().repeat_interleave(width, -1)  # [B, N, H P]
    outputs = []
    for x_t, a_t, b_t, c_t in zip(*(z.unbind(1) for z in (x.flatten(2), decay, b, c)), strict=True):
        state = a_t[:, None] * state + b_t[:, :, None] @ x_t[:, None]
        outputs.append(c_t[:, None] @ state)  # [B, 1, H P]
    return torch.cat(outputs, 1).unflatten(-1, (heads, width))


def _chunked(
    x: torch.Tensor, log_decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    batch, tokens, heads, width = x.shape
    chunks, size = chunk_layout(tokens, chunk_size)
    missing = chunks * size - tokens
    x = x.flatten(2)
    if missing:  # tokens that write nothing and forget nothing, after the last one
        x, log_decay, b, c = (F.pad(z, (0, 0, 0, missing)) for z in (x, log_decay, b, c))
    m = min(size, BLOCK)
    out, before, after = _blocks(x, log_decay, b, c, m)  # [R, m, H P], [R, m, H]
    while m < size:
        x_early, b_early = (z.reshape(-1, 2, m, z.shape[-1])[:, 0] for z in (x, b))
        c_late = c.reshape(-1, 2, m, c.shape[-1])[:, 1]
        early_before, late_before = before.unflatten(0, (-1, 2)).unbind(1)
        early_after, late_after = after.unflatten(0, (-1, 2)).unbind(1)
        across = (c_late @ b_early.transpose(1, 2)) @ _scaled(x_early, early_after)
        _add_scaled(out.unflatten(0, (-1, 2))[:, 1], across, late_before)
        out = out.view(-1, 2 * m, heads * width)
        before = torch.cat((early_before, late_before + early_before[:, -1:]), 1)
        after = torch.cat((early_after + late_before[:, -1:], late_after), 1)
        m *= 2
    if chunks > 1:
        x, b, c = (z.reshape(-1, size, z.shape[-1]) for z in (x, b, c))
        written = (b.transpose(1, 2) @ _scaled(x, after)).unflatten(0, (batch, chunks))
        whole = before[:, -1:].exp().repeat_interleave(width, -1).unflatten(0, (batch, chunks))
        _add_scaled(out, c @ states_before(written, whole).flatten(0, 1), before)
    return out.view(batch, chunks * size, heads, width)[:, :tokens]


def _scaled(x: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Multiply x [R, m, H P] by exp of an exponent <= 0 per head [R, m, H]."""
    heads = exponent.shape[-1]
    return (x.unflatten(-1, (heads, -1)) * exponent.exp()[..., None]).flatten(2)


def _add_scaled(out: torch.Tensor, x: torch.Tensor, exponent: torch.Tensor) -> None:
    """Add `_scaled(x, exponent)` to `out` in place: nothing keeps `out` for the backward pass."""
    heads = exponent.shape[-1]
    out.unflatten(-1, (heads, -1)).addcmul_(x.unflatten(-1, (heads, -1)), exponent.exp()[..., None])


def _blocks(
    x: torch.Tensor, log_decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor, m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute blocks of m tokens by themselves, through the duality's matrix of each head.

    x [B, N, H P], log_decay [B, N, H]; returns [B N / m, m, H P] and the sums of log decays before (itself
    included) and after each token [B N / m, m, H].
    """
    heads = log_decay.shape[-1]
    x, log_decay, b, c = (z.reshape(-1, m, z.shape[-1]) for z in (x, log_decay, b, c))
    exponents, before, after = _exponents(log_decay.transpose(1, 2))
    scores = (c @ b.transpose(1, 2))[:, None] * exponents.exp()  # [R, H, m, m]
    out = scores @ x.unflatten(-1, (heads, -1)).transpose(1, 2)
    # of heads of one channel, reshape makes a view, whose parts could not be merged nor written to later
    out = out.transpose(1, 2).reshape(-1, m, x.shape[-1]).contiguous()
    return out, before.transpose(1, 2), after.transpose(1, 2)


def _exponents(log_decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of log decays [R, H, C]: from s to t [R, H, C, C] (-inf for s > t), before and after a token.

    Entry (t, s) is g_{s+1} + ... + g_t; `before` is g_1 + ... + g_t, `after` g_{t+1} + ... + g_C. The loop
    keeps the three for blocks of m tokens.
    """
    size = log_decay.shape[-1]
    before = log_decay.unsqueeze(-1)  # [R, H, blocks, m]
    after = torch.zeros_like(before)
    sums = torch.zeros_like(before).unsqueeze(-1)  # [R, H, blocks, m, m]
    m = 1
    while m < size:
        early, late = before.unflatten(-2, (-1, 2)).unbind(-2)
        early_after, late_after = after.unflatten(-2, (-1, 2)).unbind(-2)
        sums_early, sums_late = sums.unflatten(-3, (-1, 2)).unbind(-3)
        across = late[..., None] + early_after[..., None, :]
        upper = F.pad(sums_early, (0, m), value=-torch.inf)
        sums = torch.cat((upper, torch.cat((across, sums_late), -1)), -2)
        before, after = (
            torch.cat((early, late + early[..., -1:]), -1),
            torch.cat((early_after + late[..., -1:], late_after), -1),
        )
        m *= 2
    return sums.squeeze(-3), before.squeeze(-2), after.squeeze(-2)
