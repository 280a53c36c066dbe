"""Child processes: starting one, talking JSON lines with it, hearing it out, and saying how it ended.

The parent's end is `ChildProcess`, the child's is `ParentProcess`. They talk over a socket of their own,
whose number is the child's argument, with our process id. All that is printed in the child, by whatever and
whenever (a plugin, a C library, the interpreter at its start and exit), is its output, which cannot get into
the talk: it is read all the time, so that nobody waits for room in a pipe, and its last 64 KiB are kept for
last words.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from attnbench.errors import AttnbenchError

Message = TypeVar("Message")

OUTPUT_KEPT = 2**16  # bytes; a plugin may print for days
LINE_KEPT = 500  # characters of one of the last words
LINGER_S = 1.0  # a dead child's own children may hold its pipes open and write for ever
LOOK_S = 5.0  # how often a child looks whether its parent lives, where its input stays open without it
ORPHANED = 3  # exit code
USERS_PATH = "ATTNBENCH_USERS_PYTHONPATH"  # what PYTHONPATH was, for programs that a child starts


class UnreadableReplyError(AttnbenchError):
    """A child sent a line that is no message of its protocol."""


class ChildProcess:
    """`python -m module` as a child of this process; `name` is how errors call it.

    The child imports what this process does: it gets our `sys.path`, and nothing is put before it.
    `new_session` keeps the terminal's Ctrl-C from it. It ends when this process does, as soon as its main
    thread lets others run.
    """

    def __init__(
        self,
        module: str,
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        new_session: bool = False,
    ) -> None:
        self.name, self.ended_at = name, float("inf")
        self._said: queue.Queue[bytes | None] = queue.Queue()
        self._output, self._killed_because = b"", ""
        self._oom_kills = oom_kills()
        self._talk, theirs = socket.socketpair()
        with theirs:
            # above the standard ones, which may be closed here and are the child's output
            end = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(end), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(end,),
                env=_with_our_path(os.environ if environment is None else environment),
                start_new_session=new_session,
            )
        except BaseException:
            self._talk.close()
            raise
        finally:
            os.close(end)
        death, self._death = socket.socketpair()
        self._listener = threading.Thread(target=self._listen, args=(death,), daemon=True)
        self._listener.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    def send(self, line: str) -> None:
        """Send one line of JSON; where the child has ended, `receive` tells."""
        with contextlib.suppress(ConnectionError):
            self._talk.sendall(line.encode() + b"\n")

    def receive(self, kind: TypeAdapter[Message], timeout_s: float | None = None) -> Message | None:
        """Return the child's next message, or None when it has ended and all is heard.

        Raises TimeoutError, and UnreadableReplyError for a line that is not of this kind.
        """
        try:
            line = self._said.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            self._said.put(None)
            return None
        try:
            return kind.validate_json(line)
        except ValidationError as error:
            start = line[:200].decode(errors="replace")
            raise UnreadableReplyError(
                f"{self.name} sent a line that is no message of attnbench's: {start!r}; "
                "something in it, probably a plugin, writes to a file descriptor that it did not open"
            ) from error

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self, because: str) -> None:
        """Kill the process, for a reason that `how_it_ended` gives."""
        if self.is_alive:
            self._killed_because = because
            self._process.kill()

    def end(self, within_s: float = 0.0) -> None:
        """Close the child's input, which ends it, and kill it where it lives after so many seconds."""
        with contextlib.suppress(OSError):  # it has ended, or this is the second call
            self._talk.shutdown(socket.SHUT_WR)
        self._listener.join(within_s)
        self.kill("it was no longer needed")
        self._listener.join()
        self._talk.close()

    def last_words(self, count: int = 3) -> str:
        """Return the last lines of the child's output."""
        lines = [line.strip() for line in self._output.decode(errors="replace").splitlines()]
        return " | ".join([line[-LINE_KEPT:] for line in lines if line][-count:]) or "(none)"

    def how_it_ended(self) -> str:
        """Say who ended, how, and its last words; waits for the end."""
        self._listener.join()
        return f"{self.name} {self._end()}; its last words: {self.last_words()}"

    def _end(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"ended with exit code {code}"
        killed = f"was killed by {_signal_name(-code)}"
        if code != -signal.SIGKILL:
            return killed
        if self._killed_because:
            return f"was killed by attnbench: {self._killed_because}"
        before, now = self._oom_kills, oom_kills()
        if before is None or now is None:
            return f"{killed} (the kernel's out-of-memory killer sends this)"
        if now > before:
            return f"{killed} (the kernel's out-of-memory killer was at work: more memory is needed)"
        return f"{killed} (not by the kernel's out-of-memory killer, which killed nothing meanwhile)"

    def _wait(self) -> None:
        self._process.wait()
        self.ended_at = time.monotonic()
        with self._death:
            self._death.send(b".")

    def _listen(self, death: socket.socket) -> None:
        try:
            self._hear(death)
        finally:  # whatever happens, nobody waits for a message that will not come
            self._said.put(None)

    def _hear(self, death: socket.socket) -> None:
        """Hear messages and output until the child has ended and no more of them lies ready."""
        assert self._process.stdout is not None
        output, talk, rest = self._process.stdout.fileno(), self._talk.fileno(), b""
        until = float("inf")
        with selectors.DefaultSelector() as selector:
            for source in (output, talk, death.fileno()):
                selector.register(source, selectors.EVENT_READ)
            while True:
                # once it is dead, what lies ready is all: its own children may never close their ends
                ready = [key.fd for key, _ in selector.select(0 if until < float("inf") else None)]
                if time.monotonic() > until or (not ready and until < float("inf")):
                    break
                for source in ready:
                    piece = _read(source)
                    if not piece or source == death.fileno():
                        selector.unregister(source)
                    if source == death.fileno():
                        until = time.monotonic() + LINGER_S
                    elif source == output:
                        self._output = (self._output + piece)[-OUTPUT_KEPT:]
                    else:
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            self._said.put(line)
        death.close()
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            self._talk.shutdown(socket.SHUT_RDWR)  # whoever is sending gets an error, not a wait


def _read(source: int) -> bytes:
    try:
        return os.read(source, 2**16)
    except ConnectionError:  # it ended without having read all that was sent to it
        return b""


def _with_our_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python imports what this process does; the user's path stands beside."""
    path = os.pathsep.join(place or os.curdir for place in sys.path if isinstance(place, str))
    users = {USERS_PATH: environment["PYTHONPATH"]} if "PYTHONPATH" in environment else {}
    return {**environment, **users, "PYTHONPATH": path}


def _restore_users_path() -> None:
    """Give programs that this process starts the user's PYTHONPATH: another Python must not import ours."""
    users = os.environ.pop(USERS_PATH, None)
    if users is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = users


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def oom_kills() -> int | None:
    """Return how often the kernel's out-of-memory killer has struck in this process's cgroup, if it says.

    Source: Documentation/admin-guide/cgroup-v2.rst, memory.events.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
        events = Path("/sys/fs/cgroup", group, "memory.events").read_text().split()
        return int(events[events.index("oom_kill") + 1])
    return None


class ParentProcess:
    """What a child has of the process that started it: requests, and a way to reply. One per process.

    Ends this process when the parent is gone or closes the talk, whatever the main thread is doing.
    """

    def __init__(self) -> None:
        _restore_users_path()
        self._talk = socket.socket(fileno=int(sys.argv[1]))
        self._talk.set_inheritable(False)  # it is not for programs that a plugin starts
        self._asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._one_reply_at_a_time = threading.Lock()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # last words are in order
        threading.Thread(target=self._listen, args=(int(sys.argv[2]),), daemon=True).start()

    def request(self) -> str:
        """Wait for the next request: one line of JSON."""
        return self._asked.get().decode()

    def requests(self) -> Iterator[str]:
        """Wait for one request after the other."""
        while True:
            yield self.request()

    def reply(self, message: Mapping[str, Any]) -> None:
        """Send one line of JSON; ends this process where nobody hears it any more."""
        # a file's name in an error may be no text: then a question mark stands for what cannot be said
        line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        with self._one_reply_at_a_time:
            try:
                self._talk.sendall(line + b"\n")
            except ConnectionError:
                os._exit(ORPHANED)

    def _listen(self, parent: int) -> None:
        try:
            self._hear(parent)
        finally:
            os._exit(ORPHANED)  # the main thread may hang in a collective that will never end

    def _hear(self, parent: int) -> None:
        """Hear requests until the talk is closed or the parent gone."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._talk, selectors.EVENT_READ)
            while True:
                ready = selector.select(LOOK_S)
                if not ready and os.getppid() == parent:
                    continue
                piece = _read(self._talk.fileno()) if ready else b""
                if not piece:
                    return
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._asked.put(line)
