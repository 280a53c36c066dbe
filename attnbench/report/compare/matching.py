"""Which case of one run stands beside which of another: by their settings, else by their label."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.report.compare.reading import Side
from attnbench.report.configurations import Configuration
from attnbench.results import Measurement, Result
from attnbench.specs import Case

_NO_SETTINGS = {"suite", "question", "label", "axes", "exceptions", "seed", "code", "diagnose"}
_NO_MODEL_SETTINGS = {"name", "summary", "source", "size", "published", "origin"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A case of the base and its counterpart."""

    base: Configuration
    base_letter: str
    other: Configuration
    letter: str

    @property
    def label(self) -> str:
        """What tables call the pair."""
        return self.other.label

    @property
    def differing(self) -> list[tuple[str, str, str]]:
        """The settings that differ, as (dotted name, base's, other's); an absent one is `none`."""
        ours, theirs = settings(self.base), settings(self.other)
        names = dict.fromkeys([*ours, *theirs])
        pairs = [(name, ours.get(name, "none"), theirs.get(name, "none")) for name in names]
        return [(name, a, b) for name, a, b in pairs if a != b]

    @property
    def changed_code(self) -> list[str]:
        """The attentions whose source is not the same in both."""
        ours, theirs = (c.results[0].case.get("code", {}) for c in (self.base, self.other))
        return sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])


@dataclass(frozen=True, kw_only=True)
class Matched:
    """All pairs, and what is in one run alone."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = ()


def match_runs(sides: Sequence[Side], cases: Sequence[str] = ()) -> Matched:
    """Match the cases of every other run with those of the first, by content, else by label.

    `cases` are labels or patterns such as `dydila*`: only those. Raises UnknownNameError for one that no run
    has.
    """
    chosen = [[c for c in side.cases if not cases or _is_one_of(c, cases)] for side in sides]
    _check_known(cases, [configuration for side in sides for configuration in side.cases])
    pairs: list[Pair] = []
    left_out: list[str] = []
    for side, configurations in zip(sides[1:], chosen[1:], strict=True):
        found = _match(chosen[0], configurations)
        pairs += [Pair(base=a, base_letter=sides[0].letter, other=b, letter=side.letter) for a, b in found]
        ours, theirs = {id(a) for a, _ in found}, {id(b) for _, b in found}
        left_out += _alone(chosen[0], ours, sides[0].letter, side.letter)
        left_out += _alone(configurations, theirs, side.letter, sides[0].letter)
    return Matched(pairs=tuple(pairs), left_out=tuple(left_out))


def match_cases(sides: Sequence[Side], cases: Sequence[str], against: str) -> Matched:
    """Match every case that is named, in the last run, with the one it is held against, in the first.

    Raises UnknownNameError for a name that the run does not have, UserInputError for several bases.
    """
    first, last = sides[0], sides[-1]
    bases = find_cases(first, [against])
    if len(bases) > 1:
        names = ", ".join(repr(base.label) for base in bases)
        raise UserInputError(f"--against takes one case, {against!r} is {len(bases)}: {names}; name one")
    others = [c for c in find_cases(last, cases or [against]) if c is not bases[0]]
    if not others:
        raise UserInputError(f"--case names nothing but {against!r} itself; name another case of {last.name}")
    return Matched(
        pairs=tuple(
            Pair(base=bases[0], base_letter=first.letter, other=other, letter=last.letter) for other in others
        )
    )


def find_cases(side: Side, names: Sequence[str]) -> list[Configuration]:
    """Return the cases of a run by label, or by patterns; raises UnknownNameError."""
    found = side.cases
    _check_known(names, found, side.name)
    return [configuration for configuration in found if _is_one_of(configuration, names)]


def settings(configuration: Configuration) -> dict[str, str]:
    """Return what a case is but for names, seed and code: dotted names and values; defaults are filled in."""
    return _settings(json.dumps(configuration.results[0].case, sort_keys=True, default=str))


def finished(configuration: Configuration) -> list[Result]:
    """Return the results of the seeds that finished."""
    return [result for result in configuration.results if result.status == "ok"]


def first_measurement(configuration: Configuration, name: str) -> Measurement | None:
    """Return the measurement of the first seed that has it, undisturbed where there is one."""
    found = configuration.measurements(name)
    return next((measured for measured in found if not measured.disturbed), found[0] if found else None)


@cache
def _settings(written: str) -> dict[str, str]:
    """Read settings and fill in the defaults of those that are newer; foreign ones stay as they are."""
    case: dict[str, Any] = json.loads(written)
    with contextlib.suppress(ValidationError):
        read = Case.model_validate_json(written)
        case = read.model_dump(mode="json")
        case["sample"]["noise"] = read.sample.noise  # which is left out where it is that of earlier versions
    return dict(_flat({key: value for key, value in case.items() if key not in _NO_SETTINGS}))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        skipped = _NO_MODEL_SETTINGS if prefix == "model" else {"label"} if "attention" in prefix else set()
        return [
            pair
            for key, inner in value.items()
            if key not in skipped
            for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value if isinstance(value, str) else json.dumps(value))]


def _match(
    ours: Sequence[Configuration], theirs: Sequence[Configuration]
) -> list[tuple[Configuration, Configuration]]:
    """Pair cases of the same content, of several the one with the same label; then those of one label."""
    partners: dict[int, Configuration] = {}
    taken: set[int] = set()
    for key in (lambda c: (_content(c), c.label), _content, lambda c: c.label):
        free: dict[Any, list[Configuration]] = {}
        for other in theirs:
            if id(other) not in taken and key(other):
                free.setdefault(key(other), []).append(other)
        for configuration in ours:
            if id(configuration) not in partners and free.get(key(configuration)):
                partner = free[key(configuration)].pop(0)
                partners[id(configuration)] = partner
                taken.add(id(partner))
    return [(c, partners[id(c)]) for c in ours if id(c) in partners]


def _content(configuration: Configuration) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(settings(configuration).items()))


def _alone(configurations: Sequence[Configuration], matched: set[int], here: str, there: str) -> list[str]:
    labels = [c.label for c in configurations if id(c) not in matched]
    return [f"in {here}, not in {there}: {', '.join(labels)}"] if labels else []


def _is_one_of(configuration: Configuration, names: Sequence[str]) -> bool:
    label = configuration.label
    return any(label == name or fnmatch.fnmatchcase(label, name) for name in names)


def _check_known(names: Sequence[str], known: Sequence[Configuration], where: str = "these runs") -> None:
    for name in names:
        if not any(_is_one_of(configuration, [name]) for configuration in known):
            raise UnknownNameError(f"case of {where}", name, {c.label for c in known})
