"""Answers that many cases share, found once while they are planned or asked for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")
_ANSWERS: ContextVar[dict[Hashable, tuple[object, BaseException | None]] | None] = ContextVar(
    "answers", default=None
)


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """Within the block, and blocks in it, a function marked by `shared_by` finds the same thing once.

    Nothing is kept after it: folders, files and plugins may be others by then.
    """
    if _ANSWERS.get() is not None:
        yield
        return
    token = _ANSWERS.set({})
    try:
        yield
    finally:
        _ANSWERS.reset(token)


def shared_by(
    what: Callable[_Asked, Hashable],
) -> Callable[[Callable[_Asked, _Answer]], Callable[_Asked, _Answer]]:
    """Mark a function whose answer, or error, is the same wherever `what` of its arguments is the same."""

    def mark(function: Callable[_Asked, _Answer]) -> Callable[_Asked, _Answer]:
        @functools.wraps(function)
        def asked(*arguments: _Asked.args, **named: _Asked.kwargs) -> _Answer:
            answers = _ANSWERS.get()
            if answers is None:
                return function(*arguments, **named)
            key = (function, what(*arguments, **named))
            if key not in answers:
                try:
                    answers[key] = function(*arguments, **named), None
                except (Exception, SystemExit) as raised:  # noqa: BLE001 - again, each time it is asked
                    answers[key] = None, raised
            answer, error = answers[key]
            if error is not None:
                raise error.with_traceback(None)
            return answer  # type: ignore[return-value]

        return asked

    return mark
