"""One process at a time in a folder: a lock that the kernel takes back when its holder ends, in any way."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from attnbench.errors import StorageError
from attnbench.storage.atomic import storage_errors
from attnbench.storage.names import LOCK

POLL_S = 0.2
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_held: set[FileIO] = set()


@contextmanager
def alone_in(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder (made where it is missing) for the block; whoever else asks for it waits that long.

    The lock is `flock` on `<folder>/lock`, which names its holder and stays behind empty: removing it would
    let a process that waits and one that comes later each lock a file of its own. `tell` hears, again and
    again, whom this process waits for, and where the file system has no locks: then the block runs without
    one. Not for nesting: who asks twice waits for itself. Raises StorageError.
    Source: flock(2); what can go wrong: tox-dev/filelock, src/filelock/_unix.py.
    """
    with _holding(_lock(folder / LOCK, tell)):
        yield


@contextmanager
def alone_at_once(folder: Path, tell: Callable[[str], None]) -> Iterator[bool]:
    """Hold a folder as `alone_in` does, without waiting: yields whether nobody else had it."""
    try:
        file = _lock(folder / LOCK, tell, waits=False)
    except BlockingIOError:
        yield False
        return
    with _holding(file):
        yield True


@contextmanager
def beside_others(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder for the block as one of many: only who wants it alone waits, and is waited for.

    Where no lock can be made (a folder that this user may not write) the block runs without one.
    """
    try:
        file = _lock(folder / LOCK, tell, shared=True)
    except StorageError:
        file = None
    if file is None:
        yield
        return
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        file.close()


@contextmanager
def _holding(file: FileIO) -> Iterator[None]:
    """Let go of a lock after the block, and of the name that says whose it is."""
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        if not file.closed:  # as it is in a forked child
            with suppress(OSError):
                file.truncate(0)
            file.close()  # the kernel unlocks


def is_held(folder: Path) -> bool:
    """Tell whether another process holds a folder at this moment; false where there are no locks."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing it unlocks
    except BlockingIOError:
        return True
    except OSError:  # nobody has been here yet, or no locks
        return False
    return False


def _lock(path: Path, tell: Callable[[str], None], *, shared: bool = False, waits: bool = True) -> FileIO:
    """Return the locked file at `path`, after as much waiting as it takes.

    Raises BlockingIOError where somebody has it and this process does not wait.
    """
    tries = 0
    while True:
        tries += 1
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(path, "a+")  # anew each time: somebody may have removed the folder
        try:
            with storage_errors(path):
                holder = _try_lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                if holder is None and shared:
                    return file
                if holder is None:
                    file.truncate(0)
                    file.write(_own_name().encode())
                    return file
            if not waits:
                raise BlockingIOError(holder)
            if tries > 1:  # the first may have met nobody but `is_held`
                tell(f"waiting for {holder}, which works in {path.parent}; Ctrl-C ends the waiting")
            time.sleep(POLL_S)
        except _NoLocksError as error:
            tell(str(error))
            return file
        except BaseException:
            file.close()
            raise
        file.close()


class _NoLocksError(Exception):
    """The file system has no locks; the message is for the user."""


def _try_lock(file: FileIO, operation: int) -> str | None:
    """Lock a file, or return who has; raises _NoLocksError."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().decode(errors="replace") or "another process"  # it has yet to write its name
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise _NoLocksError(
            f"this file system has no file locks (flock: {error.strerror}), so that nothing keeps apart two "
            "attnbench commands that work in one folder; run one at a time, or choose a place on another one"
        ) from error
    return None


def _own_name() -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} (since {now})"


def _let_go() -> None:
    """Close a parent's locks in its forked child, which would keep them locked after the parent's death."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
