"""How often the intervals of exponents and crossovers hold the truth, on made-up sessions with known growth.

    python reports/scaling/measure.py [--sessions 1000] [--rounds 6,12,24]

A session has two models at 256, 1024, 4096 and 16384 tokens, t = 0.1 n ms and t = 1e-4 n^2 ms, which cross at
1000 tokens. A round multiplies both by the machine's mood (5 %, shared) and each by noise of its own (3 %) of
median 1: log-normal, one-sided (exponential, as interruptions are) or heavy-tailed (Student's t of 3 degrees
of freedom). Prints the share of sessions whose 95 % interval holds the linear model's exponent (1), its
exponent between the two largest sizes (1) and the crossover.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from attnbench.profiling.crossovers import crossovers
from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import ProfileRow
from attnbench.profiling.scaling import scalings

SIDES = (256, 512, 1024, 2048)
MOOD, NOISE = 0.05, 0.03
Draw = Callable[[np.random.Generator, int], np.ndarray]
NOISES: dict[str, Draw] = {
    "log-normal": lambda rng, n: rng.standard_normal(n),
    "one-sided": lambda rng, n: rng.exponential(size=n) - math.log(2),
    "heavy-tailed": lambda rng, n: rng.standard_t(3, n),
}
CURVES: dict[str, Callable[[int], float]] = {"linear": lambda n: 0.1 * n, "square": lambda n: 1e-4 * n * n}


def session(rng: np.random.Generator, draw: Draw, rounds: int) -> list[ProfileRow]:
    """Return the rows of one made-up session."""
    rows = []
    for side in SIDES:
        tokens, moods = (side // 16) ** 2, MOOD * rng.standard_normal(rounds)
        for model, curve in CURVES.items():
            times = curve(tokens) * np.exp(moods + NOISE * draw(rng, rounds))
            taken = [Round(latency_ms=[time], cpu_time_ms=[time]) for time in times]
            rows.append(
                ProfileRow(
                    model=model, resolution=side, tokens=tokens, device="cpu", precision="fp32", batch_size=1,
                    session="one", rounds=taken,
                )
            )  # fmt: skip
    return rows


def coverage(draw: Draw, rounds: int, sessions: int) -> tuple[float, float, float]:
    """Return the three shares."""
    rng, hits = np.random.default_rng(rounds), np.zeros(3)
    for _ in range(sessions):
        rows = session(rng, draw, rounds)
        grown = scalings(row for row in rows if row.model == "linear")[0]
        crossed = crossovers(rows, ["square"])[0]
        ends = crossed.tokens_interval or (None, None)
        between = (0.0 if ends[0] is None else ends[0], math.inf if ends[1] is None else ends[1])
        for i, (interval, truth) in enumerate(
            ((grown.interval, 1.0), (grown.last_interval, 1.0), (between, 1000.0))
        ):
            hits[i] += interval is not None and interval[0] <= truth <= interval[1]
    exponent, last, crossing = hits / sessions
    return float(exponent), float(last), float(crossing)


def main() -> None:
    """Print one line for each noise and number of rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--rounds", default="6,12,24")
    options = parser.parse_args()
    print("noise         rounds  exponent  last two  crossover")
    for name, draw in NOISES.items():
        for rounds in map(int, options.rounds.split(",")):
            shares = coverage(draw, rounds, options.sessions)
            print(f"{name:12}  {rounds:6}  " + "  ".join(f"{share:8.1%}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
