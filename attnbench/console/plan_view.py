"""What `attnbench plan` prints: every case, what is finished, what the rest takes, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attnbench.console.listing import Listing, listing
from attnbench.storage.store import EVERY_STAGE, stages_of

if TYPE_CHECKING:
    from attnbench.running.machines import Machine
    from attnbench.running.plan import PlannedCase, PlannedProfile
    from attnbench.suite.loading import Suite

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 365 * 86_400
_LONG_S = 30 * _DAY
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def plan_listing(
    suite: Suite,
    planned: Sequence[PlannedCase],
    profile: PlannedProfile,
    warnings: Sequence[str],
    machine: Machine,
    skips: Mapping[str, Sequence[str]],
) -> Listing:
    """Return every case, and below them the sum, warnings, and why cases cannot run, each once."""
    notes = [
        _sum(planned, profile, machine),
        f"time: closed-form multiply-adds at the rate of {machine.said}; nothing was run",
        "MACs: of one image's forward pass; training: of all steps, each three forward passes of its batch",
        *_left_out(planned),
        *_memory_note(planned),
        *_elsewhere(planned, machine),
        *dict.fromkeys(text for one in planned for text in one.assumed),
        *(f"warning: {line}" for line in warnings),
        *reasons(_refused(planned), skips, len(planned)),
    ]
    columns = ("case", "MACs", "training", "time left", "disk", "memory", "finished")
    rows = [_row(one) for one in planned]
    return listing(f"plan of {suite.name}", columns, rows, notes, numeric=columns[1:6])


def stage_listing(planned: Sequence[PlannedCase], profile: PlannedProfile) -> Listing:
    """Return what each stage has left to do, with its time and disk, and the profile that all cases share."""
    rows: list[tuple[str, ...]] = []
    for stage in EVERY_STAGE:
        todo = [one for one in planned if stage in one.times_s]
        if not todo:
            continue
        times = [one.times_s[stage] for one in todo]
        time_left = "not estimated" if None in times else duration(sum(filter(None, times)))
        stored = sum(one.disk.get(stage, 0) for one in todo)
        size = "not estimated" if None in times and not stored else _size(stored)
        rows.append((stage, _number(len(todo), "case"), time_left, size))
    if profile.num_rows:
        rows.append(("profile", _number(profile.num_rows, "row"), duration(profile.time_s), _size(0)))
    return listing("stages", ("stage", "left", "time", "disk"), rows, numeric=("left", "time", "disk"))


def _sum(planned: Sequence[PlannedCase], profile: PlannedProfile, machine: Machine) -> str:
    """Say what all of it takes, of those cases that can be planned, and of how many that is."""
    fine = [one for one in planned if not one.problem]
    every = _number(len(planned), "case")
    if not fine:
        return f"{every}, none of which can run yet: there is nothing to add up"
    of_them = every if len(fine) == len(planned) else f"{every}, {len(fine)} of which can be planned"
    total_s = sum(one.time_s for one in fine) / machine.count + profile.time_s
    longest_s = max(one.time_s for one in fine) + profile.time_s
    size = _size(sum(one.disk_bytes for one in fine))
    where = "on this machine" if machine.is_here else f"on {_number(machine.count, 'GPU')}"
    shared = f", a case on each at a time (--jobs {machine.count})" if machine.count > 1 else ""
    return f"{of_them}; about {duration(max(total_s, longest_s))} and {size} to go {where}{shared}"


def _left_out(planned: Sequence[PlannedCase]) -> list[str]:
    """Say which stages have no estimate, and so are in no time above."""
    stages = [stage for stage in EVERY_STAGE if any(one.times_s.get(stage, 0) is None for one in planned)]
    return [f"not estimated, and in no time here: {', '.join(stages)}"] if stages else []


def _elsewhere(planned: Sequence[PlannedCase], machine: Machine) -> list[str]:
    if not machine.is_here or sum(one.time_s for one in planned) < _LONG_S:
        return []
    return ["on other machines: attnbench plan --assume h100x4 (or a100, h200, l40s, rtx4090)"]


def _row(one: PlannedCase) -> tuple[str, ...]:
    everything = one.finished == stages_of(one.case)
    finished = "all" if everything else ", ".join(one.finished) or "nothing"
    if one.problem:
        return (one.case.label, "", "", "cannot run", "", "", finished)
    cost = (in_si(one.macs), in_si(one.training_macs), duration(one.time_s), _size(one.disk_bytes))
    return (one.case.label, *cost, _memory(one), finished)


def _memory(one: PlannedCase) -> str:
    """Return what a case takes of the machine, and of its GPU."""
    need = one.memory
    if need is None:
        return "" if one.finished == stages_of(one.case) else "not estimated"
    return _size(need.estimate) + (f" + GPU {_size(need.gpu)}" if need.gpu else "")


def _memory_note(planned: Sequence[PlannedCase]) -> list[str]:
    if not any(one.memory for one in planned):
        return []
    return [
        "memory: of a case alone: its process, weights, gradients, AdamW's moments and averages, and what a "
        "training step keeps for its backward pass; not of networks that score images or encode them"
    ]


def _refused(planned: Sequence[PlannedCase]) -> dict[str, list[str]]:
    affected: dict[str, list[str]] = {}
    for one in planned:
        for reason in dict.fromkeys((*one.missing, *([one.problem] if one.problem else []))):
            affected.setdefault(reason, []).append(one.case.label)
    return affected


def reasons(
    refused: Mapping[str, Sequence[str]], skips: Mapping[str, Sequence[str]], num_cases: int
) -> list[str]:
    """Return what keeps cases from running, each reason once with the cases it is for."""
    from attnbench.suite.loading import of_cases

    lines = []
    others = {reason: labels for reason, labels in skips.items() if reason not in refused}
    for title, affected in (
        ("`attnbench run` cannot do this yet:", refused),
        ("`attnbench run` will have no result of these:", others),
    ):
        if affected:
            said = [f"  {of_cases(labels, num_cases)}: {reason}" for reason, labels in affected.items()]
            lines += ["", title, *said]
    return lines


def in_si(number: float) -> str:
    """Return a large count with three digits and a prefix.

    >>> in_si(6_060_000_000), in_si(1_234), in_si(999_999)
    ('6.06 G', '1.23 k', '1.00 M')
    """
    power = 0
    while number >= 999.5 and power < len(_PREFIXES) - 1:
        number, power = number / 1000, power + 1
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits if power else 0}f} {_PREFIXES[power]}".rstrip()


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


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
