"""What a check is: a named question to one subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attnbench.testing.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Check:
    """A named question; `ask` returns a short detail or raises one of the two errors of `outcome`."""

    name: str
    question: str
    ask: Callable[[Subject], str]


def check(name: str) -> Callable[[Callable[[Subject], str]], Check]:
    """Turn a function into a Check; the first line of its docstring is the question."""

    def make(function: Callable[[Subject], str]) -> Check:
        question = (function.__doc__ or "").strip().partition("\n")[0]
        return Check(name=name, question=question, ask=function)

    return make
