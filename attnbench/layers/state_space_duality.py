"""State-space duality: a linear recurrence whose state forgets by one factor per head and token."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnbench.errors import UserInputError
from attnbench.layers.gated_linear import Form, chunk_layout
from attnbench.layers.precision import without_autocast


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

    Numerics of `chunked`: the duality's matrix holds exp(g_{s+1} + ... + g_t). The paper's listing takes
    that sum as a running sum along each column; here blocks of 1, 2, 4, ... tokens are merged, and a sum
    across their border is what the later block has added up so far plus what the earlier one still will:
    log2(C) roundings, no difference of large sums, no positive exponent, no quotient. An exponent x so
    rounded moves e^x by at most log2(C) eps |x| e^x / 2 < log2(C) eps / 5.
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

    Per chunk of C tokens: C x C scores once for all heads, times the values head by head and, if there is
    more than one chunk, the state written and read. The factors between are elementwise.

    >>> [state_space_duality_macs(1024, 4, 32, 16, form, 64) for form in ("recurrent", "chunked")]
    [4194304, 13631488]
    """
    width = num_heads * head_dim
    if form == "recurrent":
        return 2 * num_tokens * state_dim * width
    chunks, size = chunk_layout(num_tokens, chunk_size)
    within = size * size * (state_dim + width)
    across = 2 * size * state_dim * width if chunks > 1 else 0
    return chunks * (within + across)


def states_before(written: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """State at the start of every chunk: [R, T, ...] from what each chunk writes and its decay, S = 0 first."""
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
    x, log_decay, b, c = (z.reshape(-1, size, z.shape[-1]) for z in (x, log_decay, b, c))  # [R, C, D]
    exponents, before, after = _exponents(log_decay.transpose(1, 2))  # [R, H, C, C] and twice [R, H, C]
    by_head = x.unflatten(-1, (heads, width))  # [R, C, H, P]
    scores = (c @ b.transpose(1, 2))[:, None] * exponents.exp()
    out = (scores @ by_head.transpose(1, 2)).transpose(1, 2)
    if chunks > 1:
        kept = (by_head * after.exp().transpose(1, 2)[..., None]).flatten(2)  # decayed up to the chunk's end
        written = (b.transpose(1, 2) @ kept).unflatten(-1, (heads, width)).unflatten(0, (batch, chunks))
        whole = before[..., -1].exp().view(batch, chunks, 1, heads, 1)
        states = states_before(written, whole).flatten(0, 1).flatten(2)  # [R, S, H P]
        read = (c @ states).unflatten(-1, (heads, width))
        out = torch.addcmul(out, read, before.exp().transpose(1, 2)[..., None])
    return out.reshape(batch, chunks * size, heads, width)[:, :tokens]


def _exponents(log_decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of log decays [..., C]: from s to t [..., C, C] (-inf for s > t), before and after each token.

    Entry (t, s) is g_{s+1} + ... + g_t; `before` is g_1 + ... + g_t, `after` g_{t+1} + ... + g_C. The loop keeps
    the three for blocks of m tokens.
    """
    size = log_decay.shape[-1]
    before = log_decay.unsqueeze(-1)  # [..., blocks, m]
    after = torch.zeros_like(before)
    sums = torch.zeros_like(before).unsqueeze(-1)  # [..., blocks, m, m]
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
