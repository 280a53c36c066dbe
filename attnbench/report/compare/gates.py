"""`--fail-on 'latency>5%,FID>1'`: which regressions make a comparison fail."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.errors import UserInputError
from attnbench.report.compare.compared import Compared, select
from attnbench.report.compare.records import REGRESSIONS, ComparedQuantity, GateOutcome
from attnbench.report.tables import significant

_GATE = re.compile(r"(?P<name>[^<>=%\s]+)\s*>\s*(?P<amount>\d+(\.\d+)?|\.\d+)\s*(?P<percent>%?)")
_FORM = "--fail-on takes QUANTITY>AMOUNT or QUANTITY>AMOUNT%, separated by commas, such as 'latency>5%,FID>1'"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition: fail where a quantity has become worse by more than an amount."""

    name: str
    amount: float
    """In the stored unit, or a share of the base."""
    relative: bool

    def __str__(self) -> str:
        """Return the condition as it is written."""
        amount = 100 * self.amount if self.relative else self.amount
        return f"{self.name}>{amount:.12g}{'%' * self.relative}"


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A quantity that the base has and the other run has not."""

    name: str
    said: str
    worse: bool = False
    """Whether that is a regression by itself: the case failed, or diverged."""


def parse_gates(text: str) -> list[Gate]:
    """Read conditions; raises UserInputError naming the first that is none.

    >>> [str(gate) for gate in parse_gates("latency@256 > 5 %, FID>1")]
    ['latency@256>5%', 'FID>1']
    """
    gates = []
    for part in text.split(","):
        found = _GATE.fullmatch(part.strip())
        if found is None:
            raise UserInputError(f"{_FORM}; got {part.strip()!r} in {text!r}")
        amount = float(found["amount"])
        relative = bool(found["percent"])
        if not math.isfinite(amount):
            raise UserInputError(f"{_FORM}; the amount in {part.strip()!r} is too large for a number")
        gates.append(Gate(name=found["name"], amount=amount / 100 if relative else amount, relative=relative))
    return gates


def check_gates(gates: Sequence[Gate], quantities: Sequence[Compared]) -> None:
    """Raise UserInputError for a gate on what is not compared: it would pass whatever happens."""
    for gate in gates:
        select([gate.name], quantities, "--fail-on")


def judge(
    gate: Gate,
    rows: Sequence[ComparedQuantity],
    quantities: Sequence[Compared],
    gone: Sequence[Lost] = (),
) -> GateOutcome:
    """Return which rows trip a gate.

    A row trips it where the regression is beyond the amount for sure: its verdict is one, and the near end of
    its interval lies beyond. What is counted, or was measured once and so has no interval, is taken at its
    value; a time that was disturbed, or has too few rounds, is not decided. What failed or is not finite
    where the base has a value trips it, too; what was not measured is not decided.
    """
    names = {quantity.name for quantity in select([gate.name], quantities, "--fail-on")}
    tripped, undecided, held = [], [], 0
    several = len({row.run for row in rows}) > 1
    for row in (row for row in rows if row.name in names):
        where = f"{row.case}: {row.title}" + (f" in {row.run}" if several else "")
        where += f" at a budget of {row.at:.4g}" if row.at is not None else ""
        reason = _undecidable(row, gate)
        if reason:
            undecided.append(f"{where}: {reason}")
        elif _is_regression(row) and _near_end(row, gate.relative) > gate.amount:
            tripped.append(f"{where}: {_said(row)}")
        else:
            held += 1
    tripped += [one.said for one in gone if one.name in names and one.worse]
    undecided += [one.said for one in gone if one.name in names and not one.worse]
    return GateOutcome(gate=str(gate), tripped=tripped, held=held, undecided=undecided)


def _undecidable(row: ComparedQuantity, gate: Gate) -> str:
    if row.group == "latency" and row.verdict == "not tested":
        return row.why
    if gate.relative and row.base <= 0:
        return f"no share of {row.base:g}; give the amount without %"
    return ""


def _is_regression(row: ComparedQuantity) -> bool:
    return row.verdict in REGRESSIONS or (row.verdict == "not tested" and row.regression > 0)


def _near_end(row: ComparedQuantity, relative: bool) -> float:
    """Return the least regression the interval allows, in the stored unit or as a share of the base."""
    lower = row.better == "lower"
    if row.ratio_interval is not None:
        share = row.ratio_interval[0] - 1 if lower else 1 - row.ratio_interval[1]
        return share if relative else share * row.base
    if row.difference_interval is not None:
        least = row.difference_interval[0] if lower else -row.difference_interval[1]
    else:
        least = row.regression
    return least / row.base if relative else least


def _said(row: ComparedQuantity) -> str:
    values = f"{significant(row.base)} to {significant(row.value)}"
    if row.ratio_interval is not None and row.ratio is not None:
        low, high = (significant(end, 3) for end in row.ratio_interval)
        return f"{row.verdict}, {values}, × {significant(row.ratio, 3)} ({low} to {high})"
    if row.difference_interval is not None:
        low, high = (significant(end, 3) for end in row.difference_interval)
        return f"{row.verdict}, {values}, by {significant(row.difference, 3)} ({low} to {high})"
    once = "" if row.basis == "counted" else ", measured once"
    return f"{values}{once}"
