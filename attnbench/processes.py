"""Child processes: starting one, talking JSON lines with it, hearing it out, and saying how it ended.

The parent's end is `ChildProcess`, the child's is `ParentProcess`. They talk over a socket of their own,
whose number is the child's argument, with our process id. All that is printed in the child, by whatever and
whenever (a plugin, a C library, the interpreter at its start and exit), is its output, which cannot get into
the talk: it is read all the time, so that nobody waits for room in a pipe, and its last 64 KiB are kept for
last words.

A `Nursery` is a process that has imported a module once and forks a clean child of it whenever asked: such a
child starts in milliseconds instead of seconds, and what one does to its modules no other sees.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
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
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from attnbench.errors import AttnbenchError

Message = TypeVar("Message")

OUTPUT_KEPT = 2**16  # bytes; a plugin may print for days
LOG_KEPT = 2**22  # bytes of a log; what came before is kept once more, beside it
OLDER = ".older"  # ends that file's name
LINE_KEPT = 500  # characters of one of the last words
LINGER_S = 1.0  # a dead child's own children may hold its pipes open and write for ever
LOOK_S = 5.0  # how often a child looks whether its parent lives, where its input stays open without it
ORPHANED = 3  # exit code
_FOR_CHILDREN = (signal.SIGINT, signal.SIGTERM)
USERS_PATH = "ATTNBENCH_USERS_PYTHONPATH"  # what PYTHONPATH was, for programs that a child starts


class UnreadableReplyError(AttnbenchError):
    """A child sent a line that is no message of its protocol."""


class ChildStartError(AttnbenchError):
    """No child can be started."""


class ChildProcess:
    """`python -m module` as a child of this process; `name` is how errors call it.

    The child imports what this process does: it gets our `sys.path`, and nothing is put before it.
    `new_session` keeps the terminal's Ctrl-C from it. It ends when this process does, as soon as its main
    thread lets others run. With a `nursery` of that module it is forked there; environment and session are
    then the nursery's. What it prints is added to `log`, a file that is made when there is something to keep.
    """

    def __init__(
        self,
        module: str,
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        new_session: bool = False,
        nursery: Nursery | None = None,
        log: Path | None = None,
    ) -> None:
        self.name, self.ended_at, self._log = name, float("inf"), log
        self._said: queue.Queue[bytes | None] = queue.Queue()
        self._output, self._killed_because = b"", ""
        self._oom_kills = oom_kills()
        self._talk, theirs = socket.socketpair()
        with theirs:
            # above the standard ones, which may be closed here and are the child's output
            end = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self._process: _Process = (
                nursery.fork(end) if nursery else _spawn([module], end, environment, new_session)
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
        return next_message(self._said, kind, timeout_s, self.name)

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
        assert code is not None  # whoever asks has waited for the end
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
        output, talk, rest = self._process.output, self._talk.fileno(), b""
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
                        _add_to_log(self._log, piece)
                    else:
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            self._said.put(line)
        death.close()
        os.close(output)
        with contextlib.suppress(OSError):
            self._talk.shutdown(socket.SHUT_RDWR)  # whoever is sending gets an error, not a wait


def next_message(
    said: queue.Queue[bytes | None], kind: TypeAdapter[Message], timeout_s: float | None, name: str
) -> Message | None:
    """Return the next of the lines that a process has sent, or None at its end, as often as it is asked.

    Raises TimeoutError, and UnreadableReplyError for a line that is not of this kind.
    """
    try:
        line = said.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if line is None:
        said.put(None)
        return None
    try:
        return kind.validate_json(line)
    except ValidationError as error:
        start = line[:200].decode(errors="replace")
        raise UnreadableReplyError(
            f"{name} sent a line that is no message of attnbench's: {start!r}; "
            "something in it, probably a plugin, writes to a file descriptor that it did not open"
        ) from error


def _add_to_log(path: Path | None, piece: bytes) -> None:
    """Keep what a child printed; a full disk is not this thread's to tell, and last words are kept anyway."""
    if path is None or not piece:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(piece)
            size = file.tell()
        if size > LOG_KEPT:
            path.replace(path.with_name(path.name + OLDER))


class _Process(Protocol):
    """A started child: who it is, what it prints, and how it ends."""

    pid: int
    output: int
    """Descriptor to read."""

    @property
    def returncode(self) -> int | None: ...
    def wait(self) -> None: ...
    def send_signal(self, number: int) -> None: ...
    def kill(self) -> None: ...


class _Spawned:
    """A fresh Python."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self._process, self.pid, self.output = process, process.pid, output

    @property
    def returncode(self) -> int | None:
        """Exit code, or the signal as a negative number; None while it runs."""
        return self._process.returncode

    def wait(self) -> None:
        """Wait for the end."""
        self._process.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()


def _spawn(words: list[str], end: int, environment: Mapping[str, str] | None, new_session: bool) -> _Spawned:
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *words[:1], str(end), str(os.getpid()), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.STDOUT,
            pass_fds=(end,),
            env=_with_our_path(os.environ if environment is None else environment),
            start_new_session=new_session,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return _Spawned(process, reading)


class Nursery:
    """A process that has imported `module` and forks a child that runs its `main` for every `ChildProcess`.

    Where the module has a function `preload`, it has called it: for imports that `main` makes later. It loads
    no plugins, starts no thread and touches no device: that is done by each child, for itself. Ctrl-C and
    SIGTERM are for the children; it ends when this process does.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, *, new_session: bool = True
    ) -> None:
        self._asking = threading.Lock()
        self._talk, theirs = socket.socketpair()
        with theirs:
            end = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self._process = _spawn([__name__, module], end, environment, new_session)
        finally:
            os.close(end)
        self._last_output, self._has_forked = b"", False
        self._listener = threading.Thread(target=self._drain, daemon=True)
        self._listener.start()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fork(self, talk: int) -> _Forked:
        """Have a child forked that talks over the socket `talk`; waits for the imports, the first time."""
        output, its_output = os.pipe()
        status, its_status = os.pipe()
        with self._asking:
            try:
                socket.send_fds(self._talk, [b"fork"], [talk, its_output, its_status])
                answer = self._talk.recv(64)
            except ConnectionError:
                answer = b""
            finally:
                os.close(its_output)
                os.close(its_status)
        if not answer:  # it died: such a child has ended before it began
            self._process.wait()
            self._listener.join(LINGER_S)
            raise ChildStartError(
                f"the process that starts others ended with exit code {self._process.returncode}; its last "
                f"words: {self._last_output[-LINE_KEPT:].decode(errors='replace').strip() or '(none)'}"
            )
        self._has_forked = True
        return _Forked(int(answer), output, status)

    def close(self) -> None:
        """End it; children that are still alive are killed."""
        self._talk.close()
        if not self._has_forked:  # it may have imports to make for seconds
            self._process.kill()
        self._process.wait()

    def _drain(self) -> None:
        while piece := _read(self._process.output):
            self._last_output = (self._last_output + piece)[-OUTPUT_KEPT:]
        os.close(self._process.output)


class _Forked:
    """A child of a nursery."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        self.pid, self.output, self._status = pid, output, status
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """As a spawned process has it."""
        return self._returncode

    def wait(self) -> None:
        """Wait for the end, as the nursery reports it."""
        said = b""
        while piece := os.read(self._status, 64):
            said += piece
        os.close(self._status)
        self._returncode = int(said) if said else -signal.SIGKILL  # a nursery that was killed takes all along

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


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


def _tend(talk: socket.socket, parent: int, module: str) -> None:
    """Be a nursery: import the module, then fork a child for every request until the parent goes."""
    for number in _FOR_CHILDREN:  # before the imports, which take seconds
        signal.signal(number, signal.SIG_IGN)
    imported = importlib.import_module(module)
    main = imported.main
    getattr(imported, "preload", lambda: None)()
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # or the kernel would not tell
    statuses: dict[int, int] = {}  # of each child, where its exit code is awaited
    with selectors.DefaultSelector() as selector:
        selector.register(talk, selectors.EVENT_READ)
        selector.register(reading, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(LOOK_S)]
            if not ready and os.getppid() != parent:
                break
            if reading in ready:
                reading.recv(4096)
                _reap(statuses)
            if talk not in ready:
                continue
            asked, ends, _, _ = socket.recv_fds(talk, 16, 3)
            if not asked:
                break
            # a signal that comes while the child ignores it still would be lost to it
            signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_CHILDREN)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                for ours in (talk, reading, writing):
                    ours.close()
                for status in statuses.values():
                    os.close(status)
                selector.close()
                _be_child(main, module, ends)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_CHILDREN)
            statuses[pid] = ends[2]
            for end in ends[:2]:
                os.close(end)
            talk.send(str(pid).encode())
    for pid in statuses:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(statuses: dict[int, int]) -> None:
    """Report the exit codes of the children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        end = statuses.pop(pid, None)
        if end is not None:  # else a grandchild that came to us
            with contextlib.suppress(BrokenPipeError):
                os.write(end, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(end)


def _be_child(main: Callable[[], None], module: str, ends: list[int]) -> None:
    """Run `main` as `python -m module` would, and never return."""
    talk, output, status = ends
    os.close(status)  # the nursery's business
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    sys.argv = [module, str(talk), str(os.getppid())]
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_CHILDREN)
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the interpreter's own way with whatever is raised
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # as the interpreter ends, and multiprocessing's children
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Be a nursery, as `Nursery` asks for it on the command line."""
    with socket.socket(fileno=int(sys.argv[1])) as talk:
        talk.set_inheritable(False)
        _tend(talk, int(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    main()
