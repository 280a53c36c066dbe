"""What may befall a Ray cluster at work: each strike takes cluster and driver, and leaves two nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from ray_cluster import LocalCluster, descendants
from struck_runs import Driver

CASE = "attnbench.stages.case"
CUT_OFF_S = 60.0  # three times Ray's 10 s and our 1 s to be taken for lost; then the driver counts nodes
NOTICED_S = 60.0


def of_cluster(cluster: LocalCluster, word: str) -> list[int]:
    """Return the processes below the nodes whose command has a word in it."""
    found = [item for node in cluster.nodes for item in descendants(node.pid).items()]
    return [pid for pid, command in found if word in command]


def kill_case(cluster: LocalCluster, driver: Driver) -> None:
    os.kill(of_cluster(cluster, CASE)[0], signal.SIGKILL)


def kill_worker(cluster: LocalCluster, driver: Driver) -> None:
    cases = set(of_cluster(cluster, CASE))
    workers = [pid for pid in of_cluster(cluster, "ray::") if cases & descendants(pid).keys()]
    os.kill(workers[0], signal.SIGKILL)


def busy_node(cluster: LocalCluster) -> subprocess.Popen:
    """Return a node that a case runs on; raises IndexError."""
    for node in cluster.nodes:
        if any(CASE in words for words in descendants(node.pid).values()):
            return node
    raise IndexError("no case runs")


def replace(cluster: LocalCluster, node: subprocess.Popen) -> None:
    cluster.nodes.remove(node)
    cluster.lost.append(node)
    cluster.add_node()


def kill_raylet(cluster: LocalCluster, driver: Driver) -> None:
    busy = busy_node(cluster)
    os.kill(cluster.raylet(busy), signal.SIGKILL)
    replace(cluster, busy)


def reclaim_node(cluster: LocalCluster, driver: Driver) -> None:
    """SIGTERM to a node, as where a spot machine is taken back."""
    busy = busy_node(cluster)
    busy.send_signal(signal.SIGTERM)
    replace(cluster, busy)


def cut_off_node(cluster: LocalCluster, driver: Driver) -> None:
    """A node answers nobody, neither its raylet nor its workers, while its case goes on; then it is back."""
    _stop_for_a_while(cluster, lambda words: CASE not in words)


def freeze_node(cluster: LocalCluster, driver: Driver) -> None:
    """A node and its case stand still, as a virtual machine that is moved, and go on when nobody waits."""
    _stop_for_a_while(cluster, lambda words: True)


def _stop_for_a_while(cluster: LocalCluster, is_stopped: Callable[[str], bool]) -> None:
    """Stop processes of a node until the head has taken it for lost; Ray ends what comes back so late."""
    busy = busy_node(cluster)
    pids = [pid for pid, words in descendants(busy.pid).items() if is_stopped(words)]
    assert cluster.raylet(busy) in pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(CUT_OFF_S)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + NOTICED_S
    while time.monotonic() < until:
        if cluster.raylet(busy) is None:
            replace(cluster, busy)
            return
        time.sleep(0.2)
