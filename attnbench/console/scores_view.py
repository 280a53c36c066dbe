"""What `attnbench evaluate` prints: metrics with their intervals, and the proofs of the self-test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from rich.cells import cell_len

from attnbench.console.listing import Listing, listing
from attnbench.report.quantities import SPREAD
from attnbench.report.tables import ARROWS, Cell, Column, Row, Table, significant, text_cell
from attnbench.results import Measurement

if TYPE_CHECKING:
    from attnbench.evaluation.reference import Reference
    from attnbench.evaluation.scorer import Scorer
    from attnbench.evaluation.self_test import Proof

_MOST_DECIMALS = 8
_LONGEST_NAME = 28  # characters of a set's name above its column; a longer one is told below the table


def scores_table(
    scorer: Scorer, reference: Reference, scored: Mapping[str, Sequence[Measurement]], more: Sequence[str]
) -> Table:
    """Return one row per metric and one column per scored set, with the notes a reader needs."""
    first = next(iter(scored.values()))
    main = [measurement for measurement in first if not measurement.name.endswith(SPREAD)]
    heads = _headings(list(scored))
    notes = [f"{head}: {name}" for head, name in zip(heads, scored, strict=True) if head != name]
    notes += [f"{m.name}: {m.note}" for m in main if m.note]
    notes += [
        f"reference: {reference.name}"
        + (f", {len(reference):,} images" if len(reference) else ", statistics alone")
        + (f"; {reference.gaussian_note}" if reference.gaussian_note else ""),
        "± is half of a 95 % interval over images at this n (METRICS.md); bias is not in it",
        *more,
        *(f"warning: {warning}" for warning in scorer.warnings),
    ]
    if scorer.suffix or scorer.settings.protocol != "adm":
        notes.append("warning: a name with a suffix or a prefix compares with no published number")
    counts = [f"{found[0].n:,}" if found[0].n else "" for found in scored.values()]
    columns = [Column(title=head, n=n, group="scores") for head, n in zip(heads, counts, strict=True)]
    return Table(
        title=f"{scorer.settings.extractor}, protocol {scorer.settings.protocol}",
        columns=(Column(title="metric", numeric=False), *columns),
        rows=tuple(
            Row(
                cells=(
                    text_cell(f"{m.name} {ARROWS[m.better]}"),
                    *(_score(s, m.name) for s in scored.values()),
                )
            )
            for m in main
        ),
        notes=tuple(notes),
    )


def _headings(names: Sequence[str]) -> list[str]:
    return [
        name if cell_len(name) <= _LONGEST_NAME else f"set {number}" for number, name in enumerate(names, 1)
    ]


def _score(found: Sequence[Measurement], name: str) -> Cell:
    """Return a metric's value, half its interval and, where it has one, its spread over subsets or splits."""
    by_name = {m.name: m for m in found}
    value, interval = by_name[name].value, by_name[name].interval
    spread = by_name.get(name + SPREAD)
    half = None if interval is None else (interval[1] - interval[0]) / 2
    text, *others = with_uncertainty(value, half, spread.value if spread else None)
    return Cell(text=text, value=value, detail=", ".join(others))


def with_uncertainty(value: float, half: float | None, spread: float | None = None) -> tuple[str, ...]:
    """Return a value, `± half` and `std spread`, all with as many decimals as give `half` two digits.

    Without an uncertainty, or with one of zero, the value has four digits.

    >>> with_uncertainty(0.0107812, 0.00437), with_uncertainty(153.21, 12.3, 4.0)
    (('0.0108', '± 0.0044'), ('153', '± 12', 'std 4'))
    """
    if half is None or not math.isfinite(half) or not half or not math.isfinite(value):
        shown = [] if half is None or not math.isfinite(half) else ["± 0"]
        return (significant(value), *shown, *([] if spread is None else [f"std {significant(spread, 2)}"]))
    decimals = min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(half))))
    others = [f"± {half:,.{decimals}f}"] + ([] if spread is None else [f"std {spread:,.{decimals}f}"])
    return (f"{value:,.{decimals}f}".replace("-", "−"), *others)


def self_test_listing(proofs: Sequence[Proof]) -> Listing:
    """Return every comparison with what it may differ by, and what did not run with its reason."""
    from attnbench.evaluation.self_test import Level

    ran = [proof for proof in proofs if proof.status != "not run"]
    counts = Counter(proof.status for proof in proofs)
    levels = [level for level in get_args(Level) if level in {proof.level for proof in ran}]
    notes = [
        "allowed: the largest difference that counts as agreement; of a relative distance, its limit",
        *(f"not run: {p.level}: {p.what}: {p.reason}" for p in proofs if p.status == "not run"),
        f"{counts['ok']} ok, {counts['failed']} failed, {counts['not run']} not run; levels that ran: "
        + (", ".join(levels) or "none"),
    ]
    columns = ("comparison", "status", "difference", "allowed", "ours", "theirs")
    rows = [
        (
            proof.what,
            proof.status,
            f"{proof.difference:.1e}" if proof.difference else "0",
            f"{proof.tolerance:.1e}" if proof.tolerance else "0",
            *(_digits(value) for value in (proof.ours, proof.theirs)),
        )
        for proof in ran
    ]
    return listing("self-test of the metrics", columns, rows, notes, numeric=columns[2:])


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
