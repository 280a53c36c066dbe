"""The rows of the comparison before formatting: a configuration over its seeds, or a floor of real images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.report.configurations import Configuration, seed_values
from attnbench.report.quantities import (
    ACCURACY,
    FLOOR,
    FLOORS,
    LATENCY,
    MEMORY,
    QUALITY,
    REAL_ACCURACY,
    SEPARABILITY,
    SIZE,
    SPREAD,
    STEP_TIME,
    Quantity,
    main_resolution,
)
from attnbench.report.significance import SeedValues, mean_interval
from attnbench.report.tables import Cell, Entry, RowStatus
from attnbench.report.timings import measured_entry
from attnbench.results import Measurement, Result

_SHARES = ("P", "R", "Precision", "Recall", "knn_accuracy")
_SIGNED = ("KD", "KID", "silhouette")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: where it looks its measurements up."""

    label: str
    status: RowStatus
    found: dict[str, Measurement]
    """By name; of several seeds those of the first that has one: costs are measured once for all seeds."""
    axes: tuple[str, ...] = ()
    resolution: int | None = None
    series: int | None = None
    configuration: Configuration | None = None
    """None of a floor."""

    @property
    def seeds(self) -> Cell:
        """How many seeds finished, such as `3` or `2 of 3`; nothing of a floor."""
        if self.configuration is None:
            return Cell()
        asked = len(self.configuration.results)
        done = sum(result.status == "ok" for result in self.configuration.results)
        return Cell(text=str(asked) if done == asked else f"{done} of {asked}", value=done)

    @property
    def has_spread_alone(self) -> bool:
        """Whether a metric has no interval but the spread over subsets, as earlier versions wrote it."""
        known = (name.removesuffix(SPREAD) for name in self.found if name.endswith(SPREAD))
        return any((m := self.found.get(name)) is not None and m.interval is None for name in known)

    def measured(self, quantity: Quantity) -> Measurement | None:
        """Return this row's measurement of one quantity, of several seeds the first's."""
        name = f"{quantity.name}@{self.resolution}" if is_profiled(quantity) else quantity.name
        return self.found.get(name)

    def values(self, quantity: Quantity) -> SeedValues:
        """Return the value of each finished seed, in the stored unit."""
        return seed_values(self.configuration, quantity.name) if self.configuration else {}

    def entry(self, quantity: Quantity) -> Entry:
        """Return this row's raw value of one quantity."""
        if self.configuration and len(self.configuration.results) > 1 and varies_by_seed(quantity):
            return self._over_seeds(quantity, self.values(quantity))
        measured = self.measured(quantity)
        if measured is None or not measured.values or quantity.group == "Cost":
            return measured_entry(measured)
        name = quantity.name
        real = self.found.get(REAL_ACCURACY)
        beside = ("real", real.value) if name == ACCURACY.name and real and real.values else None
        return Entry(
            value=measured.value,
            spread=self._uncertainty(measured),
            beside=beside if self.status != "floor" else None,
            n=measured.n if quantity.group == "Quality" and self.status != "floor" else None,
            note=f"n = {measured.n:,}" if measured.n and self.status == "floor" else "",
        )

    def _over_seeds(self, quantity: Quantity, values: SeedValues) -> Entry:
        """Return the mean over the seeds whose value is finite, its deviation and interval."""
        finite = [value for value in values.values() if math.isfinite(value)]
        measured = self.measured(quantity)
        if not values or measured is None:
            return Entry()
        if not finite:
            return Entry(value=math.nan, note=f"at {_seeds(values)}")
        lost = [seed for seed, value in values.items() if not math.isfinite(value)]
        interval = mean_interval(finite)
        return Entry(
            value=statistics.fmean(finite),
            deviation=statistics.stdev(finite) if len(finite) > 1 else None,
            interval=_within(quantity, interval) if interval else None,
            note=f"without {_seeds(lost)}: nan or inf" if lost else "",
            n=measured.n if quantity.group == "Quality" else None,
        )

    def _uncertainty(self, measured: Measurement) -> float | None:
        """Return half of the interval over images, or the spread over subsets of a result without one."""
        if measured.interval is not None:
            return (measured.interval[1] - measured.interval[0]) / 2
        spread = self.found.get(measured.name.rpartition(":")[2] + SPREAD)
        return spread.value if spread and spread.values else None


def configuration_line(configuration: Configuration, axes: Sequence[str], series: int) -> Line:
    """Return the row of a configuration; it is there as soon as one of its seeds finished."""
    done = [result for result in configuration.results if result.status == "ok"]
    first = (done or configuration.results)[0]
    found = {m.name: m for r in reversed(done or configuration.results) for m in r.measurements if m.values}
    return Line(
        label=configuration.label,
        status=first.status,
        found={m.name: m for m in first.measurements} | found,
        axes=tuple(first.axes.get(axis, "") for axis in axes),
        resolution=main_resolution(first),
        series=series,
        configuration=configuration,
    )


def floor_lines(configurations: Sequence[Configuration], axes: int) -> list[Line]:
    """Return one row per kind of real images, or one for each set of rows whose floors differ."""
    return [line for kind, label in FLOORS.items() for line in _floors_of(configurations, kind, label, axes)]


def varies_by_seed(quantity: Quantity) -> bool:
    """Whether each seed has a value of its own: quality and training have, sizes and profiles have not."""
    return quantity.group == "Quality" or quantity == STEP_TIME


def is_profiled(quantity: Quantity) -> bool:
    """Whether a quantity is measured at a resolution, once for all seeds."""
    return quantity in (*SIZE[1:], LATENCY, *MEMORY)


def _floors_of(rows: Sequence[Configuration], kind: str, label: str, axes: int) -> list[Line]:
    floors: dict[object, tuple[dict[str, None], dict[str, Measurement]]] = {}
    for row in rows:
        for result in row.results:
            found = _floor(result, kind)
            identity = tuple((name, tuple(m.values)) for name, m in sorted(found.items()))
            if found:
                floors.setdefault(identity, ({}, found))[0][row.label] = None
    return [
        Line(
            label=label if len(floors) == 1 else f"{label}, for {', '.join(labels)}",
            status="floor",
            found=found,
            axes=("",) * axes,
        )
        for labels, found in floors.values()
    ]


def _floor(result: Result, kind: str) -> dict[str, Measurement]:
    scored = [(FLOOR.match(m.name), m) for m in result.measurements if m.values]
    found = {match["name"]: m for match, m in scored if match and match["kind"] == kind}
    if found and kind == "floor" and (real := result.measurement(REAL_ACCURACY)):
        found[ACCURACY.name] = real
    return found


def _within(quantity: Quantity, interval: tuple[float, float]) -> tuple[float, float]:
    """Return an interval without the values that the quantity cannot have."""
    match = QUALITY.match(quantity.name)
    family = match["family"].removeprefix("s") if match else ""
    low, high = interval
    if found := SEPARABILITY.match(quantity.name):
        family = found["kind"]
    share = family in _SHARES or quantity == ACCURACY
    return low if family in _SIGNED else max(0.0, low), min(1.0, high) if share else high


def _seeds(seeds: Sequence[int] | SeedValues) -> str:
    return f"seed {', '.join(map(str, seeds))}"
