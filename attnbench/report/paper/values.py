"""One cell of a filled table: the mean over seeds, or why there is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnbench.report.configurations import Configuration, OverSeeds, over_seeds, seed_of
from attnbench.report.paper.conditions import settings_that_differ
from attnbench.report.paper.filling import Filling, Line, Slot, Taken
from attnbench.report.paper.published import GFLOPS, Metric
from attnbench.report.quantities import QUALITY, SPREAD, main_resolution
from attnbench.results import Measurement, Result

Kind = Literal["value", "not run", "not measured", "failed", "several"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a line has for one row and metric."""

    kind: Kind
    over: OverSeeds | None = None
    seeds: tuple[int, ...] = ()
    """The seed of each value."""
    n: int | None = None
    """Images behind each value; None where they differ or are not stored."""
    note: str = ""
    """Why there is no number: what failed, or which settings there are."""

    @property
    def mean(self) -> float | None:
        """Mean over seeds in the stored unit."""
        return self.over.mean if self.over else None

    @property
    def by_seed(self) -> dict[int, float]:
        """The value at each seed."""
        return dict(zip(self.seeds, self.over.values, strict=True)) if self.over else {}


def value_of(slot: Slot | None, metric: Metric, resolution: int | None = None) -> Value:
    """Return what one slot holds of a metric; of GFLOPs at a resolution in pixels (None: the case's own)."""
    if slot is None:
        return Value(kind="not run")
    if len(slot.settings) > 1 and metric is not GFLOPS:
        return Value(kind="several", note=_several(slot))
    finished = [one for one in slot.taken if one.result.status == "ok"]
    if not finished:
        said = {f"{one.label}: {one.result.status}: {one.result.reason}" for one in slot.taken}
        return Value(kind="failed", note="; ".join(sorted(said)))
    measured = [(one, _measurement(one.result, metric, resolution)) for one in finished]
    found = [(one, m) for one, m in measured if m is not None and m.values]
    if not found:
        return Value(kind="not measured")
    value = _over_seeds(found, metric)
    return value if metric is GFLOPS or value.over is None else replace(value, note=_lost(slot, value.seeds))


def _lost(slot: Slot, seeds: Sequence[int]) -> str:
    """Say which seeds did not finish in any run, and why: they are in no mean."""
    lost = {seed_of(one.result): one.result for one in slot.taken if one.result.status != "ok"}
    said = (f"seed {seed} {r.status}: {r.reason}" for seed, r in sorted(lost.items()) if seed not in seeds)
    return "; ".join(said)


def gflops_of(filling: Filling, row: int, line: Line) -> Value:
    """Return the multiply-adds of a row, which do not depend on guidance."""
    slots = [slot for (index, own, _), slot in filling.slots.items() if (index, own) == (row, line)]
    if not slots:
        return Value(kind="not run")
    each = {
        id(one): one for slot in slots for one in slot.taken
    }  # a line off the scales stands in all columns
    together = Slot(settings=(tuple(each.values()),))
    return value_of(together, GFLOPS, None if line.recipe else filling.table.resolution)


def measured_name(result: Result, metric: Metric) -> str | None:
    """Return what a result calls a metric, such as `FD-digits-cnn` for FID; None where it has none."""
    for measurement in result.measurements:
        match = QUALITY.match(measurement.name)
        if match and match["family"] in metric.families and not measurement.name.endswith(SPREAD):
            return measurement.name
    return None


def _measurement(result: Result, metric: Metric, resolution: int | None) -> Measurement | None:
    if metric is GFLOPS:
        side = resolution or main_resolution(result)
        return result.measurement(f"{GFLOPS.name}@{side}")
    return result.measurement(measured_name(result, metric) or "")


def _over_seeds(found: Sequence[tuple[Taken, Measurement]], metric: Metric) -> Value:
    """Return the mean over seeds; a seed that several runs have counts once where they agree."""
    if metric is GFLOPS:
        return _one_count(found)
    first: dict[int, tuple[Taken, Measurement]] = {}
    for one, measurement in found:
        seed = seed_of(one.result)
        kept = first.setdefault(seed, (one, measurement))
        if kept[1].value != measurement.value and not _both_nan(kept[1].value, measurement.value):
            return Value(
                kind="several",
                note=f"seed {seed} was measured twice, with different results: {kept[0].label} "
                f"{kept[1].value:g}, {one.label} {measurement.value:g}; leave one run out",
            )
    name = found[0][1].name
    together = Configuration(label="", results=tuple(one.result for one, _ in first.values()))
    counts = {measurement.n for _, measurement in first.values()}
    return Value(
        kind="value",
        over=over_seeds(together, name),
        seeds=tuple(first),
        n=counts.pop() if len(counts) == 1 else None,
    )


def _one_count(found: Sequence[tuple[Taken, Measurement]]) -> Value:
    counts = {measurement.value: one for one, measurement in found}
    if len(counts) > 1:
        said = ", ".join(f"{one.label} {count:g}" for count, one in counts.items())
        return Value(kind="several", note=f"different counts: {said}; leave one run out")
    one, measurement = found[0]
    over = OverSeeds(name=measurement.name, unit="", better="none", values=(measurement.value,))
    return Value(kind="value", over=over, seeds=(seed_of(one.result),))


def _several(slot: Slot) -> str:
    """Say which settings compete for one cell, and in what they differ."""
    firsts = [same[0] for same in slot.settings]
    keys = settings_that_differ([one.result.case for one in firsts])
    said = ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")
    labels = ", ".join(dict.fromkeys(one.label for one in firsts))
    return (
        f"{len(firsts)} cases of different settings ({labels}; they differ in {said}); leave all but one out"
    )


def _both_nan(a: float, b: float) -> bool:
    return math.isnan(a) and math.isnan(b)
