"""Cases that differ by their seed alone are one configuration: what is compared, over its seeds."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.results import Direction, Measurement, Result
from attnbench.specs import content_hash

_SEED_AXIS = "seed"
_NOT_CONTENT = ("suite", "question", "label", "axes", "exceptions", "seed", "diagnose", "teacher")
"""Of a teacher, train.teacher says which; what it is, its own seed too, differs between a student's seeds."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One model, data, training, sampling and scoring, run with one seed or several."""

    label: str
    """Of its cases, without the seed."""
    results: tuple[Result, ...]
    """One of each seed, the seeds ascending."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each result."""
        return tuple(seed_of(result) for result in self.results)

    def measurements(self, name: str) -> list[Measurement]:
        """Return the measurement of that name of each seed that finished and has it."""
        found = (result.measurement(name) for result in self.results if result.status == "ok")
        return [measured for measured in found if measured is not None and measured.values]


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """One quantity of a configuration over its seeds, in the stored unit."""

    name: str
    unit: str
    better: Direction
    values: tuple[float, ...]
    """One a seed."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None of one seed, or where a value is not finite."""
        if len(self.values) < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)


def configurations(results: Sequence[Result]) -> list[Configuration]:
    """Group results by everything but their seed, in the order their first cases appear.

    Where two results share content and seed, the second begins a configuration of its own. The parts of a
    report ask it of the same results: they are grouped once.
    """
    return list(_grouped(_Same(tuple(results))))


class _Same:
    """Results as a key: equal where they are the very same objects, which nobody changes."""

    def __init__(self, results: tuple[Result, ...]) -> None:
        self.results = results
        self._ids = tuple(map(id, results))

    def __hash__(self) -> int:
        return hash(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._ids == other._ids


@functools.lru_cache(maxsize=1)  # the results are held as long
def _grouped(same: _Same) -> tuple[Configuration, ...]:
    results = same.results
    groups: dict[tuple[str, int], list[Result]] = {}
    seen: Counter[tuple[str, int]] = Counter()
    for result in results:
        identity, seed = _identity(result), seed_of(result)
        seen[identity, seed] += 1
        # a second result of one seed, such as another run's, is no further seed of the first
        groups.setdefault((identity, seen[identity, seed]), []).append(result)
    return tuple(
        Configuration(label=label_without_seed(group[0]), results=tuple(sorted(group, key=seed_of)))
        for group in groups.values()
    )


def over_seeds(configuration: Configuration, name: str) -> OverSeeds | None:
    """Return a quantity over a configuration's seeds; None where no seed has it."""
    found = configuration.measurements(name)
    if not found:
        return None
    return OverSeeds(
        name=name, unit=found[0].unit, better=found[0].better, values=tuple(m.value for m in found)
    )


def seed_values(configuration: Configuration, name: str) -> dict[int, float]:
    """Return a quantity's value at each seed that finished and has it, in the stored unit; NaN stays NaN."""
    found = ((seed_of(result), result.measurement(name)) for result in configuration.results
             if result.status == "ok")  # fmt: skip
    return {seed: measured.value for seed, measured in found if measured is not None and measured.values}


def seed_of(result: Result) -> int:
    """Return a result's seed; 0 of a result that does not say."""
    return int(result.case.get("seed", result.axes.get(_SEED_AXIS, 0)))


def label_without_seed(result: Result) -> str:
    """Return a case's label without its seed, such as `softmax` for `softmax · seed=1`."""
    if _SEED_AXIS not in result.axes:
        return result.label
    parts = [part for part in result.label.split(" · ") if part != f"{_SEED_AXIS}={result.axes[_SEED_AXIS]}"]
    return " · ".join(parts) or str(result.case.get("model", {}).get("recipe", result.label))


def _identity(result: Result) -> str:
    """Return a hash of what a case is but for its seed; results without settings go by their label."""
    if not result.case:
        return content_hash([label_without_seed(result), result.suite])
    return content_hash({key: value for key, value in result.case.items() if key not in _NOT_CONTENT})
