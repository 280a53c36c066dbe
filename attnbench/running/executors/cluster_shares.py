"""What each case gets of a cluster's nodes: the same everywhere, since weights depend on the threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.errors import UserInputError
from attnbench.running.executors.interface import Asked, Order
from attnbench.running.memory import check_holds


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a case has for itself, on one node."""

    device: str
    """cpu or cuda."""
    threads: int
    cpus: int
    """As a cluster counts them: the threads, or one for each of the case's processes."""
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of a cluster, alive."""

    id: str
    address: str
    cpus: int
    gpus: int
    memory: int = 0
    """Bytes that cases may have; 0: unknown."""

    def holds(self, share: Share) -> int:
        """Return how many cases it runs at a time."""
        by_cpus = self.cpus // share.cpus
        return min(by_cpus, self.gpus // share.gpus) if share.gpus else by_cpus


def share_of_each(asked: Asked, nodes: Sequence[Node]) -> Share:
    """Return what each case gets of some nodes; raises UserInputError where none of them has that.

    Threads, unless they are asked for or OMP_NUM_THREADS says them: beside a GPU its share of the cores, else
    all cores of the smallest node, or of the only one its share by `--jobs`.
    """
    if asked.device.startswith("cuda:"):
        raise UserInputError(
            f"--device {asked.device} names a GPU of one machine, and the cluster hands out its; "
            "say --device cuda"
        )
    with_gpus = [node for node in nodes if node.gpus]
    device = asked.device
    if device == "auto":
        device = "cuda" if with_gpus else "cpu"
    gpus = asked.processes if device == "cuda" else 0
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if asked.threads:
        threads = asked.threads
    elif chosen.isdecimal() and int(chosen):
        threads = int(chosen)
    elif gpus:
        threads = max(1, min((node.cpus * gpus // node.gpus for node in with_gpus), default=1))
    else:
        jobs = max(1, asked.jobs) if len(nodes) == 1 else 1
        threads = max(1, min((node.cpus for node in nodes if node.cpus), default=1) // jobs)
    share = Share(device=device, threads=threads, cpus=max(threads, asked.processes), gpus=gpus)
    if not any(node.holds(share) for node in nodes):
        raise UserInputError(_too_large(share, nodes))
    return share


def check_memory(orders: Sequence[Order], nodes: Sequence[Node]) -> None:
    """Raise UserInputError where a case needs more memory for certain than any node has."""
    most = max((node.memory for node in nodes), default=0)
    needs = [(order.case, order.memory) for order in orders]
    check_holds(needs, most or None, "the largest node of the cluster")


def asked_memory(estimate: int, nodes: Sequence[Node]) -> int:
    """Return the bytes to ask a cluster for: an estimate, or where no node has it all of the largest's."""
    most = max((node.memory for node in nodes), default=0)
    return min(estimate, most)


def _too_large(share: Share, nodes: Sequence[Node]) -> str:
    """Return that no node holds a case, and what the nodes have."""
    needs = f"{share.cpus} CPU{'s' if share.cpus > 1 else ''}"
    if share.gpus:
        needs += f" and {share.gpus} GPU{'s' if share.gpus > 1 else ''}"
    have = ", ".join(sorted({f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes}))
    return (
        f"a case needs {needs} on one node, and the nodes of the cluster have {have}; lower --threads or "
        "--processes, or choose another --device"
    )
