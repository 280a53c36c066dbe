"""From the start of `attnbench run` after a kill -9 to its first new training step."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from inputs import ATTNBENCH, suite_file
from ruamel.yaml import YAML
from safetensors import safe_open

PATIENCE_S = 300


def one_cell_of_quick(folder: Path) -> Path:
    """Write the shipped suite `quick` without its matrix: one case, softmax attention."""
    shipped = Path(__file__).parents[2] / "suites" / "quick.yaml"
    suite = YAML(typ="safe").load(shipped.read_text(encoding="utf-8"))
    del suite["matrix"]
    path = folder / "quick-one.yaml"
    YAML().dump(suite, path)
    return path


class Run:
    """`attnbench run` of a suite of one case in a process group of its own, watched through its files."""

    def __init__(self, suite: Path, runs: Path, overrides: list[str]) -> None:
        self.runs = runs
        old = self.timing()
        self.old_inode = old.stat().st_ino if old else None  # starting again replaces the file
        words = [ATTNBENCH, "run", str(suite), "--runs", str(runs), "--device", "cpu", "-q"]
        words += [word for override in overrides for word in ("-o", override)]
        self.started = time.perf_counter()
        with (runs / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True)

    def timing(self) -> Path | None:
        return next(iter(self.runs.glob("store/train/*/timing.jsonl")), None)

    def checkpoint_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        for path in self.runs.glob("store/train/*/checkpoint.safetensors"):
            with safe_open(path, framework="pt") as file:
                return int(json.loads(json.loads(file.metadata()["attnbench"])["progress"])["step"])
        return 0

    def step(self) -> int:
        """Return the last step that this process has written down, 0 before its first."""
        path = self.timing()
        if path is None or path.stat().st_ino == self.old_inode:
            return 0
        lines = path.read_bytes().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def wait_for_step(self, beyond: int) -> tuple[float, float]:
        """Return seconds by the wall and of CPU from the start until a step after `beyond` is done."""
        while self.step() <= beyond:
            self.check()
            time.sleep(0.01)
        return time.perf_counter() - self.started, self.cpu_seconds()

    def check(self) -> None:
        """Stop here when the run has ended or takes too long."""
        if self.process.poll() is not None or time.perf_counter() - self.started > PATIENCE_S:
            self.kill()
            sys.exit(f"the run ended or hangs:\n{(self.runs / 'said.txt').read_text()}")

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the run's group (Linux; nan elsewhere)."""
        ticks, found = 0, False
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid:
                ticks, found = ticks + sum(map(int, fields[11:15])), True
        return ticks / os.sysconf("SC_CLK_TCK") if found else float("nan")

    def kill(self) -> None:
        """kill -9 of the command and its case."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure(name: str, suite: Path, runs: Path, every: int, rounds: int) -> None:
    """Print the time to the first new step of starts after kill -9, and to that of a start from nothing."""
    shutil.copytree(runs.parent / "store" / "prepare", runs / "store" / "prepare")  # latents
    overrides = [f"train.checkpoint_every={every}", "train.log_every=1"]  # one line of the clock per step
    run = Run(suite, runs, overrides)
    fresh, _ = run.wait_for_step(0)
    while run.checkpoint_step() == 0 or run.step() <= run.checkpoint_step():
        run.check()
        time.sleep(0.02)
    rows = [json.loads(line) for line in run.timing().read_bytes().splitlines()[1:]]  # type: ignore[union-attr]
    run.kill()
    starts = []
    for _ in range(rounds):
        saved = run.checkpoint_step()
        run = Run(suite, runs, overrides)
        starts.append(run.wait_for_step(saved))
        run.kill()
    walls, cpus = ([start[i] for start in starts] for i in (0, 1))
    print(
        f"  {name}: step {saved + 1} done {median(walls):.1f} s after the start "
        f"({min(walls):.1f} to {max(walls):.1f}), CPU {median(cpus):.1f} s; "
        f"step 1 after a start without a checkpoint {fresh:.1f} s"
    )
    waited, seconds = (sum(row[field] for row in rows) for field in ("data_wait_s", "seconds"))
    print(
        f"  {name}: waited for batches {100 * waited / seconds:.3f} % of {len(rows)} real steps of "
        f"{1000 * seconds / len(rows):.0f} ms on this CPU"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="of dit-s: 256 would take minutes a step here")
    args = parser.parse_args()
    print("resume: kill -9 after the first checkpoint, then the same command again")
    measure("quick, one case", one_cell_of_quick(args.folder), args.folder / "runs-quick", 20, args.rounds)
    dit = suite_file(args.folder, batch=args.batch)
    measure(f"dit-s on latents, batch {args.batch}", dit, args.folder / "runs-dit", 5, args.rounds)
