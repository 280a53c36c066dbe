"""Real child processes that print, die, hang and leave children of their own behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from attnbench import processes
from attnbench.processes import (
    ORPHANED,
    OUTPUT_KEPT,
    ChildProcess,
    ChildStartError,
    Nursery,
    UnreadableReplyError,
)

REPLY = TypeAdapter(dict[str, int])
PATIENCE_S = 60  # of these tests: what never comes is told from what comes late


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a child that runs the lines given, with `parent` as its end of the talk."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    children = []

    def begin(lines: str, **settings) -> ChildProcess:
        name = f"child_{len(list(folder.iterdir()))}"
        head = "import os, signal, sys, time\nfrom attnbench.processes import ParentProcess\n"
        (folder / f"{name}.py").write_text(f"{head}parent = ParentProcess()\n{textwrap.dedent(lines)}")
        children.append(ChildProcess(name, "the child", **settings))
        return children[-1]

    yield begin
    for child in children:
        child.end()


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while is_running(pid):
        assert time.monotonic() < until, "it lives"
        time.sleep(0.05)


def all_of(child: ChildProcess) -> list[dict[str, int]]:
    """Return all messages until the child's end."""
    messages = []
    while (message := child.receive(REPLY, PATIENCE_S)) is not None:
        messages.append(message)
    return messages


def test_requests_and_replies(start):
    """Each line sent is one request; replies come in order, of any size, and then the end."""
    child = start(
        """
        for number in range(3):
            parent.reply({"x" * 10**6: int(parent.request())})
        """
    )
    for number in (5, 6, 7):
        child.send(json.dumps(number))
    assert all_of(child) == [{"x" * 10**6: number} for number in (5, 6, 7)]
    assert child.how_it_ended() == "the child ended with exit code 0; its last words: (none)"


def test_what_is_printed_is_no_message(start, tmp_path, monkeypatch):
    """Descriptor 1 written to by Python, the system call, a C library, at start and exit: all is output."""
    (tmp_path / "sitecustomize.py").write_text("print('at start', flush=True)")
    monkeypatch.syspath_prepend(str(tmp_path))
    child = start(
        """
        import atexit, ctypes
        atexit.register(os.write, 1, b"at exit\\n")
        os.write(1, b"a system call\\n")
        print("Python")
        ctypes.CDLL(None).printf(b"C\\n")
        ctypes.CDLL(None).fflush(None)
        parent.reply({"heard": 1})
        """
    )
    assert all_of(child) == [{"heard": 1}]
    assert child.last_words(5) == "at start | a system call | Python | C | at exit"


def test_a_flood_is_read_and_only_its_end_is_kept(start):
    """A child that prints without end is never kept waiting, and takes neither memory nor disk."""
    child = start(
        """
        for _ in range(2000):
            os.write(1, b"x" * 50_000 + b"\\n")
            os.write(2, b"y" * 50_000 + b"\\n")
        print("done")
        parent.reply({"written": 1})
        """
    )
    assert all_of(child) == [{"written": 1}]
    assert len(child._output) <= OUTPUT_KEPT
    assert child.last_words(1) == "done"
    assert len(child.last_words()) < 2000


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"a": "b"}', "\\xff", "[" * 10_000])
def test_a_line_that_is_no_message_is_an_error(start, line):
    """Not JSON, another shape, no UTF-8, too deep: one error, and the talk goes on behind it."""
    child = start(
        f"""
        os.write(int(sys.argv[1]), b'{line}\\n')
        parent.reply({{"after": 1}})
        """
    )
    with pytest.raises(
        UnreadableReplyError, match=r"the child sent a line that is no message of attnbench's"
    ):
        child.receive(REPLY, PATIENCE_S)
    assert all_of(child) == [{"after": 1}]


def test_a_daemon_left_behind_keeps_nobody_waiting(start):
    """A grandchild that holds every descriptor open and goes on printing does not delay the child's end."""
    child = start(
        """
        pid = os.fork()
        if pid == 0:
            while True:
                os.write(2, b"I am a daemon\\n")
        parent.reply({"daemon": pid})
        """,
    )
    daemon = child.receive(REPLY, PATIENCE_S)["daemon"]
    try:
        assert child.receive(REPLY, PATIENCE_S) is None
        assert "ended with exit code 0" in child.how_it_ended()
        assert is_running(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_descriptors_of_the_talk_are_not_for_programs_it_starts(start):
    """A program that the child starts inherits none of the talk."""
    child = start(
        """
        import subprocess
        code = f"import os; os.fstat({sys.argv[1]})"
        parent.reply({"code": subprocess.run([sys.executable, "-c", code]).returncode})
        """
    )
    assert all_of(child) == [{"code": 1}]
    assert "Bad file descriptor" in child.last_words()


@pytest.mark.parametrize("forks", [False, True])
def test_a_child_ends_with_its_parent(tmp_path, forks):
    """Killed, a parent takes along a child that hangs, even where its own fork keeps the talk open."""
    hangs = "import time\nfrom attnbench.processes import ParentProcess\nParentProcess()\ntime.sleep(3600)\n"
    (tmp_path / "hangs.py").write_text(hangs)
    code = textwrap.dedent(
        f"""
        import os, sys, time
        from attnbench.processes import ChildProcess
        child = ChildProcess("hangs", "the child")
        fork = os.fork() if {forks} else None
        if fork != 0:
            print(child.pid, fork or child.pid, flush=True)
        time.sleep(3600)
        """
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    with parent.stdout:
        child, fork = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    try:
        wait_until_gone(child)
    finally:
        if forks:
            os.kill(fork, signal.SIGKILL)


def test_a_child_ends_when_the_talk_does(start):
    """The end of its input ends it, whatever it does; nobody has killed it."""
    child = start("parent.reply({})\ntime.sleep(3600)")
    assert child.receive(REPLY, PATIENCE_S) == {}
    child.end(PATIENCE_S)
    assert f"ended with exit code {ORPHANED}" in child.how_it_ended()


def test_sending_to_the_dead_is_told_as_its_end(start):
    """A child that ends before it is asked breaks no pipe: its end is the answer."""
    child = start("print('that was all')\nos._exit(7)")
    wait_until_gone(child.pid)
    for _ in range(3):
        child.send(json.dumps("x" * 10**6))
    assert child.receive(REPLY, PATIENCE_S) is None
    assert child.how_it_ended() == "the child ended with exit code 7; its last words: that was all"


@pytest.mark.parametrize(
    ("counts", "hint"),
    [
        ((None, None), "(the kernel's out-of-memory killer sends this)"),
        ((2, 3), "(the kernel's out-of-memory killer was at work: more memory is needed)"),
        ((2, 2), "(not by the kernel's out-of-memory killer, which killed nothing meanwhile)"),
    ],
)
def test_a_kill_by_others_names_the_kernel_as_far_as_it_says_so(start, monkeypatch, counts, hint):
    """SIGKILL from elsewhere: the cgroup's count of such kills, where there is one, is the evidence."""
    read = iter(counts)
    monkeypatch.setattr(processes, "oom_kills", lambda: next(read))
    child = start("print('working')\nos.kill(os.getpid(), signal.SIGKILL)")
    assert all_of(child) == []
    assert child.how_it_ended() == f"the child was killed by SIGKILL {hint}; its last words: working"


def test_a_kill_of_ours_is_not_the_kernels(start):
    """What attnbench killed itself is said with the reason, and with no word on memory."""
    child = start("parent.reply({})\ntime.sleep(3600)")
    child.receive(REPLY, PATIENCE_S)
    child.kill("it was too slow")
    assert (
        child.how_it_ended() == "the child was killed by attnbench: it was too slow; its last words: (none)"
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGSEGV"])
def test_other_signals_are_named(start, name):
    """A signal that is not SIGKILL is named, and is no sign of memory."""
    child = start(f"os.kill(os.getpid(), signal.{name})")
    assert all_of(child) == []
    assert child.how_it_ended() == f"the child was killed by {name}; its last words: (none)"


def test_a_timeout_is_an_error_and_leaves_the_child_alive(start):
    """Who waits too long for a reply can ask again."""
    child = start("parent.request()\nparent.reply({})")
    with pytest.raises(TimeoutError):
        child.receive(REPLY, 0.0)
    assert child.is_alive
    child.send("{}")
    assert child.receive(REPLY, PATIENCE_S) == {}


def test_a_child_imports_what_its_parent_does(start, tmp_path, monkeypatch):
    """The parent's path in its order, without the working directory in front of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger in the working directory')")
    child = start(
        """
        import json
        parent.reply({place: number for number, place in enumerate(sys.path)})
        """
    )
    (places,) = all_of(child)
    ours = [place for place in dict.fromkeys(sys.path) if place]
    assert [place for place in places if place in ours] == ours
    assert str(tmp_path) not in places


def test_the_path_is_for_our_child_alone(start, monkeypatch):
    """What a child starts has the user's PYTHONPATH: another Python would not start with our library."""
    for users in (None, "/of/the/user"):
        if users is None:
            monkeypatch.delenv("PYTHONPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONPATH", users)
        child = start("parent.reply({os.environ.get('PYTHONPATH', 'none'): 1})")
        assert all_of(child) == [{users or "none": 1}]


def test_what_is_no_text_in_the_path_is_passed_over(start, monkeypatch):
    """Python ignores a Path object in `sys.path`, as notebooks and conftest files put there; so do we."""
    monkeypatch.setattr(sys, "path", [Path("/somewhere"), *sys.path])
    assert all_of(start("parent.reply({'here': 1})")) == [{"here": 1}]


def test_text_that_cannot_be_said_arrives(start):
    """A file name that is no UTF-8 stands in errors; it is no forged message."""
    assert all_of(start(r"parent.reply({'caf\udce9.png': 1})")) == [{"caf?.png": 1}]


def test_a_parent_with_many_open_files(start):
    """Descriptors above 1023, which select() does not take."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files = []
    try:
        with contextlib.suppress(OSError):
            while not files or files[-1] < 1100:
                files.append(os.open(os.devnull, os.O_RDONLY))
        if files[-1] < 1100:
            pytest.skip("this system allows fewer than 1,100 open files")
        child = start("parent.reply({'heard': int(parent.request())})")
        child.send("7")
        assert all_of(child) == [{"heard": 7}]
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


NURSERY_CHILD = """
import os, sys
from attnbench.processes import ParentProcess

seen = 0


def main():
    global seen
    seen += 1
    parent = ParentProcess()
    for asked in parent.requests():
        if asked == '"end"':
            print("the last words")
            sys.exit(3)
        parent.reply({"n": seen, "path": os.environ.get("PYTHONPATH", "")})
"""
ANY_REPLY = TypeAdapter(dict)


def test_a_nursery_forks_clean_children(tmp_path, monkeypatch):
    """Each has the module as it was imported and the user's PYTHONPATH; its end is told as any child's."""
    (tmp_path / "nursery_child.py").write_text(NURSERY_CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "theirs")
    with Nursery("nursery_child") as nursery:
        for _ in range(2):
            with ChildProcess("nursery_child", "the child", nursery=nursery) as child:
                child.send('"ask"')
                assert child.receive(ANY_REPLY, 60) == {"n": 1, "path": "theirs"}
                child.send('"end"')
                assert child.receive(ANY_REPLY, 60) is None
                assert (
                    child.how_it_ended() == "the child ended with exit code 3; its last words: the last words"
                )


def test_a_nursery_that_cannot_import_says_so(tmp_path, monkeypatch):
    """A child of a nursery that died is an error with the nursery's last words."""
    (tmp_path / "broken_child.py").write_text("raise RuntimeError('broken at import')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Nursery("broken_child") as nursery, pytest.raises(ChildStartError, match="broken at import"):
        ChildProcess("broken_child", "the child", nursery=nursery)


NURSERY_LOOK = """
import atexit, os, signal, sys, threading
from attnbench.processes import ParentProcess

loaded = []


def preload():
    loaded.append(len(os.listdir("/proc/self/task")))


def main():
    parent = ParentProcess()
    atexit.register(os.write, 1, b"at exit")
    parent.reply({
        "preloaded": loaded,
        "session": os.getsid(0),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "terminate": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "nursery": os.getppid(),
    })
    parent.request()
"""


def test_a_nursery_in_this_session_leaves_signals_to_its_children(tmp_path, monkeypatch):
    """Ctrl-C and SIGTERM to the whole group do not end it; its children take them as any process does."""
    (tmp_path / "nursery_look.py").write_text(NURSERY_LOOK)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Nursery("nursery_look", new_session=False) as nursery:
        for number in (signal.SIGINT, signal.SIGTERM):
            with ChildProcess("nursery_look", "the child", nursery=nursery) as child:
                said = child.receive(ANY_REPLY, PATIENCE_S)
                assert said.pop("nursery") != os.getpid()
                assert said == {
                    "preloaded": [1],  # one thread: it forks
                    "session": os.getsid(0),
                    "interrupt": True,
                    "terminate": True,
                    "blocked": 0,
                }
                os.kill(nursery._process.pid, number)
                child.signal(number)
                assert child.receive(ANY_REPLY, PATIENCE_S) is None
                interrupted = "ended with exit code 1; its last words: "
                how = interrupted if number == signal.SIGINT else "was killed by SIGTERM"
                assert how in child.how_it_ended()
                # what it had to do at its end is done where Python ends it
                assert child.last_words().endswith("at exit") == (number == signal.SIGINT)


def test_a_nursery_that_nobody_needed_ends_at_once(tmp_path, monkeypatch):
    """It may still be at its imports when the suite turns out to be finished, or wrong."""
    (tmp_path / "slow_child.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Nursery("slow_child") as nursery:
        pass
    assert not is_running(nursery._process.pid)


def test_what_a_child_prints_is_kept_in_its_log(start, tmp_path, monkeypatch):
    """Added to what is there, its folder made where it is missing; a long one goes on in another file."""
    monkeypatch.setattr(processes, "LOG_KEPT", 1000)
    log = tmp_path / "logs" / "case.log"
    for words in ("first", "second", "x" * 2000, "last"):
        child = start(f"print({words!r}, flush=True)", log=log)
        assert all_of(child) == []
    older = log.with_name("case.log.older").read_text()
    assert older + log.read_text() == f"first\nsecond\n{'x' * 2000}\nlast\n"
    assert len(older) > 1000 > len(log.read_text())
    silent = start("pass", log=tmp_path / "silent.log")
    assert all_of(silent) == []
    assert not (tmp_path / "silent.log").exists()
