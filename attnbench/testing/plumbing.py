"""Checks of the context: auxiliary losses, diagnostics, and fields that may be missing."""

from __future__ import annotations

import copy
from typing import Any

import torch

from attnbench.errors import AttnbenchError
from attnbench.testing.outcome import CheckFailedError, require
from attnbench.testing.question import check
from attnbench.testing.subject import SQUARE, Subject, call, relative_error, rounding

Sunk = dict[str, torch.Tensor]


@check("auxiliary-losses")
def auxiliary_losses(subject: Subject) -> str:
    """Losses are finite scalars with a gradient, come in training mode only, and change no output."""
    site = subject.site(SQUARE)
    for train in (True, False):
        losses: Sunk = {}
        module, batch = subject.module(site, train=train), subject.batch(site)
        silent = call(copy.deepcopy(module), batch, site)
        y = call(module, batch, site, loss_sink=losses.__setitem__)
        for name, loss in losses.items():
            require(train, f"{name}: a loss in eval mode; add losses only while module.training")
            require(
                isinstance(loss, torch.Tensor) and loss.shape == (), f"{name}: not a scalar tensor: {loss!r}"
            )
            require(bool(loss.isfinite()), f"{name} is not finite: {loss.item()}")
            require(loss.requires_grad, f"{name} has no gradient: nothing would be trained by it")
        _unmoved(y, silent, "a loss sink")
        if train:
            told = ", ".join(losses) or "none with these options"
    return told


@check("diagnostics")
def diagnostics(subject: Subject) -> str:
    """Recorded tensors are detached, and listening changes no output."""
    site = subject.site(SQUARE)
    seen: Sunk = {}
    for train in (True, False):
        module, batch = subject.module(site, train=train), subject.batch(site)
        silent = call(copy.deepcopy(module), batch, site)
        y = call(module, batch, site, recorder=seen.__setitem__)
        for name, tensor in seen.items():
            require(isinstance(tensor, torch.Tensor), f"{name}: not a tensor: {type(tensor).__name__}")
            require(
                not tensor.requires_grad,
                f"{name} is recorded with its graph, which keeps every activation alive; use "
                "context.record, which detaches",
            )
        _unmoved(y, silent, "a recorder")
    return ", ".join(seen) or "none"


def _unmoved(heard: torch.Tensor, silent: torch.Tensor, listener: str) -> None:
    error, limit = relative_error(heard, silent), rounding(torch.float32)
    require(error <= limit, f"{listener} changes the output by {error:.2g}; listening must change nothing")


@check("missing-context")
def missing_context(subject: Subject) -> str:
    """Without timestep or conditioning it runs, or says in an attnbench error which one it needs."""
    site = subject.site(SQUARE)
    needs = []
    for field in ("timestep", "conditioning"):
        missing: dict[str, Any] = {field: None}
        try:
            with torch.no_grad():
                call(subject.module(site), subject.batch(site), site, **missing)
        except AttnbenchError as error:
            require(field in str(error), f"without {field} it says {str(error)!r}; name the {field}")
            needs.append(field)
        except Exception as error:
            raise CheckFailedError(
                f"without {field}: {type(error).__name__}: {error}; raise an attnbench error that says "
                f"the backend needs context.{field}"
            ) from error
    return f"needs {' and '.join(needs)}, and says so" if needs else "needs neither"


CHECKS = (auxiliary_losses, diagnostics, missing_context)
