"""Cases as tasks of Slurm: what is refused, and a real cluster whose parts are killed or preempted."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import attnbench_here
from process_cases import digits_case
from ray_cluster import wait_for
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from slurm_strikes import (
    announce_the_limit,
    cancel,
    kill_case,
    kill_node,
    kill_task,
    preempt,
    restart_the_controller,
)
from struck_runs import Driver, assert_nothing_is_lost, command, kill_driver, python_path, run_whole

from attnbench.errors import UserInputError
from attnbench.running.executors import slurm_queue
from attnbench.running.executors.interface import Asked, Order, Progress
from attnbench.running.executors.slurm import Slurm, _Task
from attnbench.running.executors.slurm_queue import TaskState, minutes
from attnbench.running.executors.slurm_submit import _further
from attnbench.running.executors.slurm_task import SAID
from attnbench.running.status import submitted_tasks
from attnbench.storage.locks import alone_in
from attnbench.storage.store import NOTICE

MISSING = missing_programs() or (
    "needs attnbench[slurm]" if importlib.util.find_spec("submitit") is None else ""
)
real_slurm = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "slurn"], "unknown executor 'slurn' (did you mean 'slurm'?)"),
        (["--executor", "slurm", "--inline"], "--inline is of this machine, --executor slurm runs"),
        (["--partition", "gpu"], "--partition is of a Slurm cluster; add --executor slurm"),
        (["--executor", "ray", "--time", "60"], "--time is of a Slurm cluster; add --executor slurm"),
        (["--dry-run"], "--dry-run is of a Slurm cluster; add --executor slurm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(here, words, said):
    """One line each, exit code 2, before the suite is read."""
    done = attnbench_here("run", "no-such-suite", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_without_slurm_or_submitit_it_says_what_is_missing(monkeypatch, tmp_path):
    """Before anything is submitted or run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserInputError, match=r"sbatch, .* are not on this machine's PATH; .* login node"):
        slurm_queue.require_slurm()
    monkeypatch.setattr(slurm_queue.shutil, "which", lambda name: name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserInputError, match=r"pip install 'attnbench\[slurm\]'"):
        slurm_queue.require_slurm()


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("2:30:00", 150),
        ("0:00:01", 1),
        ("1-12", 2160),
        ("1-0:30", 1470),
        ("1-0:0:1", 1441),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(time, expected):
    """One number is minutes, two are minutes and seconds, after days come hours."""
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["", "1h", "0", "-1", "1:2:3:4", "0:00"])
def test_what_is_no_time_limit_is_refused(time):
    """Not a day later, by the cluster."""
    with pytest.raises(UserInputError, match="--time is"):
        minutes(time)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nodes=2", "nodes is no further option: say it by --nodes"),
        ("array=2", "array is no further option: attnbench sets it; leave it out"),
        ("cpus_per_task=1", "cpus_per_task is no further option: say it by --threads"),
        ("--mem=3G", "without dashes before it"),
        ("=3", "write an option of sbatch as NAME=VALUE"),
    ],
)
def test_options_that_attnbench_sets_are_no_further_ones(word, said):
    """Two nodes would start one case twice, another number of cores would not be the threads'."""
    with pytest.raises(UserInputError, match=re.escape(said)):
        _further([word])
    assert _further(["account=lab", "exclusive"]) == {"account": "lab", "exclusive": True}


@pytest.fixture
def task(tmp_path):
    """A submitted task of a driver, which nobody runs, and all that was told of it."""
    told: list[object] = []
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "run" / "logs" / "a.log")
    driver = Slurm(Asked())
    driver._spool = tmp_path / "spool"
    made = _Task(
        order=order, tell=lambda order, event: told.append(event), folder=tmp_path / "spool/a", tries=1
    )
    made.folder.mkdir(parents=True)
    made.job = "7_0"
    driver._tasks = [made]
    return driver, made, told


def test_half_a_line_of_a_dead_node_costs_no_other(task):
    """The requeued attempt writes on in the same file."""
    driver, made, told = task
    half = b'["notice", 0, 0, "ab'
    whole = [NOTICE, 0, 0, "whole"]
    (made.folder / SAID).write_bytes(half + b"\n" + json.dumps(whole).encode() + b"\n" + half)
    driver._hear_one(made)
    driver._hear_one(made)
    assert told == [Progress(*whole)]


def test_an_error_of_the_drivers_thread_ends_the_task_alone(task):
    """A disk that is away is looked at again and told once; anything else is the task's failure."""
    driver, made, told = task

    def away(task):
        raise OSError(5, "stale file handle")

    for _ in range(2):
        driver._guarded(away, made)
    (notice,) = told
    assert "stale file handle" in notice.note

    def wrong(task):
        raise ValueError("no Slurm says so")

    driver._guarded(wrong, made)
    assert told[1].result.reason.startswith("ValueError: no Slurm says so")
    assert driver._tasks == []


def test_a_requeued_task_is_not_taken_for_one_without_locks(task, monkeypatch):
    """Locks that were seen once are seen on this file system; a task that starts again holds none yet."""
    driver, made, told = task
    made.state, made.progress = TaskState(state="RUNNING", node="n1"), "begun"
    monkeypatch.setattr(slurm_queue, "cancel", lambda *words: None)
    driver._sees_locks = True
    for _ in range(100):
        driver._look_after(made)
    assert told == []
    driver._sees_locks = False
    for _ in range(100):
        driver._look_after(made)
    assert "does not see the file locks (flock) that node n1 holds" in told[0].result.reason


def test_only_the_tasks_of_a_run_at_work_are_told(tmp_path):
    """What a driver that died has left says nothing of a case that is run elsewhere now."""
    spool = tmp_path / "slurm" / "a"
    spool.mkdir(parents=True)
    (spool / "tasks.json").write_text('{"x": {"task": "7_0", "state": "PENDING"}}')
    assert submitted_tasks(tmp_path) == {}
    code = (
        "import sys; from pathlib import Path; from attnbench.running.status import submitted_tasks; "
        "print(submitted_tasks(Path(sys.argv[1]))['x'].task)"
    )
    with alone_in(spool, print):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": python_path()},
        )  # fmt: skip
    assert done.stdout.strip() == "7_0"


SINFO = """\
n1|4|gpu:a100:8(S:0-1)|idle|515000|main
n2|2|(null)|drng|8000|main
n3|8+|gpu:4,lscratch:900|mix-|1|main
n4|64|(null)|idle*|8000|main
n5|1|(null)|maint|8000|main
broken
"""


def test_nodes_that_take_no_tasks_decide_nothing(monkeypatch):
    """A draining node of two cores would set the threads of every case, and so its weights.

    A memory of 1 MiB is Slurm's word for: nobody has said how much.
    """
    monkeypatch.setattr(slurm_queue, "_ask", lambda *words: SINFO)
    assert [(n.id, n.cpus, n.gpus, n.memory) for n in slurm_queue.nodes_of("main")] == [
        ("n1", 4, 8, 515000 * 2**20),
        ("n3", 8, 4, 0),
    ]


@pytest.fixture(scope="module")
def cluster():
    """A controller and two nodes of one CPU each."""
    with slurm_cluster(2) as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The suite as the process executor runs it."""
    return run_whole(tmp_path_factory.mktemp("whole"))


def start(cluster: SlurmCluster, whole: Path, runs: Path, *words: str) -> Driver:
    environment = os.environ | cluster.environment | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    return Driver(whole, runs, ["--executor", "slurm", *words], environment)


@real_slurm
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("strike", "codes", "said"),
    [
        (kill_case, {1}, "the case's process was killed by SIGKILL"),
        (kill_task, {0}, "try 2 of 4 goes on from its checkpoint"),
        (kill_node, {0}, ""),
        (preempt, {0}, ""),
        (announce_the_limit, {0}, ""),
        (cancel, {1}, "it was cancelled in Slurm"),
        (restart_the_controller, {0}, ""),
        (kill_driver, {-signal.SIGKILL}, ""),
    ],
)
def test_what_is_struck_loses_nothing(cluster, whole, tmp_path, strike, codes, said):
    """The same command again ends with every case ok; what was finished or saved is not computed twice."""
    begin = partial(start, cluster, whole, tmp_path / "runs")
    assert_nothing_is_lost(begin, partial(strike, cluster), whole, codes, said)


@real_slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_saves_what_runs_and_takes_back_what_waits(cluster, whole, tmp_path):
    """One task at a time: SIGTERM to the driver ends both, the second before it began; nothing is left."""
    runs = tmp_path / "runs"
    longer = ("-o", "train.steps=4000")
    driver = start(cluster, whole, runs, "--slurm", "nodelist=n1", *longer)
    driver.wait_for_checkpoint()
    told = subprocess.run(
        command(["status", whole / "struck.yaml", "--runs", runs, *longer]),
        env=os.environ | {"PYTHONPATH": python_path(), "COLUMNS": "200"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "1 running, 1 queued" in told
    assert "PENDING" in told
    driver.process.terminate()
    code, log = driver.wait()
    assert code == 128 + signal.SIGTERM, log
    assert "stopped at training step" in log
    assert "not begun" in log
    wait_for(lambda: not cluster.ask("squeue", "-h").strip(), 60, "an empty queue")


@real_slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partition", "gpu"], "Slurm has no partition 'gpu'; choose one of main, urgent with --partition"),
        (["--threads", "3"], "a case needs 3 CPUs on one node, and the nodes of the cluster have 1 CPUs"),
        (["--slurm", "mem=1T"], "Slurm would not take these cases"),
        (["--slurm", "array=3"], "array is no further option: attnbench sets it; leave it out"),
        (["--slurm", "cpus_per_task=3"], "cpus_per_task is no further option: say it by --threads"),
        (["--slurm", "no-such-option=3"], "Slurm would not take these cases"),
        (["--time", "soon"], "--time is 'soon'; write minutes"),
    ],
)
def test_what_the_cluster_does_not_have_is_found_before_anything_is_submitted(
    cluster, whole, tmp_path, words, said
):
    """Exit code 2, one line, and nothing in the queue."""
    driver = start(cluster, whole, tmp_path / "runs", *words)
    code, log = driver.wait()
    assert code == 2, log
    assert said in " ".join(log.split())
    assert cluster.ask("squeue", "-h").strip() == ""
