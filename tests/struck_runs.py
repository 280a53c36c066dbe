"""A suite for `attnbench run` to be struck at work, its driver as a process, and what must come of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from command_line import ROOT
from kills import clocks
from ray_cluster import wait_for

from attnbench.results import latest, read_results
from attnbench.storage.names import AVERAGED, CHECKPOINT, DONE, RESULTS, STORE

RUN_S = 280.0
NAME = "struck"
SUITE = f"""
name: {NAME}
question: Does a lost part of a cluster lose or change anything?
model: {{recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2, learned_variance: false}}
data: digits
train: {{objective: flow, steps: 600, batch_size: 8, lr: 1e-3, ema_decay: 0.5, checkpoint_every: 50,
  log_every: 50}}
sample: {{sampler: euler, num_steps: 2, per_class: 4}}
evaluate: {{extractor: digits-cnn, kd_subset_size: 20, kd_subsets: 4}}
profile: {{measure: [macs, params]}}
matrix:
  model.attention: [softmax, linear]
"""


def python_path() -> str:
    """Return what a process needs to import what this one does."""
    return os.pathsep.join([str(ROOT), *(place for place in sys.path if place)])


def run_whole(folder: Path) -> Path:
    """Run the suite with the process executor and one thread; return the folder with its runs."""
    (folder / "struck.yaml").write_text(SUITE)
    words = ["run", folder / "struck.yaml", "--runs", folder / "runs", "--device", "cpu", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    subprocess.run(command(words), check=True, env=environment, timeout=RUN_S, capture_output=True)
    return folder


def command(words: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "attnbench.cli", *map(str, words)]


class Driver:
    """`attnbench run` of the suite in a new runs folder, which has the features of the whole one alone."""

    def __init__(
        self, whole: Path, runs: Path, engine: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        if not runs.exists():
            shutil.copytree(whole / "runs" / STORE / "features", runs / STORE / "features")
        self.runs, self.log = runs, runs.with_suffix(".log")
        words = ["run", whole / "struck.yaml", "--runs", runs, "--device", "cpu", "--threads", "1", *engine]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(words), env=dict(environment), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, limit_s: float = RUN_S) -> tuple[int, str]:
        try:
            return self.process.wait(limit_s), self.log.read_text()
        finally:
            self.process.kill()

    def checkpoints(self) -> set[tuple[str, int]]:
        """Return the checkpoints of trainings that are not finished: another one of the same is another."""
        found = set()
        for path in (self.runs / STORE).glob(f"train/*/{CHECKPOINT}"):
            with contextlib.suppress(FileNotFoundError):
                if not (path.parent / DONE).exists():
                    found.add((path.parent.name, path.stat().st_ino))
        return found

    def wait_for_checkpoint(self) -> None:
        """Wait until a training that is not finished has saved something."""

        def saved() -> object:
            assert self.process.poll() is None, self.log.read_text()
            return self.checkpoints()

        wait_for(saved, RUN_S, "a checkpoint")


def finished(runs: Path) -> dict[Path, tuple[int, bytes]]:
    """Return which file marks each finished stage: another file there means that it was done again.

    Not by its times, which a clock that jumps has set.
    """
    found = {}
    for path in (runs / STORE).glob(f"*/*/{DONE}"):
        found[path] = (path.stat().st_ino, path.read_bytes())
    return found


def all_ok(runs: Path) -> bool:
    """Tell whether every case is ok, computed by one thread."""
    path = runs / NAME / RESULTS
    results = latest(read_results(path)) if path.exists() else []
    found = sorted((r.label, r.status, r.environment.threads) for r in results)
    return found == [("linear", "ok", 1), ("softmax", "ok", 1)]


def weights(runs: Path) -> dict[str, bytes]:
    """Return the trained weights, averages and last checkpoints, by training and file."""
    paths = [path for name in (AVERAGED, CHECKPOINT) for path in (runs / STORE).glob(f"train/*/{name}")]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def kill_driver(cluster: object, driver: Driver) -> None:
    driver.process.kill()
    driver.process.wait()


def assert_nothing_is_lost(
    begin: Callable[[], Driver],
    strike: Callable[[Driver], None],
    whole: Path,
    codes: Collection[int],
    said: str,
) -> None:
    """Strike a run at work; the same command again ends well, and computes nothing twice that was saved."""
    driver = begin()
    driver.wait_for_checkpoint()
    runs = driver.runs
    before, trained = finished(runs), clocks(runs)
    assert any(trained.values())
    strike(driver)
    code, log = driver.wait()
    assert code in codes, log
    assert said in log
    code, log = begin().wait()
    assert code == 0, log
    now = finished(runs)
    assert {path: now[path] for path in before} == before
    again = clocks(runs)
    assert {key: again[key][: len(saved)] for key, saved in trained.items()} == trained
    assert all_ok(runs)
    assert weights(runs) == weights(whole / "runs")
