"""How a check ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


def require(condition: bool, message: str) -> None:
    """Raise CheckFailedError with `message` unless `condition` holds."""
    if not condition:
        raise CheckFailedError(message)
