"""What may befall a Slurm cluster at work: each strike takes cluster and driver, and leaves two nodes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ray_cluster import wait_for
from slurm_cluster import SlurmCluster
from struck_runs import Driver

CASE = "attnbench.stages.case"
NOTICED_S = 120.0
CONTROLLER_AWAY_S = 12.0  # longer than its clients wait for one answer (MessageTimeout: 10 s)


def processes(cluster: SlurmCluster, word: str) -> list[int]:
    """Return the cluster's processes whose command has a word in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (path.parent / "environ").read_bytes()
        except OSError:
            continue
        if (
            word in said
            and f"SLURM_CONF={cluster.folder}".encode() in environment
            and b"SLURM_JOB_ID=" in environment
        ):
            found.append(int(path.parent.name))
    return found


def running(cluster: SlurmCluster) -> list[str]:
    """Return the tasks that run."""
    return cluster.ask("squeue", "-h", "-t", "R", "--array", "-o", "%i").split()


def busy_node(cluster: SlurmCluster) -> str:
    """Return a node that a task runs on; raises IndexError."""
    return cluster.ask("squeue", "-h", "-t", "R", "-o", "%N").split()[0]


def wait_until_down(cluster: SlurmCluster, node: str) -> None:
    wait_for(
        lambda: "down" in cluster.ask("sinfo", "-h", "-N", "-n", node, "-o", "%t"),
        NOTICED_S,
        "the node's loss",
    )


def kill_case(cluster: SlurmCluster, driver: Driver) -> None:
    os.kill(processes(cluster, CASE)[0], signal.SIGKILL)


def kill_task(cluster: SlurmCluster, driver: Driver) -> None:
    os.kill(processes(cluster, "submitit.core._submit")[0], signal.SIGKILL)


def kill_node(cluster: SlurmCluster, driver: Driver) -> None:
    busy = busy_node(cluster)
    cluster.kill_node(busy)
    wait_until_down(cluster, busy)
    cluster.start_node(busy)


def cut_off_node(cluster: SlurmCluster, driver: Driver) -> None:
    """A node answers nobody until it is taken for lost, while its case goes on; then it is back."""
    busy = busy_node(cluster)
    daemon = cluster.processes[busy]
    daemon.send_signal(signal.SIGSTOP)
    try:
        wait_until_down(cluster, busy)
    finally:
        daemon.send_signal(signal.SIGCONT)


def cut_off_controller(cluster: SlurmCluster, driver: Driver) -> None:
    """The controller answers nobody for a while: neither the driver's questions nor the nodes."""
    daemon = cluster.processes["slurmctld"]
    daemon.send_signal(signal.SIGSTOP)
    try:
        time.sleep(CONTROLLER_AWAY_S)
    finally:
        daemon.send_signal(signal.SIGCONT)


def preempt(cluster: SlurmCluster, driver: Driver) -> None:
    cluster.ask("sbatch", "-p", "urgent", "-N", "2", "-o", "/dev/null", "--wrap", "sleep 2")


def announce_the_limit(cluster: SlurmCluster, driver: Driver) -> None:
    cluster.ask("scancel", "--signal=USR2", *running(cluster))


def cancel(cluster: SlurmCluster, driver: Driver) -> None:
    cluster.ask("scancel", running(cluster)[0])


def requeue(cluster: SlurmCluster, driver: Driver) -> None:
    cluster.ask("scontrol", "requeue", running(cluster)[0])


def restart_the_controller(cluster: SlurmCluster, driver: Driver) -> None:
    cluster.processes["slurmctld"].kill()
    cluster.processes["slurmctld"].wait()
    cluster.start_controller()
