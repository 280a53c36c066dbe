"""The comparison table: a row per configuration with size, quality, cost; the floor of real images below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnbench.report.bests import Decided, decide, over_seeds_notes
from attnbench.report.configurations import Configuration, configurations
from attnbench.report.fairness import fairness
from attnbench.report.lines import Line, configuration_line, floor_lines, varies_by_seed
from attnbench.report.quantities import (
    ACCURACY,
    LATENCY,
    MEMORY,
    SIZE,
    Quantity,
    comparison_costs,
    is_quality,
    quality_quantities,
    separability_quantities,
)
from attnbench.report.tables import (
    MISSING,
    Cell,
    Column,
    FilledColumn,
    RowHead,
    Table,
    assemble,
    plain,
    quantity_cells,
    quantity_column,
    text_cell,
)
from attnbench.report.timings import WITHOUT_ROUNDS, disturbed_notes, without_rounds
from attnbench.results import Result


def comparison_table(results: Sequence[Result]) -> Table:
    """Return the table of a suite: what each configuration costs and what quality it buys.

    Cases that differ by seed alone are one row. Best values are marked among rows that are alike in all but
    their attention (`fairness`) and that finished: of several seeds where the difference is significant, of
    one where the printed value is best. The floor and failed rows never compete.
    """
    rows = configurations(results)
    axes = [axis for axis in shown_axes(results) if axis != "seed"]
    series = {id(result): index for index, result in reversed(list(enumerate(results)))}
    cells = [configuration_line(row, axes, min(series[id(r)] for r in row.results)) for row in rows]
    lines = [*cells, *floor_lines(rows, len(axes))]
    alike = fairness(rows)
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [
            replace(text_cell(line.label), marks=alike.marks(i) if i < len(cells) else "")
            for i, line in enumerate(lines)
        ]),
        *((Column(title=plain(axis), numeric=False), [text_cell(line.axes[i]) for line in lines])
          for i, axis in enumerate(axes)),
    ]  # fmt: skip
    if several := any(len(row.results) > 1 for row in rows):
        columns.append((Column(title="Seeds"), [line.seeds for line in lines]))
    sides = {line.resolution for line in cells if line.resolution is not None}
    if len(sides) > 1:
        shown = [Cell(text=str(line.resolution or MISSING)) for line in lines]
        columns.append((Column(title="Side", unit="px"), shown))
    headings, filled = [], []
    for quantity in (*SIZE, *_qualities(results), *comparison_costs(results)):
        entries = [line.entry(quantity) for line in lines]
        if any(entry.value is not None or entry.note for entry in entries):
            headings.append(quantity_column(quantity, entries))
            filled.append((quantity, quantity_cells(quantity, entries, [False] * len(lines))))
    decided = decide(filled, lines, alike.quality, alike.cost, [row.seeds for row in rows])
    columns += [(heading, column.cells) for heading, column in zip(headings, decided, strict=True)]
    heads = [RowHead(status=line.status, series=line.series) for line in lines]
    notes = (*_notes(sides, lines, rows, decided, several=several), *alike.notes())
    return assemble("Comparison", columns, heads, notes)


def seed_table(results: Sequence[Result]) -> Table | None:
    """Return the quality of every single seed, the values behind the comparison; None of one seed each."""
    rows = configurations(results)
    if all(len(row.results) == 1 for row in rows):
        return None
    series = {id(result): index for index, result in enumerate(results)}
    lines = [
        configuration_line(replace(row, results=(result,)), (), series[id(result)])
        for row in rows
        for result in row.results
    ]
    columns: list[FilledColumn] = [
        (Column(title="Case", numeric=False), [text_cell(line.label) for line in lines]),
        (Column(title="Seed"), [_seed(line) for line in lines]),
    ]
    for quantity in _qualities(results):
        entries = [line.entry(quantity) for line in lines]
        if any(entry.value is not None for entry in entries):
            shown = quantity_cells(quantity, entries, [False] * len(lines))
            columns.append((quantity_column(quantity, entries), shown))
    heads = [RowHead(status=line.status, series=line.series) for line in lines]
    return assemble("Quality of each seed", columns, heads)


def shown_axes(results: Sequence[Result]) -> list[str]:
    """Return the matrix axes that differ between cases and that labels do not already tell."""
    names = dict.fromkeys(axis for result in results for axis in result.axes)
    return [
        axis
        for axis in names
        if len({result.axes.get(axis) for result in results}) > 1
        and any(result.axes.get(axis, "") not in result.label for result in results)
    ]


def _qualities(results: Sequence[Result]) -> list[Quantity]:
    return [*quality_quantities(results), ACCURACY, *separability_quantities(results)]


def _seed(line: Line) -> Cell:
    seeds = line.configuration.seeds if line.configuration else ()
    return Cell(text=", ".join(map(str, seeds)), value=seeds[0] if seeds else None)


def _notes(
    sides: set[int],
    lines: Sequence[Line],
    rows: Sequence[Configuration],
    decided: Sequence[Decided],
    *,
    several: bool,
) -> tuple[str, ...]:
    arrows = "↓ lower is better, ↑ higher is better."
    if several:
        seeded = [column for column in decided if varies_by_seed(column.quantity)]
        notes = [f"{arrows} {_OVER_SEEDS}", *over_seeds_notes(seeded, lines)]
        if any(" of " in line.seeds.text for line in lines):
            notes.append(
                "Seeds, such as 2 of 3: those that finished; two rows compare over the seeds both have."
            )
    elif len({row.seeds for row in rows}) > 1:
        notes = [f"{arrows} Rows have different seeds, one each: no quality is marked as best."]
    else:
        notes = [f"{arrows} {_ONE_SEED}"]
    if len(sides) == 1:
        once = ", measured once for all seeds of a row" if several else ""
        costs = [
            name
            for name, quantities in (("MACs", SIZE), ("latency", (LATENCY,)), ("memory", MEMORY))
            if any(column.quantity in quantities and column.quantity.name != "params" for column in decided)
        ]
        if costs:
            notes.append(f"{_listed(costs)}: one pass at {sides.pop()} px{once}.")
    if several and any(column.quantity == LATENCY for column in decided):
        notes.append(
            "Latency is bold where paired rounds call it faster than the next; memory by printed value."
        )
    if any(line.status == "floor" for line in lines):
        notes.append("Floor: real images scored in place of samples.")
    single = [line for line in lines if line.configuration is None or len(line.configuration.results) == 1]
    if any(m.interval and is_quality(name) for line in single for name, m in line.found.items()):
        notes.append("± is half of a 95 % interval over images at this n (METRICS.md), not over seeds.")
    if any(line.has_spread_alone for line in single):
        notes.append(
            "± of a metric that an earlier version wrote: standard deviation over subsets, no interval."
        )
    timed = [(line.label, line.measured(LATENCY)) for line in lines]
    if any(measured and measured.rounds for _, measured in timed):
        notes.append(
            "Beside a latency: the 95 % interval of its median over rounds, six or more (METRICS.md)."
        )
    if any(without_rounds(measured) for _, measured in timed):
        notes.append(WITHOUT_ROUNDS)
    return (*notes, *disturbed_notes(timed))


def _listed(names: Sequence[str]) -> str:
    """Name one to three things as the beginning of a sentence."""
    said = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return said[0].upper() + said[1:]


_ONE_SEED = "One seed: bold marks the best printed value, not significance; another seed may rank otherwise."
_OVER_SEEDS = (
    "Quality and training: mean over the row's seeds, beside it their standard deviation (sd) and the 95 % "
    "t interval of the mean; n: images of each seed."
)
