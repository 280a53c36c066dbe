"""Ctrl-C and SIGTERM as a request to stop at the next safe place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "run the same command again to go on from there"
END_LIMIT_S = 5.0  # after a second signal, for what is not stuck in one step
_CALLED = {signal.SIGINT: "Ctrl-C"}
_heard: list[int] = []  # signals of this process, whatever reacted to them


class Stopped(SystemExit):
    """A signal ended the work in good order; the exit code is 128 + the signal (130, 143)."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.number, self.message = number, message


class Interrupted(KeyboardInterrupt):
    """A signal; no SystemExit, which a stranger's module may raise and which then is that row's failure."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopRequest:
    """Which signal has asked to stop, if any."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int) -> None:
        self.number = number


def was_told_to_stop() -> bool:
    """Tell whether this process has heard a signal."""
    return bool(_heard)


def interrupt(number: int) -> NoReturn:
    """Leave the work where it is: a reaction for `on_signal`; raises Interrupted."""
    raise Interrupted(number)


@contextlib.contextmanager
def on_signal(react: Callable[[int], None]) -> Iterator[None]:
    """Call `react(signal number)` on Ctrl-C and SIGTERM while the block runs.

    Python hands signals to the main thread only: in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def hear(number: int, frame: object) -> None:
        _heard.append(number)
        react(number)

    try:
        for number in SIGNALS:
            signal.signal(number, hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keeping(what: str | Callable[[], str]) -> Iterator[None]:
    """Say of a block that a signal interrupts what it has kept: raises Stopped with these words.

    A function is called then; it may print what is finished.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        said = what if isinstance(what, str) else what()
        raise Stopped(number, f"interrupted: {said}") from None


@contextlib.contextmanager
def heard_at_once(say: Callable[[str], None]) -> Iterator[list[int]]:
    """Interrupt the block on Ctrl-C and SIGTERM, and say that they are heard; yields the signals so far.

    Python calls a handler between two of its own steps, and one step may be minutes of somebody's C: a thread
    that reads the wakeup descriptor says it meanwhile. A second signal that has not ended the process within
    END_LIMIT_S, and a third one, end it without another word of its main thread.
    """
    _heard.clear()
    if threading.current_thread() is not threading.main_thread():
        yield _heard
        return
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ears, say), daemon=True).start()
    try:
        with on_signal(interrupt):
            yield _heard
    finally:
        signal.set_wakeup_fd(before)
        mouth.close()


def _listen(ears: socket.socket, say: Callable[[str], None]) -> None:
    """Say at once what was heard, until the other end is closed."""
    times, number = 0, signal.SIGTERM
    with ears:
        while times < 3:
            try:
                heard = ears.recv(1)
            except TimeoutError:
                break  # the main thread is stuck
            if not heard:
                return
            if heard[0] not in SIGNALS:
                continue
            times, number = times + 1, signal.Signals(heard[0])
            name = _CALLED.get(number, number.name)
            if times == 1:
                say(f"{name} heard: stopping after the step that is under way; a second one ends it at once")
            else:
                say(f"{name} heard again: ending at once")
                ears.settimeout(END_LIMIT_S)
    os._exit(128 + number)
