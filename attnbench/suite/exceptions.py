"""The `exceptions` of a suite: settings for some cases only, chosen by their place in the matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from attnbench.problems import Problem
from attnbench.suite.matrix import Axis, Draft, names_a_setting, no_setting, overlap
from attnbench.yaml_source import KeyPath, Settings, show_path, show_value


@dataclass(frozen=True)
class ExceptionRule:
    """Settings for the cases that have one of the given values on every axis of `when`."""

    index: int
    """Place in `exceptions`."""
    when: dict[KeyPath, frozenset[int]]
    """Axes, and the places of the values on them."""
    sets: dict[KeyPath, Any]

    def holds(self, draft: Draft) -> bool:
        """Say whether the rule applies to a case."""
        chosen = {axis.target: index for axis, index in draft.points}
        return all(chosen[axis] in values for axis, values in self.when.items())

    def written(self, path: KeyPath) -> KeyPath:
        """Return where in the suite the rule sets `path`."""
        return ("exceptions", self.index, "set", show_path(path))


def read_exceptions(
    settings: Settings, axes: Sequence[Axis], schema: type[BaseModel]
) -> tuple[list[ExceptionRule], list[Problem]]:
    """Return the rules that are right, in their order, and what is wrong with the others.

    What is no list of mappings is left to the schema. A value that is not on its axis is a problem unless
    an override shortened the axis: the rule then holds for fewer cases.
    """
    rules: list[ExceptionRule] = []
    problems: list[Problem] = []
    written = settings.data.get("exceptions", [])
    for index, rule in enumerate(written if isinstance(written, list) else ()):
        parts = [rule.get(key) for key in ("when", "set")] if isinstance(rule, dict) else [None, None]
        when, sets = parts
        if not isinstance(when, dict) or not isinstance(sets, dict):
            continue
        place = ("exceptions", index)
        conditions, wrong = read_when(when, (*place, "when"), axes, settings)
        wrong += _wrong_sets(sets, (*place, "set"), axes, schema)
        problems += wrong
        if not wrong:
            rules.append(ExceptionRule(index, conditions, {tuple(k.split(".")): v for k, v in sets.items()}))
    return rules, problems


def apply_exceptions(rules: Sequence[ExceptionRule], drafts: Iterable[Draft]) -> Iterator[Problem]:
    """Assign what the rules set to the cases they hold for; yield every setting that two rules claim."""
    for draft in drafts:
        holding = [rule for rule in rules if rule.holds(draft)]
        for first, second in itertools.combinations(holding, 2):
            for path in second.sets:
                for other in first.sets:
                    if overlap(path, other):
                        message = f"{show_path(first.written(other))} sets it for some of the same cases"
                        yield Problem(second.written(path), message)
        for rule in holding:
            draft.exceptions.append(rule.index)
            for path, value in rule.sets.items():
                draft.excepted[path] = rule.written(path)
                draft.sets.append((path, value))


def read_when(
    when: dict[str, Any], place: KeyPath, axes: Sequence[Axis], settings: Settings
) -> tuple[dict[KeyPath, frozenset[int]], list[Problem]]:
    """Translate `key: value or list of values` to places on the axes; a value's label stands for it."""
    conditions: dict[KeyPath, frozenset[int]] = {}
    problems = []
    for key, given in when.items():
        axis = next((axis for axis in axes if ".".join(map(str, axis.target)) == key), None)
        if axis is None:
            problems.append(Problem((*place, key), _no_axis(key, axes, settings)))
            continue
        wanted = given if isinstance(given, list) else [given]
        found = [[i for i, value in enumerate(axis.values) if _is_called(value, w)] for w in wanted]
        overridden = settings.origin(axis.written).overrides
        if not overridden:
            shown = ", ".join(map(_called, axis.values))
            problems += [
                Problem((*place, key), f"{show_value(w)} is not on that axis; its values: {shown}")
                for w, places in zip(wanted, found, strict=True)
                if not places
            ]
        conditions[axis.target] = frozenset(itertools.chain.from_iterable(found))
    return conditions, problems


def _no_axis(key: str, axes: Sequence[Axis], settings: Settings) -> str:
    """Say that nothing varies `key`, and what to do where it was an override that took the axis away."""
    named = ", ".join(show_path(axis.target) for axis in axes) or "(none)"
    matrix = settings.origin(("matrix",)) if "matrix" in settings.data else None
    if matrix is None or not matrix.overrides or settings.origin(("exceptions",)).overrides:
        return f"is no axis of the suite's matrix; allowed: {named}"
    return (
        f"is no axis of the matrix that {matrix.where} gives (its axes: {named}), so it is for no "
        f"case; add -o exceptions=[] to go without the suite's exceptions, or vary {key} there, too"
    )


def _is_called(value: Any, wanted: Any) -> bool:
    """Tell whether `wanted` is a value of an axis, written again, or the label that it was given there."""
    if isinstance(value, dict) and "label" in value and same(value["label"], wanted):
        return True
    return same(value, wanted)


def _called(value: Any) -> str:
    """Show a value as `when` may write it."""
    if isinstance(value, dict) and "label" in value:
        return show_value(value["label"])
    if isinstance(value, dict) and "name" in value:
        return f"{{name: {value['name']}, ...}} in full"
    return show_value(value)


def same(a: Any, b: Any) -> bool:
    """Equal as YAML values: `true` is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _wrong_sets(
    sets: dict[str, Any], place: KeyPath, axes: Sequence[Axis], schema: type[BaseModel]
) -> list[Problem]:
    """Return the keys that name nothing, and those that would belie a case's place in the matrix."""
    problems = []
    for key in sets:
        target = tuple(key.split("."))
        axis = next((axis for axis in axes if overlap(axis.target, target)), None)
        if not names_a_setting(schema, target):
            problems.append(Problem((*place, key), no_setting(schema, key)))
        elif axis is not None:
            message = f"varies with {show_path(axis.written)}; give the value there"
            problems.append(Problem((*place, key), message))
    return problems
