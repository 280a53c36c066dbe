"""The selective scan over chunks, forward and backward: loops over positions and over chunks.

u (the steps times x) and steps are [B, G, N, E], a [G, S, E] in units of log 2, b and c [B, G, N, S]; N is a
whole number of chunks of C = `size` tokens. Sums over states are matmuls, everything else is elementwise.
`plain` is what autograd, compilers and tracers follow. `forward` and `backward` write into the same few
tensors again and again and go through sequences, channels and images in portions, which on a CPU stay in
its cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from attnbench.layers.state_space_duality import states_before

PORTION = {"cpu": 1 << 17}
"""States, over images, chunks and channels, that are worked on at once."""
PORTION_ELSEWHERE = 1 << 23
FEWEST_CHANNELS = 64


def plain(
    u: torch.Tensor, steps: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, size: int
) -> torch.Tensor:
    """Return y [B, G, N, E]."""
    u, steps, b, c = (z.unflatten(2, (-1, size)) for z in (u, steps, b, c))  # [B, G, T, C, ...]
    decays = [torch.exp2(step.unsqueeze(3) * a.unsqueeze(1)) for step in steps.unbind(3)]  # [B, G, T, S, E]
    written = [u_j.unsqueeze(3) * b_j.unsqueeze(4) for u_j, b_j in zip(u.unbind(3), b.unbind(3), strict=True)]
    state = torch.zeros_like(written[0])
    if u.shape[2] > 1:
        for decay, new in zip(decays, written, strict=True):
            state = torch.addcmul(new, decay, state)
        whole = torch.exp2(steps.sum(3).unsqueeze(3) * a.unsqueeze(1))
        state = states_before(state.flatten(0, 1), whole.flatten(0, 1)).view_as(state)
    outputs = []
    for decay, new, c_j in zip(decays, written, c.unbind(3), strict=True):
        state = torch.addcmul(new, decay, state)
        outputs.append(c_j.unsqueeze(3) @ state)  # [B, G, T, 1, E]
    return torch.cat(outputs, 3).flatten(2, 3)


class Portion(NamedTuple):
    """Some images and channels of one sequence, by chunks: u, steps, grad [B, T, C, E], b, c [B, T, C, S].

    a is [S, E], borders [B, T, S, E] are the states before each chunk, `where` is the portion's place in
    tensors like u. Without a gradient `grad` and `borders` are u and a place to write to.
    """

    u: torch.Tensor
    steps: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    borders: torch.Tensor
    grad: torch.Tensor
    where: tuple[slice, int, slice]


def forward(
    u: torch.Tensor, steps: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and the states before the chunks [B, G, T, S, E]; without a graph."""
    batch, groups, tokens, channels = u.shape
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    borders = u.new_empty(batch, groups, tokens // size, a.shape[1], channels)
    for part in _portions(u, steps, a, b, c, size, borders, u):
        images, group, some = part.where
        state, decay = torch.zeros_like(part.borders), torch.empty_like(part.borders)
        new = torch.empty_like(decay)
        if tokens > size:
            for j in range(size):
                _advance(part, j, state, decay, new)
            whole = torch.exp2(part.steps.sum(2).unsqueeze(2) * part.a)
            state = states_before(state, whole)
        part.borders.copy_(state)
        y = out[images, group, :, some].unflatten(1, (-1, size))
        for j in range(size):
            _advance(part, j, state, decay, new)
            y[:, :, j] = (part.c[:, :, j].unsqueeze(2) @ state).squeeze(2)
    return out, borders


def backward(
    u: torch.Tensor,
    steps: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    size: int,
    borders: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of u, steps, a, b and c from that of y; states are computed again from `borders`.

    With m_t the gradient of h_t: m_t = c_t^T grad_t + exp(d_{t+1} a) m_{t+1}, the same scan backwards. From
    it those of u (b m), b (m u), c (h grad) and of the exponent z = d a, in units of log 2:
    log(2) m_t h_{t-1} exp(d_t a).
    """
    grad_u, grad_steps = (torch.empty_like(u, memory_format=torch.contiguous_format) for _ in range(2))
    grad_b, grad_c = (torch.zeros_like(b, memory_format=torch.contiguous_format) for _ in range(2))
    grad_a = torch.zeros_like(a)
    for part in _portions(u, steps, a, b, c, size, borders, grad):
        images, group, some = part.where
        decays, states = _again(part)
        flow = _flow(part, decays)
        to_u, to_steps = (z[images, group, :, some].unflatten(1, (-1, size)) for z in (grad_u, grad_steps))
        to_b, to_c = (z[images, group].unflatten(1, (-1, size)) for z in (grad_b, grad_c))
        room, to_a = torch.empty_like(flow), torch.zeros_like(flow)
        for j in reversed(range(size)):
            grad_j, steps_j = part.grad[:, :, j], part.steps[:, :, j]
            flow.addcmul_(grad_j.unsqueeze(2), part.c[:, :, j].unsqueeze(3))
            # sums over channels as they stand in memory: a batch of products with vectors is many calls
            to_b[:, :, j] += torch.mul(flow, part.u[:, :, j].unsqueeze(2), out=room).sum(3)
            to_c[:, :, j] += torch.mul(states[j + 1], grad_j.unsqueeze(2), out=room).sum(3)
            to_u[:, :, j] = (part.b[:, :, j].unsqueeze(2) @ flow).squeeze(2)
            flow.mul_(decays[j])
            torch.mul(flow, states[j], out=room)  # of the exponent
            to_a.addcmul_(room, steps_j.unsqueeze(2))
            to_steps[:, :, j] = room.mul_(part.a).sum(2)
        grad_a[group, :, some] += to_a.sum((0, 1))
    unit = math.log(2)
    return grad_u, grad_steps.mul_(unit), grad_a.mul_(unit), grad_b, grad_c


def _again(part: Portion) -> tuple[torch.Tensor, torch.Tensor]:
    """Decays of all positions [C, B, T, S, E] and states before and after them [C + 1, B, T, S, E]."""
    size = part.u.shape[2]
    decays = part.borders.new_empty(size, *part.borders.shape)
    states = part.borders.new_empty(size + 1, *part.borders.shape)
    states[0] = part.borders
    for j in range(size):
        torch.mul(part.steps[:, :, j].unsqueeze(2), part.a, out=decays[j])
        torch.mul(part.u[:, :, j].unsqueeze(2), part.b[:, :, j].unsqueeze(3), out=states[j + 1])
    decays.exp2_()
    for j in range(size):
        states[j + 1].addcmul_(decays[j], states[j])
    return decays, states


def _flow(part: Portion, decays: torch.Tensor) -> torch.Tensor:
    """Return what later chunks send back to each chunk's last state [B, T, S, E]."""
    sent = torch.zeros_like(part.borders)
    if part.u.shape[1] == 1:
        return sent
    for j in reversed(range(part.u.shape[2])):
        sent.addcmul_(part.grad[:, :, j].unsqueeze(2), part.c[:, :, j].unsqueeze(3)).mul_(decays[j])
    whole = torch.exp2(part.steps.sum(2).unsqueeze(2) * part.a)
    return states_before(sent.flip(1), whole.flip(1)).flip(1)


def _advance(part: Portion, j: int, state: torch.Tensor, decay: torch.Tensor, new: torch.Tensor) -> None:
    """Take the states of all chunks over position j, in place; `decay` and `new` are room to work in."""
    torch.mul(part.steps[:, :, j].unsqueeze(2), part.a, out=decay).exp2_()
    torch.mul(part.u[:, :, j].unsqueeze(2), part.b[:, :, j].unsqueeze(3), out=new)
    torch.addcmul(new, decay, state, out=state)


def _portions(
    u: torch.Tensor,
    steps: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    size: int,
    borders: torch.Tensor,
    grad: torch.Tensor,
) -> Iterator[Portion]:
    """Go through the sequences, then channels, then images, as many as `PORTION` allows."""
    batch, groups, tokens, channels = u.shape
    room = PORTION.get(u.device.type, PORTION_ELSEWHERE) // (a.shape[1] * (tokens // size))
    width = min(channels, max(FEWEST_CHANNELS, room))
    images = max(1, room // width)
    for group in range(groups):
        for channel in range(0, channels, width):
            for image in range(0, batch, images):
                where = (slice(image, image + images), group, slice(channel, channel + width))
                chosen = (where[0], group, slice(None), where[2])
                u_, steps_, grad_ = (z[chosen].unflatten(1, (-1, size)) for z in (u, steps, grad))
                b_, c_ = (z[where[:2]].unflatten(1, (-1, size)) for z in (b, c))
                borders_ = borders[where[0], group, :, :, where[2]]
                yield Portion(u_, steps_, a[group, :, where[2]], b_, c_, borders_, grad_, where)
