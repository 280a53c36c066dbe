"""A Ray cluster of a test's own on the loopback device: a head and nodes, processes that can be struck."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_S = 600.0  # on a machine that others load
END_S = 30.0
STARTED = "Ray runtime started"
# `ray start` as it is, on the loopback device: Ray would take 127.0.0.1 for the address of a network card
STARTING = """
import sys
from ray._private import services
services.get_node_ip_address = lambda *words, **more: "127.0.0.1"
from ray.scripts.scripts import main
sys.argv[0] = "ray"
main()
"""
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a driver, too, looks for it on the loopback device
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # a node whose raylet was killed is noticed after some seconds, not half a minute
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",  # 15 by itself, which waits on a machine that others load
}


def wait_for(what: Callable[[], object], seconds: float, name: str) -> object:
    """Return what `what` returns once that is true; fails after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{name} has not come within {seconds:g} s")


def descendants(pid: int) -> dict[int, str]:
    """Return the commands of the processes below one, by id."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found |= {child: words.strip()} | descendants(child)
    return found


@dataclass
class LocalCluster:
    """A head without CPUs, and nodes of one CPU each; everything is ended by its id."""

    folder: Path
    python_path: str
    port: int = 0
    head: subprocess.Popen | None = None
    nodes: list[subprocess.Popen] = field(default_factory=list)
    lost: list[subprocess.Popen] = field(default_factory=list)
    """Nodes that a test has struck."""
    environment: dict[str, str] = field(default_factory=dict)
    logs: dict[int, Path] = field(default_factory=dict)
    """What `ray start` says, by its process."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, nodes: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": self.python_path,
            "OMP_NUM_THREADS": "1",
        }
        self.head = self._ray(
            "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={self.folder}", "--disable-usage-stats",
        )  # fmt: skip
        wait_for(self._listens, START_S, "the head")
        for _ in range(nodes):
            self.add_node()

    def add_node(self) -> None:
        """Start a node; where Ray gives it up, as on a machine that others load, another one."""
        until = time.monotonic() + START_S
        while True:
            node = self._ray(f"--address={self.address}", "--num-cpus=1")
            log = self.logs[node.pid]
            while node.poll() is None and STARTED not in log.read_text(errors="replace"):
                time.sleep(0.1)
            if node.poll() is None:
                self.nodes.append(node)
                return
            said = log.read_text(errors="replace")
            assert time.monotonic() < until, f"no node has started within {START_S:g} s: {said}"

    def raylet(self, node: subprocess.Popen) -> int | None:
        """Return the id of a node's raylet."""
        return next((pid for pid, words in descendants(node.pid).items() if "/raylet " in words), None)

    def stop(self) -> None:
        started = [*self.nodes, *self.lost, *([self.head] if self.head else [])]
        below = {pid for process in started for pid in descendants(process.pid)}
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        for pid in (*below, *(process.pid for process in started if process.poll() is None)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ray(self, *words: str) -> subprocess.Popen:
        path = self.folder / f"started-{secrets.token_hex(4)}.log"
        log = path.open("w")
        process = subprocess.Popen(
            [sys.executable, "-c", STARTING, "start", "--block", "--node-ip-address=127.0.0.1",
             f"--object-store-memory={80 * 2**20}", *words],
            env={**self.environment, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self.logs[process.pid] = path
        return process

    def _listens(self) -> bool:
        assert self.head is not None
        assert self.head.poll() is None, "the head has ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            return True
        return False


@contextlib.contextmanager
def local_cluster(nodes: int, python_path: str) -> Iterator[LocalCluster]:
    """Yield a cluster of that many nodes beside its head."""
    folder = Path(tempfile.mkdtemp(prefix="ray-test-", dir="/tmp"))  # a socket's path is short
    cluster = LocalCluster(folder, python_path)
    try:
        cluster.start(nodes)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
