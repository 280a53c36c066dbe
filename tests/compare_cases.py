"""Made-up runs to hold against each other: seeds, rounds of another session, a planted change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from report_cases import make_result, profile_row, with_measurement, with_profile

from attnbench.profiling.protocol import Round
from attnbench.report.compare.reading import Side, read_sides
from attnbench.report.compare.records import ComparedQuantity, RunComparison
from attnbench.results import Measurement, Result, append_result

LABELS = ("softmax", "linear", "focused")


def seeded(seeds: Sequence[int] = (0, 1, 2), shift: float = 0.0, draw: int = 0) -> list[Result]:
    """Return three cases with several seeds: a seed moves all cases alike by 0.5, each by 0.05 more.

    `shift` is added to the distance of `linear`; `draw` makes another repetition of what is not the seed's.
    """
    found = []
    for index, label in enumerate(LABELS):
        for seed in seeds:
            rest = random.Random(f"{label} {seed} {draw}").gauss(0, 0.05)
            distance = 8 + index + random.Random(seed).gauss(0, 0.5) + rest + shift * (label == "linear")
            result = make_result(label, index, case_id=f"{label}-{seed}", axes={"seed": str(seed)})
            named = {"label": f"{label} · seed={seed}", "case": {**result.case, "seed": seed}}
            measured = Measurement(name="FD-digits", values=[distance], n=500, better="lower")
            found.append(with_measurement(result.model_copy(update=named), measured))
    return found


def retimed(result: Result, index: int, factor: float = 1.0, **changes: object) -> Result:
    """Return a result whose latencies are of another session, every sample times a factor."""
    rounds = [
        Round(latency_ms=[factor * t for t in r.latency_ms], cpu_time_ms=r.cpu_time_ms)
        for r in profile_row(index + 100, 8).rounds
    ]
    level = (2.4 + 0.35 * index) / (2.4 + 0.35 * (index + 100))  # of another draw, but of this case's level
    rounds = [r.model_copy(update={"latency_ms": [level * t for t in r.latency_ms]}) for r in rounds]
    return with_profile(result, profile_row(index, 8, **({"rounds": rounds, "session": "later"} | changes)))


def write_run(folder: Path, results: Sequence[Result]) -> Path:
    """Write results as a run's folder."""
    for result in results:
        append_result(folder / "results.jsonl", result)
    return folder


def sides_of(*runs: Sequence[Result], folder: Path) -> list[Side]:
    """Return results as runs that were read."""
    names = [write_run(folder / f"run-{i}", results) for i, results in enumerate(runs)]
    return read_sides([str(name) for name in names], folder)


def rows_of(comparison: RunComparison, name: str) -> dict[str, ComparedQuantity]:
    """Return the rows of one quantity by case."""
    return {row.case: row for row in comparison.rows if row.name == name}
