"""A comparison as tables: one of each quantity with a row a case, or one of all where there is one case."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from attnbench.report.compare.records import ComparedQuantity, ComparedRun, RunComparison
from attnbench.report.quantities import SIZE, unresolved
from attnbench.report.tables import (
    ARROWS,
    Cell,
    Column,
    FilledColumn,
    RowHead,
    Table,
    assemble,
    plain,
    significant,
    text_cell,
)

_SCALES = {quantity.name: quantity.scale for quantity in SIZE}
_BASES = {
    "": "",
    "counted": "counted",
    "rounds side by side": "rounds side by side",
    "rounds of two sessions": "rounds, two sessions",
    "seeds": "",
    "images": "images",
}
_FEWEST_TOGETHER = 6  # the fewest that all go one way by chance in less than 5 %: 2 / 2^6 = 3 %
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}


def comparison_tables(comparison: RunComparison) -> list[Table]:
    """Return the tables of a comparison, the last one with the notes; one of the runs comes first."""
    rows = comparison.rows
    shown = _worth_showing(rows)
    letters = list(dict.fromkeys(row.run for row in rows))
    pairs = {(row.run, row.case, row.at) for row in rows}
    tables = [_runs_table(comparison.runs)]
    if len(pairs) <= len(letters) or comparison.equal:
        titles = dict.fromkeys((row.case, row.against) for row in shown)
        for case, against in titles:
            chosen = [row for row in shown if (row.case, row.against) == (case, against)]
            title = case if case == against else f"{case} against {against}"
            tables.append(_table(plain(title), "Quantity", chosen, _quantity_head, comparison))
    else:
        for name in dict.fromkeys(row.name for row in shown):
            chosen = [row for row in shown if row.name == name]
            unit = f" [{chosen[0].unit}]" if chosen[0].unit else ""
            title = plain(f"{chosen[0].title}{unit} {ARROWS[chosen[0].better]}")
            tables.append(_table(title, "Case", chosen, lambda row: (row.case, ""), comparison))
    return [table for table in tables if table.rows]


def summary(comparison: RunComparison) -> str:
    """Return in one line how many quantities got which verdict."""
    counts = Counter(row.verdict for row in comparison.rows)
    said = ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())
    return f"{len(comparison.rows)} compared: {said}" if said else "nothing was compared"


def notes(comparison: RunComparison) -> list[str]:
    """Return what a reader needs beside the tables: how it was tested, what differs, what is left out."""
    rows = comparison.rows
    found = [summary(comparison)]
    shown = {row.name for row in _worth_showing(rows)}
    same = list(dict.fromkeys(row.title for row in rows if row.name not in shown))
    if same:
        found.append(f"The same in every case: {', '.join(same)}.")
    found += _methods(comparison)
    found += _advice(comparison)
    found += [f"{mark}: {said}" for said, mark in _marks(rows).items()]
    found += [f"Differs: {note}" for note in comparison.notes]
    found += [f"Not compared: {reason}" for reason in comparison.left_out]
    return [plain(note) for note in found]


def gate_lines(comparison: RunComparison) -> list[str]:
    """Return what became of every gate, one line each and one for each row that tripped it."""
    lines = []
    for gate in comparison.gates:
        if gate.tripped:
            word = f"failed by {len(gate.tripped)} of {len(gate.tripped) + gate.held}"
        elif gate.held:
            word = f"held by {gate.held}"
        else:
            word = "failed: nothing it is about could be judged"
        undecided = f", {len(gate.undecided)} not decided" if gate.undecided else ""
        lines.append(f"gate {gate.gate}: {word}{undecided}")
        lines += [f"  {said}" for said in (*gate.tripped, *(f"not decided: {u}" for u in gate.undecided))]
    return [plain_line(line) for line in lines]


def plain_line(text: str) -> str:
    """Return a line without anything that is no letter, its indent kept."""
    return text[: len(text) - len(text.lstrip())] + plain(text)


def _worth_showing(rows: Sequence[ComparedQuantity]) -> list[ComparedQuantity]:
    """Leave out quantities that are the same in every case: a sentence says that."""
    differing = {row.name for row in rows if row.verdict != "same" or row.unlike}
    return [row for row in rows if row.name in differing]


def _table(
    title: str,
    head: str,
    rows: Sequence[ComparedQuantity],
    head_of: Callable[[ComparedQuantity], tuple[str, str]],
    comparison: RunComparison,
) -> Table:
    """Return one line for each head, the base's value, and a group of columns for every other run."""
    letters = list(dict.fromkeys(row.run for row in rows))
    lines: dict[tuple[str, str, float | None], dict[str, ComparedQuantity]] = {}
    for row in rows:
        lines.setdefault((*head_of(row), row.at), {})[row.run] = row
    firsts = [next(iter(line.values())) for line in lines.values()]
    columns: list[FilledColumn] = [
        (Column(title=head, numeric=False), [text_cell(text, unit) for text, unit, _ in lines])
    ]
    if comparison.equal:
        columns.append(_budgets(firsts, comparison.budget_unit))
    first, against = comparison.runs[0].letter, {row.against for row in rows}
    within = letters == [first]  # cases of one run
    base = (against.pop() if len(against) == 1 else "base") if within else first
    columns.append((Column(title=plain(base)), [_value(row, row.base) for row in firsts]))
    marks = _marks(comparison.rows)
    for letter in letters:
        found = [line.get(letter) for line in lines.values()]
        group = f"Run {letter}" if len(letters) > 1 else ""
        columns += [
            (Column(title="value" if within else letter, group=group), [_compared(row) for row in found]),
            (Column(title="Difference", group=group), [_difference(row) for row in found]),
            (Column(title="Verdict", group=group, numeric=False), [_verdict(row, marks) for row in found]),
        ]
    return assemble(title, columns, [RowHead() for _ in firsts])


def _budgets(rows: Sequence[ComparedQuantity], unit: str) -> FilledColumn:
    """Return the column of the budgets at which values are equal, in a unit that makes them readable."""
    most = max((row.at or 0.0 for row in rows), default=0.0)
    fitting = [name for name, size in _PREFIXES.items() if most >= size] if unit == "MAC" else []
    prefix = fitting[-1] if fitting else ""
    cells = [Cell(text=significant((row.at or 0.0) / _PREFIXES[prefix]), value=row.at) for row in rows]
    return Column(title="At", unit=prefix + unit), cells


def _quantity_head(row: ComparedQuantity) -> tuple[str, str]:
    return f"{row.title} {ARROWS[row.better]}".rstrip(), row.unit


def _scale(row: ComparedQuantity) -> float:
    return _SCALES.get(unresolved(row.name), 1.0)


def _value(row: ComparedQuantity, value: float) -> Cell:
    return Cell(text=significant(value * _scale(row)), value=value * _scale(row))


def _compared(row: ComparedQuantity | None) -> Cell:
    """Return the other run's value, and below it how many times the base's it is."""
    if row is None:
        return Cell()
    known = row.ratio is not None and math.isfinite(row.ratio)
    times = f"× {significant(row.ratio, 3)}" if known and row.ratio is not None else ""
    return replace(_value(row, row.value), detail=times)


def _difference(row: ComparedQuantity | None) -> Cell:
    """Return the difference, and below it the interval of what is tested: itself, or the ratio."""
    if row is None:
        return Cell()
    if row.verdict == "same":
        return Cell(text="0", value=0.0)
    scale, interval = _scale(row), ""
    if row.difference_interval is not None:
        interval = " to ".join(_signed(end * scale, 2) for end in row.difference_interval)
    elif row.ratio_interval is not None:
        interval = "× " + " to ".join(significant(end, 3) for end in row.ratio_interval)
    return Cell(text=_signed(row.difference * scale), value=row.difference * scale, detail=interval)


def _signed(value: float, digits: int = 3) -> str:
    return f"+{significant(value, digits)}" if value > 0 else significant(value, digits)


def _verdict(row: ComparedQuantity | None, marks: dict[str, str]) -> Cell:
    if row is None:
        return Cell()
    over = f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else _BASES[row.basis]
    detail = row.why or ("" if row.verdict == "same" else over)
    return Cell(text=row.verdict, detail=plain(detail), marks=", ".join(marks[said] for said in row.unlike))


def _marks(rows: Sequence[ComparedQuantity]) -> dict[str, str]:
    """Return the footnote's letter of everything that was not alike and forced."""
    said = dict.fromkeys(what for row in rows for what in row.unlike)
    names = (
        "".join(word)
        for n in itertools.count(1)
        for word in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=n)
    )
    return dict(zip(said, names, strict=False))


def _methods(comparison: RunComparison) -> list[str]:
    """Say how the verdicts came about, for the kinds of test that occur."""
    bases = {row.basis for row in comparison.rows if row.p is not None}
    tests = sum(row.p is not None for row in comparison.rows)
    found = []
    if tests:
        found.append(
            f"A verdict needs p < {comparison.alpha:g} after Benjamini-Hochberg ({tests} tested); "
            "intervals are 95 % each, not adjusted."
        )
    if "seeds" in bases:
        which = "have those seeds" if not comparison.equal else "end at that budget, where two do"
        pooled = f", variance pooled over all cases that {which}"
        found.append(f"Over seeds: t test paired by seed{pooled}.")
    if "images" in bases:
        found.append(
            "Two trainings: from the intervals over images; another seed may turn it round, so it says "
            "nothing of the methods."
        )
    if bases & {"rounds side by side", "rounds of two sessions"}:
        found.append(
            "Latency: t test on logarithms of rounds, ratio of geometric means. Less than "
            f"{100 * comparison.time_margin:g} % is not called a difference, or "
            f"{100 * comparison.session_margin:g} % between two sessions: two processes of one code, and two "
            "sessions of one machine, differ by as much, and no interval holds it (METRICS.md)."
        )
    found += _moved_together(comparison.rows)
    return found


def _moved_together(rows: Sequence[ComparedQuantity]) -> list[str]:
    """Say where all latencies of another session went one way: a busier or warmer machine does that, too."""
    found = []
    for letter in dict.fromkeys(row.run for row in rows):
        moved = [r for r in rows if r.run == letter and r.basis == "rounds of two sessions"]
        sides = {r.difference > 0 for r in moved}
        if len(moved) >= _FEWEST_TOGETHER and len(sides) == 1:
            way = "longer" if sides.pop() else "shorter"
            found.append(
                f"All {len(moved)} latencies in {letter} are {way}, as of a busier or idler machine: "
                "measure both runs again before it is put down to the code."
            )
    return found


def _advice(comparison: RunComparison) -> list[str]:
    """Say how equal budgets were found, and what would let more be said."""
    found = []
    if comparison.equal:
        spent = " Spent: 3 x full MACs x batch size x steps." if comparison.equal == "macs" else ""
        found.append(f"Between two measured points: linear in the logarithm of the budget.{spent}")
    if any(row.basis == "images" or row.why in ("one value each", "one seed") for row in comparison.rows):
        found.append(
            "Methods are told apart by several seeds only: `attnbench run SUITE --seeds 3`, or "
            "seed: [0, 1, 2] in the suite."
        )
    return found


def _runs_table(runs: Sequence[ComparedRun]) -> Table:
    facts: list[tuple[str, Callable[[ComparedRun], str]]] = [
        ("", lambda run: run.letter),
        ("Run", lambda run: run.name),
        ("Cases", lambda run: str(run.cases)),
        ("Seeds", lambda run: ", ".join(map(str, run.seeds))),
        ("Commit", lambda run: ", ".join(run.commits)),
        ("Hardware", lambda run: "; ".join(run.hardware)),
        ("Date", lambda run: run.dates[-1] if run.dates else ""),
    ]
    columns: list[FilledColumn] = [
        (Column(title=title, numeric=False), [text_cell(read(run)) for run in runs]) for title, read in facts
    ]
    return assemble("Runs", columns, [RowHead() for _ in runs])
