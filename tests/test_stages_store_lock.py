"""Runs that share a store: one works at a time, the other reads what it finished or goes on where it died."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import ROOT
from stage_cases import install, make_case, make_workspace

from attnbench.results import read_results
from attnbench.stages import train
from attnbench.stages.training.trainer import Trainer
from attnbench.storage import store
from attnbench.storage.atomic import temporary_beside
from attnbench.storage.locks import alone_in
from attnbench.storage.names import CHECKPOINT, LOCK
from attnbench.storage.store import NOTICE, Workspace, read_output
from attnbench.suite.loading import load_suite

TRAIN = {"checkpoint_every": 3}
BYTES = (CHECKPOINT, train.AVERAGED, "train.jsonl")


def train_and_tell(root: Path, name: str, pause_at: int | None) -> None:
    """Train in this process; write the steps made and the notices heard to `<root>/<name>`.

    Before step `pause_at` it waits for a file `<root>/go`.
    """
    torch.set_num_threads(1)
    notes, make_step = (root / name).open("a", buffering=1), Trainer._step

    def step(trainer, number, *rest):
        if number == pause_at:
            wait_until((root / "go").exists)
        notes.write(f"step {number}\n")
        return make_step(trainer, number, *rest)

    def hear(stage, done, total, note):
        if stage == NOTICE:
            notes.write(f"{note}\n")

    install(setattr)
    Trainer._step = step  # type: ignore[method-assign]
    train.run(make_case(train=TRAIN), Workspace(root=root, device=torch.device("cpu"), progress=hear))


@pytest.fixture
def start(monkeypatch):
    """Start trainings in processes of their own, which import torch once for all."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Python 3.11's server does not ask for ours
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stage_cases", __name__])
    started = []

    def begin(root: Path, name: str, pause_at: int | None = None):
        started.append(context.Process(target=train_and_tell, args=(root, name, pause_at)))
        started[-1].start()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.join()


def wait_until(happened: Callable[[], bool], seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def told(root: Path, name: str) -> str:
    return (root / name).read_text() if (root / name).exists() else ""


def steps(root: Path, name: str) -> list[int]:
    return [int(number) for number in re.findall(r"^step (\d+)$", told(root, name), re.MULTILINE)]


def trained_alone(monkeypatch, root: Path) -> dict[str, bytes]:
    """Return the files of an undisturbed training."""
    case = make_case(train=TRAIN)
    with monkeypatch.context() as patch:
        install(patch.setattr)
        train.run(case, make_workspace(root))
    return files_of(root)


def files_of(root: Path) -> dict[str, bytes]:
    folder = make_workspace(root).folder("train", make_case(train=TRAIN))
    return {name: (folder / name).read_bytes() for name in BYTES}


def both_at_once(start, root: Path):
    """Return two trainings: one has made five steps and a checkpoint, the other says that it waits."""
    first = start(root, "first", pause_at=5)
    wait_until(lambda: steps(root, "first") == [0, 1, 2, 3, 4])
    second = start(root, "second")
    wait_until(lambda: f"waiting for process {first.pid} on " in told(root, "second"))
    return first, second


def test_two_trainings_of_one_case_are_one(start, monkeypatch, tmp_path):
    """The second waits, names the first, makes no step, and both leave the bytes of a single training."""
    first, second = both_at_once(start, tmp_path)
    (tmp_path / "go").touch()
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert steps(tmp_path, "first") == list(range(10))
    assert steps(tmp_path, "second") == []
    assert files_of(tmp_path) == trained_alone(monkeypatch, tmp_path / "alone")


def test_who_waits_goes_on_from_the_checkpoint_of_a_killed_one(start, monkeypatch, tmp_path):
    """The first is killed while the second waits: the second starts at its checkpoint, no byte differs."""
    first, second = both_at_once(start, tmp_path)
    first.kill()
    second.join()
    assert second.exitcode == 0
    assert steps(tmp_path, "second") == list(range(3, 10))
    assert files_of(tmp_path) == trained_alone(monkeypatch, tmp_path / "alone")


def test_what_killed_processes_had_begun_to_write_is_removed(tmp_path):
    """Once nobody else can be at work in the folder of a stage; other files stay."""
    workspace = make_workspace(tmp_path)
    folder = workspace.folder("sample", make_case())
    unfinished, others = temporary_beside(folder / "grid.png"), (folder / ".mine", folder / "a.part")
    for path in (unfinished, *others):
        path.write_bytes(b"")
    with workspace.holding(folder):
        assert not unfinished.exists()
    assert all(path.exists() for path in others)


def test_a_finished_stage_is_read_without_a_lock(monkeypatch, tmp_path):
    """It may lie where this user cannot write, and nobody need wait to read it."""
    trained_alone(monkeypatch, tmp_path)
    workspace, case = make_workspace(tmp_path), make_case(train=TRAIN)

    def forbidden(folder, tell):
        raise AssertionError(f"locked {folder}")

    monkeypatch.setattr(store, "alone_in", forbidden)
    folder = workspace.folder("train", case)
    assert train.run(case, workspace) == read_output(folder)
    (folder / store.DONE).unlink()
    with pytest.raises(AssertionError, match="locked"):
        train.run(case, workspace)
    assert (folder / LOCK).read_bytes() == b""


STEPS = 1200
WAITING = r"note: waiting for process {pid} on .* \(since .*Z\), which works in {place}; Ctrl-C ends .*\n"
SUITE = f"""\
name: NAME
question: Do they share?
model: {{recipe: tiny-dit, depth: 1, dim: 32, num_heads: 2, attention: softmax}}
data: digits
train: {{objective: flow, steps: {STEPS}, batch_size: 8, ema_decay: 0.5, checkpoint_every: 100}}
sample: {{sampler: euler, num_steps: 2, per_class: 4}}
evaluate: {{extractor: digits-cnn, class_accuracy: false, kd_subset_size: 20, kd_subsets: 4}}
profile: {{measure: [macs, params]}}
"""


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _leave_none_behind():
    """End what a failed test has frozen."""
    yield
    while started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pop().pid, signal.SIGKILL)


def start_run(folder: Path, name: str) -> subprocess.Popen[str]:
    """Start `attnbench run` of the suite under a name, in a process group of its own."""
    (folder / f"{name}.yaml").write_text(SUITE.replace("NAME", name))
    words = ["run", str(folder / f"{name}.yaml"), "--runs", str(folder / "runs"), "--device", "cpu"]
    run = subprocess.Popen(
        [sys.executable, "-m", "attnbench.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    started.append(run)
    return run


def halt_in_training(run: subprocess.Popen[str], folder: Path) -> Path:
    """Freeze a run behind its first checkpoint, and return the folder of its training."""
    found: list[Path] = []

    def there() -> bool:
        found[:] = (folder / "runs" / "store" / "train").glob(f"*/{CHECKPOINT}")
        return bool(found)

    wait_until(there)
    os.killpg(run.pid, signal.SIGSTOP)
    assert not (found[0].parent / store.DONE).exists(), "it was too quick for this test"
    return found[0].parent


def cell_of(folder: Path, name: str) -> Path:
    """Return what a run holds while it works on the suite's case; suites of equal cases share it."""
    (case,) = load_suite(folder / f"{name}.yaml").cases
    return folder / "runs" / "store" / "cells" / case.key("evaluate")


def undisturbed(folder: Path, name: str) -> dict[str, bytes]:
    """Train the suite's case once more, elsewhere and alone, and return its files."""
    (case,) = load_suite(folder / f"{name}.yaml").cases
    workspace = make_workspace(folder / "alone")
    train.run(case, workspace)
    return {file: (workspace.folder("train", case) / file).read_bytes() for file in BYTES}


@pytest.mark.slow
def test_runs_of_one_suite_and_of_one_that_shares_its_training(tmp_path):
    """Three commands at once: exit code 0 each, one training, whole results and a report for each suite."""
    runs = [start_run(tmp_path, "one")]
    trained = halt_in_training(runs[0], tmp_path)
    runs += [start_run(tmp_path, name) for name in ("one", "other")]
    for run in runs[1:]:
        line = run.stderr.readline()
        assert re.fullmatch(WAITING.format(pid=r"\d+", place=cell_of(tmp_path, "one")), line), line
    os.killpg(runs[0].pid, signal.SIGCONT)
    ended = [process.communicate() for process in runs]
    assert [process.returncode for process in runs] == [0, 0, 0], ended
    assert {name: (trained / name).read_bytes() for name in BYTES} == undisturbed(tmp_path, "one")
    timing = [json.loads(line) for line in (trained / "timing.jsonl").read_text().splitlines()]
    assert sum(entry["steps"] for entry in timing) == STEPS
    for name in ("one", "other"):
        results = read_results(tmp_path / "runs" / name / "results.jsonl")
        assert {result.status for result in results} == {"ok"}
        assert results[-1].measurement("macs_full@8")  # the last line holds the cost, too
        assert (tmp_path / "runs" / name / "report.html").exists()


@pytest.mark.slow
def test_a_run_that_waits_goes_on_where_a_killed_one_was(tmp_path):
    """kill -9 to the first command and its processes: the second ends in the bytes of an undisturbed run."""
    first = start_run(tmp_path, "one")
    trained = halt_in_training(first, tmp_path)
    second = start_run(tmp_path, "one")
    line = second.stderr.readline()
    assert re.fullmatch(WAITING.format(pid=r"\d+", place=cell_of(tmp_path, "one")), line), line
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    _, errors = second.communicate()
    assert second.returncode == 0, errors
    assert {name: (trained / name).read_bytes() for name in BYTES} == undisturbed(tmp_path, "one")


@pytest.mark.slow
def test_ctrl_c_while_waiting_ends_at_once(tmp_path):
    """SIGINT to a run that waits: exit code 130 and the usual words; nothing is trained."""
    (tmp_path / "one.yaml").write_text(SUITE.replace("NAME", "one"))
    (case,) = load_suite(tmp_path / "one.yaml").cases
    folder = make_workspace(tmp_path / "runs" / "store").folder("train", case)
    with alone_in(folder, print):
        run = start_run(tmp_path, "one")
        assert re.fullmatch(r"tiny-dit: prepare, \d+ s\n", run.stderr.readline())
        line = run.stderr.readline()
        assert re.fullmatch(WAITING.format(pid=os.getpid(), place=folder), line), line
        os.killpg(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    *words, said = errors.splitlines()  # it may have said once more for whom it waits
    assert any(line.startswith("Ctrl-C heard: stopping after the step") for line in words)
    start = "interrupted: 0 of 1 cases are finished; tiny-dit: stopped"
    assert said == f"{start}; run the same command again to go on from there"
    assert sorted(path.name for path in folder.iterdir()) == [LOCK]
