"""How often seeds call a difference that is none, and how often they find one that is there.

    python reports/seeds/measure.py                 # everything, about two minutes of one core
    python reports/seeds/measure.py --draws 50      # the same, coarser

Values are made up: of each row at each seed what the seed does to all rows plus a rest, both normal, together
of variance one; `rho` is the seed's share. They are read by the functions that reports use. Prints Markdown
tables and writes results.json here.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnbench.report import comparison_table
from attnbench.report.ranking import Contest, Standing, standings
from attnbench.report.significance import LEVEL, adjusted, difference_over_seeds
from attnbench.results import Environment, Measurement, Result

HERE = Path(__file__).parent
ROWS = (2, 4, 6, 22)
SHARES = (0.0, 0.5)
SEEDS = (2, 3, 4, 5, 6, 8, 10)
EFFECTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
COLUMNS = ("KD-a", "KD-b", "KD-c", "KD-d", "P-a", "P-b")  # compared as they are, not by ratio
_SINGLE = 8  # single comparisons for each table: they are cheap
NOWHERE = Environment(
    python="", platform="", cpu="", cpu_count=1, threads=1, memory_gib=1, device="cpu", packages={},
    git_commit="", git_dirty=False,
)  # fmt: skip


def values(rng: random.Random, k: int, n: int, rho: float) -> list[dict[int, float]]:
    """Return k rows over n seeds without any difference; lower is better."""
    blocks = [math.sqrt(rho) * rng.gauss(0, 1) for _ in range(n)]
    rest = math.sqrt(1 - rho)
    return [{seed: blocks[seed] + rest * rng.gauss(0, 1) for seed in range(n)} for _ in range(k)]


def moved(row: dict[int, float], by: float) -> dict[int, float]:
    """Return a row that is better by so much at every seed."""
    return {seed: value - by for seed, value in row.items()}


def told(standing: Standing) -> int:
    """Return how many rows are told from the best: all of them where it is bold."""
    return len(standing.rows) - 1 - len(standing.close)


def tables(draws: Iterator[list[list[dict[int, float]]]]) -> Iterator[list[Standing]]:
    """Yield how every column of each table ended."""
    for columns in draws:
        yield standings(
            [Contest(rows=tuple(range(len(c))), values=tuple(c), better="lower") for c in columns]
        )


def no_difference(draws: int) -> list[dict[str, Any]]:
    """Return the shares of tables and of single comparisons that call a difference where there is none."""
    found = []
    for k in ROWS:
        for rho in SHARES:
            rng = random.Random(f"none {k} {rho}")
            line: dict[str, Any] = {"rows": k, "rho": rho}
            for columns in (1, 6):
                ended = list(tables([values(rng, k, 3, rho) for _ in range(columns)] for _ in range(draws)))
                line[f"any row told, {columns} columns"] = _share(any(map(told, s)) for s in ended)
                line[f"any bold, {columns} columns"] = _share(any(one.alone for one in s) for s in ended)
            pairs, against = [], []
            for _ in range(_SINGLE * draws):
                rows = values(rng, k, 3, rho)
                p = [
                    difference_over_seeds(rows[0], row, _others(rows, 0, i)).p
                    for i, row in enumerate(rows)
                    if i
                ]
                pairs.append((p[0] or 0) <= LEVEL)
                against.append(min(q for q in adjusted(p) if q is not None) <= LEVEL)
            line["one comparison"] = _share(pairs)
            line["any against the first, adjusted"] = _share(against)
            found.append(line)
    return found


def a_difference(draws: int) -> list[dict[str, Any]]:
    """Return how often three seeds find a row that is better by twice the spread over seeds."""
    found = []
    for k in ROWS:
        for rho in SHARES:
            rng = random.Random(f"two {k} {rho}")
            pair, bold, order = [], [], []
            for _ in range(draws):
                rows = values(rng, k, 3, rho)
                rows[0] = moved(rows[0], 2)
                pair.append(difference_over_seeds(rows[0], rows[1], rows[2:]).distinguishable)
                (ended,) = next(tables(iter([[rows]])))
                bold.append(ended.alone and ended.rows[0] == 0)
                order.append(difference_over_seeds(rows[0], rows[1]).distinguishable)
            found.append(
                {"rows": k, "rho": rho, "the comparison": _share(pair), "without pooling": _share(order),
                 "bold": _share(bold)}
            )  # fmt: skip
    return found


def power(draws: int, k: int, rho: float) -> list[dict[str, Any]]:
    """Return how often n seeds find differences of several sizes between two of k rows."""
    found = []
    for n in SEEDS:
        rng = random.Random(f"power {k} {n} {rho}")
        hits = dict.fromkeys(EFFECTS, 0)
        for _ in range(draws):
            rows = values(rng, k, n, rho)
            for effect in EFFECTS:
                hits[effect] += difference_over_seeds(
                    moved(rows[0], effect), rows[1], rows[2:]
                ).distinguishable
        found.append({"seeds": n, **{f"{effect:g} sd": hits[effect] / draws for effect in EFFECTS}})
    return found


def on_the_page(draws: int, k: int = 4) -> dict[str, float]:
    """Return the shares of whole comparison tables, six columns without a difference, that show one."""
    rng = random.Random("page")
    bold = told_apart = 0
    for _ in range(draws):
        columns = [values(rng, k, 3, 0.5) for _ in COLUMNS]
        table = comparison_table([_result(columns, i, seed) for i in range(k) for seed in range(3)])
        places = [i for i, column in enumerate(table.columns) if column.title in COLUMNS]
        cells = [[row.cells[i] for row in table.rows] for i in places]
        bold += any(cell.best for column in cells for cell in column)
        told_apart += any(cell.marks != "≈" for column in cells for cell in column)
    return {"rows": k, "tables": draws, "any bold": bold / draws, "any value without ≈": told_apart / draws}


def _result(columns: Sequence[Sequence[dict[int, float]]], row: int, seed: int) -> Result:
    label = f"row {row}"
    return Result(
        case_id=f"{row}-{seed}", suite="none", label=f"{label} · seed={seed}", status="ok",
        axes={"attention": label, "seed": str(seed)},
        case={"seed": seed, "model": {"attention": {"name": label}}},
        measurements=[
            Measurement(name=name, values=[values[row][seed]], n=500)
            for name, values in zip(COLUMNS, columns, strict=True)
        ],
        environment=NOWHERE,
    )  # fmt: skip


def _others(rows: Sequence[dict[int, float]], *but: int) -> list[dict[int, float]]:
    return [row for i, row in enumerate(rows) if i not in but]


def _share(outcomes: Any) -> float:
    seen = list(outcomes)
    return sum(seen) / len(seen)


def show(title: str, lines: Sequence[dict[str, Any]]) -> None:
    """Print lines as a Markdown table; shares in percent."""
    names = list(lines[0])
    print(f"\n{title}\n\n| {' | '.join(names)} |\n|{'---:|' * len(names)}")
    for line in lines:
        cells = [
            f"{100 * v:.1f} %" if isinstance(v, float) and name != "rho" else f"{v}"
            for name, v in line.items()
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run everything and write results.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=250, help="made-up tables of each kind")
    draws = parser.parse_args().draws
    start = time.process_time()
    found = {
        "draws": draws,
        "no difference": no_difference(draws),
        "a difference of 2 sd, 3 seeds": a_difference(2 * draws),
        "power, 2 rows, rho 0": power(_SINGLE * draws, 2, 0.0),
        "power, 6 rows, rho 0": power(_SINGLE * draws, 6, 0.0),
        "power, 6 rows, rho 0.5": power(_SINGLE * draws, 6, 0.5),
        "on the page": on_the_page(max(200, draws)),
    }
    for title, part in found.items():
        if isinstance(part, list):
            show(title, part)
        elif isinstance(part, dict):
            show(title, [part])
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
