"""Processes on other machines: asking one for a process, and lending processes to a case elsewhere.

Each process has a connection of its own, opened by the case, and so has the run that watches a machine: its
end is the other's end, whatever became of it. Both ends show that they know the key of the run (HMAC, as
`multiprocessing.connection` does it). Messages are JSON.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from attnbench.processes import ChildProcess, Message, UnreadableReplyError, next_message
from attnbench.results import Record
from attnbench.stages.distributed.talk import Talk, interface_setting, open_talk
from attnbench.storage.store import Host

WORKER = "attnbench.stages.worker"
ENDING_S = 5.0  # for a process that is not wanted any more, to end by itself
LOOK_S = 0.2  # how often a lender looks whether its process is still wanted
_ANYTHING = TypeAdapter(dict[str, Any])


class _Opening(Record):
    """What whoever has opened a connection wants: a process, or, without a request, to watch."""

    name: str = ""
    request: str = ""
    """One line of JSON for the worker."""
    threads: int = 0


class _Heard(Record):
    """What comes from a process on another machine."""

    said: str = ""
    """One line of JSON that it has sent."""
    ended: str = ""
    """How it ended: the last message."""
    last_words: str = ""


class _Told(Record):
    """What such a process is to do: end, or be killed for a reason."""

    kill: str = ""


class DistantProcess:
    """A process on another machine; what `ChildProcess` is on this one."""

    def __init__(self, host: Host, name: str) -> None:
        self.name, self.ended_at, self._host = f"{name} on machine {host.name}", float("inf"), host
        self._talk = open_talk(host)
        self.here = self._talk.here
        self._said: queue.Queue[bytes | None] = queue.Queue()
        self._end: _Heard | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def begin(self, line: str, threads: int) -> None:
        """Start it with one line of JSON, on a machine where it and its peers share so many threads."""
        self._talk.send(_Opening(name=self.name, request=line, threads=threads))
        self._listener.start()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet, as far as is known here."""
        return self._end is None

    def receive(self, kind: TypeAdapter[Message], timeout_s: float | None = None) -> Message | None:
        """Return its next message, or None at its end; raises TimeoutError and UnreadableReplyError."""
        return next_message(self._said, kind, timeout_s, self.name)

    def kill(self, because: str) -> None:
        """Have it killed."""
        self._talk.send(_Told(kill=because))

    def end(self, within_s: float = 0.0) -> None:
        """End it; the other machine kills it where it does not."""
        self._talk.send(_Told())
        if self._listener.ident is not None:
            self._listener.join(within_s + 1)
        self._talk.close()
        if self._listener.ident is not None:
            self._listener.join()
        self._talk.forget()

    def last_words(self, count: int = 3) -> str:
        """Return the last lines of its output, once it has ended."""
        return (self._end.last_words if self._end else "") or "(none)"

    def how_it_ended(self) -> str:
        """Say how; waits for the end."""
        self._listener.join()
        assert self._end is not None
        return self._end.ended

    def _listen(self) -> None:
        while (heard := self._talk.receive(_Heard)) is not None and not heard.ended:
            self._said.put(heard.said.encode())
        self._end = heard or _Heard(ended=f"{self.name} is lost: the machine is gone or cannot be reached")
        self.ended_at = time.monotonic()
        self._said.put(None)


class Lender:
    """Listens on a machine that is not the first for cases that want processes, and for the run's watch.

    `environment` has defaults for these processes.
    """

    def __init__(self, address: str, key: str, environment: Mapping[str, str] | None = None) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server, self._key = socket.create_server((address, 0), family=family), key
        self._environment = environment or {}
        self.address = address
        self.port: int = self._server.getsockname()[1]
        self.watch: queue.Queue[Talk] = queue.Queue()
        """Gets the connection of the run itself."""
        self._lent: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self, within_s: float) -> None:
        """Take no more wishes, and wait for the processes that are about to end."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        until = time.monotonic() + within_s
        for thread in self._lent:
            thread.join(max(0.0, until - time.monotonic()))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # when it is closed
            while True:
                end, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(end,), daemon=True).start()

    def _serve(self, end: socket.socket) -> None:
        talk = Talk(end)
        opening = talk.receive(_Opening) if talk.open(self._key, asks_first=True) else None
        if opening is None:
            talk.forget()
        elif not opening.request:
            self.watch.put(talk)
        else:
            self._lent.append(threading.current_thread())
            try:
                _lend(talk, opening, self._environment)
            finally:
                talk.forget()


def watch(host: Host) -> Talk:
    """Return a connection that lasts as long as the run and the other machine do."""
    talk = open_talk(host)
    talk.send(_Opening())
    return talk


def _lend(talk: Talk, wanted: _Opening, defaults: Mapping[str, str]) -> None:
    """Run a process for a case on another machine until it ends, or is not wanted any more."""
    environment = {**defaults, **os.environ, "OMP_NUM_THREADS": str(wanted.threads)}
    environment |= interface_setting(talk.here)
    with ChildProcess(WORKER, wanted.name, environment=environment, new_session=True) as child:
        child.send(wanted.request)
        is_unwanted = threading.Event()
        heeding = threading.Thread(target=_heed, args=(talk, child, is_unwanted.set), daemon=True)
        heeding.start()
        _pass_on(talk, child, is_unwanted)
        talk.close()
        heeding.join()
        child.end(ENDING_S)


def _pass_on(talk: Talk, child: ChildProcess, is_unwanted: threading.Event) -> None:
    while not is_unwanted.is_set():
        try:
            said = child.receive(_ANYTHING, LOOK_S)
        except TimeoutError:
            continue
        except UnreadableReplyError as error:
            talk.send(_Heard(ended=f"{error}; its last words: {child.last_words()}"))
            return
        if said is None:
            talk.send(_Heard(ended=child.how_it_ended(), last_words=child.last_words()))
            return
        talk.send(_Heard(said=_ANYTHING.dump_json(said).decode()))


def _heed(talk: Talk, child: ChildProcess, stop: Callable[[], None]) -> None:
    """End a process when it is told to, and when nobody is there any more who wants it."""
    told = talk.receive(_Told)
    if told is not None and told.kill:
        child.kill(told.kill)  # its end is told as any other
        told = talk.receive(_Told)
    stop()
