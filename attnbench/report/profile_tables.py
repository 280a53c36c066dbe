"""A profile's rows as tables: costs, growth with the number of tokens, crossovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnbench.profiling.crossovers import Crossover
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import Scaling
from attnbench.report.tables import Cell, Column, Row, Table, plain, significant, text_cell
from attnbench.report.timings import DISTURBED

MACS, COST, PLAN = "Parameters and multiply-adds", "Latency and memory", "Memory, planned"
GROWTH, AGAINST = "Growth with tokens", "Against the baseline"
_MEMORY_WORDS = {
    "live_memory_mib": "what a pass adds, by the sizes of its tensors",
    "extra_memory_mib": "what a pass adds to the memory in use",
    "planned_memory_mib": "planned, without the weights",
}
_MODES = {
    "forward": "a forward pass of {}",
    "train": "a training step (forward, backward, AdamW) of {}",
    "sample": "a guided sampler step of {}",
}
_SCOPES = {
    "attention": "the middle block's attention",
    "block": "the middle block",
    "model": "the model",
    "end-to-end": "the model, with the decoding",
}
Getter = Callable[[ProfileRow], Cell]


def rows_table(rows: Sequence[ProfileRow], title: str) -> Table:
    """Return what every row cost, with the latency's 95 % interval; columns without a value are left out."""
    numbers: list[tuple[Column, Getter]] = [
        (Column(title="Parameters", unit="M", group=MACS), lambda r: _fixed(r.params, 1e-6, 2)),
        (Column(title="MACs, printed", unit="G", group=MACS), lambda r: _fixed(r.macs_published, 1e-9, 2)),
        (
            Column(title="MACs, paper's count", unit="G", group=MACS),
            lambda r: _fixed(r.macs_paper, 1e-9, 4 if r.macs_published else 2),
        ),
        (Column(title="MACs, full count", unit="G", group=MACS), lambda r: _fixed(r.macs_full, 1e-9, 3)),
        (
            Column(title="of that attention", unit="G", group=MACS),
            lambda r: _fixed(r.attention_macs, 1e-9, 3),
        ),
        (Column(title="Latency", unit="ms", group=COST), _latency),
        (Column(title="Compiling", unit="s", group=COST), lambda r: _fixed(r.compile_s, 1, 1)),
        (Column(title="Of the ceiling", unit="%", group=COST), _ceiling),
        (Column(title="Live memory", unit="MiB", group=COST), lambda r: _fixed(r.live_memory_mib, 1, 1)),
        (Column(title="Extra memory", unit="MiB", group=COST), lambda r: _fixed(r.extra_memory_mib, 1, 1)),
        (Column(title="Peak memory", unit="MiB", group=COST), lambda r: _fixed(r.peak_memory_mib, 1, 0)),
        (Column(title="Energy", unit="J/image", group=COST), _energy),
        (Column(title="Weights", unit="MiB", group=PLAN), lambda r: _fixed(r.weights_mib, 1, 1)),
        (
            Column(title="Planned memory", unit="MiB", group=PLAN),
            lambda r: _fixed(r.planned_memory_mib, 1, 1),
        ),
        (Column(title="Largest batch", unit="images", group=PLAN), lambda r: _fixed(r.largest_batch, 1, 0)),
    ]
    shown = [(column, get) for column, get in numbers if any(get(row).value is not None for row in rows)]
    names: list[tuple[Column, Getter]] = [
        (Column(title="Side", unit="px"), lambda r: Cell(text=str(r.resolution), value=r.resolution)),
        (Column(title="Tokens"), lambda r: _fixed(r.tokens, 1, 0)),
    ]
    if len({row.mode for row in rows}) > 1:
        names.append((Column(title="Mode", numeric=False), lambda r: text_cell(r.mode)))
    if len({row.batch_size for row in rows}) > 1:
        names.append((Column(title="Images"), lambda r: _fixed(r.batch_size, 1, 0)))
    every = [*names, *shown]
    return Table(
        title=title,
        columns=(Column(title="Model", numeric=False), *(column for column, _ in every)),
        rows=tuple(
            Row(cells=(text_cell(row.model), *(get(row) for _, get in every)), status=row.status)
            for row in rows
        ),
        notes=tuple(_row_notes(rows, [column.title for column, _ in shown])),
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


def _fixed(value: float | None, scale: float, digits: int) -> Cell:
    """Return a number with so many digits after the point."""
    return Cell() if value is None else Cell(text=f"{value * scale:,.{digits}f}", value=value * scale)


def _latency(row: ProfileRow) -> Cell:
    if row.latency_ms is None:
        return Cell()
    between = row.latency_interval_ms
    parts = [f"{significant(between[0])} to {significant(between[1])}"] if between else ["too few rounds"]
    return Cell(
        text=significant(row.latency_ms),
        value=row.latency_ms,
        detail=", ".join([*parts, DISTURBED] if row.disturbed else parts),
        disturbed=bool(row.disturbed),
    )


def _ceiling(row: ProfileRow) -> Cell:
    if row.ceiling_share is None:
        return Cell()
    return Cell(text=f"{100 * row.ceiling_share:.0f}", value=100 * row.ceiling_share, detail=row.bound)


def _energy(row: ProfileRow) -> Cell:
    if row.energy is None:
        return Cell()
    return Cell(text=significant(row.energy.energy_j), value=row.energy.energy_j)


def _row_notes(rows: Sequence[ProfileRow], shown: Sequence[str]) -> list[str]:
    """Return the legend, and every row that could not be measured or ranked with its reason."""
    told = {
        "MACs": "MACs: multiply-adds of one forward pass at batch 1, without guidance and autoencoder; "
        "printed: in arXiv:2601.13683; paper's: counted as there; full: all that executes.",
        "Latency": "Latency: median over rounds, and its 95 % interval.",
        "Of": "Of the ceiling: the least time of the pass over the measured one, and what bounds that least "
        "time: multiply-adds at the rate of a large matrix product, or bytes at that of a large copy. "
        "The bytes are the weights once, and operands and results of every product, convolution and "
        "fused attention. Above 100 %: the data stay in caches.",
        "Live": "Live memory: the most that a pass holds at once, by the sizes of its tensors.",
        "Extra": "Extra memory: what a pass adds to the process's (on a GPU, the allocator's) memory.",
        "Peak": "Peak memory: the whole process (on a GPU, all that the allocator handed out).",
        "Planned": "Planned memory: weights, inputs and all that a pass holds at once, by tensors' sizes.",
    }
    words = {title.split()[0].rstrip(",") for title in shown}
    notes = [text for word, text in told.items() if word in words]
    notes += [_setting(rows)] if rows else []
    disturbed = [f"{row.model} at {row.resolution} px" for row in rows if row.disturbed]
    if disturbed:
        notes.append(
            f"Disturbed, not ranked: {', '.join(disturbed)}: in too many rounds a thread waited for a core "
            "that other work held; end that work and profile again (--threads 1 suffers least)."
        )
    bad = [row for row in rows if row.status != "ok" or row.reason]
    if any(row.status != "ok" for row in bad):
        notes.append(f"{sum(row.status != 'ok' for row in bad)} of {len(rows)} rows could not be measured:")
    notes += [f"  {row.model} at {row.resolution} px: {_status(row)}{row.reason}" for row in bad]
    if any("timeout_s" in row.reason for row in bad):
        notes.append("  --timeout-s gives a row more time, --res and --models leave rows out")
    return [plain(note) if not note.startswith("  ") else "  " + plain(note.strip()) for note in notes]


def _status(row: ProfileRow) -> str:
    return "" if row.status == "ok" else f"{row.status}: "


def _setting(rows: Sequence[ProfileRow]) -> str:
    """Say what all rows have in common: how they were run and on how many threads."""
    first = rows[0]
    threads = sorted({row.conditions.threads for row in rows if row.rounds})
    parts = [
        " and ".join(dict.fromkeys(_MODES[row.mode].format(_SCOPES[row.scope]) for row in rows)),
        first.precision,
        *([f"batch {first.batch_size}"] if len({row.batch_size for row in rows}) == 1 else []),
        *([f"{threads[0]} CPU thread{'s' * (threads[0] > 1)}"] if len(threads) == 1 else []),
    ]
    return f"Of {', '.join(parts)}, on {first.device}."


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
    left_out = {text for found in scalings for text in found.left_out}
    left_out |= {text for crossing in crossovers for text in crossing.left_out}
    if left_out:
        names = sorted({text.partition(": ")[0] for text in left_out})
        notes.append(f"Left out, for the reasons at the costs: {', '.join(names)}.")
    return [plain(note) for note in notes]


def _several(crossing: Crossover) -> str:
    sides = ", ".join(f"{side:,.0f}" for side in crossing.crossings)
    return (
        f"{crossing.model}: its {crossing.quantity} crosses {crossing.baseline}'s {len(crossing.crossings)} "
        f"times, at {sides} px; told is the size from which it stays below."
    )
