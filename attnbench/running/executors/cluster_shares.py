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
    """What a case has for itself, on each of its nodes."""

    device: str
    """cpu or cuda."""
    threads: int
    cpus: int
    """As a cluster counts them: the threads, or one for each of the case's processes there."""
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
    """Return what each case gets of its nodes; raises UserInputError where too few of these have that.

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
    gpus = asked.processes_here if device == "cuda" else 0
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
    share = Share(device=device, threads=threads, cpus=max(threads, asked.processes_here), gpus=gpus)
    if not cases_at_once(share, nodes, asked.nodes):
        raise UserInputError(_too_large(share, nodes, asked.nodes))
    return share


def cases_at_once(share: Share, nodes: Sequence[Node], of_each: int) -> int:
    """Return how many cases some nodes hold at a time, where each has its share of `of_each` different ones.

    Of k cases a node holds k at most: k fit where these numbers add up to k times `of_each` (and then they
    do, each case in turn on the nodes with most places left); where k fit, so do fewer.
    """
    held = [node.holds(share) for node in nodes]
    fewest, most = 0, sum(held) // of_each
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if sum(min(one, middle) for one in held) >= middle * of_each:
            fewest = middle
        else:
            most = middle - 1
    return fewest


def check_memory(orders: Sequence[Order], nodes: Sequence[Node], of_each: int = 1) -> None:
    """Raise UserInputError where a case needs more memory for certain than `of_each` nodes have each."""
    needs = [(order.case, order.memory) for order in orders]
    where = "the largest node of the cluster" if of_each == 1 else f"each of its {of_each} largest nodes"
    check_holds(needs, _most(nodes, of_each) or None, where)


def asked_memory(estimate: int, nodes: Sequence[Node], of_each: int = 1) -> int:
    """Return the bytes to ask a cluster for on each node: an estimate, or what the largest nodes have."""
    return min(estimate, _most(nodes, of_each))


def _most(nodes: Sequence[Node], of_each: int) -> int:
    """Return the most bytes of memory that `of_each` nodes have each; 0: unknown."""
    sizes = sorted((node.memory for node in nodes), reverse=True)
    return sizes[of_each - 1] if len(sizes) >= of_each else 0


def _too_large(share: Share, nodes: Sequence[Node], of_each: int) -> str:
    """Return that too few nodes hold a case, and what the nodes have."""
    needs = f"{share.cpus} CPU{'s' if share.cpus > 1 else ''}"
    if share.gpus:
        needs += f" and {share.gpus} GPU{'s' if share.gpus > 1 else ''}"
    have = ", ".join(sorted({f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes}))
    if of_each == 1:
        return (
            f"a case needs {needs} on one node, and the nodes of the cluster have {have}; lower --threads or "
            "--processes, or choose another --device"
        )
    enough = sum(node.holds(share) > 0 for node in nodes)
    return (
        f"a case needs {needs} on each of {of_each} nodes, and {enough} of the cluster's {len(nodes)} "
        f"{'has' if enough == 1 else 'have'} that ({have}); lower --nodes, --threads or --processes, or "
        "choose another --device"
    )
