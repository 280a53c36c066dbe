"""What `attnbench profile` prints: what is going to happen, then the cost of every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attnbench.console.plan_view import duration
from attnbench.report.tables import Column, Row, Table, plain, text_cell

if TYPE_CHECKING:
    from attnbench.profiling.rows import ProfileRow
    from attnbench.specs import ProfileSpec

MACS, COST = "Parameters and multiply-adds", "Latency and memory"


def profile_announcement(num_models: int, spec: ProfileSpec, device: str, within_s: float = 0.0) -> str:
    """Return what is going to be measured and the longest it may take, as one sentence."""
    resolutions = spec.resolutions or []
    num_rows = num_models * len(resolutions)
    sides = ", ".join(map(str, resolutions))
    rows = f"{_count(num_rows, 'row')} ({_count(num_models, 'model')} at {sides} px) on {device}"
    if not {"latency", "memory"} & set(spec.measure):
        return f"profile: {rows}; counted only, seconds per row, nothing is timed"
    bound = num_rows * spec.timeout_s
    if within_s and within_s < bound:
        return (
            f"profile: {rows}; about {duration(within_s)} at most (--within): rows that do not fit into it "
            "are left out, the slowest first"
        )
    return (
        f"profile: {rows}; at most {duration(bound)} of measuring ({spec.timeout_s:g} s a row, --timeout-s), "
        "besides some seconds a row to count and to start its process"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def profile_table(rows: Sequence[ProfileRow], device: str) -> Table:
    """Return the cost of every model at every resolution; what was not measured has no column."""
    numbers: list[tuple[str, str, str, Callable[[ProfileRow], str]]] = [
        ("params", "M", MACS, lambda r: _number(r.params, 1e6, 2)),
        ("MACs, printed", "G", MACS, lambda r: _number(r.macs_published, 1e9, 2)),
        ("MACs, paper", "G", MACS, lambda r: _number(r.macs_paper, 1e9, 4 if r.macs_published else 2)),
        ("MACs, full", "G", MACS, lambda r: _number(r.macs_full, 1e9, 3)),
        ("of that attention", "G", MACS, lambda r: _number(r.attention_macs, 1e9, 3)),
        ("latency", "ms", COST, lambda r: _number(r.latency_ms, 1, 2)),
        ("peak memory", "MiB", COST, lambda r: _number(r.peak_memory_mib, 1, 0)),
        ("extra memory", "MiB", COST, lambda r: _number(r.extra_memory_mib, 1, 0)),
    ]
    shown = [number for number in numbers if any(number[-1](row) for row in rows)]
    return Table(
        title=f"one forward pass on {device}",
        columns=(
            Column(title="model", numeric=False),
            Column(title="px"),
            Column(title="tokens"),
            *(Column(title=name, unit=unit, group=group) for name, unit, group, _ in shown),
        ),
        rows=tuple(_row(row, [get for *_, get in shown]) for row in rows),
        notes=tuple(_notes(rows, {group for _, _, group, _ in shown})),
    )


def _row(row: ProfileRow, getters: Sequence[Callable[[ProfileRow], str]]) -> Row:
    texts = (row.model, str(row.resolution), str(row.tokens), *(get(row) for get in getters))
    return Row(cells=tuple(text_cell(text) for text in texts), status=row.status)


def _notes(rows: Sequence[ProfileRow], groups: set[str]) -> list[str]:
    """Return the legend, and every row that could not be measured with its reason."""
    notes = ["px: side of the decoded image"]
    if MACS in groups:
        notes.append(
            "MACs: multiply-adds at batch 1, without guidance and autoencoder; printed: in arXiv:2601.13683; "
            "paper: counted as there; full: all that executes"
        )
    if COST in groups:
        first = rows[0]
        notes.append(f"latency: median at batch {first.batch_size}, {first.precision}")
        notes.append("extra memory: the part of the peak that the forward pass adds")
    bad = [row for row in rows if row.status != "ok"]
    if bad:
        notes += ["", f"{len(bad)} of {len(rows)} rows could not be measured:"]
        notes += [f"  {row.model} at {row.resolution} px: {row.status}: {plain(row.reason)}" for row in bad]
        if any("timeout_s" in row.reason for row in bad):
            notes.append("  --timeout-s gives a row more time, --res and --models leave rows out")
    return notes


def _number(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value / scale:.{digits}f}"
