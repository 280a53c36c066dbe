"""What came of faults, and the table of it that is kept under reports/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from command_line import ROOT

EXECUTORS = ("inline", "process", "jobs", "ray", "slurm")
REPORT = ROOT / "reports" / "faults"
KINDS = (
    "kill -9 of a case", "kill -9 of a worker", "kill -9 of a node", "kill -9 of the driver", "preemption",
    "full disk", "cut network", "clock", "slow node",
)  # fmt: skip


@dataclass
class Try:
    """What one try did."""

    executor: str
    kind: str
    seed: int
    injected: int
    commands: int
    all_ok: bool
    computed_twice: int
    """Stages and trainings that were made anew though they were finished, or saved so far."""
    weights_equal: bool
    problems: str

    @property
    def is_good(self) -> bool:
        """Whether everything is as it must be."""
        return self.all_ok and not self.computed_twice and self.weights_equal and not self.problems


def table(tries: Sequence[Try]) -> str:
    """Return the table of faults and executors, in Markdown, without tries that have injected nothing."""
    tries = [one for one in tries if one.injected]
    lines = [
        "| fault | executor | injected | tries, all ok | computed twice | weights equal |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for kind in KINDS:
        for executor in EXECUTORS:
            of = [one for one in tries if (one.kind, one.executor) == (kind, executor)]
            if of:
                ok, same = (sum(getattr(one, name) for one in of) for name in ("all_ok", "weights_equal"))
                lines.append(
                    f"| {kind} | {executor} | {sum(one.injected for one in of)} | {ok} of {len(of)} | "
                    f"{sum(one.computed_twice for one in of)} | {same} of {len(of)} |"
                )
    ok, same = (sum(getattr(one, name) for one in tries) for name in ("all_ok", "weights_equal"))
    lines.append(
        f"| all | | {sum(one.injected for one in tries)} | {ok} of {len(tries)} | "
        f"{sum(one.computed_twice for one in tries)} | {same} of {len(tries)} |"
    )
    return "\n".join(lines)


def kept_tries() -> list[Try]:
    """Return the tries that are kept under reports/, of all executors."""
    paths = [REPORT / f"{name}.json" for name in EXECUTORS]
    return [Try(**one) for path in paths if path.exists() for one in json.loads(path.read_text())]


def keep(made: Try) -> None:
    """Write a try in place of an earlier one of its executor, kind and seed."""
    REPORT.mkdir(exist_ok=True)
    of = [one for one in kept_tries() if one.executor == made.executor]
    others = [one for one in of if (one.kind, one.seed) != (made.kind, made.seed)]
    both = sorted((*others, made), key=lambda one: (KINDS.index(one.kind), one.seed))
    lines = ",\n".join(json.dumps(asdict(one)) for one in both)
    (REPORT / f"{made.executor}.json").write_text(f"[\n{lines}\n]\n")


def with_table(readme: str, tries: Sequence[Try]) -> str:
    """Return the report's README with the table of these tries in place of the one in it."""
    rows = [line.startswith("|") for line in readme.splitlines()]
    lines, first, last = readme.splitlines(), rows.index(True), len(rows) - rows[::-1].index(True)
    return "\n".join([*lines[:first], *table(tries).splitlines(), *lines[last:]]) + "\n"
