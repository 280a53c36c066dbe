"""Linear attention on a CPU, block of tokens by block: what a block needs stays in the core's cache.

Sums over keys first, then the queries, each straight from views of the projection: no copy of a head, no
product of the size of an input is kept, neither for the next step nor for the backward pass.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any, NamedTuple

import torch

from attnbench.layers.block_workspace import Workspace, block_length


class Terms(NamedTuple):
    """What is added up and how: o_i = q_i (sum_j k_j^T v_j) [/ (m_i . sum_j n_j + eps)].

    q, k [B, H, N or M, Dk], v [B, H, M, Dv]; m and n are `mass_q` and `mass_k`, q and k where they are
    None. `rectify`: q and k pass through a ReLU first.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mass_q: torch.Tensor | None
    mass_k: torch.Tensor | None
    normalise: bool
    rectify: bool
    eps: float


def blocked_attention(terms: Terms) -> torch.Tensor:
    """Compute `Terms`: [B, H, N, Dv], a view of [B, N, H, Dv], so that merging the heads copies nothing.

    Half types: products in their type, summed up over blocks in fp32; denominators in fp32, and the whole
    backward pass, which computes denominators again and keeps the inputs and [B, H, Dk, Dv + 1] sums.
    """
    inputs = [z for z in terms[:5] if z is not None]
    if torch.is_grad_enabled() and any(z.requires_grad for z in inputs):
        result: torch.Tensor = _Blocked.apply(*terms)
        return result
    return _forward(terms)[0]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *terms: Any) -> torch.Tensor:
        out, state, mass = _forward(Terms(*terms))
        ctx.save_for_backward(*terms[:5], state, mass)
        ctx.rest = terms[5:]
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, state, mass = ctx.saved_tensors
        terms = Terms(*inputs, *ctx.rest)
        if torch.is_grad_enabled():  # somebody differentiates twice: leave that to autograd
            return (*_differentiable_backward(terms, grad), None, None, None)
        return (*_backward(terms, grad, state, mass), None, None, None)


def unblocked(terms: Terms) -> torch.Tensor:
    """Compute the same as `blocked_attention` in whole operations, which autograd and compilers follow."""
    q, k, v, mass_q, mass_k, normalise, rectify, eps = terms
    if rectify:
        q, k = q.relu(), k.relu()
    out = q @ (k.transpose(-2, -1) @ v)
    if not normalise:
        return out
    return divided(out, q if mass_q is None else mass_q, k if mass_k is None else mass_k, eps).to(v.dtype)


def key_mass(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Eq. 4's denominator q_i . sum_j k_j in at least fp32: [..., N, D] -> [..., N, 1]."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    # elementwise on purpose: autocast would run a matmul here in half precision
    return (q * k.sum(-2, keepdim=True, dtype=dtype)).sum(-1, keepdim=True)


def divided(out: torch.Tensor, mass_q: torch.Tensor, mass_k: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide a numerator by eq. 4's denominator, in at least fp32."""
    return out / (key_mass(mass_q, mass_k) + eps)


def _differentiable_backward(terms: Terms, grad: torch.Tensor) -> list[torch.Tensor | None]:
    wanted = [z for z in terms[:5] if z is not None and z.requires_grad]
    found = iter(torch.autograd.grad(unblocked(terms), wanted, grad, create_graph=True))
    return [next(found) if z is not None and z.requires_grad else None for z in terms[:5]]


def _room(like: torch.Tensor, tokens: int, width: int) -> torch.Tensor:
    """Return an empty [B, H, N, D] that is a view of [B, N, H, D]."""
    batch, heads = like.shape[:2]
    return like.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _lengths(terms: Terms) -> tuple[int, int]:
    """Return the lengths of a block of queries and of one of keys."""
    q, k, v = terms[:3]
    width = v.shape[1] * max(q.shape[3], v.shape[3])
    return block_length(q.shape[2], width, v.dtype), block_length(k.shape[2], width, v.dtype)


def _blocks(length: int, image: int, *tensors: torch.Tensor | None) -> Any:
    """Go through one image's blocks [H, n, D] of these tensors [B, H, N, D] at once; None stays None."""
    return zip(*(repeat(None) if z is None else z[image].split(length, 1) for z in tensors), strict=False)


def _forward(terms: Terms) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the output, sum_j k_j^T v_j [B, H, Dk, Dv] and sum_j n_j [B, H, 1, Dk], both in fp32 up."""
    q, v = terms.q, terms.v
    work, (queries, keys) = Workspace(v), _lengths(terms)
    out = _room(v, q.shape[2], v.shape[3])
    state = v.new_zeros(*v.shape[:2], q.shape[3], v.shape[3], dtype=work.dtype)
    mass = v.new_zeros(*v.shape[:2], 1, q.shape[3] if terms.normalise else 0, dtype=work.dtype)
    for image in range(terms.v.shape[0]):
        for block in _blocks(keys, image, terms.k, v, terms.mass_k):
            _sum_keys(terms, block, state[image], mass[image], work)
        read = state[image].to(v.dtype)
        for block in _blocks(queries, image, q, terms.mass_q, out):
            _read_state(terms, block, read, mass[image], work)
    return out, state, mass


def _sum_keys(terms: Terms, block: Any, state: torch.Tensor, mass: torch.Tensor, work: Workspace) -> None:
    k, v, mass_k = block
    k = work.load("rows", k, k.dtype, rectify=terms.rectify)
    if work.half:
        part = work.room("part", state.shape, v.dtype)
        state.add_(torch.bmm(k.transpose(1, 2), v, out=part))
    else:
        torch.baddbmm(state, k.transpose(1, 2), v, out=state)
    if terms.normalise:
        mass.add_((k if mass_k is None else mass_k).sum(1, keepdim=True, dtype=work.dtype))


def _read_state(terms: Terms, block: Any, state: torch.Tensor, mass: torch.Tensor, work: Workspace) -> None:
    q, mass_q, out = block
    q = work.load("rows", q, q.dtype, rectify=terms.rectify)
    if not terms.normalise:
        torch.bmm(q, state, out=out)
        return
    read = torch.bmm(q, state, out=work.room("read", out.shape, out.dtype))
    own_room = mass_q is None and terms.rectify and not work.half
    by = _denominator(q if mass_q is None else mass_q, mass, terms.eps, work, in_place=own_room)
    if work.half:
        read = work.room("products", out.shape).copy_(read)
        out.copy_(read.div_(by))
    else:
        torch.div(read, by, out=out)


def _denominator(
    q: torch.Tensor, mass: torch.Tensor, eps: float, work: Workspace, *, in_place: bool = False
) -> torch.Tensor:
    """Return q_i . mass + eps of a block: [H, n, D] -> [H, n, 1]; in place, q is lost."""
    room = q if in_place else work.room("products", q.shape)
    if q.dtype != work.dtype:  # torch multiplies two types in a slower loop
        room.copy_(q).mul_(mass)
    else:
        torch.mul(q, mass, out=room)
    return torch.sum(room, -1, keepdim=True, out=work.room("denominator", (*q.shape[:2], 1))).add_(eps)


def _backward(
    terms: Terms, grad: torch.Tensor, state: torch.Tensor, mass: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """With z the denominators, h = grad / z, S the state, s the mass and t = h S^T:

    dq = t, dS = q^T h, dz = -(q . t) / z, d mass_q = dz s, ds = dz^T mass_q; then dk = v dS^T, dv = k dS and
    d mass_k = ds for every token. Where the mass is of q and k themselves, their gradients add up.
    """
    work, (queries, keys) = Workspace(terms.v), _lengths(terms)
    dq, dk, dv, d_mass_q = (None if z is None else _room(z, *z.shape[2:]) for z in terms[:4])
    d_state, d_mass = torch.zeros_like(state), torch.zeros_like(mass)
    for image in range(terms.v.shape[0]):
        sums = (state[image], mass[image], d_state[image], d_mass[image])
        for block in _blocks(queries, image, terms.q, terms.mass_q, grad, dq, d_mass_q):
            _query_gradients(terms, block, sums, work)
        for block in _blocks(keys, image, terms.k, terms.v, dk, dv):
            _key_gradients(terms, block, sums, work)
    if terms.mass_k is None:
        return dq, dk, dv, None, None
    return dq, dk, dv, d_mass_q, d_mass.to(terms.mass_k.dtype).expand(terms.mass_k.shape)


def _query_gradients(terms: Terms, block: Any, sums: tuple[torch.Tensor, ...], work: Workspace) -> None:
    q, mass_q, h, into_q, into_mass_q = block
    state, mass, d_state, d_mass = sums
    q, h = work.load("q", q, rectify=terms.rectify), work.load("grad", h)
    if terms.normalise:
        mass_q = q if mass_q is None else work.load("mass_q", mass_q)
        z = _denominator(mass_q, mass, terms.eps, work)
        h = torch.div(h, z, out=work.room("grad", h.shape))
    dq = torch.bmm(h, state.transpose(1, 2), out=work.room("dq", q.shape))
    torch.baddbmm(d_state, q.transpose(1, 2), h, out=d_state)
    if terms.normalise:
        products = torch.mul(q, dq, out=work.room("products", q.shape))
        dz = torch.sum(products, -1, keepdim=True, out=work.room("dz", (*q.shape[:2], 1))).div_(z).neg_()
        d_mass.add_(torch.mul(mass_q, dz, out=products).sum(1, keepdim=True))
        if into_mass_q is None:
            dq.addcmul_(dz, mass)
        else:
            into_mass_q.copy_(torch.mul(dz, mass, out=products))
    _store(dq, q, into_q, rectify=terms.rectify)


def _key_gradients(terms: Terms, block: Any, sums: tuple[torch.Tensor, ...], work: Workspace) -> None:
    k, v, into_k, into_v = block
    _, _, d_state, d_mass = sums
    k, v = work.load("k", k, rectify=terms.rectify), work.load("v", v)
    dk = torch.bmm(v, d_state.transpose(1, 2), out=work.room("dq", k.shape))
    if terms.normalise and terms.mass_k is None:
        dk.add_(d_mass)
    _store(dk, k, into_k, rectify=terms.rectify)
    into_v.copy_(torch.bmm(k, d_state, out=work.room("dv", v.shape)))


def _store(grad: torch.Tensor, rectified: torch.Tensor, into: torch.Tensor, *, rectify: bool) -> None:
    """Write a block's gradient where it belongs, zero where the ReLU was."""
    if not rectify:
        into.copy_(grad)
    elif into.dtype == grad.dtype:
        torch.ops.aten.threshold_backward.grad_input(grad, rectified, 0, grad_input=into)
    else:
        torch.ops.aten.threshold_backward.grad_input(grad, rectified, 0, grad_input=grad)
        into.copy_(grad)
