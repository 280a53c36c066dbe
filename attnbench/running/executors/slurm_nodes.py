"""Several nodes for one case under Slurm: srun starts a task on each, and they meet in the task's folder.

The first runs the case. Each other one writes there what it lends, `lender-<attempt>-<number>` (a requeued
task is another attempt), and stays while the first one's connection does, whatever Slurm signals: what is to
be saved the first one saves.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Callable
from pathlib import Path

from attnbench.errors import AttnbenchError
from attnbench.results import Record
from attnbench.running.executors.agreement import versions
from attnbench.running.executors.asking import Asking
from attnbench.running.executors.lending import (
    GATHER_S,
    CannotJoinError,
    Crew,
    Lent,
    lend,
    lost,
)
from attnbench.stages.distributed.machines import ENDING_S, Lender
from attnbench.storage.atomic import atomic_write

KEY, LENDER = "key", "lender"
FIRST = "SLURM_LAUNCH_NODE_IPADDR"  # the batch script's node, which srun is started on, as this one sees it
LOOK_S = 0.5


def number_here() -> int:
    """Return which of a case's nodes this is; the first has number 0."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def gather(asked: Asking, folder: Path, is_over: Callable[[], bool]) -> Crew | None:
    """Wait for a case's further nodes; None where it is over before. Raises CannotJoinError."""
    if asked.nodes == 1:
        return Crew(asked, "", ())
    paths = [folder / _name(number) for number in range(1, asked.nodes)]
    until = time.monotonic() + GATHER_S
    while missing := [path for path in paths if not path.exists()]:
        if is_over():
            return None
        if time.monotonic() > until:
            number = paths.index(missing[0]) + 2
            how = (
                f"node {number} of {asked.nodes} has not answered within {GATHER_S:g} s; what it printed is "
                f"in {folder.parent}"
            )
            raise CannotJoinError(lost(how))
        time.sleep(LOOK_S)
    lent = [Lent.model_validate_json(path.read_bytes()) for path in paths]
    return Crew(asked, (folder / KEY).read_text(), lent)


def lend_to_first(asked: Asking, folder: Path, code: str, is_over: Callable[[], bool]) -> None:
    """Lend processes to the first node until it, or the case, has ended."""
    # Slurm's signals reach every process of a task: USR2 would end those that are lent on the spot. What is
    # started from here on inherits this
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    name = os.environ["SLURMD_NODENAME"]
    try:
        first = os.environ.get(FIRST, "")
        if not first:
            raise AttnbenchError(f"srun does not say there where the first node is ({FIRST})")
        told, lender = lend(asked, name, code, first, (folder / KEY).read_text())
    except (AttnbenchError, OSError) as error:
        told, lender = Lent(name=name, versions=versions(), problems=[str(error)]), None
    try:
        atomic_write(folder / _name(number_here()), told.model_dump_json().encode())
        if lender is not None:
            _stay(lender, is_over)
    finally:
        if lender is not None:
            lender.close(2 * ENDING_S)


def _stay(lender: Lender, is_over: Callable[[], bool]) -> None:
    until = time.monotonic() + 2 * GATHER_S  # for the first node to find all others
    while time.monotonic() < until and not is_over():
        with contextlib.suppress(queue.Empty):
            lender.watch.get(timeout=LOOK_S).receive(Record)  # nothing comes: its end is the first node's
            return


def _name(number: int) -> str:
    return f"{LENDER}-{os.environ.get('SLURM_RESTART_COUNT', '0')}-{number}"
