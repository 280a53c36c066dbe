"""Several nodes for one case under Ray: a placement group with a share on each, and actors that lend it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from attnbench.running.executors.asking import Asking
from attnbench.running.executors.cluster_shares import Share
from attnbench.running.executors.lending import (
    GATHER_S,
    CannotJoinError,
    Crew,
    Lent,
    lend,
    lost,
    new_key,
)
from attnbench.stages.distributed.machines import Lender

LOOK_S = 1.0  # how often it is asked whether the case is still wanted


class LendingNode:
    """An actor on a further node of a case; what it has lent ends with it, and it with its group."""

    def __init__(self) -> None:
        self._lender: Lender | None = None

    def lend(self, asking: dict[str, Any], code: str, first: str, key: str) -> dict[str, Any]:
        """Begin to lend processes to a case of the node with the address `first`; return `Lent`, dumped."""
        import ray

        asked, name = Asking.model_validate(asking), ray.util.get_node_ip_address()
        told, self._lender = lend(asked, name, code, first, key)
        return told.model_dump()


class Group:
    """Nodes of one attempt at a case: reserved together, for its task and the actors, and given back so."""

    def __init__(self, share: Share, memory: int | None, nodes: int) -> None:
        from ray.util.placement_group import placement_group

        self._asked: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus, "memory": memory}
        bundle = {"CPU": share.cpus, "GPU": share.gpus, "memory": memory or 0}
        bundles = [{name: amount for name, amount in bundle.items() if amount} for _ in range(nodes)]
        self._group = placement_group(bundles, strategy="STRICT_SPREAD")
        self.first = self._on(0)
        self.others = [self._lending_node(number) for number in range(1, nodes)]

    def _lending_node(self, number: int) -> Any:
        import ray

        actor = ray.remote(max_restarts=0, **self._asked)(LendingNode)
        return actor.options(scheduling_strategy=self._on(number)).remote()

    def _on(self, number: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=number
        )

    def remove(self) -> None:
        """Give the nodes back; whatever still works there for the case ends."""
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(Exception):  # of a cluster that is gone: nobody may wait for an answer
            remove_placement_group(self._group)


def gather(asked: Asking, code: str, others: Sequence[Any], is_stopped: Callable[[], bool]) -> Crew:
    """Let the actors of a case's further nodes lend to it; raises CannotJoinError.

    It is interrupted where `is_stopped`, which is asked now and then.
    """
    import ray

    if not others:
        return Crew(asked, "", ())
    key, first = new_key(), ray.util.get_node_ip_address()
    told = [node.lend.remote(asked.model_dump(mode="json"), code, first, key) for node in others]
    until = time.monotonic() + GATHER_S
    while len(ray.wait(told, num_returns=len(told), timeout=LOOK_S)[0]) < len(told):
        if is_stopped():
            raise CannotJoinError({"interrupted": ""})
        if time.monotonic() > until:
            raise CannotJoinError(lost(f"a node of the case has not answered within {GATHER_S:g} s"))
    try:
        lent = ray.get(told)
    except ray.exceptions.RayTaskError:  # our own code raised: it would again
        raise
    except ray.exceptions.RayError as error:
        how = f"a node of the case is gone ({' '.join(str(error).split())})"
        raise CannotJoinError(lost(how)) from error
    return Crew(asked, key, [Lent.model_validate(one) for one in lent])
