"""Checks of what comes out: [B, N, C] for [B, N, C], on any grid, in the dtype that went in."""

from __future__ import annotations

import torch

from attnbench.contract import AttentionSite
from attnbench.testing.outcome import NotApplicableError, require
from attnbench.testing.question import check
from attnbench.testing.subject import ODD, SQUARE, TALL, WIDE, Subject, call

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@check("shape-square")
def shape_square(subject: Subject) -> str:
    """On a square grid, [B, N, C] gives [B, N, C]."""
    site = subject.site(SQUARE)
    _same_shape(subject, site)
    return f"grid {site.grid}"


@check("shape-non-square")
def shape_non_square(subject: Subject) -> str:
    """On a wide and on a tall grid, [B, N, C] gives [B, N, C]."""
    sites = [subject.site(WIDE), subject.site(TALL)]
    for site in sites:
        _same_shape(subject, site)
    return " and ".join(f"grid {site.grid}" for site in sites)


@check("shape-odd")
def shape_odd(subject: Subject) -> str:
    """An odd number of tokens gives [B, N, C]."""
    site = subject.site(ODD)
    _same_shape(subject, site)
    return f"{site.num_tokens} tokens on grid {site.grid}"


def _same_shape(subject: Subject, site: AttentionSite) -> None:
    batch = subject.batch(site, 3)
    for train in (True, False):
        y = call(subject.module(site, train=train), batch, site)
        got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        require(
            got == tuple(batch.x.shape),
            f"returned {got} on grid {site.grid}, expected [B, N, C] = {tuple(batch.x.shape)}",
        )


@check("dtype")
def dtype(subject: Subject) -> str:
    """fp32, bf16 and fp64 in give the same dtype out, and finite values."""
    seen, refusals = [], []
    for wanted in DTYPES:
        try:
            site = subject.site(SQUARE, wanted)
        except NotApplicableError as refusal:
            refusals.append(f"{_short(wanted)} refused")
            if wanted is torch.float32:
                raise refusal
            continue
        y = call(subject.module(site, dtype=wanted), subject.batch(site, dtype=wanted), site)
        require(y.dtype == wanted, f"{_short(wanted)} in gave {_short(y.dtype)} out; cast the output back")
        require(bool(y.isfinite().all()), f"not finite in {_short(wanted)}")
        seen.append(_short(wanted))
    return ", ".join(seen + refusals)


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


CHECKS = (shape_square, shape_non_square, shape_odd, dtype)
