"""What may befall a Ray cluster at work: each strike takes cluster and driver, and leaves two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from ray_cluster import LocalCluster, descendants
from struck_runs import Driver

CASE = "attnbench.stages.case"
CUT_OFF_S = 45.0  # a node that three times has not answered within Ray's 10 s is lost
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
    """A node's raylet answers nobody until the head takes it for lost; meanwhile its case goes on.

    Then it is back, and Ray ends it, as it comes too late.
    """
    busy = busy_node(cluster)
    raylet = cluster.raylet(busy)
    assert raylet is not None
    os.kill(raylet, signal.SIGSTOP)
    try:
        time.sleep(CUT_OFF_S)
    finally:
        os.kill(raylet, signal.SIGCONT)
    until = time.monotonic() + NOTICED_S
    while time.monotonic() < until:
        if cluster.raylet(busy) is None:
            replace(cluster, busy)
            return
        time.sleep(0.2)
