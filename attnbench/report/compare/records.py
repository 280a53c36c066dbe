"""What a comparison says, as it is written to JSON: every quantity of every pair of cases, and the gates."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from attnbench.results import Direction, Record

Group = Literal["quality", "loss", "latency", "memory", "size", "training", "sampling", "inside", "other"]
Basis = Literal["", "counted", "rounds side by side", "rounds of two sessions", "seeds", "images"]
Verdict = Literal[
    "same", "faster", "slower", "better", "worse", "less", "more", "not distinguishable", "not tested"
]
Equal = Literal["macs", "latency", "steps", "training-time"]
REGRESSIONS: tuple[Verdict, ...] = ("slower", "worse", "more")
Ends = tuple[float, float]


class ComparedRun(Record):
    """One of the runs that were compared."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    letter: str
    """What tables call it; A is the base."""
    name: str
    """As it was named."""
    suite: str
    cases: int
    seeds: list[int]
    commits: list[str]
    """Of attnbench, where it ran from a checkout; `+` behind one with uncommitted changes."""
    hardware: list[str]
    packages: dict[str, list[str]] = Field(default_factory=dict)
    dates: list[str] = Field(default_factory=list)


class ComparedQuantity(Record):
    """One quantity of a case in one run beside its counterpart in the base; values in the stored unit."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    run: str
    """Letter of the run that is held against the base."""
    case: str
    """Label without the seed; of cases that are called differently, the other run's."""
    against: str
    """The base's label."""
    name: str
    """The measurement, such as `latency_ms@256`."""
    title: str
    unit: str
    better: Direction
    group: Group
    base: float
    """Over seeds the mean, over rounds the median."""
    value: float
    difference: float
    """value - base."""
    ratio: float | None
    """value over base; where it is tested as a ratio, of geometric means; None of values that are not
    positive."""
    difference_interval: Ends | None = None
    """95 %, not adjusted for the number of comparisons; either this one or that of the ratio is known."""
    ratio_interval: Ends | None = None
    basis: Basis = ""
    """What the test is over: `images` tells these two trainings apart, not the two methods."""
    seeds: list[int] = Field(default_factory=list)
    """Those the test is over."""
    apart: bool = False
    """Times of two runs or sessions, between which a machine's pace may have changed."""
    p: float | None = None
    p_adjusted: float | None = None
    """Benjamini-Hochberg over all tested quantities of this comparison."""
    verdict: Verdict
    why: str = ""
    """What weakens the verdict, or why there is none."""
    unlike: list[str] = Field(default_factory=list)
    """What was not alike, and forced."""
    at: float | None = None
    """Of a comparison at equal compute: the budget at which both values are taken, in `budget_unit`."""

    @property
    def regression(self) -> float:
        """How much worse it is, in the stored unit; negative where it is better."""
        return self.difference if self.better == "lower" else -self.difference


class GateOutcome(Record):
    """What became of one condition of --fail-on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    gate: str
    tripped: list[str] = Field(default_factory=list)
    """Rows whose regression is beyond the amount for sure, in words."""
    held: int = 0
    """Rows for which that is not so."""
    undecided: list[str] = Field(default_factory=list)
    """Rows that cannot be judged, with the reason."""

    @property
    def fails(self) -> bool:
        """Whether the command ends in failure: a row beyond the amount, or nothing that could be judged."""
        return bool(self.tripped) or not self.held


class RunComparison(Record):
    """What `attnbench compare --format json` writes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    format: int = 1
    runs: list[ComparedRun]
    alpha: float
    """Adjusted p values below it make a verdict."""
    time_margin: float
    """Share below which two times are called not distinguishable whatever their rounds say."""
    session_margin: float
    """The same of times that were taken in two runs or sessions."""
    equal: Equal | None = None
    """What is equal: the values of each row are those at the same budget, or latency."""
    budget_unit: str = ""
    rows: list[ComparedQuantity] = Field(default_factory=list)
    left_out: list[str] = Field(default_factory=list)
    """Cases and quantities that could not be compared, with the reason."""
    notes: list[str] = Field(default_factory=list)
    """Settings, code and packages that differ."""
    gates: list[GateOutcome] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 1 where a gate trips or nothing was compared."""
        return 1 if not self.rows or any(gate.fails for gate in self.gates) else 0
