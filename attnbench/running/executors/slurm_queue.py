"""What Slurm's commands say and do: nodes of a partition, tasks in the queue, how one ended, signals.

squeue and scontrol alone: sacct needs an accounting database, which many clusters lack.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attnbench.errors import UserInputError
from attnbench.running.executors.cluster_shares import Node

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
ANSWER_S = 120.0  # a controller with 100,000 tasks is slow
USABLE = ("idle", "alloc", "mix", "comp", "resv", "plnd")
"""Short states of a node that takes tasks, now or when others have ended."""
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
"""States of a task that is in the queue and computes nothing."""


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """How a task does, in Slurm's words."""

    state: str
    """PENDING, RUNNING, COMPLETING, NODE_FAIL, ..."""
    reason: str = ""
    """Why it waits, or ended so."""
    node: str = ""


class SlurmError(Exception):
    """A command of Slurm failed; the message is what it said."""


def require_slurm() -> None:
    """Raise UserInputError where Slurm's commands or submitit are not there."""
    import importlib.util

    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise UserInputError(
            f"--executor slurm needs Slurm's commands, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not on this machine's PATH; start it on a login node"
        )
    if importlib.util.find_spec("submitit") is None:
        raise UserInputError(
            "--executor slurm needs submitit, which is not installed: pip install 'attnbench[slurm]'"
        )


def nodes_of(partition: str) -> list[Node]:
    """Return a partition's nodes (empty: of all) that are not out of service; raises UserInputError."""
    words = ["-p", partition] if partition else []
    try:
        said = _ask("sinfo", "-h", "-N", "-o", "%N|%c|%G|%t|%m|%R", *words)
    except SlurmError as error:
        raise UserInputError(f"Slurm cannot be asked for its nodes: {error}") from error
    found: dict[str, Node] = {}
    for line in said.splitlines():
        if line.count("|") < 5:
            continue
        name, cpus, resources, state, mib = line.split("|", 5)[:5]
        if state.startswith(USABLE) and not state.endswith("*"):  # * : it does not respond
            number = sum(int(n) for n in re.findall(r"\bgpu(?::[^,:(]+)?:(\d+)", resources))
            memory = int(mib.rstrip("+"))
            found[name] = Node(
                id=name,
                address=name,
                cpus=int(cpus.rstrip("+")),
                gpus=number,
                memory=2**20 * memory if memory > 1 else 0,  # 1 is Slurm's default: nobody has said it
            )
    if not found:
        where = f"partition {partition!r}" if partition else "no partition"
        raise UserInputError(
            f"{where} has no node in service" if partition else "Slurm has no node in service; see `sinfo`"
        )
    return list(found.values())


def partitions() -> list[str]:
    """Return the names of all partitions."""
    return [line.rstrip("*") for line in _ask("sinfo", "-h", "-o", "%P").split()]


def minutes(time: str) -> int:
    """Return a time limit in whole minutes, written as sbatch takes it; raises UserInputError.

    >>> minutes("90"), minutes("2:30:00"), minutes("1-12"), minutes("1-0:30")
    (90, 150, 2160, 1470)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        raise UserInputError(f"--time is {time!r}; write minutes, hours:minutes:seconds or days-hours")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    # after days come hours; without them one number is minutes, two are minutes and seconds
    hours = numbers if days or len(numbers) == 3 else [0, *numbers]
    seconds = sum(n * unit for n, unit in zip(hours, (3600, 60, 1), strict=False)) + int(days or 0) * 86_400
    if seconds == 0:
        raise UserInputError(f"--time is {time!r}, which is no time; ask for a minute at least")
    return math.ceil(seconds / 60)


def would_take(script: str) -> None:
    """Let sbatch check a script without submitting it; raises UserInputError with what it says."""
    try:
        _ask("sbatch", "--test-only", given=script)
    except SlurmError as error:
        raise UserInputError(
            f"Slurm would not take these cases: {error}; see --partition, --time, --threads and --slurm"
        ) from error


def in_queue(job_ids: Iterable[str]) -> dict[str, TaskState]:
    """Return the tasks of some jobs that are in the queue, by `job` or `job_index`; raises SlurmError."""
    asked = sorted(set(job_ids))
    if not asked:
        return {}
    try:
        said = _ask("squeue", "-h", "--array", "-o", "%i|%T|%r|%N", "-j", ",".join(asked))
    except SlurmError as error:
        if "Invalid job id" in str(error):  # all of them have left Slurm's memory
            return {}
        raise
    found = {}
    for line in said.splitlines():
        task, state, reason, node = line.split("|", 3)
        found[task] = TaskState(state=state, reason=reason, node=node)
    return found


def how_it_ended(task: str) -> TaskState | None:
    """Return how a task has left the queue, as long as Slurm remembers it; raises SlurmError."""
    try:
        said = _ask("scontrol", "show", "job", "-o", task)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    told = dict(word.split("=", 1) for word in said.split() if "=" in word)
    return TaskState(
        state=told.get("JobState", ""), reason=told.get("Reason", ""), node=told.get("NodeList", "")
    )


def cancel(tasks: Sequence[str], *words: str) -> None:
    """Cancel tasks, or with `--signal` or `--state` among the words what scancel does then; never raises."""
    for first in range(0, len(tasks), 500):  # what a command line holds
        try:
            _ask("scancel", *words, *tasks[first : first + 500])
        except SlurmError:  # they have ended meanwhile
            continue


def _ask(command: str, *words: str, given: str | None = None, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            [command, *words],
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
            env=env,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{command}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise SlurmError(re.sub(r"^\w+: (error: )?", "", lines[-1]))
    return done.stdout
