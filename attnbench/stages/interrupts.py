"""Ctrl-C and SIGTERM as a request to stop at the next safe place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "run the same command again to go on from there"


class Stopped(SystemExit):
    """A signal ended the work in good order; the exit code is 128 + the signal (130, 143)."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.number, self.message = number, message


class StopRequest:
    """Which signal has asked to stop, if any."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def on_signal(react: Callable[[int], None]) -> Iterator[None]:
    """Call `react(signal number)` on Ctrl-C and SIGTERM while the block runs.

    Python hands signals to the main thread only: in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: react(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
