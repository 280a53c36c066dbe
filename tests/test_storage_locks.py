"""The lock of a folder, between real processes: waited for, let go of, survived by nobody's death."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench.errors import StorageError
from attnbench.storage.locks import alone_in
from attnbench.storage.names import LOCK

ROOT = Path(__file__).resolve().parent.parent
START = """
import os, signal, sys, time
from pathlib import Path
from attnbench.storage.locks import alone_in
folder, told = Path(sys.argv[1]), set()
def tell(text):
    if text not in told and "another process" not in text:  # in the moment before it has written its name
        told.add(text)
        print(text, flush=True)
"""
HOLD = """
with alone_in(folder, tell):
    print("in", flush=True)
    sys.stdin.readline()
"""
FORK = """
with alone_in(folder, tell):
    print("in", flush=True)
    if os.fork() == 0:
        os.close(1)
        time.sleep(60)
    print(flush=True)
    sys.stdin.readline()
"""
COUNT = """
for _ in range(5):
    with alone_in(folder, tell):
        number = int((folder / "number").read_text())
        time.sleep(0.02)
        (folder / "number").write_text(str(number + 1))
"""


@pytest.fixture
def start():
    """Start processes that use the lock; all are ended after the test."""
    processes = []

    def begin(script: str, folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", START + script, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has forked
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line a process writes; an empty one when it has ended."""
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait() == 0


def test_the_second_says_whom_it_waits_for_and_enters_after_it(start, tmp_path):
    """The notice names pid, host, time and folder; the lock file is empty once nobody holds it."""
    first = start(HOLD, tmp_path / "new")
    assert said(first) == "in"
    second = start(HOLD, tmp_path / "new")
    notice = said(second)
    assert notice.startswith(f"waiting for process {first.pid} on {socket.gethostname()} (since 2")
    assert notice.endswith(f"Z), which works in {tmp_path / 'new'}; Ctrl-C ends the waiting")
    let_go(first)
    assert said(second) == "in"
    assert f"process {second.pid} " in (tmp_path / "new" / LOCK).read_text()
    let_go(second)
    assert (tmp_path / "new" / LOCK).read_bytes() == b""


def test_a_killed_holder_holds_nothing(start, tmp_path):
    """After SIGKILL the one who waits enters; the dead one's name is replaced."""
    first = start(HOLD, tmp_path)
    assert said(first) == "in"
    second = start(HOLD, tmp_path)
    assert f"process {first.pid} " in said(second)
    first.kill()
    assert said(second) == "in"
    assert f"process {second.pid} " in (tmp_path / LOCK).read_text()


def test_a_forked_child_does_not_keep_its_dead_parents_lock(start, tmp_path):
    """A child forked inside the block lives on after its parent's SIGKILL, and another process enters."""
    first = start(FORK, tmp_path)
    assert said(first) == "in"
    said(first)  # forked by now
    first.kill()
    first.wait()
    os.killpg(first.pid, 0)  # the child is alive
    assert said(start(HOLD, tmp_path)) == "in"


def test_ctrl_c_ends_the_waiting_and_leaves_the_holder_alone(start, tmp_path):
    """SIGINT raises KeyboardInterrupt in the one who waits; the holder keeps folder and name."""
    first = start(HOLD, tmp_path)
    assert said(first) == "in"
    second = start(HOLD, tmp_path)
    assert f"process {first.pid} " in said(second)
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate()
    assert second.returncode == -signal.SIGINT
    assert errors.strip().endswith("KeyboardInterrupt")
    assert f"process {first.pid} " in (tmp_path / LOCK).read_text()
    third = start(HOLD, tmp_path)
    assert f"process {first.pid} " in said(third)


def test_a_folder_removed_meanwhile_is_not_entered_by_two(start, tmp_path):
    """Who waited on a removed lock file waits for the holder of the new one, too."""
    folder = tmp_path / "folder"
    first = start(HOLD, folder)
    assert said(first) == "in"
    second = start(HOLD, folder)
    assert f"process {first.pid} " in said(second)
    shutil.rmtree(folder)
    third = start(HOLD, folder)
    entered = said(third), said(second)  # one of them enters the new folder, the other waits for it
    assert sorted(line[:2] for line in entered) == ["in", "wa"]
    holder, waiter = (third, second) if entered[0] == "in" else (second, third)
    assert f"process {holder.pid} " in entered[entered.index("in") - 1]
    let_go(first)
    let_go(holder)
    assert said(waiter) == "in"


def test_no_step_of_several_processes_is_lost(start, tmp_path):
    """Three processes count to five each in one file, reading and writing slowly: fifteen."""
    (tmp_path / "number").write_text("0")
    for process in [start(COUNT, tmp_path) for _ in range(3)]:
        assert process.wait() == 0, process.stderr.read()
    assert (tmp_path / "number").read_text() == "15"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported(monkeypatch, tmp_path, number):
    """Where flock cannot work, the block runs, and the user hears what that means and what to do."""

    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told: list[str] = []
    with alone_in(tmp_path, told.append):
        pass
    assert told == [
        f"this file system has no file locks (flock: {os.strerror(number)}), so that nothing keeps apart two "
        "attnbench commands that work in one folder; run one at a time, or choose a place on another one"
    ]


def test_a_lock_that_cannot_be_made_is_a_storage_error(monkeypatch, tmp_path):
    """A broken disk and a file in the folder's place are errors, not folders without a lock."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), alone_in(tmp_path / "file", print):
        raise AssertionError("entered")

    def fail(file, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match="Input/output error"), alone_in(tmp_path, print):
        raise AssertionError("entered")


def test_an_error_inside_stays_what_it_is_and_lets_go(tmp_path):
    """The block's own OSError is not turned into one of the lock, and the folder is free afterwards."""
    with pytest.raises(OSError, match="mine"), alone_in(tmp_path, print):
        raise OSError("mine")
    told: list[str] = []
    with alone_in(tmp_path, told.append):
        pass
    assert told == []
