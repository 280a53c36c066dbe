"""What is left to do where a launcher such as torchrun has started several copies of this command."""

from __future__ import annotations

import os
from dataclasses import dataclass

from attnbench.errors import UserInputError

LAUNCHER_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
)  # fmt: skip
_OF_MACHINES = ("LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes a case has, and which of the machines this is, where there are several."""

    processes: int
    """On all machines."""
    here: int
    """On this one."""
    machine: int = 0
    """The first has number 0: it runs the cases, the others lend processes to it."""
    machines: int = 1
    address: str = ""
    port: int = 0
    """Where the machines find each other: a `torch.distributed.TCPStore`."""
    serves: bool = False
    """Whether the first machine has to make that store, which torchrun's agents do elsewhere."""


def take_over_launcher(processes: int) -> Launch | None:
    """Return how to use what a launcher (torchrun) has started: several copies of this command.

    The first copy of a machine starts as many processes itself as the launcher did there; None says that this
    is another copy, with nothing to do. Without a launcher there are `processes` here. Forgets the launcher's
    variables, which the processes to come would take for theirs. Raises UserInputError for copies on several
    machines that do not know of each other.
    """
    copies, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if copies == 1:
        return Launch(processes=processes, here=processes)
    if processes not in (1, copies):
        raise UserInputError(
            f"--processes is {processes}, but a launcher has started {copies} copies; leave --processes out"
        )
    if here == copies:
        launch, first = Launch(processes=copies, here=copies), os.environ.get("RANK", "0")
    else:
        launch, first = _of_several_machines(copies, here), os.environ.get("LOCAL_RANK", "0")
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    return launch if first == "0" else None


def _of_several_machines(copies: int, here: int) -> Launch:
    lacking = [name for name in _OF_MACHINES if name not in os.environ]
    if lacking:
        raise UserInputError(
            f"a launcher has started {copies} copies of attnbench on several machines, {here} of them here, "
            f"and does not say {', '.join(lacking)}; start them with torchrun, or start attnbench run SUITE "
            "--processes GPUS once on each machine, with one --runs folder on a file system that they share: "
            "then they share out the cases"
        )
    return Launch(
        processes=copies,
        here=here,
        machine=int(os.environ["GROUP_RANK"]),
        machines=int(os.environ["GROUP_WORLD_SIZE"]),
        address=os.environ["MASTER_ADDR"],
        port=int(os.environ["MASTER_PORT"]),
        serves=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
    )
