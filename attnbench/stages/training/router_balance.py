"""How evenly the routers of each block choose while a model trains, as curves over the logged steps."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from attnbench.report.router_curves import KINDS, balance, curve_name
from attnbench.specs import ModelConfig, TrainSpec

MOST_POINTS = 200
"""Of a curve: it is in every result line, and a training may have thousands of logged steps."""
MOST_OPTIONS = 1024  # a whole number beyond it is no choice between options
KNOWN_OPTIONS = {
    "projector_q": "num_projectors",
    "projector_k": "num_projectors",
    "kernel": "num_kernels",
    "factor": "num_factors",
}
"""Which of an attention's settings says how many options a choice has; else one more than the last chosen."""
Curves = dict[str, list[tuple[float, float]]]
_NAME = re.compile(r"blocks\.(\d+)\.(.+)", re.DOTALL)


class RouterBalance:
    """Collects the balance of every router at evenly spaced logged steps, `MOST_POINTS` at most."""

    def __init__(
        self, curves: Mapping[str, Sequence[tuple[float, float]]], model: ModelConfig, train: TrainSpec
    ) -> None:
        """Go on with the curves of a checkpoint; which steps count follows from the settings alone."""
        self.curves: Curves = {name: list(points) for name, points in curves.items()}
        self._model, self._num_steps = model, train.steps
        self._every = train.log_every * -(-train.steps // (train.log_every * MOST_POINTS))

    def add(self, step: int, counts: Mapping[str, torch.Tensor]) -> None:
        """Take what was counted in a logged step: under each record's name how often each option was chosen.

        Records that are of no block, or that tell fewer than two options apart, are left alone.
        """
        if step % self._every and step != self._num_steps:
            return
        routers: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
        for name, chosen in counts.items():
            found = _NAME.fullmatch(name)
            if found is not None and int(found[1]) < self._model.depth and len(chosen) <= MOST_OPTIONS:
                routers[found[2]][int(found[1])] = chosen
        for router, layers in routers.items():
            told = [self._model.attention_at(n).options.get(KNOWN_OPTIONS.get(router, "")) for n in layers]
            known = [number for number in told if isinstance(number, int)]
            options = max([*known, *map(len, layers.values())])
            shares = [_shares(chosen, options) for chosen in layers.values() if chosen.sum()]
            if options < 2 or not shares:
                continue
            numbers = balance(shares)
            for kind in KINDS:
                self.curves.setdefault(curve_name(router, kind), []).append((float(step), numbers[kind]))


def _shares(chosen: torch.Tensor, options: int) -> list[float]:
    padded = torch.nn.functional.pad(chosen.double(), (0, options - len(chosen)))
    shares: list[float] = (padded / padded.sum()).tolist()
    return shares
