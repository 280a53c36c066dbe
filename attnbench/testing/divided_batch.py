"""The check of auxiliary losses over several processes, which are emulated by the halves of a batch."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnbench.contract import AttentionSite
from attnbench.testing.outcome import NotApplicableError, require
from attnbench.testing.question import check
from attnbench.testing.subject import SQUARE, Batch, Subject, call, relative_error, rounding

IMAGES = 4  # two for each half


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """What one training pass handed to the context: losses by name, and the local means in order."""

    losses: dict[str, torch.Tensor]
    means: list[torch.Tensor]


@check("losses-of-halves")
def losses_of_halves(subject: Subject) -> str:
    """The auxiliary loss of a batch is that of its halves with shared means.

    The halves are what two processes hold. Each takes its means alone first; then both are given the
    averages, in the order of the calls, until means of means are settled, too. BatchNorm does not train
    here: its statistics are shared by the bench.
    """
    site, dtype = subject.exact(SQUARE)
    module, batch = subject.module(site, dtype=dtype, train=True), subject.batch(site, IMAGES, dtype=dtype)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    whole = _run(module, batch, site)
    _require_comparable(whole, _run(module, batch, site, seed=4))
    halves = _settled(module, [batch.images(0, 2), batch.images(2, IMAGES)], site)
    names = [sorted(each.losses) for each in (whole, *halves)]
    require(names == names[:1] * 3, f"adds the losses {names[0]} on a batch, on its halves {names[1:]}")
    # a router that computes in fp32 whatever comes in is held to fp32's rounding
    limit = max(rounding(t.dtype) for t in (*whole.losses.values(), *halves[0].means, batch.x))
    errors = []
    for name, loss in whole.losses.items():
        mean = torch.stack([half.losses[name] for half in halves]).mean()
        errors.append(relative_error(mean, loss))
        require(
            errors[-1] <= limit,
            f"{name} is {loss.item():.6g} on a batch, but {mean.item():.6g} on average over its halves, as "
            "two processes train; take the means that it is made of by context.batch_mean",
        )
    return f"means shared: {len(halves[0].means)}, relative difference {max(errors):.1e}"


def _require_comparable(whole: Pass, other_seed: Pass) -> None:
    """Raise NotApplicableError where there is nothing to compare, or where it would be random numbers."""
    if not whole.losses:
        raise NotApplicableError("adds no auxiliary loss with these options")
    if any(not isinstance(loss, torch.Tensor) or loss.ndim for loss in whole.losses.values()):
        raise NotApplicableError("a loss that is no scalar is what auxiliary-losses reports")
    if not all(torch.equal(loss, other_seed.losses[name]) for name, loss in whole.losses.items()):
        raise NotApplicableError("its losses depend on random numbers, which processes draw on their own")


def _settled(module: nn.Module, halves: list[Batch], site: AttentionSite) -> list[Pass]:
    """Return the passes of the halves once the means they are given are the averages of those they take."""
    passes = [_run(module, half, site) for half in halves]
    shapes = [[tuple(mean.shape) for mean in half.means] for half in passes]
    told = [f"{len(each)} means of shapes {sorted(set(each))}" for each in shapes]
    require(
        shapes[0] == shapes[1],
        f"takes {told[0]} over one half of a batch and {told[1]} over the other: processes would wait for "
        "each other; call batch_mean as often, with the same shapes, whatever the data",
    )
    for _ in shapes[0]:  # each round settles at least one mean more: one that is made of settled ones
        shared = [(a + b) / 2 for a, b in zip(passes[0].means, passes[1].means, strict=True)]
        passes = [_run(module, half, site, shared) for half in halves]
    return passes


def _run(
    module: nn.Module,
    batch: Batch,
    site: AttentionSite,
    shared: list[torch.Tensor] | None = None,
    seed: int = 3,
) -> Pass:
    """Run a copy of the module (a pass may move its state); the means it takes are replaced by `shared`."""
    losses: dict[str, torch.Tensor] = {}
    means: list[torch.Tensor] = []

    def exchange(mean: torch.Tensor) -> torch.Tensor:
        means.append(mean.detach())
        return mean if shared is None else shared[len(means) - 1]

    def add(name: str, value: torch.Tensor) -> None:
        losses[name] = losses[name] + value if name in losses else value

    call(copy.deepcopy(module), batch, site, seed=seed, loss_sink=add, mean_over_processes=exchange)
    return Pass(losses=losses, means=means)


CHECKS = (losses_of_halves,)
