"""A profile's rows as tables: costs, growth with the number of tokens, crossovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnbench.profiling.crossovers import Crossover
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import Scaling
from attnbench.report.tables import Cell, Column, Row, Table, plain, significant, text_cell

GROWTH, AGAINST = "Growth with tokens", "Against the baseline"
_MEMORY_WORDS = {
    "live_memory_mib": "what a pass adds, by the sizes of its tensors",
    "extra_memory_mib": "what a pass adds to the memory in use",
    "planned_memory_mib": "planned, without the weights",
}
Getter = Callable[[ProfileRow], tuple[float | None, str]]


def rows_table(rows: Sequence[ProfileRow], title: str) -> Table:
    """Return what every row cost, with the latency's 95 % interval; columns without a value are left out."""
    numbers: list[tuple[Column, Getter]] = [
        (Column(title="Parameters", unit="M"), lambda r: (_scaled(r.params, 1e-6), "")),
        (Column(title="MACs, paper's count", unit="G"), lambda r: (_scaled(r.macs_paper, 1e-9), "")),
        (Column(title="MACs, full count", unit="G"), lambda r: (_scaled(r.macs_full, 1e-9), "")),
        (Column(title="Latency", unit="ms"), _latency),
        (Column(title="Extra memory", unit="MiB"), lambda r: (r.extra_memory_mib, "")),
        (Column(title="Live memory", unit="MiB"), lambda r: (r.live_memory_mib, "")),
        (Column(title="Planned memory", unit="MiB"), lambda r: (r.planned_memory_mib, "")),
        (Column(title="Bytes moved", unit="MiB"), lambda r: (_scaled(r.bytes_moved, 2**-20), "")),
        (Column(title="Of the ceiling", unit="%"), lambda r: (_scaled(r.ceiling_share, 100), r.bound)),
    ]
    shown = [(column, get) for column, get in numbers if any(get(row)[0] is not None for row in rows)]
    names = (Column(title="Model", numeric=False), Column(title="Side", unit="px"), Column(title="Tokens"))
    return Table(
        title=title,
        columns=(*names, *(column for column, _ in shown)),
        rows=tuple(_row(row, [get for _, get in shown]) for row in rows),
        notes=tuple(_row_notes(rows)),
    )


def scaling_table(
    scalings: Sequence[Scaling], crossovers: Sequence[Crossover], *, last_sizes: bool = False
) -> Table | None:
    """Return growth and crossovers of one setting, one row a model; None where no model has two sizes.

    `last_sizes` adds the exponents between the two largest sizes.
    """
    models = list(dict.fromkeys(found.model for found in scalings if found.exponent is not None))
    if not models:
        return None
    time, memory = ({f.model: f for f in scalings if f.quantity == q} for q in ("time", "memory"))
    faster, smaller = ({c.model: c for c in crossovers if c.quantity == q} for q in ("time", "memory"))
    baselines = list(dict.fromkeys(crossing.baseline for crossing in crossovers))
    against = AGAINST if len(baselines) != 1 else f"Against {plain(baselines[0])}"
    columns: list[tuple[Column, Callable[[str], Cell]]] = [
        (_growth("Time's exponent"), lambda m: _exponent(time.get(m))),
        (_growth("Time's, last two sizes"), lambda m: _exponent(time.get(m), last=True)),
        (_growth("Memory's exponent"), lambda m: _exponent(memory.get(m))),
        (_growth("Memory's, last two sizes"), lambda m: _exponent(memory.get(m), last=True)),
        (
            Column(title="Faster from", unit="px", group=against),
            lambda m: _side(faster.get(m), m in baselines),
        ),
        (Column(title="Faster from", unit="tokens", group=against), lambda m: _tokens(faster.get(m))),
        (
            Column(title="Less memory from", unit="px", group=against),
            lambda m: _side(smaller.get(m), m in baselines),
        ),
    ]
    shown = [
        (column, [cell(model) for model in models])
        for column, cell in columns
        if last_sizes or "last two" not in column.title
    ]
    nothing = (Cell(), Cell(text="baseline"))
    shown = [(column, cells) for column, cells in shown if any(cell not in nothing for cell in cells)]
    return Table(
        title="Growth and crossovers",
        columns=(Column(title="Model", numeric=False), *(column for column, _ in shown)),
        rows=tuple(
            Row(cells=(text_cell(model), *(cells[i] for _, cells in shown)), series=None)
            for i, model in enumerate(models)
        ),
        notes=tuple(_scaling_notes(scalings, crossovers)),
    )


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _latency(row: ProfileRow) -> tuple[float | None, str]:
    between = row.latency_interval_ms
    parts = [f"{significant(between[0])} to {significant(between[1])}"] if between else []
    return row.latency_ms, ", ".join([*parts, "disturbed"] if row.disturbed else parts)


def _row(row: ProfileRow, getters: Sequence[Getter]) -> Row:
    cells = [
        Cell(text=significant(value), value=value, detail=detail) if value is not None else Cell()
        for value, detail in (get(row) for get in getters)
    ]
    sizes = (
        Cell(text=str(row.resolution), value=row.resolution),
        Cell(text=f"{row.tokens:,}", value=row.tokens),
    )
    return Row(cells=(text_cell(row.model), *sizes, *cells), status=row.status)


def _row_notes(rows: Sequence[ProfileRow]) -> list[str]:
    notes = []
    if any(row.latency_interval_ms for row in rows):
        notes.append("Latency: median over rounds, and its 95 % interval.")
    if any(row.ceiling_share is not None for row in rows):
        notes.append(
            "Of the ceiling: the least time of the pass over the measured one, and what bounds that least "
            "time: multiply-adds at the rate of a large matrix product, or bytes at that of a large copy. "
            "The bytes are the weights once, and operands and results of every product, convolution and "
            "fused attention. Above 100 %: the data stay in caches."
        )
    return [*notes, *filter(None, map(_trouble, rows))]


def _trouble(row: ProfileRow) -> str:
    why = (
        f"{row.status}: {row.reason}"
        if row.status != "ok"
        else row.disturbed and f"disturbed: {row.disturbed}"
    )
    return plain(f"{row.model} at {row.resolution} px: {why}") if why else ""


def _growth(title: str) -> Column:
    return Column(title=title, group=GROWTH)


def _exponent(found: Scaling | None, *, last: bool = False) -> Cell:
    value = None if found is None else found.last_exponent if last else found.exponent
    if found is None or value is None:
        return Cell()
    between = found.last_interval if last else found.interval
    detail = "" if between is None else f"{_signed(between[0])} to {_signed(between[1])}"
    return Cell(text=_signed(value), value=value, detail=detail)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _side(crossing: Crossover | None, baseline: bool) -> Cell:
    """Return the resolution of a crossover, its verdict where there is none, and the interval's ends."""
    if crossing is None:
        return Cell(text="baseline") if baseline else Cell()
    if crossing.verdict != "from" or crossing.resolution is None:
        return Cell(text=crossing.verdict, detail=_ends(crossing))
    return Cell(text=f"{crossing.resolution:,.0f}", value=crossing.resolution, detail=_ends(crossing))


def _tokens(crossing: Crossover | None) -> Cell:
    if crossing is None or crossing.tokens is None:
        return Cell()
    return Cell(text=f"{crossing.tokens:,.0f}", value=crossing.tokens)


def _ends(crossing: Crossover) -> str:
    low, high = crossing.resolution_interval or (None, None)
    if low is not None and high is not None:
        return f"{low:,.0f} to {high:,.0f}"
    if low is not None:
        return f"≥ {low:,.0f}"
    return "" if high is None else f"≤ {high:,.0f}"


def _scaling_notes(scalings: Sequence[Scaling], crossovers: Sequence[Crossover]) -> list[str]:
    notes = ["Exponent e: cost ~ tokens^e, fitted to the measured sizes; intervals are 95 %, over rounds."]
    kinds = dict.fromkeys(f.measured_as for f in scalings if f.quantity == "memory")
    notes += [f"Memory: {_MEMORY_WORDS[kind]}." for kind in kinds]
    if crossovers:
        told = [c for c in crossovers if c.measured_range]
        sides = [side for c in told for side in c.measured_range or ()]
        within = f", measured from {min(sides)} to {max(sides)} px" if sides else ""
        notes.append(
            "From: the side from which a model takes less than its baseline, interpolated between "
            f"sizes{within}. always: at every size; never: not at the largest; unclear: the rounds do not "
            "tell."
        )
        baselines = list(dict.fromkeys(c.baseline for c in crossovers))
        pairs = dict.fromkeys(f"{c.model} against {c.baseline}" for c in crossovers)
        notes.append(f"Baseline: {', '.join(pairs if len(baselines) > 1 else baselines)}.")
        notes += [_several(c) for c in crossovers if len(c.crossings) > 1]
    left_out = [text for found in scalings for text in found.left_out]
    left_out += [text for crossing in crossovers for text in crossing.left_out]
    return [*map(plain, notes), *(f"Left out: {plain(text)}" for text in dict.fromkeys(left_out))]


def _several(crossing: Crossover) -> str:
    sides = ", ".join(f"{side:,.0f}" for side in crossing.crossings)
    return (
        f"{crossing.model}: its {crossing.quantity} crosses {crossing.baseline}'s {len(crossing.crossings)} "
        f"times, at {sides} px; told is the size from which it stays below."
    )
