"""The implied attention map: what each output token of any attention module takes from each input token.

For every module, strangers' included, without its help: a map is read off derivatives. Where the module's
values v = W_v x can be seen, the weights of output token i in head h are

    a_ij = |d (u . y_i) / d v_j^h| / sum_k |d (u . y_i) / d v_k^h|,

queries, keys and all routing held fixed. Wherever o_i = sum_j w_ij v_j per head, and what follows (gates,
norms, the output projection) acts on each token alone, the gradient is w_ij times a vector that is the same
for all j: a_ij is exactly |w_ij| / sum_k |w_ik|, so softmax(q k^T / sqrt(D)) for softmax attention, whatever
u is. What else leads from values to outputs, such as a depthwise convolution on them, is in the map, too;
signs are not.

Where no values can be seen the map is that of the module's input tokens, x_j in place of v_j and all channels
as one head: there queries, keys and gates that depend on x_j count as well.

u are PROBES vectors of random signs, over which squares are summed: with a single one, what is not a number
times a common vector would be seen from one direction only. E[|u J|^2] = |J|_F^2 (Hutchinson).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from attnbench.contract import AttentionContext
from attnbench.layers import QKVProjection

MapPath = Literal["values", "tokens"]
VALUE_NAMES = ("v", "value", "values", "v_proj", "to_v")
"""What a linear layer that makes values is called, where there is no QKVProjection."""
PROBES = 4
MOST_NUMBERS = 2**26  # in one tensor of tokens or of scores, 256 MiB: more rows of maps are found in turn
_SEED = 0  # of the probes: the same for every case, layer and timestep


class NoMapError(Exception):
    """There is no map of a module; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ImpliedMap:
    """Weights [B, H, Q, N] of Q output tokens over all N input tokens, and where they lead from."""

    weights: torch.Tensor
    path: MapPath


@dataclass(frozen=True, kw_only=True)
class Site:
    """An attention module at work: its inputs x [B, N, C], their context, and how many heads share C."""

    module: nn.Module
    x: torch.Tensor
    context: AttentionContext
    num_heads: int


def implied_map(site: Site, queries: torch.Tensor) -> ImpliedMap:
    """Return the implied attention map of a module for the output tokens `queries` [Q].

    Rows have sum 1, or are NaN where nothing is taken from anywhere. Costs a forward and PROBES backward
    passes of the module for B Q images. Raises NoMapError, and whatever the module raises.
    """
    count, tokens, width = site.x.shape
    each = torch.arange(count).repeat_interleave(len(queries))  # an image for every row of every map
    asked = queries.cpu().repeat(count)
    at_once = max(1, MOST_NUMBERS // (tokens * max(width, site.num_heads * tokens)))
    parts = list(zip(each.split(at_once), asked.split(at_once), strict=True))
    ways: dict[MapPath, Callable[..., torch.Tensor | None]] = {
        "values": _along_values,
        "tokens": _along_tokens,
    }
    for path, along in ways.items():
        squares = _found_for_all(along(site, *part) for part in parts)
        if squares is not None:
            weights = squares.sqrt().unflatten(0, (count, len(queries))).permute(0, 3, 1, 2)
            if not torch.isfinite(weights).all():
                raise NoMapError("its derivatives are not finite")
            return ImpliedMap(weights=weights / weights.sum(-1, keepdim=True), path=path)
    raise NoMapError("autograd finds no way from its input tokens to its output")


def spread_queries(num_tokens: int, most: int) -> torch.Tensor:
    """Return at most so many evenly spaced tokens, the middles of equal parts; int64."""
    count = min(most, num_tokens)
    return ((torch.arange(count) + 0.5) * num_tokens / count).long()


def _found_for_all(parts: Iterable[torch.Tensor | None]) -> torch.Tensor | None:
    """Join what was found for some rows at a time, or return None at the first that has nothing."""
    kept = []
    for part in parts:
        if part is None:
            return None
        kept.append(part)
    return torch.cat(kept)


def _along_values(site: Site, each: torch.Tensor, asked: torch.Tensor) -> torch.Tensor | None:
    """Return squared sensitivities [rows, N, H] to the module's values, None where they cannot be seen.

    Row r is about output token `asked[r]` of image `each[r]`.
    """
    rows = site.x[each]
    with torch.enable_grad():
        with _values_of(site.module) as seen:
            y = site.module(rows, _of_images(site.context, each))
        if len(seen) != 1 or any(z.shape != rows.shape for z in seen[0]):
            return None
        entered, values = seen[0]
        order = _order(entered[:1], rows[:1])
        if order is None or not torch.equal(entered, rows[:, order]):
            return None  # values of other tokens than those that came in, such as pooled ones
        squares = _squares(y, values, asked, site.num_heads)
    return None if squares is None else torch.empty_like(squares).index_copy_(1, order, squares)


def _along_tokens(site: Site, each: torch.Tensor, asked: torch.Tensor) -> torch.Tensor | None:
    """Return squared sensitivities [rows, N, 1] to the module's input tokens, None where there is no way."""
    with torch.enable_grad():
        rows = site.x[each].requires_grad_()
        y = site.module(rows, _of_images(site.context, each))
        return _squares(y, rows, asked, 1)


def _squares(y: torch.Tensor, start: torch.Tensor, asked: torch.Tensor, heads: int) -> torch.Tensor | None:
    """Return sum_u |d (u . y_i) / d start_j|^2 by head, [rows, N, H], for the token i `asked` of each row."""
    if not y.requires_grad:
        return None
    generator = torch.Generator().manual_seed(_SEED)
    signs = (torch.randint(2, (PROBES, y.shape[-1]), generator=generator) * 2 - 1).to(y)
    total = y.new_zeros(())
    for number, sign in enumerate(signs):
        ask = torch.zeros_like(y)
        ask[torch.arange(len(y)), asked] = sign
        more = number < PROBES - 1
        slopes: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            y, start, ask, retain_graph=more, allow_unused=True
        )
        if (slope := slopes[0]) is None:
            return None
        total = total + slope.detach().unflatten(-1, (heads, -1)).square().sum(-1)
    return total


@contextmanager
def _values_of(module: nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield a list that fills with (tokens, their values as a leaf) while the module runs, q and k fixed.

    Empty where the module's values cannot be seen.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def cut(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        *others, values = output if isinstance(output, tuple) else (output,)
        leaf = values.detach().requires_grad_()
        seen.append((arguments[0].detach(), leaf))
        passed_on = leaf.clone()  # a module may write into its values
        return (*(z.detach() for z in others), passed_on) if others else passed_on

    makers = _value_makers(module)
    handle = makers[0].register_forward_hook(cut) if len(makers) == 1 else None
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def _value_makers(module: nn.Module) -> list[nn.Module]:
    shared: list[nn.Module] = [part for part in module.modules() if isinstance(part, QKVProjection)]
    return shared or [
        part
        for name, part in module.named_modules()
        if name.rpartition(".")[2] in VALUE_NAMES and isinstance(part, nn.Linear)
    ]


def _order(entered: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
    """Return which of the module's tokens each projected one seems to be, from one image [1, N, C]."""
    if torch.equal(entered, rows):
        return torch.arange(rows.shape[1], device=rows.device)
    marks = torch.linspace(1, 2, rows.shape[-1], dtype=torch.float64, device=rows.device)
    own, others = (z[0].double() @ marks for z in (entered, rows))
    order = (own[:, None] - others[None]).abs().argmin(-1)
    return order if len(order.unique()) == len(order) else None


def _of_images(context: AttentionContext, images: torch.Tensor) -> AttentionContext:
    """Return the context of some images; nobody listens to what a probed module records."""
    return replace(
        context,
        timestep=None if context.timestep is None else context.timestep[images],
        conditioning=None if context.conditioning is None else context.conditioning[images],
        recorder=None,
        loss_sink=None,
        mean_over_processes=None,
    )
