"""Which measurements are compared, in which groups, by which words, and by which names people call them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from attnbench.errors import UserInputError, did_you_mean
from attnbench.report.compare.records import Group, Verdict
from attnbench.report.quantities import (
    ACCURACY,
    DIAGNOSIS,
    LATENCY,
    LIVE_MEMORY,
    PEAK_MEMORY,
    QUALITY,
    RESOLVED,
    SIZE,
    TRAINING,
    Quantity,
    is_quality,
    other_names,
    quality_quantities,
    separability_quantities,
    unresolved,
)
from attnbench.results import Result

GROUPS: tuple[Group, ...] = (
    "quality", "loss", "latency", "memory", "size", "training", "sampling", "inside", "other",
)  # fmt: skip
ASKED_FOR: tuple[Group, ...] = ("inside",)
"""Compared only where `--only` names it: a diagnosis changes no other number, nor how it is adjusted."""
TIMES: tuple[Group, ...] = ("latency", "training", "sampling")
INSIDE = tuple(quantity for quantity in DIAGNOSIS if quantity.name.startswith("diagnose:"))
_BY_NAME: dict[str, Group] = {
    "final_loss": "loss",
    "held_out_loss": "loss",
    "train_time_s": "training",
    "step_time_ms": "training",
    "sample_time_s": "sampling",
}
_SYNONYMS = {"accuracy": "class_accuracy", "step_time": "step_time_ms", "train_time": "train_time_s",
             "training-time": "train_time_s", "sample_time": "sample_time_s"}  # fmt: skip
_FAMILIES = {"FID": "FD", "KID": "KD", "Precision": "P", "Recall": "R"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One measurement that is compared."""

    name: str
    """With its resolution, where it has one."""
    group: Group
    quantity: Quantity

    @property
    def title(self) -> str:
        """How tables call it."""
        side = RESOLVED.match(self.name)
        return f"{self.quantity.title} at {side['resolution']} px" if side else self.quantity.title

    @property
    def unit(self) -> str:
        """The unit that is shown."""
        return self.quantity.unit

    @property
    def called(self) -> set[str]:
        """Return every name it goes by on the command line, in small letters."""
        base = unresolved(self.name)
        names = {self.name, base, self.group}
        if self.group in ("latency", "memory", "size"):
            short = "macs" if base.startswith("macs") else self.group if self.group != "size" else base
            names |= {short, self.name.replace(base, short)}
        names.add(self.name.removeprefix("diagnose:"))
        if match := QUALITY.match(self.name):
            spatial = "s" * match["family"].startswith("s")
            family = match["family"].removeprefix("s")
            family = _FAMILIES.get(family, family)
            names |= {spatial + family, *(spatial + n for n, same in _FAMILIES.items() if same == family)}
        names |= {short for short, long in _SYNONYMS.items() if long == base}
        return {name.casefold() for name in names}


def verdict_of(group: Group, worse: bool) -> Verdict:
    """Return what a sure difference is called, for the worse or for the better."""
    if group in TIMES:
        return "slower" if worse else "faster"
    if group in ("memory", "size", "inside"):
        return "more" if worse else "less"
    return "worse" if worse else "better"


def compared_quantities(results: Iterable[Result]) -> list[Compared]:
    """Return what can be compared of these results: quality, losses, costs, then what plugins measured.

    Floors, spreads and counts of what went wrong are no quantities of a case. Of the memories the live one,
    of older results the peak.
    """
    results = list(results)
    names = dict.fromkeys(m.name for r in results for m in r.measurements if m.values)
    found = [Compared(name=q.name, group="quality", quantity=q) for q in quality_quantities(results)]
    found += [Compared(name=ACCURACY.name, group="quality", quantity=ACCURACY)] * (ACCURACY.name in names)
    found += [Compared(name=q.name, group="quality", quantity=q) for q in separability_quantities(results)]
    known = {q.name: q for q in TRAINING}
    found += [Compared(name=n, group="loss", quantity=known[n]) for n in _of("loss") if n in names]
    older = not any(unresolved(name) == LIVE_MEMORY.name for name in names)
    resolved: list[tuple[Quantity, Group]] = [
        (LATENCY, "latency"), (PEAK_MEMORY if older else LIVE_MEMORY, "memory"), *((q, "size") for q in SIZE)
    ]  # fmt: skip
    for quantity, group in resolved:
        better = replace(quantity, better="lower")
        sides = sorted((n for n in names if unresolved(n) == quantity.name), key=_side)
        found += [Compared(name=name, group=group, quantity=better) for name in sides]
    for group in ("training", "sampling"):
        found += [Compared(name=n, group=group, quantity=known[n]) for n in _of(group) if n in names]
    found += [Compared(name=q.name, group="inside", quantity=q) for q in INSIDE if q.name in names]
    by_name = {m.name: m for r in results for m in r.measurements}
    for name in other_names(results):
        if by_name[name].better != "none" and name in names and not _is_time(name):
            unit, direction = by_name[name].unit, by_name[name].better
            plugin = Quantity(name=name, title=name, unit=unit, better=direction, significant=True)
            found.append(Compared(name=name, group="other", quantity=plugin))
    return found


def select(names: Sequence[str], quantities: Sequence[Compared], option: str) -> list[Compared]:
    """Return the quantities that any of the names stands for; raises UserInputError for one that none has."""
    for name in names:
        called = set().union(*(quantity.called for quantity in quantities))
        if name.casefold() not in called:
            raise UserInputError(
                f"{option}: {name!r} is no quantity that these runs have"
                f"{did_you_mean(name.casefold(), called)}; available: {', '.join(available(quantities))}"
            )
    wanted = {name.casefold() for name in names}
    return [quantity for quantity in quantities if quantity.called & wanted]


def available(quantities: Sequence[Compared]) -> list[str]:
    """Return the names one may write: groups, then measurements."""
    groups = [group for group in GROUPS if any(q.group == group for q in quantities)]
    return list(dict.fromkeys([*groups, *(q.name for q in quantities)]))


def _of(group: Group) -> list[str]:
    return [name for name, member in _BY_NAME.items() if member == group]


def _side(name: str) -> int:
    match = RESOLVED.match(name)
    return int(match["resolution"]) if match else 0


def _is_time(name: str) -> bool:
    """Tell the times that only explain others: warm and CPU time of the passes, rates of training."""
    return unresolved(name) in ("warm_latency_ms", "cpu_time_ms", "train_images_per_s") or is_quality(name)
