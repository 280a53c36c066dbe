"""What `attnbench plan` prints: every case, what is finished, what the rest takes, and what is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.console.listing import Listing, listing
from attnbench.storage.store import stages_of

if TYPE_CHECKING:
    from attnbench.running.plan import PlannedCase
    from attnbench.suite.loading import Suite

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 365 * 86_400


def plan_listing(suite: Suite, planned: Sequence[PlannedCase], warnings: Sequence[str]) -> Listing:
    """Return every case, and below them the sum, warnings, and why cases cannot run, each once."""
    total = duration(sum(c.time_s for c in planned)), _size(sum(c.disk_bytes for c in planned))
    notes = [
        f"{len(planned)} cases; about {total[0]} and {total[1]} to go on this machine",
        "estimates from closed-form multiply-adds and a quick matmul measurement; nothing was run",
        *dict.fromkeys(one.assumed for one in planned if one.assumed),
        *(f"warning: {line}" for line in warnings),
        *_reasons(planned),
    ]
    columns = ("case", "time left", "disk", "finished")
    rows = [_row(one) for one in planned]
    return listing(f"plan of {suite.name}", columns, rows, notes, numeric=("time left", "disk"))


def _row(one: PlannedCase) -> tuple[str, str, str, str]:
    cost = ("cannot run", "") if one.problem else (duration(one.time_s), _size(one.disk_bytes))
    everything = one.finished == stages_of(one.case)
    finished = "all" if everything else ", ".join(one.finished) or "nothing"
    return (one.case.label, *cost, finished)


def _reasons(planned: Sequence[PlannedCase]) -> list[str]:
    """Return what keeps cases from running, each reason once with the cases it is for."""
    from attnbench.suite.loading import of_cases

    affected: dict[str, list[str]] = {}
    for one in planned:
        for reason in (*one.missing, *([one.problem] if one.problem else [])):
            affected.setdefault(reason, []).append(one.case.label)
    if not affected:
        return []
    lines = [f"  {of_cases(labels, len(planned))}: {reason}" for reason, labels in affected.items()]
    return ["", "`attnbench run` cannot do this yet:", *lines]


def duration(seconds: float) -> str:
    """Return a time in the unit a person would choose.

    >>> duration(42), duration(2520), duration(200_000), duration(2_171_318_400)
    ('42 s', '42 min', '2.3 days', '69 years')
    """
    if seconds < 1.5 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    unit, name = (_DAY, "days") if seconds < _YEAR else (_YEAR, "years")
    count = seconds / unit
    return f"{count:.1f} {name}" if count < 10 else f"{count:,.0f} {name}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"
