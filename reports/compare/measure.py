"""What `attnbench compare` calls a difference where there is none, and what it finds, simulated.

    python reports/compare/measure.py [--draws 1000]

A table has 18 comparisons: six cases with two metrics over three seeds, and six latencies in two sessions of
twelve rounds. Values are drawn from the model the tests assume; rounds are heavy-tailed as well (Student's t,
4 degrees of freedom), which no test assumes.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

from attnbench.report.compare.compared import Compared
from attnbench.report.compare.differences import new_row, row_over_seeds, with_verdicts
from attnbench.report.compare.matching import Pair
from attnbench.report.compare.records import ComparedQuantity
from attnbench.report.compare.rounds import compare_rounds
from attnbench.report.configurations import Configuration
from attnbench.report.quantities import LATENCY, Quantity
from attnbench.results import Environment, Measurement, Result

CASES, SEEDS, ROUNDS = 6, 3, 12
METRICS = ("FD-digits", "IS-digits")
SEED_SPREAD, REST, ROUND_SPREAD = 0.3, 0.2, 0.02
CALLED = ("faster", "slower", "better", "worse")
_PLACE = Environment(
    python="", platform="", cpu="", cpu_count=1, threads=1, memory_gib=1, device="cpu", packages={},
    git_commit="", git_dirty=False,
)  # fmt: skip
_CASE = Configuration(
    label="case",
    results=(Result(case_id="", suite="", label="case", status="ok", environment=_PLACE),),
)
_PAIR = Pair(base=_CASE, base_letter="A", other=_CASE, letter="B")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Of so many tables, in how many something was called."""

    adjusted: int
    alone: int
    """Without an adjustment for the number of comparisons."""
    first: int
    """In how many the row was that carries what is planted."""
    draws: int


def table(
    draw: int, *, shift: float = 0.0, factor: float = 1.0, heavy: bool = False
) -> list[ComparedQuantity]:
    """Return one table; `shift` is added to one metric of one case, its latency is multiplied by `factor`."""
    rng = random.Random(draw)
    rows = []
    for name in METRICS:
        mood = [rng.gauss(10, SEED_SPREAD) for _ in range(SEEDS)]
        values = [{s: mood[s] + rng.gauss(0, REST) for s in range(SEEDS)} for _ in range(2 * CASES)]
        if name == METRICS[0]:
            values[0] = {seed: value + shift for seed, value in values[0].items()}
        for i in range(0, 2 * CASES, 2):
            others = values[:i] + values[i + 2 :]
            rows.append(row_over_seeds(_PAIR, _metric(name), values[i], values[i + 1], others))
    for case in range(CASES):
        scale = factor if case == 0 else 1.0
        ours, theirs = (_latency(rng, level, heavy) for level in (2 * scale, 2.0))
        found = compare_rounds(ours, theirs)
        known = {"ratio": found.ratio, "ratio_interval": found.interval, "p": found.p, "basis": found.basis}
        quantity = Compared(name=LATENCY.name, group="latency", quantity=LATENCY)
        rows.append(new_row(_PAIR, quantity, theirs.value, ours.value, **known))
    return with_verdicts(rows, 0.05, 0.0, 0.0)  # no margin: here nothing differs between processes


def count(draws: int, first: int = 0, **planted: Any) -> Counted:
    """Return in how many tables something is called; `first` is the row that is looked at by itself."""
    tables = [table(draw, **planted) for draw in range(draws)]
    return Counted(
        adjusted=sum(any(row.verdict in CALLED for row in rows) for rows in tables),
        alone=sum(any((row.p or 0) < 0.05 for row in rows) for rows in tables),
        first=sum(rows[first].verdict in CALLED for rows in tables),
        draws=draws,
    )


def _metric(name: str) -> Compared:
    better = "higher" if name.startswith("IS") else "lower"
    return Compared(name=name, group="quality", quantity=Quantity(name=name, title=name, better=better))


def _latency(rng: random.Random, level: float, heavy: bool) -> Measurement:
    values = [level * (1 + ROUND_SPREAD * _draw(rng, heavy)) for _ in range(ROUNDS)]
    rounds = [[value] for value in values]
    return Measurement(
        name=LATENCY.name,
        values=values,
        rounds=rounds,
        clean_rounds=[True] * ROUNDS,
        session=str(rng.random()),
    )


def _draw(rng: random.Random, heavy: bool) -> float:
    """Draw from a normal distribution, or from Student's t with 4 degrees of freedom."""
    return rng.gauss(0, 1) / (rng.gammavariate(2, 0.5) ** 0.5 if heavy else 1)


def main() -> None:
    """Print the table of the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    for rounds, heavy in (("normal", False), ("heavy-tailed", True)):
        found = count(draws, heavy=heavy)
        print(f"nothing differs, {rounds} rounds: a call in {found.adjusted / draws:.1%} of tables, "
              f"unadjusted in {found.alone / draws:.0%}")  # fmt: skip
    for spreads in (1, 2, 3):
        found = count(draws, shift=spreads * (SEED_SPREAD**2 + REST**2) ** 0.5)
        print(f"a metric moved by {spreads} spreads over seeds: found in {found.first / draws:.0%}")
    for percent in (2, 5, 10):
        found = count(draws, first=len(METRICS) * CASES, factor=1 + percent / 100)
        print(f"a case {percent} % slower, without a margin: found in {found.first / draws:.0%}")


if __name__ == "__main__":
    main()
