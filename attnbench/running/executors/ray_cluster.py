"""A Ray cluster as an executor needs it: connected to or started here, its nodes, and what they lack."""

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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench import __version__
from attnbench.devices import available_cores
from attnbench.errors import UserInputError
from attnbench.running.executors.asking import distinct, held_mark, source_digest
from attnbench.running.executors.cluster_shares import Node
from attnbench.specs import Case
from attnbench.storage.names import CLAIMS, LOCK

OBJECTS_BYTES = 80 * 2**20  # Ray's least: nothing large passes through its object store
REACH_S = 10.0  # for a TCP connection
CONNECT_S = 90.0  # for all of Ray's handshakes, which it tries for minutes by itself
PROBE_S = 300.0  # for a node's imports and its look at the data
LOOK_S = 5.0  # how often it is looked whether the nodes that are asked are alive
LONGEST_TEMPORARY = 30  # characters: a socket's path below it may have 107 bytes
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # of one machine: it then listens on the loopback device alone
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task without GPUs leaves CUDA_VISIBLE_DEVICES alone
}
CONNECTING = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL", configure_logging=False)
except BaseException as error:
    print("\\n" + " ".join(str(error).split()))
    sys.exit(1)
ray.shutdown()
"""


def require_ray() -> None:
    """Raise UserInputError where Ray is not installed."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise UserInputError("--executor ray needs Ray, which is not installed: pip install 'attnbench[ray]'")


class Cluster:
    """A connection to a cluster, or one of this machine's own, which ends with it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._folder: Path | None = None
        self._is_connected = False

    def connect(self) -> None:
        """Connect within CONNECT_S, or start a cluster of one node; raises UserInputError."""
        if self.address:
            self._check_reachable()
        else:
            self._folder = _temporary_folder()
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            for name, value in LOCAL.items():
                os.environ.setdefault(name, value)
        import ray

        local = {
            "num_cpus": available_cores(),
            "object_store_memory": OBJECTS_BYTES,
            "include_dashboard": False,
            "_temp_dir": str(self._folder),
        }
        with _signals_as_they_are(), _importing_what_we_do():
            try:
                ray.init(
                    address=self.address or "local",
                    log_to_driver=False,
                    logging_level="CRITICAL",
                    configure_logging=False,
                    **({} if self.address else local),
                )
            except (RuntimeError, OSError, ValueError) as error:
                raise UserInputError(f"no Ray cluster can be had: {_one_line(str(error))}") from error
        self._is_connected = True

    def close(self) -> None:
        """Disconnect; a cluster that was started here ends, and its folder goes."""
        if self._is_connected:
            import ray

            with _signals_as_they_are():
                ray.shutdown()
        self._is_connected = False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        import ray

        return [
            Node(
                id=node["NodeID"],
                address=node["NodeManagerAddress"],
                cpus=int(node["Resources"].get("CPU", 0)),
                gpus=int(node["Resources"].get("GPU", 0)),
                memory=int(node["Resources"].get("memory", 0)),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def check(self, nodes: Sequence[Node], cases: Sequence[Case], store: Path) -> None:
        """Ask every node what it lacks for the cases; raises UserInputError that names it, within PROBE_S.

        A node that is lost meanwhile is none of the cluster any more.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mark = Path(CLAIMS) / f"probe-{secrets.token_hex(8)}"
        probe = ray.remote(max_retries=0, max_calls=1, num_cpus=0)(_by_value())
        with held_mark(store / mark):
            asked = (distinct(cases), str(store), str(mark / LOCK), source_digest(), __version__)
            refs = {
                probe.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
                ).remote(*asked): node
                for node in nodes
            }
            said = self._hear(refs)
        problems = [f"node {node.address}: {text}" for node, texts in said for text in texts]
        if problems:
            raise UserInputError("\n  ".join(dict.fromkeys(problems)))

    def _hear(self, asked: Mapping[Any, Node]) -> list[tuple[Node, list[str]]]:
        """Return what those nodes say that are alive when all have spoken; each is asked by a reference."""
        import ray

        until, waiting, answered, alive = time.monotonic() + PROBE_S, list(asked), set(), set()
        while waiting and time.monotonic() < until:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
            answered |= set(ready)
            alive = {node.id for node in self.nodes()}
            waiting = [ref for ref in waiting if asked[ref].id in alive]
        said = [(node, _said(node, ref, ref in answered)) for ref, node in asked.items() if node.id in alive]
        if not said:
            raise UserInputError(
                "every node of the Ray cluster that holds a case was lost while it was asked what it has; "
                "see `ray status`, and run the same command again"
            )
        return said

    def _check_reachable(self) -> None:
        """Raise UserInputError where nobody listens, or where connecting takes longer than CONNECT_S.

        A process of its own tries it: Ray itself tries for minutes, and then ends the process that asked.
        """
        if self.address.startswith("ray://"):
            raise UserInputError(
                f"--address {self.address} is of Ray's client, whose driver is elsewhere; start attnbench "
                "on a machine of the cluster, with --address auto or the host:port of its head"
            )
        if self.address != "auto":
            host, _, port = self.address.rpartition(":")
            if not host or not port.isdecimal():
                raise UserInputError(
                    f"--address is {self.address!r}; it is auto or host:port of a cluster's head"
                )
            try:
                socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
            except OSError as error:
                raise UserInputError(
                    f"no Ray cluster answers at {self.address}: {error.strerror or error}; start one there "
                    "(ray start --head), or leave --address out to have one on this machine"
                ) from error
        try:
            with _importing_what_we_do():
                tried = subprocess.run(
                    [sys.executable, "-c", CONNECTING, self.address],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=CONNECT_S,
                    stdin=subprocess.DEVNULL,
                )
        except subprocess.TimeoutExpired as error:
            raise UserInputError(
                f"what listens at {self.address} has not answered as a Ray cluster within {CONNECT_S:g} s; "
                "look at `ray status` there"
            ) from error
        if tried.returncode != 0:
            said = (tried.stdout.strip() or tried.stderr.strip() or "no reason given").splitlines()[-1]
            raise UserInputError(f"the Ray cluster at {self.address} cannot be used: {said}")


def _by_value() -> Any:
    """Return the function that probes a node; it travels as code, since attnbench may not be there."""

    def probe(cases: list[str], store: str, mark: str, code: str, version: str) -> list[str]:
        import sys
        from pathlib import Path

        try:
            import attnbench
        except ImportError:
            return [f"attnbench {version} is not installed there for {sys.executable}; install it"]
        if attnbench.__version__ != version:
            return [f"it has attnbench {attnbench.__version__}, the driver {version}; install the same one"]
        from attnbench.running.executors.asking import lacking

        return lacking(cases, Path(store), mark, code)

    return probe


def _said(node: Node, ref: Any, has_answered: bool) -> list[str]:
    import ray

    if not has_answered:
        return [
            f"it has not answered within {PROBE_S:g} s; look at `ray status`, or take it out of the cluster"
        ]
    try:
        return list(ray.get(ref))
    except ray.exceptions.RayError as error:
        return [f"it could not be asked what it has: {_one_line(str(error))}"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _temporary_folder() -> Path:
    """Return a new folder for a cluster's sockets and logs, whose path is short enough for a socket's."""
    usual = tempfile.gettempdir()
    return Path(
        tempfile.mkdtemp(prefix="attnbench-ray-", dir=usual if len(usual) < LONGEST_TEMPORARY else "/tmp")
    )


@contextlib.contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Keep what this process does on SIGTERM: Ray would end it on the spot."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _importing_what_we_do() -> Iterator[None]:
    """Let a local cluster's workers import what this process does: they are started with our PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(place or os.curdir for place in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
