"""Some cases of a suite, chosen by their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from attnbench.errors import UserInputError, all_or_nearest, did_you_mean
from attnbench.specs import Case
from attnbench.suite.loading import Suite


def choose_cases(suite: Suite, patterns: Sequence[str]) -> Suite:
    """Return the suite with the cases alone that any pattern chooses, in the suite's order; none: all.

    A pattern is a label, an id, or a label with `*`, `?` and `[...]` in it as in a shell. Raises
    UserInputError for one that chooses nothing.
    """
    if not patterns:
        return suite
    for pattern in patterns:
        if not any(_fits(case, pattern) for case in suite.cases):
            raise UserInputError(_no_case(suite, pattern))
    chosen = tuple(case for case in suite.cases if any(_fits(case, pattern) for pattern in patterns))
    return replace(suite, cases=chosen, chosen=tuple(patterns))


def _fits(case: Case, pattern: str) -> bool:
    return pattern in (case.label, case.id) or fnmatchcase(case.label, pattern)


def _no_case(suite: Suite, pattern: str) -> str:
    labels = [case.label for case in suite.cases]
    words = dict.fromkeys(word for label in labels for word in re.split(r"[^\w.-]+", label) if word)
    beginnings = dict.fromkeys(word[: len(pattern.strip("*?"))] for word in words)
    meant = did_you_mean(pattern, labels)
    if not meant and pattern.strip("*?"):
        meant = did_you_mean(pattern.strip("*?"), [*words, *beginnings])
    known = all_or_nearest(pattern, labels, "; ")
    return f"--case {pattern!r}: no case of {suite.name} has such a label{meant}; its cases: {known}"
