"""Executors to be struck: how each runs the suite, whom a fault can hit there, which faults it can meet."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray_strikes
import slurm_strikes
from fault_kinds import Blow, Fault, pause
from ray_cluster import local_cluster
from slurm_cluster import slurm_cluster
from struck_runs import Driver, python_path
from whole_runs import left_over, start_warm, wait

LOCAL: Mapping[str, Sequence[str]] = {"inline": ["--inline"], "process": [], "jobs": ["--jobs", "2"]}
LOOK_S = 0.02


class Warm:
    """`attnbench run` as a fork of this process."""

    def __init__(self, whole: Path, runs: Path, words: Sequence[str]) -> None:
        self.runs, self.log = runs, runs.with_suffix(".log")
        self.log.write_text("")  # it may be struck before it opens it
        named = ["run", str(whole / "struck.yaml"), "--runs", str(runs), "--device", "cpu", "--threads", "1"]
        self.pid = start_warm([*named, *words], self.log)
        self._code: int | None = None

    def has_ended(self, until: float = 0.0) -> bool:
        if self._code is None:
            self._code = wait(self.pid, until)
        return self._code is not None

    def wait(self, limit_s: float) -> tuple[int, str]:
        if not self.has_ended(time.monotonic() + limit_s):
            os.killpg(self.pid, signal.SIGKILL)
            self.has_ended(float("inf"))
            raise TimeoutError(f"it did not end within {limit_s:g} s: {self.log.read_text(errors='replace')}")
        assert self._code is not None
        return self._code, self.log.read_text(errors="replace")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def nursery(self) -> list[int]:
        """What forks the processes of cases."""
        return [pid for pid in _children(self.pid) if _name(pid) == "processes"]

    @property
    def cases(self) -> list[int]:
        """The processes of cases, forked by the nursery or, after its death, started afresh."""
        fresh = [pid for pid in _children(self.pid) if _name(pid) == "case"]
        return fresh + [pid for nursery in self.nursery for pid in _children(nursery)]


class Local:
    """An executor of this machine."""

    longest_pause_s = 1.0

    def __init__(self, name: str, longest_gap_s: float = 1.2) -> None:
        self.name, self._longest_gap_s = name, longest_gap_s

    def begin(self, whole: Path, runs: Path) -> Warm:
        return Warm(whole, runs, LOCAL[self.name])

    def moment(self, command: Warm, chance: random.Random) -> bool:
        """Wait for a random moment; returns whether the command is still there."""
        return not command.has_ended(time.monotonic() + chance.uniform(0.05, self._longest_gap_s))

    def left_over(self) -> list[tuple[int, str]]:
        """Return the processes that outlive a command."""
        return left_over()

    def faults(self) -> Iterator[Fault]:
        if self.name != "inline":
            yield Fault("kill -9 of a case", lambda command, chance: _kill(command.cases, chance))
            yield Fault("kill -9 of a worker", lambda command, chance: _kill(command.nursery, chance))
        yield Fault("kill -9 of the driver", lambda command, chance: command.kill(), ends=True)
        yield Fault("preemption", _reclaim, ends=True)
        yield Fault("slow node", self._slow)

    def _slow(self, command: Warm, chance: random.Random) -> None:
        pids = [command.pid] if self.name == "inline" else command.cases
        pause(pids, chance, self.longest_pause_s)


def _kill(pids: Sequence[int], chance: random.Random) -> None:
    os.kill(pids[chance.randrange(len(pids))] if pids else [][0], signal.SIGKILL)


def _reclaim(command: Warm, chance: random.Random) -> None:
    """SIGTERM to every process, as where a machine is taken back, and sometimes what comes soon after it."""
    os.killpg(command.pid, signal.SIGTERM)
    if chance.random() < 0.5 and not command.has_ended(time.monotonic() + chance.uniform(0, 1)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class OnCluster:
    """An executor whose cases run on a cluster of this machine."""

    longest_pause_s = 5.0

    def __init__(
        self, name: str, cluster: Any, words: Sequence[str], environment: Mapping[str, str], strikes: Any
    ) -> None:
        self.name, self._cluster, self._words, self._environment = name, cluster, words, environment
        self._strikes = strikes

    def begin(self, whole: Path, runs: Path) -> Driver:
        return Driver(whole, runs, ["--executor", self.name, *self._words], self._environment)

    def cases(self) -> list[int]:
        raise NotImplementedError

    def moment(self, command: Driver, chance: random.Random) -> bool:
        """Wait until a training has saved something new or, now and then, until a case has a process.

        And then for a random time; returns whether the command is still there.
        """
        before = command.checkpoints()
        ready = self.cases if chance.random() < 0.2 else lambda: command.checkpoints() - before
        while not command.has_ended() and not ready():
            time.sleep(LOOK_S)
        until = time.monotonic() + chance.uniform(0, 1)
        while not command.has_ended() and time.monotonic() < until:
            time.sleep(LOOK_S)
        return not command.has_ended()

    def left_over(self) -> list[tuple[int, str]]:
        """Cases of a driver that was killed may go on for a while: the next command waits for them."""
        return []

    def _blow(self, *strikes: Callable[[Any, Driver], None]) -> Blow:
        def strike(command: Driver, chance: random.Random) -> None:
            self.cases()[0]  # raises IndexError
            strikes[chance.randrange(len(strikes))](self._cluster, command)

        return strike

    def _slow(self, command: Driver, chance: random.Random) -> None:
        pause(self.cases(), chance, self.longest_pause_s)


class OnRay(OnCluster):
    def cases(self) -> list[int]:
        return ray_strikes.of_cluster(self._cluster, ray_strikes.CASE)

    def faults(self) -> Iterator[Fault]:
        yield Fault("kill -9 of a case", self._blow(ray_strikes.kill_case))
        yield Fault("kill -9 of a worker", self._blow(ray_strikes.kill_worker))
        yield Fault("kill -9 of a node", self._blow(ray_strikes.kill_raylet))
        yield Fault("kill -9 of the driver", lambda command, chance: command.process.kill(), ends=True)
        yield Fault("preemption", self._blow(ray_strikes.reclaim_node))
        yield Fault("cut network", self._blow(ray_strikes.cut_off_node, ray_strikes.freeze_node))
        yield Fault("slow node", self._slow)


class OnSlurm(OnCluster):
    def cases(self) -> list[int]:
        return slurm_strikes.processes(self._cluster, slurm_strikes.CASE)

    def faults(self) -> Iterator[Fault]:
        taken = (slurm_strikes.preempt, slurm_strikes.requeue, slurm_strikes.announce_the_limit)
        cut = (slurm_strikes.cut_off_node, slurm_strikes.cut_off_controller)
        yield Fault("kill -9 of a case", self._blow(slurm_strikes.kill_case))
        yield Fault("kill -9 of a worker", self._blow(slurm_strikes.kill_task))
        yield Fault("kill -9 of a node", self._blow(slurm_strikes.kill_node))
        yield Fault("kill -9 of the driver", lambda command, chance: command.process.kill(), ends=True)
        yield Fault("preemption", self._blow(*taken, slurm_strikes.cancel))
        yield Fault("cut network", self._blow(*cut, slurm_strikes.restart_the_controller))
        yield Fault("slow node", self._slow)


@contextlib.contextmanager
def on_ray() -> Iterator[OnRay]:
    """Yield Ray, on a head and two nodes of one CPU each."""
    with local_cluster(2, python_path()) as cluster:
        yield OnRay("ray", cluster, ["--address", cluster.address], cluster.environment, ray_strikes)


@contextlib.contextmanager
def on_slurm() -> Iterator[OnSlurm]:
    """Yield Slurm, on two nodes of one CPU each."""
    with slurm_cluster(2) as cluster:
        environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        yield OnSlurm("slurm", cluster, [], environment, slurm_strikes)
