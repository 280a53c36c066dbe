"""A whole comparison: pairs, what must be alike, every quantity, the verdicts, the gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.errors import UserInputError, all_or_nearest
from attnbench.report.compare.compared import ASKED_FOR, GROUPS, Compared, compared_quantities, select
from attnbench.report.compare.conditions import said_apart, unlike, unlike_n
from attnbench.report.compare.differences import (
    ALPHA,
    SESSION_MARGIN,
    TIME_MARGIN,
    compare_quantity,
    lost,
    seed_values,
    with_verdicts,
)
from attnbench.report.compare.gates import Gate, check_gates, judge
from attnbench.report.compare.matching import Matched, Pair, match_cases, match_runs
from attnbench.report.compare.reading import Side
from attnbench.report.compare.records import ComparedQuantity, RunComparison


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be compared, and how strictly."""

    cases: tuple[str, ...] = ()
    against: str | None = None
    only: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    alpha: float = ALPHA
    time_margin: float = TIME_MARGIN
    session_margin: float = SESSION_MARGIN
    force: bool = False


def compare(sides: Sequence[Side], wanted: Wanted) -> RunComparison:
    """Compare every case of the other runs with its counterpart in the first, or cases within one run.

    Raises UserInputError where runs are not alike (unless forced), and for names that are not there.
    """
    if len(sides) == 1 and wanted.against is None:
        raise UserInputError(
            "one run is named; compare takes two or more, or one with --case LABEL --against LABEL: cases "
            f"of {sides[0].name}: {all_or_nearest('', [c.label for c in sides[0].cases])}"
        )
    matched = _matched(sides, wanted)
    quantities = quantities_of(matched.pairs, wanted.only)
    known = compared_quantities(result for side in sides for result in side.results)
    check_gates(wanted.gates, known)
    rows: list[ComparedQuantity] = []
    left_out = [*matched.left_out, *_unfinished(matched.pairs)]
    cases = {id(c): c for pair in matched.pairs for c in (pair.base, pair.other)}
    for quantity in quantities:
        values = {key: seed_values(case, quantity.name) for key, case in cases.items()}
        contents = {key: tuple(of_case.items()) for key, of_case in values.items()}
        distinct = {contents[key]: of_case for key, of_case in values.items()}  # a copy is no observation
        for pair in matched.pairs:
            own = (contents[id(pair.base)], contents[id(pair.other)])
            others = [of_case for content, of_case in distinct.items() if content not in own]
            found = compare_quantity(pair, quantity, others)
            if isinstance(found, ComparedQuantity):
                rows.append(found)
            elif found:
                left_out.append(found)
    gone = [one for quantity in known for pair in matched.pairs if (one := lost(pair, quantity))]
    rows = with_unlike(matched.pairs, quantities, rows, force=wanted.force)
    rows = with_verdicts(rows, wanted.alpha, wanted.time_margin, wanted.session_margin)
    return RunComparison(
        runs=[side.record for side in sides],
        alpha=wanted.alpha,
        time_margin=wanted.time_margin,
        session_margin=wanted.session_margin,
        rows=rows,
        left_out=left_out,
        notes=said_apart(matched.pairs),
        gates=[judge(gate, rows, known, gone) for gate in wanted.gates],
    )


def quantities_of(pairs: Sequence[Pair], only: Sequence[str]) -> list[Compared]:
    """Return what the cases of the pairs have, or those of it that are asked for."""
    configurations = [c for pair in pairs for c in (pair.base, pair.other)]
    quantities = compared_quantities(result for c in configurations for result in c.results)
    if only and quantities:
        return select(only, quantities, "--only")
    return [quantity for quantity in quantities if quantity.group not in ASKED_FOR]


def _matched(sides: Sequence[Side], wanted: Wanted) -> Matched:
    if wanted.against is None:
        return match_runs(sides, wanted.cases)
    if len(sides) > 2:
        raise UserInputError(f"--against takes one run or two, got {len(sides)}; leave some out")
    return match_cases(sides, wanted.cases, wanted.against)


def _unfinished(pairs: Iterable[Pair]) -> list[str]:
    found = {
        f"{result.label} in {letter}: {result.status}: {result.reason or 'no reason recorded'}"
        for pair in pairs
        for letter, c in ((pair.base_letter, pair.base), (pair.letter, pair.other))
        for result in c.results
        if result.status != "ok"
    }
    return sorted(found)


def with_unlike(
    pairs: Sequence[Pair],
    quantities: Sequence[Compared],
    rows: Sequence[ComparedQuantity],
    *,
    force: bool,
    evened_out: Sequence[str] = (),
    same_machine: bool = False,
) -> list[ComparedQuantity]:
    """Return the rows with what is not alike written to them; raises UserInputError unless that is forced.

    `evened_out` are settings that may differ, since values are taken at an equal budget; `same_machine`:
    that budget is a time, so other hardware spoils every quantity.
    """
    of_pair = {id(p): [u for u in unlike(p) if u.what not in evened_out] for p in pairs}
    by_name = {quantity.name: quantity for quantity in quantities}
    by_place = {(pair.letter, pair.label, pair.base.label): pair for pair in pairs}
    marked, found = [], dict[str, set[str]]()
    for row in rows:
        pair, quantity = by_place[row.run, row.case, row.against], by_name[row.name]
        concerned = [
            one.words(pair)
            for one in (*of_pair[id(pair)], *unlike_n(pair, quantity))
            if one.concerns(quantity) or (same_machine and one.of_machine)
        ]
        for said in concerned:
            found.setdefault(said, set()).add(row.group)
        marked.append(row.model_copy(update={"unlike": concerned}))
    if found and not force:
        raise UserInputError(_refusal(found, rows))
    return marked


def _refusal(found: dict[str, set[str]], rows: Sequence[ComparedQuantity]) -> str:
    """Say what is not alike, what it spoils, and what can be done."""
    spoiled = set().union(*found.values())
    lines = [
        f"  {said} (not comparable: {', '.join(g for g in GROUPS if g in groups)})"
        for said, groups in found.items()
    ]
    alike = [group for group in GROUPS if group not in spoiled and any(r.group == group for r in rows)]
    step = f"--only {','.join(alike)} compares what is alike, " if alike else ""
    return (
        "the runs are not alike:\n" + "\n".join(lines) + f"\n{step}--force compares all and marks those rows"
    )
