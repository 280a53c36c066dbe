"""Is one case better than another at equal compute? Values at the same budget, along curves of trainings.

Losses are interpolated along each training's own curve. Quality is known at a training's end alone: it is
interpolated along a family of cases, such as one of several `train.steps`, and compared as it stands where
two trainings end at the same budget. Models of the same latency are found along a family of sizes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attnbench.errors import UserInputError, all_or_nearest
from attnbench.report.compare.budgets import (
    SAME,
    UNITS,
    Curve,
    budget,
    curve_of,
    missing,
    steps_for,
    training_curve,
)
from attnbench.report.compare.compared import Compared, compared_quantities, select
from attnbench.report.compare.comparing import Wanted, with_unlike
from attnbench.report.compare.differences import compare_quantity, new_row, row_over_seeds, with_verdicts
from attnbench.report.compare.gates import check_gates, judge
from attnbench.report.compare.matching import Pair, find_cases, finished
from attnbench.report.compare.reading import Side
from attnbench.report.compare.records import ComparedQuantity, Equal, RunComparison
from attnbench.report.configurations import Configuration, seed_of
from attnbench.report.quantities import TRAINING, Quantity
from attnbench.specs import content_hash

SHARES = (0.25, 0.5, 1.0)
"""Of the largest budget that both trainings reached, where their losses are compared."""
_EVENED_OUT: dict[Equal, tuple[str, ...]] = {
    "macs": ("train.steps", "train.batch_size"),
    "training-time": ("train.steps", "train.batch_size"),
    "steps": ("train.steps",),
    "latency": (),
}
_CURVES = (
    next(quantity for quantity in TRAINING if quantity.name == "held_out_loss"),
    Quantity(name="loss", title="Training loss", better="lower", decimals=4),
)


Budgets = dict[int, float]
Found = list[ComparedQuantity | str]


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A case with what it spent and reached, by seed."""

    configuration: Configuration
    budgets: Budgets
    values: Budgets


def compare_equal(sides: Sequence[Side], wanted: Wanted, equal: Equal) -> RunComparison:
    """Compare cases with the one they are held against, or its family, at an equal budget.

    Raises UserInputError where names are wrong, where a case has no budget, or where two are not alike.
    """
    pairs = _pairs(sides, wanted)
    for configuration in {id(c): c for pair in pairs for c in (pair.base, pair.other)}.values():
        _check_budget(configuration, equal)
    known = _quantities(pairs, equal)
    check_gates(wanted.gates, known)
    chosen = select(wanted.only, known, "--only") if wanted.only else known
    families = _families(pairs)
    found: Found = []
    for quantity in chosen:
        if quantity.quantity in _CURVES and equal != "latency":
            found += [row for pair in pairs for row in _along_training(pair, quantity, equal)]
        else:
            points = _points(pairs, quantity, equal)
            found += [_along_family(family, points, quantity, equal) for family in families]
    rows = with_unlike(
        pairs,
        chosen,
        [row for row in found if isinstance(row, ComparedQuantity)],
        force=wanted.force,
        evened_out=_EVENED_OUT[equal],
        same_machine=equal in ("latency", "training-time"),
    )
    rows = with_verdicts(rows, wanted.alpha, wanted.time_margin, wanted.session_margin)
    return RunComparison(
        runs=[side.record for side in sides],
        alpha=wanted.alpha,
        time_margin=wanted.time_margin,
        session_margin=wanted.session_margin,
        equal=equal,
        budget_unit=UNITS[equal],
        rows=rows,
        left_out=_together(reason for reason in found if isinstance(reason, str) and reason),
        gates=[judge(gate, rows, known) for gate in wanted.gates],
    )


def _together(reasons: Iterable[str]) -> list[str]:
    """Name all quantities that share a reason in front of it."""
    titles: dict[str, list[str]] = {}
    for title, _, reason in (said.partition(": ") for said in reasons):
        titles.setdefault(reason, []).append(title)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in titles.items()]


def _pairs(sides: Sequence[Side], wanted: Wanted) -> list[Pair]:
    """Return every case with every one of those it is held against; raises UserInputError."""
    if not wanted.cases or wanted.against is None:
        raise UserInputError(
            f"--equal compares --case LABEL with --against LABEL; cases of {sides[-1].name}: "
            + all_or_nearest("", [c.label for c in sides[-1].cases])
        )
    if len(sides) > 2:
        raise UserInputError(f"--equal takes one run or two, got {len(sides)}; leave some out")
    bases = find_cases(sides[0], [wanted.against])
    others = find_cases(sides[-1], wanted.cases)
    if len(sides) == 1:  # a pattern such as '*' means all the others
        own = {c.label for c in bases}
        if own.issuperset(c.label for c in others):
            raise UserInputError(
                f"--case and --against both name {others[0].label!r}; name different cases of a run"
            )
        others = [c for c in others if c.label not in own]
    return [
        Pair(base=a, base_letter=sides[0].letter, other=b, letter=sides[-1].letter)
        for b in others
        for a in bases
    ]


def _families(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Group pairs whose cases have one attention on each side: of others nothing lies between two points."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        found.setdefault((_attention_of(pair.other), _attention_of(pair.base)), []).append(pair)
    return list(found.values())


def _attention_of(configuration: Configuration) -> str:
    model = configuration.results[0].case.get("model", {})
    return content_hash(model.get("attention", configuration.label))


def _check_budget(configuration: Configuration, equal: Equal) -> None:
    results = finished(configuration)
    if not results:
        reason = configuration.results[0].reason or "no reason recorded"
        raise UserInputError(f"{configuration.label} did not finish: {reason}; run the suite again")
    for result in results:
        if not budget(result, equal):
            others = ", ".join(name for name in UNITS if name != equal and budget(result, name))
            raise UserInputError(
                f"--equal {equal}: {result.label} has {missing(result, equal)}; it can be compared by: "
                f"{others or 'nothing'}"
            )


def _quantities(pairs: Sequence[Pair], equal: Equal) -> list[Compared]:
    """Return what is told at equal budgets: quality, and losses along their curves or at the end."""
    results = [result for pair in pairs for c in (pair.base, pair.other) for result in c.results]
    found = [q for q in compared_quantities(results) if q.group in ("quality", "loss")]
    if equal == "latency":
        return found
    curves = [q for q in _CURVES if any(result.curves.get(q.name) for result in results)]
    return [
        *(q for q in found if q.group == "quality"),
        *(Compared(name=q.name, group="loss", quantity=q) for q in curves),
    ]


def _along_training(pair: Pair, quantity: Compared, equal: Equal) -> Found:
    """Compare two trainings at shares of the largest budget that both reached."""
    ours, theirs = (
        {seed_of(r): curve for r in finished(c) if (curve := training_curve(r, quantity.name, equal))}
        for c in (pair.other, pair.base)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return [f"{quantity.title}: no seed with a curve of both {pair.label} and {pair.base.label}"]
    curves = [curve for seed in seeds for curve in (ours[seed], theirs[seed])]
    largest = min(curve.range[1] for curve in curves)
    within = [share for share in SHARES if all(curve.covers(share * largest) for curve in curves)]
    if not within:
        return [_not_within(pair, quantity, equal, ours[seeds[0]], theirs[seeds[0]])]
    rows: Found = []
    for at in (share * largest for share in within):
        values = ({seed: side[seed].at(at) for seed in seeds} for side in (ours, theirs))
        rows.append(_row(pair, quantity, at, *values))
    return rows


def _row(pair: Pair, quantity: Compared, at: float, ours: Budgets, theirs: Budgets) -> ComparedQuantity:
    if len(ours) > 1:
        return row_over_seeds(pair, quantity, ours, theirs).model_copy(update={"at": at})
    (a,), (b,) = ours.values(), theirs.values()
    row = new_row(pair, quantity, b, a, at=at, seeds=list(ours))
    return row if row.verdict == "same" else row.model_copy(update={"why": "one seed"})


def _along_family(
    pairs: Sequence[Pair], points: Mapping[int, _Point], quantity: Compared, equal: Equal
) -> ComparedQuantity | str:
    """Compare what one case reached with what the other family reaches at the same budget.

    The case with the largest budget is held against the family that covers it: first of the cases asked
    about, then of those they are held against.
    """
    sides = [
        [points[key] for key in dict.fromkeys(map(id, cases))]
        for cases in ([pair.other for pair in pairs], [pair.base for pair in pairs])
    ]
    others, bases = ([point for point in side if point.values] for side in sides)
    if not others or not bases:
        return f"{quantity.title}: not measured in {'--case' if not others else '--against'}"
    if not set(_seeds(others)) & set(_seeds(bases)):
        ours, theirs = (", ".join(map(str, _seeds(side))) for side in (others, bases))
        return f"{quantity.title}: no seed in common: {ours} in --case, {theirs} in --against"
    for fixed, moving in ((others, bases), (bases, others)):
        for point in sorted(fixed, key=lambda p: -max(p.budgets.values())):
            every = tuple(points.values())
            row = _held_against(point, moving, every, pairs, quantity, ours_fixed=fixed is others)
            if row is not None:
                return row
    return _not_within(
        pairs[0], quantity, equal, *(_curve(side, _seeds(side)[0]) for side in (others, bases))
    )


def _held_against(
    point: _Point,
    family: Sequence[_Point],
    every: Sequence[_Point],
    pairs: Sequence[Pair],
    quantity: Compared,
    *,
    ours_fixed: bool,
) -> ComparedQuantity | str | None:
    """Return the row at a case's own budget; None where the family does not reach from below to above it.

    Where both end at that budget the variance over seeds is also of those others of `every` that do.
    """
    seeds = [seed for seed in point.values if seed in _seeds(family)]
    curves = {seed: _curve(family, seed) for seed in seeds}
    if not seeds or not all(curves[seed].covers(point.budgets[seed]) for seed in seeds):
        return None
    nearest = min(family, key=lambda p: abs(p.budgets[seeds[0]] - point.budgets[seeds[0]])
                  if seeds[0] in p.budgets else float("inf"))  # fmt: skip
    ours, theirs = (point, nearest) if ours_fixed else (nearest, point)
    pair = next(p for p in pairs if p.other is ours.configuration and p.base is theirs.configuration)
    at = statistics.fmean(point.budgets[seed] for seed in seeds)
    if _end_together(nearest, point, seeds):
        level = [p for p in every if _end_together(p, point, seeds)]
        others = _further(level, (nearest, point))
        row = compare_quantity(pair, quantity, others)
        return row.model_copy(update={"at": at}) if isinstance(row, ComparedQuantity) else row
    moved = {seed: curves[seed].at(point.budgets[seed]) for seed in seeds}
    known = {seed: point.values[seed] for seed in seeds}
    row = _row(pair, quantity, at, *((known, moved) if ours_fixed else (moved, known)))
    return row.model_copy(update={"why": ", ".join(filter(None, (row.why, "interpolated")))})


def _end_together(one: _Point, other: _Point, seeds: Sequence[int]) -> bool:
    return all(abs(one.budgets.get(seed, 0.0) / other.budgets[seed] - 1) <= SAME for seed in seeds)


def _further(points: Iterable[_Point], own: Iterable[_Point]) -> list[Budgets]:
    """Return the values by seed of points that are not `own`; a copy is no further observation."""
    found = {tuple(point.values.items()): point.values for point in points}
    for point in own:
        found.pop(tuple(point.values.items()), None)
    return list(found.values())


def _points(pairs: Sequence[Pair], quantity: Compared, equal: Equal) -> dict[int, _Point]:
    """Return of every case of the pairs, by its id, what it spent and reached."""
    cases = {id(c): c for pair in pairs for c in (pair.base, pair.other)}
    return {key: _point(case, quantity, equal) for key, case in cases.items()}


def _point(configuration: Configuration, quantity: Compared, equal: Equal) -> _Point:
    measured = {
        seed_of(r): (budget(r, equal), m.value)
        for r in finished(configuration)
        if (m := r.measurement(quantity.name)) and m.values
    }
    return _Point(
        configuration=configuration,
        budgets={seed: spent for seed, (spent, _) in measured.items() if spent},
        values={seed: value for seed, (spent, value) in measured.items() if spent},
    )


def _seeds(family: Sequence[_Point]) -> list[int]:
    return sorted({seed for point in family for seed in point.values})


def _curve(family: Sequence[_Point], seed: int) -> Curve:
    found = curve_of([(p.budgets[seed], p.values[seed]) for p in family if seed in p.values])
    return found or Curve(budgets=(float("inf"),), values=(float("nan"),))  # covers nothing


def _not_within(pair: Pair, quantity: Compared, equal: Equal, ours: Curve, theirs: Curve) -> str:
    """Say that the measured ranges do not meet, and which number of steps would make them."""
    said = f"{quantity.title}: not within the measured range: {pair.label} is known {_range(ours, equal)}, "
    said += f"{pair.base.label} {_range(theirs, equal)}"
    if equal == "latency":
        return f"{said}; add cases of other sizes, which --against 'PATTERN' takes together"
    steps = steps_for(finished(pair.base)[0], ours.range[1], equal)
    if quantity.name == "held_out_loss":
        return f"{said}; train.held_out_every adds points"
    return f"{said}; {pair.base.label} ends level with train.steps {steps:,}, a case to add"


def _range(curve: Curve, equal: Equal) -> str:
    low, high = (f"{end:.4g} {UNITS[equal]}" for end in curve.range)
    return f"at {high} alone" if len(curve.budgets) == 1 else f"from {low} to {high}"
