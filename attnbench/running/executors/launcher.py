"""What is left to do where a launcher such as torchrun has started several copies of this command."""

from __future__ import annotations

import os

from attnbench.errors import UserInputError

LAUNCHER_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
)  # fmt: skip


def take_over_launcher(processes: int) -> int | None:
    """Return how many processes to use where a launcher (torchrun) started several copies of this command.

    The first copy does all the work and starts as many processes itself as the launcher did; None says that
    this is another copy, with nothing to do. Without a launcher it is `processes`. Forgets the launcher's
    variables, which the processes to come would take for theirs. Raises UserInputError for copies on several
    machines.
    """
    copies, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if copies == 1:
        return processes
    if here != copies:
        raise UserInputError(
            f"a launcher has started {copies} copies of attnbench on several machines, {here} of them here; "
            "a case trains on one machine: start attnbench run SUITE --processes GPUS once on each, with one "
            "--runs folder on a file system that they share; they share out the cases"
        )
    if processes not in (1, copies):
        raise UserInputError(
            f"--processes is {processes}, but a launcher has started {copies} copies; leave --processes out"
        )
    first = os.environ.get("RANK", "0") == "0"
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    return copies if first else None
