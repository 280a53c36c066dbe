"""Two machines of a test's own: network namespaces joined by a cable, else the loopback device twice."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from struck_runs import python_path

MARK = "ATTNBENCH_TEST_MACHINE"
START_S, PORT = 60.0, 29500
# a lost agent is noticed after 2 s instead of 15; a second one joins within a minute
ELASTIC = "keep_alive_interval=1,keep_alive_max_attempt=2,join_timeout=120"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where processes start, and under which address they are seen."""

    number: int
    address: str
    namespace: str = ""

    def torchrun(
        self,
        first: Machine,
        port: int,
        words: Sequence[object],
        log: Path,
        *,
        processes: int = 1,
        restarts: int = 0,
    ) -> Started:
        """Start an agent of torchrun with a command of attnbench's; what they say is added to `log`."""
        at, is_host = f"{first.address}:{port}", self.number == 0
        command: list[object] = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2]
        command += ["--nproc-per-node", processes, "--rdzv-backend", "c10d", "--rdzv-endpoint", at]
        command += ["--rdzv-id", "test", "--local-addr", self.address, "--max-restarts", restarts]
        command += ["--rdzv-conf", f"is_host={is_host},{ELASTIC}", "-m", "attnbench.cli", *words]
        return Started(self, command, log)


class Started:
    """A process of a machine, which it and all that it starts carry the mark of."""

    def __init__(self, machine: Machine, command: Sequence[object], log: Path) -> None:
        self.mark = f"{machine.number}-{secrets.token_hex(8)}"
        inside = ["ip", "netns", "exec", machine.namespace] if machine.namespace else []
        environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        # without it torch 2.13 waits in vain for a new agent that takes a lost one's place: the first agent
        # says its address in the first round alone (`DynamicRendezvousHandler.next_rendezvous`)
        environment |= {MARK: self.mark, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with log.open("a") as said:
            self._process = subprocess.Popen(
                [*inside, *map(str, command)], env=environment, stdin=subprocess.DEVNULL,
                stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def has_ended(self) -> bool:
        """Whether its first process has ended, as it must not yet."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill all its processes at once, as when the machine loses its power."""
        for pid in self._all():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _all(self) -> list[int]:
        """Return the processes with its mark, by the environments that they started with."""
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine, int]]:
    """Yield two machines and a port of the first that is free."""
    with ExitStack() as stack:
        try:
            names = [_namespace(stack) for _ in range(2)]
            _join(names)
        except (OSError, subprocess.CalledProcessError):  # not root, or no namespaces here
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            yield Machine(number=0, address="127.0.0.1"), Machine(number=1, address="127.0.0.1"), port
            return
        one, two = (
            Machine(number=number, address=f"198.18.0.{number + 1}", namespace=name)
            for number, name in enumerate(names)
        )
        yield one, two, PORT


def _namespace(stack: ExitStack) -> str:
    name = f"attnbench-{secrets.token_hex(4)}"
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    _ip("-n", name, "link", "set", "lo", "up")
    return name


def _join(names: Sequence[str]) -> None:
    """Lay a cable: both its ends lie in the namespaces from the start, and go with them."""
    _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
    for number, name in enumerate(names):
        _ip("-n", name, "addr", "add", f"198.18.0.{number + 1}/30", "dev", "cable")
        _ip("-n", name, "link", "set", "cable", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
