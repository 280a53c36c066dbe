"""The check of a declared symmetry: what the output does when tokens are permuted or shifted."""

from __future__ import annotations

import dataclasses

import torch

from attnbench.testing.outcome import NotApplicableError, require
from attnbench.testing.question import check
from attnbench.testing.subject import SQUARE, Grid, Subject, call, relative_error, rounding

LARGE_GRIDS: tuple[Grid, ...] = ((48, 48), (56, 56), (64, 64))
MARGIN = 20  # tokens from the border; windows of up to 41 tokens see no border inside it
SHIFT = (1, 2)  # rows, columns


@check("symmetry")
def symmetry(subject: Subject) -> str:
    """A declared permutation or translation of the tokens does to the output what it did to the input."""
    declared = subject.record.symmetry
    if declared == "permutation":
        return _permutation(subject)
    if declared == "translation":
        return _translation(subject)
    raise NotApplicableError("declares no symmetry")


def _permutation(subject: Subject) -> str:
    site, dtype = subject.exact(SQUARE)
    module, batch = subject.module(site, dtype=dtype), subject.batch(site, dtype=dtype)
    order = torch.randperm(site.num_tokens, generator=torch.Generator().manual_seed(8)).to(subject.device)
    with torch.no_grad():
        expected = call(module, batch, site)[:, order]
        moved = call(module, dataclasses.replace(batch, x=batch.x[:, order]), site)
    error, limit = relative_error(moved, expected), rounding(dtype)
    require(
        error <= limit,
        f"permuted tokens change the output by {error:.2g}, allowed {limit:.2g} (rounding); "
        "declare symmetry='none'",
    )
    return f"permutation, relative difference {error:.1e}"


def _translation(subject: Subject) -> str:
    site, dtype = subject.exact(LARGE_GRIDS)
    module, batch = subject.module(site, dtype=dtype), subject.batch(site, 1, dtype=dtype)

    def shifted(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(1, site.grid).roll(SHIFT, (1, 2)).flatten(1, 2)

    inside = slice(MARGIN + max(SHIFT), -MARGIN)
    with torch.no_grad():
        expected = shifted(call(module, batch, site)).unflatten(1, site.grid)[:, inside, inside]
        y = call(module, dataclasses.replace(batch, x=shifted(batch.x)), site)
    error = relative_error(y.unflatten(1, site.grid)[:, inside, inside], expected)
    limit = rounding(dtype)
    require(
        error <= limit,
        f"shifting the content by {SHIFT} changes the output {MARGIN} tokens from the border by "
        f"{error:.2g}, allowed {limit:.2g} (rounding); declare symmetry='none'",
    )
    return f"translation, relative difference {error:.1e}"


CHECKS = (symmetry,)
