"""What quality can be set against: costs of a configuration, each with what is known of its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnbench.report.configurations import Configuration, over_seeds
from attnbench.report.quantities import LATENCY, LIVE_MEMORY, MACS, SIZE, Quantity, main_resolution
from attnbench.report.significance import mean_interval
from attnbench.results import Measurement, Result

FORWARD_AND_BACKWARD = 3
"""Multiply-adds of a training step over those of its forward pass: the backward pass has two products, one
for the gradient of the input and one for that of the weights, where the forward pass has one."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number with its 95 % interval: of no width where it is exact, without ends where nothing is known."""

    value: float
    low: float
    high: float
    disturbed: str = ""
    """Why it is not to be ranked."""
    measured: Measurement | None = None
    """Of a timed one: its rounds, for paired comparisons."""
    result: Result | None = None
    """Where it was measured."""

    @property
    def known(self) -> bool:
        """Whether it has an interval, of whatever width."""
        return math.isfinite(self.low)

    @property
    def exact(self) -> bool:
        """Whether there is nothing to be uncertain about."""
        return self.low == self.value == self.high


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Something that a configuration costs, as axes and captions call it."""

    name: str
    title: str
    unit: str
    scale: float
    """Shown value over stored value."""
    find: Callable[[Result], Measurement | float | None]
    exact: bool
    """Counted, so that it has no uncertainty; else measured."""


def _at_main_side(quantity: Quantity) -> Callable[[Result], Measurement | None]:
    return lambda result: result.measurement(f"{quantity.name}@{main_resolution(result)}")


def training_macs(result: Result) -> float | None:
    """Return the multiply-adds of a training by the full count: steps x batch x 3 x one forward pass.

    With a teacher what the stage `train` has counted, its pass included. Without what recomputes activations,
    and without the autoencoder. None where something is not known.
    """
    per_image = macs_of_step(result)
    training: dict[str, Any] = result.case.get("train", {})
    steps = result.measurement("steps")
    count = steps.value if steps is not None and steps.values else training.get("steps")
    if per_image is None or not count or "batch_size" not in training:
        return None
    return float(count) * training["batch_size"] * per_image


def macs_of_step(result: Result) -> float | None:
    """Return the multiply-adds of one image in one optimizer step; None where they are not known."""
    counted = result.measurement("step_macs")
    if counted is not None and counted.values:
        return counted.value
    macs = _at_main_side(MACS)(result)
    return None if macs is None or not macs.values else FORWARD_AND_BACKWARD * macs.value


COSTS = {
    cost.name: cost
    for cost in (
        Cost(name="latency", title="Latency", unit="ms", scale=1.0, find=_at_main_side(LATENCY), exact=False),
        Cost(name="macs", title=MACS.title, unit="G", scale=1e-9, find=_at_main_side(MACS), exact=True),
        Cost(
            name="macs-paper", title=SIZE[1].title, unit="G", scale=1e-9, find=_at_main_side(SIZE[1]),
            exact=True,
        ),
        Cost(
            name="memory", title=LIVE_MEMORY.title, unit="MiB", scale=1.0, find=_at_main_side(LIVE_MEMORY),
            exact=True,
        ),
        Cost(
            name="training-compute", title="Training compute, MACs", unit="T", scale=1e-12,
            find=training_macs, exact=True,
        ),
        Cost(
            name="training-time", title="Training time", unit="s", scale=1.0,
            find=lambda result: result.measurement("train_time_s"), exact=False,
        ),
    )
}  # fmt: skip


def cost_of(configuration: Configuration, cost: Cost) -> Value | None:
    """Return a cost of the first finished seed that has it, an undisturbed one where there is any.

    Seeds of a configuration are one model, so they cost the same. None where no seed has it.
    """
    found = [_value(result, cost) for result in configuration.results if result.status == "ok"]
    known = [value for value in found if value is not None]
    return next((value for value in known if not value.disturbed), known[0] if known else None)


def _value(result: Result, cost: Cost) -> Value | None:
    found = cost.find(result)
    if not isinstance(found, Measurement):
        return None if found is None else Value(value=found, low=found, high=found, result=result)
    value = found.value
    if not math.isfinite(value):
        return None
    low, high = (value, value) if cost.exact else found.interval or (-math.inf, math.inf)
    return Value(value=value, low=low, high=high, disturbed=found.disturbed, measured=found, result=result)


def quality_of(configuration: Configuration, name: str) -> Value | None:
    """Return a quality metric of a configuration.

    Of several seeds their mean, with the t interval over them: what another training may give. Of one seed
    its value with the interval over images, which says nothing about another training.
    """
    seeds = over_seeds(configuration, name)
    if seeds is None or not all(map(math.isfinite, seeds.values)):
        return None
    if len(seeds.values) == 1:
        (measured,) = configuration.measurements(name)
        low, high = measured.interval or (-math.inf, math.inf)
        return Value(value=seeds.mean, low=low, high=high)
    low, high = mean_interval(seeds.values) or (-math.inf, math.inf)
    return Value(value=seeds.mean, low=low, high=high)
