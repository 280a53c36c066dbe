"""Checks of numbers: finite outputs and gradients on hard inputs, and gradients that are true."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.gradcheck import GradcheckError

from attnbench.contract import AttentionSite
from attnbench.testing.outcome import CheckFailedError, require
from attnbench.testing.question import check
from attnbench.testing.subject import SMALLEST, SQUARE, Batch, Subject, call

LARGE, TINY = 1e3, 1e-6  # against a root mean square of 1 behind a LayerNorm
GRADCHECK_EPS = 1e-6  # small: a router's argmax must not flip between the two ends of a difference


@check("finite")
def finite(subject: Subject) -> str:
    """Ordinary inputs give finite outputs and gradients, in training and in eval mode."""
    site = subject.site(SQUARE)
    for train in (True, False):
        _must_be_finite(subject.module(site, train=train), subject.batch(site), site, "ordinary inputs")
    return f"grid {site.grid}"


@check("finite-large")
def finite_large(subject: Subject) -> str:
    """Inputs a thousand times too large give finite outputs and gradients."""
    return _scaled(subject, LARGE)


@check("finite-tiny")
def finite_tiny(subject: Subject) -> str:
    """Inputs near zero, and a token that is zero, give finite outputs and gradients."""
    return _scaled(subject, TINY)


def _scaled(subject: Subject, scale: float) -> str:
    site = subject.site(SQUARE)
    batch = subject.batch(site)
    x = batch.x * scale
    if scale < 1:
        x[:, 1] = 0
    _must_be_finite(subject.module(site), dataclasses.replace(batch, x=x), site, f"inputs of scale {scale:g}")
    return f"scale {scale:g}"


@check("finite-negative")
def finite_negative(subject: Subject) -> str:
    """Inputs and projections that are negative everywhere give finite outputs and gradients.

    Every Linear layer gets positive weights and a negative bias, so that a negative token has a query
    and a key without a positive entry: what a ReLU leaves of it is zero, and so is its norm.
    """
    site = subject.site(SQUARE)
    module, batch = subject.module(site), subject.batch(site)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.abs_()
                if layer.bias is not None:
                    layer.bias.copy_(-layer.bias.abs())
    negative = dataclasses.replace(batch, x=-batch.x.abs())
    _must_be_finite(module, negative, site, "all-negative inputs")
    return "queries and keys without a positive entry"


def _must_be_finite(module: nn.Module, batch: Batch, site: AttentionSite, what: str) -> None:
    x = batch.x.detach().requires_grad_()
    y = call(module, dataclasses.replace(batch, x=x), site)
    require(bool(y.isfinite().all()), f"the output is not finite on {what}")
    (y.float() / y.detach().abs().max().clamp_min(1.0)).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    bad = [name for name, g in gradients.items() if g is not None and not g.isfinite().all()]
    require(not bad, f"the gradient of {', '.join(bad)} is not finite on {what}")


@check("gradcheck")
def gradcheck(subject: Subject) -> str:
    """In float64 the gradients of x, the conditioning and every parameter are the finite differences.

    torch.autograd.gradcheck along one random direction of each tensor. Hard routers: the difference is
    taken over 2e-6 of a unit direction, so that a choice stays the same at both ends. Gradients that
    are surrogates on purpose (straight-through) belong into `expected_failures`.
    """
    site = subject.site(SMALLEST, torch.float64)
    module = subject.module(site, dtype=torch.float64, train=True)
    batch = subject.batch(site, 2, dtype=torch.float64)
    values = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    values |= {"x": batch.x, "conditioning": batch.conditioning}
    function = _along(_Call(module, batch, site), values)
    steps = torch.zeros(len(values), dtype=torch.float64, device=subject.device, requires_grad=True)
    try:
        torch.autograd.gradcheck(function, steps, eps=GRADCHECK_EPS)
    except GradcheckError as error:
        raise CheckFailedError(_told(error, function, steps.detach(), list(values))) from error
    return f"{site.num_tokens} tokens, {len(values)} tensors, eps {GRADCHECK_EPS:g}"


class _Call(nn.Module):
    """A module that takes x and the conditioning, so that `functional_call` can swap its parameters."""

    def __init__(self, module: nn.Module, batch: Batch, site: AttentionSite) -> None:
        super().__init__()
        self.module, self.batch, self.site = module, batch, site

    def forward(self, x: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        batch = dataclasses.replace(self.batch, x=x, conditioning=conditioning)
        return call(self.module, batch, self.site)


def _along(caller: _Call, values: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of one step per tensor: a weighted sum of the output, each tensor moved by its step.

    All tensors take part in one graph, as in training: torch 2.13 crashes in GroupNorm's backward pass
    when its weight alone needs a gradient.
    """
    generator = torch.Generator().manual_seed(4)

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    directions = {name: draw(value) for name, value in values.items()}
    directions = {name: d / d.norm() for name, d in directions.items()}
    weight = draw(values["x"]).flatten()

    def function(steps: torch.Tensor) -> torch.Tensor:
        moved = {
            name: value + step * directions[name]
            for (name, value), step in zip(values.items(), steps.unbind(), strict=True)
        }
        x, conditioning = moved.pop("x"), moved.pop("conditioning")
        state = {f"module.{key}": value for key, value in moved.items()}
        y = torch.func.functional_call(caller, state, (x, conditioning)).flatten()
        return (y * weight[: len(y)]).sum()

    return function


def _told(
    error: GradcheckError,
    function: Callable[[torch.Tensor], torch.Tensor],
    steps: torch.Tensor,
    names: list[str],
) -> str:
    """Name the tensors whose gradients are furthest from the finite differences."""
    found = torch.autograd.functional.jacobian(function, steps)
    moves = GRADCHECK_EPS * torch.eye(len(names), dtype=steps.dtype, device=steps.device)
    with torch.no_grad():
        expected = torch.stack([(function(m) - function(-m)) / (2 * GRADCHECK_EPS) for m in moves])
    gap = (found - expected).abs() / (1e-5 + 1e-3 * expected.abs())  # gradcheck's own tolerances
    gap = gap.nan_to_num(torch.inf)
    worst = [i for i in gap.argsort(descending=True).tolist() if gap[i] > 1]
    if not worst:
        return " ".join(str(error).split())[:300]
    told = [f"{names[i]}: gradient {found[i]:.6g}, difference {expected[i]:.6g}" for i in worst[:3]]
    return f"{len(worst)} of {len(names)} gradients are wrong along a random direction; {'; '.join(told)}"


CHECKS = (finite, finite_large, finite_tiny, finite_negative, gradcheck)
