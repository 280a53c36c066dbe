"""The tables beside the comparison: cost per resolution, training and sampling, other values, failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnbench.report.configurations import Configuration, configurations, seed_of
from attnbench.report.latency import ProfiledRow, baseline, latency_columns, latency_notes
from attnbench.report.quantities import (
    LATENCY,
    MEMORY,
    RESOLVED,
    SIZE,
    TRAINING,
    Quantity,
    other_names,
    resolutions,
)
from attnbench.report.tables import (
    Cell,
    Column,
    Entry,
    FilledColumn,
    RowHead,
    Table,
    assemble,
    quantity_cells,
    quantity_column,
    text_cell,
)
from attnbench.report.timings import disturbed_notes, measured_entry
from attnbench.results import Result


def cost_table(results: Sequence[Result]) -> Table | None:
    """Return what each configuration costs at each resolution, or None if nothing was profiled.

    Seeds share one profile and so one row; where they were profiled more than once, each profile has its own.
    """
    places = {id(result): place for place, result in enumerate(results)}
    shown = [one for row in configurations(results) for one in _profiles(row, places)]
    results = [result for result, _ in shown]
    sides = sorted({side for result in results for side in resolutions(result)})
    rows = [
        ProfiledRow(result=result, side=side, series=place)
        for side in sides
        for result, place in shown
        if side in resolutions(result)
    ]
    if not rows:
        return None
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [text_cell(row.result.label) for row in rows]),
        (Column(title="Side", unit="px"), [Cell(text=str(row.side), value=row.side) for row in rows]),
    ]
    for quantity in (*SIZE, *MEMORY, LATENCY):
        entries = [measured_entry(row.measurement(quantity)) for row in rows]
        if any(entry.value is not None or entry.note for entry in entries):
            columns.append((quantity_column(quantity, entries), _best_by_side(quantity, entries, rows)))
    base = baseline(results)
    columns += latency_columns(rows, base)
    heads = [RowHead(status=row.result.status, series=row.series) for row in rows]
    return assemble("Cost", columns, heads, latency_notes(rows, base))


def _profiles(row: Configuration, places: dict[int, int]) -> list[tuple[Result, int]]:
    """Return one result for each distinct profile of a configuration, with its place among the results.

    It goes by the configuration's label where there is one profile alone.
    """
    distinct: dict[tuple[str, ...], Result] = {}
    for result in sorted(row.results, key=lambda r: r.status != "ok"):  # stable: finished ones first
        costs = tuple(m.model_dump_json() for m in result.measurements if RESOLVED.match(m.name))
        if costs:
            distinct.setdefault(costs, result)
    return [
        (result if len(distinct) > 1 else result.model_copy(update={"label": row.label}), places[id(result)])
        for result in distinct.values()
    ]


def training_table(results: Sequence[Result]) -> Table | None:
    """Return how long training and sampling took and where the loss ended, or None if nothing trained.

    One row per case: with several seeds these are the single values, and the best of them is no result.
    """
    return _plain_table("Training and sampling", TRAINING, results)


def other_table(results: Sequence[Result]) -> Table | None:
    """Return the measurements no other table shows, such as those of plugins."""
    by_name = {m.name: m for result in results for m in result.measurements}
    quantities = [
        Quantity(
            name=name, title=name, unit=by_name[name].unit, better=by_name[name].better, significant=True
        )
        for name in other_names(results)
    ]
    return _plain_table("Other measurements", quantities, results)


def problems_table(results: Sequence[Result]) -> Table | None:
    """Return the cases that did not finish, each with its reason."""
    found = [(series, result) for series, result in enumerate(results) if result.status != "ok"]
    if not found:
        return None
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [text_cell(r.label) for _, r in found]),
        (Column(title="Status", numeric=False), [text_cell(r.status) for _, r in found]),
        (Column(title="Reason", numeric=False), [text_cell(r.reason or "none recorded") for _, r in found]),
    ]
    return assemble("Failed and skipped cases", columns, [RowHead(series=series) for series, _ in found])


def _plain_table(title: str, quantities: Sequence[Quantity], results: Sequence[Result]) -> Table | None:
    """Return one row per case and one column per quantity that any case has, or None if none has any."""
    several = len({seed_of(result) for result in results}) > 1
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [text_cell(r.label) for r in results])
    ]
    for quantity in quantities:
        entries = [measured_entry(result.measurement(quantity.name)) for result in results]
        if any(entry.value is not None for entry in entries):
            column = replace(quantity_column(quantity, entries), group="")
            competing = [r.status == "ok" and not several for r in results]
            columns.append((column, quantity_cells(quantity, entries, competing)))
    if len(columns) == 1:
        return None
    heads = [RowHead(status=r.status, series=i) for i, r in enumerate(results)]
    found = ((r.label, r.measurement(quantity.name)) for r in results for quantity in quantities)
    return assemble(title, columns, heads, disturbed_notes(found))


def _best_by_side(quantity: Quantity, entries: Sequence[Entry], rows: Sequence[ProfiledRow]) -> list[Cell]:
    """Format one column whole but mark the best value within each resolution; rows are ordered by side."""
    marked: list[Cell] = []
    for side in dict.fromkeys(row.side for row in rows):
        competing = [row.side == side and row.result.status == "ok" for row in rows]
        cells = quantity_cells(quantity, entries, competing)
        marked += [cell for cell, row in zip(cells, rows, strict=True) if row.side == side]
    return marked
