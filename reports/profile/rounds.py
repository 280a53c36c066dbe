"""How often a latency's interval holds the latency, and how often a verdict is wrong, by simulation.

Two cases are timed in turns. Each round of each case drifts by 2 % of its own and, with the other's round
beside it, by 2 % of the machine's; samples scatter by 1 % within a round, one in 50 takes thrice as long;
one round in ten has to share its core, takes 1.3 times as long and is flagged. Rounds hold 15 to 60 samples.
The last rules add the luck of processes, 1.2 % each, whose ratio then differs by the 1.7 % that equal
attentions show (reports/instrument, planted). A minute on one core.

    python reports/profile/rounds.py
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import (
    LEAST_ROUNDS,
    ProfileRow,
    interval,
    is_clean,
    ranked,
    round_medians,
    to_measurements,
)
from attnbench.profiling.statistics import median_interval
from attnbench.report.timings import Ratio, rounds_interval, time_ratio
from attnbench.results import Measurement

OWN_DRIFT, SHARED_DRIFT, SCATTER = 0.02, 0.02, 0.01
SPIKES, SPIKE = 1 / 50, 3.0
SHARING, SLOWED = 1 / 10, 1.3
LEVEL = 10.0  # ms
# Spikes move the median of a round's samples to this quantile of those without: 0.03 % of the level.
TRUE = LEVEL * statistics.NormalDist(1, SCATTER).inv_cdf(0.5 / (1 - SPIKES))
MOST_ROUNDS = 40
LUCK = 0.012

Stop = Callable[[list[Round]], bool]


def after(count: int) -> Stop:
    """Return the rule of a session with so many rounds."""
    return lambda rounds: len(rounds) == count


def when_narrow(least: int) -> Stop:
    """Return a session's rule: until the interval of so many clean rounds or more is at most 5 % wide."""

    def stop(rounds: list[Round]) -> bool:
        chosen = ranked(rounds)
        medians = round_medians(chosen)
        found = interval(chosen) if _num_clean(rounds) >= least else None
        narrow = found is not None and found[1] - found[0] <= 0.05 * statistics.median(medians)
        return narrow or len(rounds) == MOST_ROUNDS

    return stop


@dataclass(frozen=True, kw_only=True)
class Processes:
    """So many processes, one after another, each with so many rounds and its own luck."""

    rounds: int
    luck: float = LUCK


NO_LUCK = Processes(rounds=MOST_ROUNDS, luck=0.0)
RULES: dict[str, tuple[Stop, Processes]] = {
    **{f"{count} rounds": (after(count), NO_LUCK) for count in (6, 9, 12, 24)},
    **{f"until 5 % wide, {least} clean": (when_narrow(least), NO_LUCK) for least in (LEAST_ROUNDS, 8)},
    "18 rounds, a process with luck": (after(18), Processes(rounds=18)),
    "15 rounds, five processes with luck": (after(15), Processes(rounds=3)),
}


def timed(seed: int, machine: int, level: float, stop: Stop, processes: Processes = NO_LUCK) -> Measurement:
    """Return the latency of one made-up case; cases with the same `machine` were timed side by side."""
    rng, moods = random.Random(f"case {seed}"), random.Random(f"machine {machine}")
    lucks = random.Random(f"processes {seed}")
    rounds: list[Round] = []
    luck = 1.0
    while not (rounds and stop(rounds)):
        process, begun = divmod(len(rounds), processes.rounds)
        luck = luck if begun else lucks.gauss(1, processes.luck)
        sharing = rng.random() < SHARING
        mood = (
            level * luck * rng.gauss(1, OWN_DRIFT) * moods.gauss(1, SHARED_DRIFT) * (SLOWED if sharing else 1)
        )
        samples = [
            mood * rng.gauss(1, SCATTER) * (SPIKE if rng.random() < SPIKES else 1)
            for _ in range(rng.randint(15, 60))
        ]
        rounds.append(_round(samples, waited=0.3 if sharing else 0.0, process=process))
    too_few = _num_clean(rounds) < min(LEAST_ROUNDS, len(rounds))
    row = ProfileRow(
        model="", resolution=8, tokens=16, device="cpu", precision="fp32", batch_size=1, session="s",
        rounds=rounds, disturbed="too few clean rounds" if too_few else "",
    )  # fmt: skip
    return next(m for m in to_measurements(row) if m.name == "latency_ms@8")


def _round(samples: list[float], waited: float, process: int) -> Round:
    return Round(
        latency_ms=samples, cpu_time_ms=samples, waited_share=[waited] * len(samples), process=process
    )


def _num_clean(rounds: list[Round]) -> int:
    return sum(map(is_clean, rounds))


def compared(seed: int, factor: float, stop: Stop, processes: Processes = NO_LUCK) -> Ratio:
    """Return the comparison of a case `factor` times as slow as the one beside it."""
    slow = timed(2 * seed, seed, factor * LEVEL, stop, processes)
    return time_ratio(slow, timed(2 * seed + 1, seed, LEVEL, stop, processes), same_environment=True)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one rule of stopping gives."""

    rounds: float
    """Mean number."""
    width: float
    """Median width of the intervals over rounds, relative to the latency."""
    covered: float
    covered_by_samples: float
    """What an interval covers that takes all samples as independent."""
    verdicts: dict[float, dict[str, float]]
    """Share of each verdict, by planted factor."""


def measure(
    stop: Stop, draws: int, factors: tuple[float, ...] = (1.0, 1.03, 1.1), processes: Processes = NO_LUCK
) -> Found:
    """Simulate one rule; a draw without an interval counts as one that does not cover."""
    rows = [timed(2 * seed, seed, LEVEL, stop, processes) for seed in range(draws)]
    over_rounds = [rounds_interval(row) for row in rows]
    pooled = [median_interval([t for r in row.rounds for t in r]) for row in rows]
    return Found(
        rounds=statistics.mean(len(row.rounds) for row in rows),
        width=statistics.median((i[1] - i[0]) / LEVEL for i in over_rounds if i),
        covered=sum(i is not None and i[0] <= TRUE <= i[1] for i in over_rounds) / draws,
        covered_by_samples=sum(i.low <= TRUE <= i.high for i in pooled) / draws,
        verdicts={
            factor: _shares([compared(s, factor, stop, processes).words for s in range(draws)])
            for factor in factors
        },
    )


def _shares(words: list[str]) -> dict[str, float]:
    return {word: words.count(word) / len(words) for word in sorted(set(words))}


def main() -> None:
    """Print one line per rule."""
    parser = argparse.ArgumentParser(description="Simulate coverage and verdicts.")
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    print(f"{draws} draws; standard error of a share of 5 %: {100 * (0.05 * 0.95 / draws) ** 0.5:.1f} points")
    print("rule | rounds | width | covers | as samples | verdicts at +0 % | at +3 % | at +10 %")
    for name, (stop, processes) in RULES.items():
        found = measure(stop, draws, processes=processes)
        shares = " | ".join(
            ", ".join(f"{word} {100 * share:.1f} %" for word, share in verdicts.items())
            for verdicts in found.verdicts.values()
        )
        print(
            f"{name} | {found.rounds:.1f} | {100 * found.width:.1f} % | {100 * found.covered:.1f} % | "
            f"{100 * found.covered_by_samples:.1f} % | {shares}",
            flush=True,
        )


if __name__ == "__main__":
    main()
