"""The `exclude` of a suite: combinations of the matrix that are no cases."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.problems import Problem
from attnbench.suite.exceptions import read_when
from attnbench.suite.matrix import Axis, Draft
from attnbench.yaml_source import KeyPath, Settings


def without_excluded(
    drafts: Sequence[Draft], axes: Sequence[Axis], settings: Settings
) -> tuple[list[Draft], list[Problem]]:
    """Return the drafts that no entry of `exclude` takes out, and what is wrong with those entries.

    An entry names axes and the value, or list of values, of each, as `when` of an exception does. What is no
    list of mappings is left to the schema.
    """
    written = settings.data.get("exclude", [])
    entries = written if isinstance(written, list) else []
    rules: list[dict[KeyPath, frozenset[int]]] = []
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and entry:
            conditions, wrong = read_when(entry, ("exclude", index), axes, settings)
            problems += wrong
            rules += [conditions] if not wrong else []
    kept = [draft for draft in drafts if not any(_holds(rule, draft) for rule in rules)]
    if drafts and not kept:
        problems.append(Problem(("exclude",), "leaves no case of the matrix; take an entry away"))
        return list(drafts), problems
    return kept, problems


def _holds(rule: dict[KeyPath, frozenset[int]], draft: Draft) -> bool:
    chosen = {axis.target: index for axis, index in draft.points}
    return all(chosen[target] in places for target, places in rule.items())
