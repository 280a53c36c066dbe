"""Conversion of a trained model: quality against steps of each attention, converted and from scratch.

Applies where a result was taught (`train.teacher`). What a row is compared with is the same case without a
teacher, at the same and at other steps; several seeds are one row, as everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnbench.report.configurations import Configuration, configurations, label_without_seed, seed_values
from attnbench.report.lines import configuration_line
from attnbench.report.pareto_costs import training_macs
from attnbench.report.quantities import ACCURACY, Quantity, quality_quantities
from attnbench.report.tables import (
    MISSING,
    Cell,
    Column,
    Entry,
    FilledColumn,
    RowHead,
    Table,
    assemble,
    plain,
    quantity_cells,
    quantity_column,
    text_cell,
)
from attnbench.results import Result
from attnbench.specs import content_hash

_APART = ("suite", "question", "label", "axes", "exceptions", "seed", "diagnose", "teacher", "initial")
_FEW = 8  # attentions that a note names


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One attention converted in one way: its configurations by training steps."""

    label: str
    series: int
    """Position among the results of the first converted case."""
    converted: dict[int, Configuration]
    """Ascending, as `scratch`."""
    scratch: dict[int, Configuration]
    teacher: Configuration | None
    """None where the teacher's own result is not among these."""


def conversions(results: Sequence[Result]) -> list[Conversion]:
    """Return every conversion among results, in order of appearance; empty where nothing was taught."""
    rows = configurations(results)
    places = {id(result): place for place, result in enumerate(results)}
    taught: dict[tuple[str, str], dict[int, Configuration]] = {}
    untaught: dict[str, dict[int, Configuration]] = {}
    for row in rows:
        case, steps = row.results[0].case, _steps(row.results[0])
        if steps is None:
            continue
        how = case.get("train", {}).get("teacher")
        if how is None:
            untaught.setdefault(_identity(case), {})[steps] = row
        else:
            taught.setdefault((_identity(case), content_hash(how)), {})[steps] = row
    several = len({how for _, how in taught}) > 1
    return [
        Conversion(
            label=_label(next(iter(found.values())).results[0], several=several),
            series=places[id(next(iter(found.values())).results[0])],
            converted=dict(sorted(found.items())),
            scratch=dict(sorted(untaught.get(identity, {}).items())),
            teacher=_teacher(next(iter(found.values())).results[0], rows),
        )
        for (identity, _), found in taught.items()
    ]


def conversion_tables(results: Sequence[Result]) -> list[Table]:
    """Return quality against steps: by class accuracy and by the first distance, where there are any."""
    found = conversions(results)
    tables = [_table(found, quantity) for quantity in _quantities(results)] if found else []
    return [table for table in tables if table is not None]


def first_quantity(results: Sequence[Result]) -> Quantity | None:
    """Return what charts of conversions show: class accuracy, or else the first distance."""
    return next(iter(_quantities(results)), None)


def mean_of(configuration: Configuration | None, quantity: Quantity) -> float | None:
    """Return a quantity's mean over seeds; None where no seed has a finite one."""
    values = [] if configuration is None else finite_values(configuration, quantity)
    return statistics.fmean(values) if values else None


def finite_values(configuration: Configuration, quantity: Quantity) -> list[float]:
    """Return a quantity's finite value of each seed."""
    return [v for v in seed_values(configuration, quantity.name).values() if math.isfinite(v)]


def _quantities(results: Sequence[Result]) -> list[Quantity]:
    names = {m.name for result in results for m in result.measurements if m.values}
    known = [ACCURACY] if ACCURACY.name in names else []
    return known + [q for q in quality_quantities(results) if q.better == "lower"][:1]


def _table(found: Sequence[Conversion], quantity: Quantity) -> Table | None:
    converted = sorted({steps for one in found for steps in one.converted})
    scratch = sorted({steps for one in found for steps in one.scratch})
    columns: list[FilledColumn] = [
        (Column(title="Attention", numeric=False), [text_cell(c.label) for c in found])
    ]
    for steps in converted:
        columns.append(
            _column(quantity, f"Converted, {steps:,} steps", [c.converted.get(steps) for c in found])
        )
    for steps in scratch:
        columns.append(
            _column(quantity, f"From scratch, {steps:,} steps", [c.scratch.get(steps) for c in found])
        )
    if all(cell.value is None for _, cells in columns[1:] for cell in cells):
        return None
    notes: list[str] = []
    if scratch:
        columns.append(
            (_words(f"Reaches {scratch[-1]:,} steps from scratch"), [_reached(c, quantity) for c in found])
        )
        columns.append(_shares(found))
        notes += _summary(found, quantity, scratch[-1])
    notes += _of_teachers(found, quantity)
    heads = [RowHead(series=one.series) for one in found]
    name = "class accuracy" if quantity is ACCURACY else quantity.title
    return assemble(f"Conversion: {name} against steps", columns, heads, tuple(map(plain, notes)))


def _column(quantity: Quantity, title: str, rows: Sequence[Configuration | None]) -> FilledColumn:
    lines = [None if row is None else configuration_line(row, (), 0) for row in rows]
    entries = [Entry() if line is None else replace(line.entry(quantity), beside=None) for line in lines]
    column = replace(quantity_column(quantity, entries), title=title, group="")
    return column, quantity_cells(quantity, entries, [False] * len(entries))


def reached_at(one: Conversion, quantity: Quantity) -> int | None:
    """Return the fewest steps at which a converted model is as good as the longest training from scratch.

    By means over seeds. None where none is, or where one of the two is unknown.
    """
    target = _target(one, quantity)
    if target is None:
        return None
    means = ((steps, mean_of(row, quantity)) for steps, row in one.converted.items())
    return next(
        (steps for steps, mean in means if mean is not None and _gap(mean, target, quantity) <= 0), None
    )


def _reached(one: Conversion, quantity: Quantity) -> Cell:
    target = _target(one, quantity)
    best = mean_of(next(reversed(one.converted.values())), quantity)
    if target is None or best is None:
        return text_cell(MISSING)
    steps = reached_at(one, quantity)
    if steps is not None:
        return text_cell(f"at {steps:,} steps")
    return text_cell(
        "no", f"{_gap(best, target, quantity):.3g} short at {next(reversed(one.converted)):,} steps"
    )


def _target(one: Conversion, quantity: Quantity) -> float | None:
    return mean_of(next(reversed(one.scratch.values()), None), quantity)


def _gap(value: float, target: float, quantity: Quantity) -> float:
    """Return by how much a value is worse than another."""
    return target - value if quantity.better == "higher" else value - target


def _shares(found: Sequence[Conversion]) -> FilledColumn:
    """Return the training MACs of the longest conversion over those of the longest training from scratch."""
    shares = []
    for one in found:
        ours = training_macs(next(reversed(one.converted.values())).results[0])
        last = next(reversed(one.scratch.values()), None)
        theirs = None if last is None else training_macs(last.results[0])
        shares.append(ours / theirs if ours and theirs else None)
    cells = [
        Cell() if share is None else Cell(text=f"{100 * share:.0f} %", value=100 * share) for share in shares
    ]
    return Column(title="Training MACs, share of that"), cells


def _summary(found: Sequence[Conversion], quantity: Quantity, steps: int) -> list[str]:
    compared = [one for one in found if _target(one, quantity) is not None]
    short = [one.label for one in compared if reached_at(one, quantity) is None]
    if not compared:
        return []
    reach = f"{len(compared) - len(short)} of {len(compared)} reach, converted,"
    more = f" and {len(short) - _FEW} more" if len(short) > _FEW else ""
    rest = f"; not: {', '.join(short[:_FEW])}{more}." if short else "."
    return [
        f"{reach} what {steps:,} steps from scratch reach (by means over seeds){rest}",
        "The training MACs of a conversion have the teacher's forward passes in them, not its own training.",
    ]


def _of_teachers(found: Sequence[Conversion], quantity: Quantity) -> list[str]:
    told: dict[str, None] = {}
    for one in found:
        mean = mean_of(one.teacher, quantity)
        if one.teacher is not None and mean is not None:
            values = finite_values(one.teacher, quantity)
            spread = (
                f", sd {statistics.stdev(values):.3g} over {len(values)} seeds" if len(values) > 1 else ""
            )
            told[f"Teacher: {one.teacher.label}: {mean:.3f}{spread}."] = None
    return list(told)


def _teacher(taught: Result, rows: Sequence[Configuration]) -> Configuration | None:
    """Return the configuration of the case that teaches a result, where it is of the same results."""
    case = (taught.case.get("teacher") or {}).get("case")
    if not case:
        return None
    for row in rows:
        for result in row.results:
            if (result.label, result.suite, result.case.get("train")) == (
                case.get("label"), case.get("suite"), case.get("train"),
            ):  # fmt: skip
                return row
    return None


def _identity(case: Mapping[str, Any]) -> str:
    """Return a hash of what a taught case and the ones it is compared with have in common."""
    kept = {key: value for key, value in case.items() if key not in _APART}
    train = kept.get("train", {})
    kept["train"] = {
        key: value for key, value in train.items() if key not in ("teacher", "steps", "init_from")
    }
    return content_hash(kept)


def _label(result: Result, *, several: bool) -> str:
    """Return a case's label without its steps and its seed, and without its teacher where all have one."""
    axes = result.axes
    gone = {f"steps={axes['steps']}"} if "steps" in axes else set()
    gone |= {axes["teacher"]} if "teacher" in axes and not several else set()
    parts = [part for part in label_without_seed(result).split(" · ") if part not in gone]
    return " · ".join(parts) or result.label


def _steps(result: Result) -> int | None:
    steps = result.case.get("train", {}).get("steps")
    return int(steps) if steps else None


def _words(title: str) -> Column:
    return Column(title=title, numeric=False)
