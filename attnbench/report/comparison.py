"""The comparison table: one row per case with size, quality and cost, and the floor of real images below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.report.quantities import (
    ACCURACY,
    FLOOR,
    FLOORS,
    LATENCY,
    MEMORY,
    REAL_ACCURACY,
    SIZE,
    SPREAD,
    Quantity,
    comparison_costs,
    is_quality,
    main_resolution,
    quality_quantities,
)
from attnbench.report.tables import (
    MISSING,
    Cell,
    Column,
    Entry,
    FilledColumn,
    RowHead,
    RowStatus,
    Table,
    assemble,
    plain,
    quantity_cells,
    quantity_column,
    text_cell,
)
from attnbench.report.timings import WITHOUT_ROUNDS, disturbed_notes, measured_entry, without_rounds
from attnbench.results import Measurement, Result


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A row before formatting: where it looks its measurements up."""

    label: str
    status: RowStatus
    found: dict[str, Measurement]
    axes: tuple[str, ...] = ()
    resolution: int | None = None
    series: int | None = None

    def measured(self, quantity: Quantity) -> Measurement | None:
        """Return this row's measurement of one quantity."""
        return self.found.get(
            f"{quantity.name}@{self.resolution}" if _is_profiled(quantity) else quantity.name
        )

    def entry(self, quantity: Quantity) -> Entry:
        """Return this row's raw value of one quantity."""
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

    def _uncertainty(self, measured: Measurement) -> float | None:
        """Return half of the interval over images, or the spread over subsets of a result without one."""
        if measured.interval is not None:
            return (measured.interval[1] - measured.interval[0]) / 2
        spread = self.found.get(measured.name.rpartition(":")[2] + SPREAD)
        return spread.value if spread and spread.values else None


def comparison_table(results: Sequence[Result]) -> Table:
    """Return the table of a suite: what each case costs and what quality it buys.

    Best values are marked among the cases that finished; the floor and failed cases never compete. Where
    cases differ by seed nothing is marked: the best of several seeds is no result.
    """
    axes = shown_axes(results)
    cells = [
        _Line(
            label=result.label,
            status=result.status,
            found={m.name: m for m in result.measurements},
            axes=tuple(result.axes.get(axis, "") for axis in axes),
            resolution=main_resolution(result),
            series=index,
        )
        for index, result in enumerate(results)
    ]
    lines = [*cells, *_floors(results, len(axes))]
    sides = {line.resolution for line in cells if line.resolution is not None}
    competing = [line.status == "ok" and not _many_seeds(results) for line in lines]
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [text_cell(line.label) for line in lines]),
        *((Column(title=plain(axis), numeric=False), [text_cell(line.axes[i]) for line in lines])
          for i, axis in enumerate(axes)),
    ]  # fmt: skip
    if len(sides) > 1:
        shown = [Cell(text=str(line.resolution or MISSING)) for line in lines]
        columns.append((Column(title="Side", unit="px"), shown))
    for quantity in (*SIZE, *quality_quantities(results), ACCURACY, *comparison_costs(results)):
        entries = [line.entry(quantity) for line in lines]
        if any(entry.value is not None or entry.note for entry in entries):
            shown = quantity_cells(quantity, entries, competing)
            columns.append((quantity_column(quantity, entries), shown))
    heads = [RowHead(status=line.status, series=line.series) for line in lines]
    return assemble("Comparison", columns, heads, _notes(sides, lines, _many_seeds(results)))


def shown_axes(results: Sequence[Result]) -> list[str]:
    """Return the matrix axes that differ between cases and that labels do not already tell."""
    names = dict.fromkeys(axis for result in results for axis in result.axes)
    return [
        axis
        for axis in names
        if len({result.axes.get(axis) for result in results}) > 1
        and any(result.axes.get(axis, "") not in result.label for result in results)
    ]


def _is_profiled(quantity: Quantity) -> bool:
    return quantity in (*SIZE[1:], LATENCY, *MEMORY)


def _floors(results: Sequence[Result], axes: int) -> list[_Line]:
    """Return one row per kind of real images, or one for each set of cases whose floors differ."""
    return [line for kind, label in FLOORS.items() for line in _floors_of(results, kind, label, axes)]


def _floors_of(results: Sequence[Result], kind: str, label: str, axes: int) -> list[_Line]:
    floors: dict[tuple[tuple[str, tuple[float, ...]], ...], tuple[list[str], dict[str, Measurement]]] = {}
    for result in results:
        scored = [(FLOOR.match(m.name), m) for m in result.measurements if m.values]
        found = {match["name"]: m for match, m in scored if match and match["kind"] == kind}
        if not found:
            continue
        if kind == "floor" and (real := result.measurement(REAL_ACCURACY)):
            found[ACCURACY.name] = real
        identity = tuple((name, tuple(m.values)) for name, m in sorted(found.items()))
        floors.setdefault(identity, ([], found))[0].append(result.label)
    return [
        _Line(
            label=label if len(floors) == 1 else f"{label}, for {', '.join(labels)}",
            status="floor",
            found=found,
            axes=("",) * axes,
        )
        for labels, found in floors.values()
    ]


def _many_seeds(results: Sequence[Result]) -> bool:
    return len({str(result.case.get("seed", result.axes.get("seed"))) for result in results}) > 1


def _notes(sides: set[int], lines: Sequence[_Line], many_seeds: bool) -> tuple[str, ...]:
    bold = "Several seeds: no value is marked as best; compare cases by the spread of their seeds."
    if not many_seeds:
        bold = "Bold marks the best printed value, not significance."
    notes = [f"↓ lower is better, ↑ higher is better. {bold}"]
    if len(sides) == 1:
        notes.append(f"MACs, latency and memory: one pass at {sides.pop()} px.")
    if any(line.status == "floor" for line in lines):
        notes.append("Floor: real images scored in place of samples.")
    if any(m.interval and is_quality(m.name) for line in lines for m in line.found.values()):
        notes.append("± is half of a 95 % interval over images at this n (METRICS.md), not over seeds.")
    timed = [(line.label, line.measured(LATENCY)) for line in lines]
    if any(measured and measured.rounds for _, measured in timed):
        notes.append(
            "Beside a latency: the 95 % interval of its median over rounds, six or more (METRICS.md)."
        )
    if any(without_rounds(measured) for _, measured in timed):
        notes.append(WITHOUT_ROUNDS)
    return (*notes, *disturbed_notes(timed))
