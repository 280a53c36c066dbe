"""How cases become tasks of Slurm: what each is given, and the array that submitit hands to sbatch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.errors import UserInputError
from attnbench.running.executors import slurm_queue as queue
from attnbench.running.executors.cluster_shares import (
    Share,
    asked_memory,
    check_memory,
    share_of_each,
)
from attnbench.running.executors.interface import Asked, Order
from attnbench.running.executors.slurm_queue import SlurmError
from attnbench.running.executors.slurm_task import SlurmTask
from attnbench.storage.atomic import storage_errors
from attnbench.storage.names import SLURM

DEFAULT_MINUTES = 12 * 60
SIGNAL_S = 120  # from the announcement of the time limit to the kill: a checkpoint of tens of gigabytes
REQUEUES = 1000  # after time limits: a training of weeks in a partition of hours
OURS: Mapping[str, str] = {
    **dict.fromkeys(("array", "output", "error", "open-mode", "signal", "requeue", "no-requeue"), ""),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "job-name"), ""),
    "nodes": "--nodes",
    "time": "--time",
    "partition": "--partition",
    "cpus-per-task": "--threads",
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gres"), "--device and --processes"),
}
"""Options of sbatch that attnbench sets itself, and which of its own say them."""


def submit(
    tasks: Sequence[SlurmTask], asked: Asked, share: Share, folder: Path, orders: Sequence[Order]
) -> list[str]:
    """Submit an array with these tasks; return what squeue calls each: `job`, or `job_index`."""
    made = _executor(asked, share, folder, orders)
    with _importing_what_we_do(), made.batch():
        jobs = [made.submit(task) for task in tasks]
    return [str(job.job_id) for job in jobs]


def share_of(asked: Asked) -> Share:
    """Return what each case gets of the partition's nodes; raises UserInputError."""
    try:
        known = queue.partitions()
    except SlurmError as error:
        raise UserInputError(f"Slurm does not answer: {error}") from error
    if asked.partition and asked.partition not in known:
        raise UserInputError(
            f"Slurm has no partition {asked.partition!r}; choose one of {', '.join(known)} with --partition"
        )
    return share_of_each(asked, queue.nodes_of(asked.partition))


def _memory_mib(asked: Asked, share: Share, orders: Sequence[Order]) -> int:
    """Return what is asked for on each node of a task: the largest estimate, a quarter more, as Slurm kills.

    0, the cluster's default, where nothing is estimated, where networks that are not counted score or
    encode images, or where the nodes do not say what they have. Raises
    UserInputError where a case needs more for certain than any node has.
    """
    estimate = max((order.memory_bytes for order in orders), default=0)
    if not estimate or any(order.memory is not None and not order.memory.is_whole for order in orders):
        return 0
    able = [node for node in queue.nodes_of(asked.partition) if node.holds(share)]
    check_memory(orders, able, asked.nodes)
    return asked_memory(estimate * 5 // 4, able, asked.nodes) // 2**20


def script(asked: Asked, share: Share, orders: Sequence[Order]) -> str:
    """Return the batch script of the array that runs some cases, as `--dry-run` prints it."""
    made = _executor(asked, share, orders[0].log.parent.parent / SLURM, orders)
    if len(orders) > 1:
        made.parameters["map_count"] = len(orders)
    return str(made._make_submission_file_text(made._submitit_command_str, "dry-run"))


def _executor(asked: Asked, share: Share, folder: Path, orders: Sequence[Order]) -> Any:
    """Return submitit's executor with what a case is given; raises UserInputError for unknown settings."""
    further = _further(asked.slurm)
    import submitit

    with storage_errors(folder):
        made = submitit.SlurmExecutor(folder=folder, max_num_timeout=REQUEUES)
    settings: dict[str, Any] = {
        "job_name": "attnbench",
        "time": queue.minutes(asked.time) if asked.time else DEFAULT_MINUTES,
        "nodes": asked.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": share.cpus,
        "signal_delay_s": SIGNAL_S,
        "array_parallelism": asked.jobs or max(1, asked.num_cases),
        # what the submitter's own job says of its cores is not for a task's srun
        "setup": ["unset SLURM_CPU_BIND", f"export SRUN_CPUS_PER_TASK={share.cpus}"],
    }
    if asked.partition:
        settings["partition"] = asked.partition
    if share.gpus:
        settings["gpus_per_node"] = share.gpus
    said = {"mem", "mem-per-cpu", "mem-per-gpu"} & {name.replace("_", "-") for name in further}
    if not said and (memory_mib := _memory_mib(asked, share, orders)):
        settings["mem"] = f"{memory_mib}M"
    made.update_parameters(**settings, additional_parameters={"requeue": True, **further})
    return made


def _further(words: Sequence[str]) -> dict[str, Any]:
    """Return the options of sbatch that a user has named; raises UserInputError for those that are ours."""
    found: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or name.startswith("-"):
            raise UserInputError(
                f"--slurm is {word!r}; write an option of sbatch as NAME=VALUE, without dashes before it "
                "(account=lab, mem=16G)"
            )
        said_by = OURS.get(name.replace("_", "-"))
        if said_by is not None:
            way = f"say it by {said_by}" if said_by else "attnbench sets it; leave it out"
            raise UserInputError(f"--slurm is {word!r}, and {name} is no further option: {way}")
        found[name] = value or True
    return found


@contextlib.contextmanager
def _importing_what_we_do() -> Iterator[None]:
    """Let tasks import what this process does: sbatch hands its environment on."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(place or os.curdir for place in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
