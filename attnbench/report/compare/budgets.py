"""How much compute, time or steps a training had spent at each step, and what it had reached by then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.report.compare.records import Equal
from attnbench.report.quantities import LATENCY, MACS, main_resolution
from attnbench.results import Result

FORWARD_AND_BACKWARD = 3
"""A training step: a forward pass, and a backward one with two products for each of its products."""
UNITS: dict[Equal, str] = {"macs": "MAC", "latency": "ms", "steps": "step", "training-time": "s"}
SAME = 0.01
"""Budgets that differ by less are one: no interpolation is exacter than that."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one training had reached, by budget; both ascending, budgets positive and finite."""

    budgets: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest budget."""
        return self.budgets[0], self.budgets[-1]

    def covers(self, budget: float) -> bool:
        """Tell whether a budget lies within the measured range, but for SAME at its ends."""
        low, high = self.range
        return low * (1 - SAME) <= budget <= high * (1 + SAME)

    def at(self, budget: float) -> float:
        """Return the value at a budget, linear in its logarithm between two neighbours."""
        if budget <= self.budgets[0]:
            return self.values[0]
        if budget >= self.budgets[-1]:
            return self.values[-1]
        after = next(i for i, known in enumerate(self.budgets) if known >= budget)
        low, high = self.budgets[after - 1], self.budgets[after]
        share = math.log(budget / low) / math.log(high / low)
        return self.values[after - 1] + share * (self.values[after] - self.values[after - 1])


def curve_of(points: Sequence[tuple[float, float]]) -> Curve | None:
    """Return the curve through points of (budget, value); None where no finite one has a positive budget."""
    known = {b: v for b, v in points if math.isfinite(b) and b > 0 and math.isfinite(v)}
    if not known:
        return None
    budgets = sorted(known)
    return Curve(budgets=tuple(budgets), values=tuple(known[budget] for budget in budgets))


def budget(result: Result, equal: Equal) -> float | None:
    """Return what a case spent on its whole training, or its latency, in UNITS; None where unknown."""
    if equal == "latency":
        return latency(result)
    steps = steps_of(result)
    per_step = _per_step(result, equal)
    return None if not steps or per_step is None else steps * per_step


def training_curve(result: Result, name: str, equal: Equal) -> Curve | None:
    """Return one of a training's own curves by budget; None where it is not kept or the budget is unknown."""
    per_step = _per_step(result, equal) if equal != "latency" else None
    if per_step is None:
        return None
    return curve_of([(step * per_step, value) for step, value in result.curves.get(name, [])])


def steps_for(result: Result, wanted: float, equal: Equal) -> int | None:
    """Return how many steps of this training would spend a budget."""
    per_step = None if equal == "latency" else _per_step(result, equal)
    return None if not per_step else max(1, round(wanted / per_step))


def steps_of(result: Result) -> float:
    """Return the steps of a training; 0 where they are unknown."""
    measured = result.measurement("steps")
    return measured.value if measured and measured.values else float(_setting(result, "train", "steps"))


def latency(result: Result) -> float | None:
    """Return a case's latency at its data's resolution, ms; None where none may be ranked."""
    measured = result.measurement(f"{LATENCY.name}@{main_resolution(result)}")
    return measured.value if measured and measured.values and not measured.disturbed else None


def missing(result: Result, equal: Equal) -> str:
    """Return in words what a budget needs that a result does not have."""
    if equal == "latency":
        return "no latency that may be ranked"
    if equal == "macs":
        return "no full multiply-adds of the model at its data's resolution, batch size and steps"
    return "no training time and steps" if equal == "training-time" else "no number of steps"


def _per_step(result: Result, equal: Equal) -> float | None:
    if equal == "steps":
        return 1.0
    if equal == "training-time":
        spent, steps = result.measurement("train_time_s"), steps_of(result)
        return spent.value / steps if spent and spent.values and steps else None
    with_teacher = result.measurement("step_macs")
    counted = result.measurement(f"{MACS.name}@{main_resolution(result)}")
    batch_size = _setting(result, "train", "batch_size")
    if with_teacher is not None and with_teacher.values and batch_size:
        return batch_size * with_teacher.value
    scope = result.case.get("profile", {}).get("scope", "model")
    if counted is None or not counted.values or not batch_size or scope != "model":
        return None
    return FORWARD_AND_BACKWARD * batch_size * counted.value


def _setting(result: Result, stage: str, name: str) -> int:
    settings = result.case.get(stage)
    return int(settings.get(name, 0)) if isinstance(settings, dict) else 0
