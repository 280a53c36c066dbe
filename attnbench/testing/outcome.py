"""What a check is, and how one ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from attnbench.testing.subject import Subject

Status = Literal["passed", "failed", "expected-failure", "unexpected-pass", "skipped"]
BAD: tuple[Status, ...] = ("failed", "unexpected-pass")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How one check ended; `detail` is what was measured, or what went wrong and what to do."""

    name: str
    status: Status
    detail: str

    @property
    def bad(self) -> bool:
        """Tell whether this result makes the kit fail."""
        return self.status in BAD


class CheckFailedError(Exception):
    """The backend does not do what the check asks for; the message says what, got, allowed."""


class NotApplicableError(Exception):
    """The check has nothing to ask of this backend; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A named question; `ask` returns a short detail or raises one of the two errors above."""

    name: str
    question: str
    ask: Callable[[Subject], str]


def check(name: str) -> Callable[[Callable[[Subject], str]], Check]:
    """Turn a function into a Check; the first line of its docstring is the question."""

    def make(function: Callable[[Subject], str]) -> Check:
        question = (function.__doc__ or "").strip().partition("\n")[0]
        return Check(name=name, question=question, ask=function)

    return make


def require(condition: bool, message: str) -> None:
    """Raise CheckFailedError with `message` unless `condition` holds."""
    if not condition:
        raise CheckFailedError(message)
