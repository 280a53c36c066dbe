"""Faults under every executor: the same command again must end well, and nothing finished is computed twice.

    python tests/faults.py [--executors inline process jobs ray slurm] [--rounds 2] [--strikes 5] [--save]

Each try takes one kind of fault and one executor, strikes a small suite at random moments until it has met so
many, beginning the same command again wherever it has ended, and then lets it end. The seed of the moments is
the try's name. In the end every case is ok, every stage that was ever finished and every step that was ever
saved is still the one it was, and the trained weights are, to the bit, those of a run that nobody struck.

Commands of this machine are forks of this process, which need no imports; Ray and Slurm are clusters of two
nodes on the loopback device, whose parts are struck. Mounting a small disk and Slurm need root, moving the
clock needs a C compiler; what cannot be had is said. `--save` keeps every try under reports/faults/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jumping_clock
from command_line import ROOT
from fault_engines import LOCAL, Local, on_ray, on_slurm
from fault_kinds import Fault, FullDisk, JumpingClock
from kills import clocks
from struck_runs import SUITE, all_ok, finished, run_whole, weights
from whole_runs import forking

from attnbench.storage.names import STORE

EXECUTORS = (*LOCAL, "ray", "slurm")
WORDS = {"ray": "attnbench.stages.case", "slurm": "attnbench."}  # in the commands whose clock is moved
RUN_S = 900.0  # on a machine that others load
COMMANDS = 12  # beyond one for each strike: a suite that does not end by then never will
REPORT = ROOT / "reports" / "faults"
KINDS = (
    "kill -9 of a case", "kill -9 of a worker", "kill -9 of a node", "kill -9 of the driver", "preemption",
    "full disk", "cut network", "clock", "slow node",
)  # fmt: skip


@dataclass
class Try:
    """What one try did."""

    executor: str
    kind: str
    seed: int
    injected: int = 0
    commands: int = 0
    all_ok: bool = False
    computed_twice: int = 0
    """Stages and trainings that were made anew though they were finished, or saved so far."""
    weights_equal: bool = False
    problems: str = ""

    @property
    def is_good(self) -> bool:
        """Whether everything is as it must be."""
        return self.all_ok and not self.computed_twice and self.weights_equal and not self.problems


class Kept:
    """What a runs folder has had, and must have ever after."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._finished: dict[Path, tuple[int, bytes]] = {}
        self._trained: dict[str, list[Any]] = {}
        self.lost: set[str] = set()

    def look(self) -> None:
        """Take down what is there, and what is there no more; while nobody writes, or anybody does."""
        now, trained = finished(self.runs), clocks(self.runs)
        self.lost |= {str(path) for path, mark in self._finished.items() if now.get(path) != mark}
        for key, steps in self._trained.items():
            if trained.get(key, [])[: len(steps)] != steps:
                self.lost.add(f"train/{key}")
        self._finished, self._trained = now, trained


def attempt(engine: Any, fault: Fault, whole: Path, runs: Path, seed: int, strikes: int) -> Try:
    """Strike the suite so many times with one kind of fault, and let it end; the folder is removed again."""
    made = Try(engine.name, fault.name, seed)
    chance = random.Random(f"{engine.name}, {fault.name}, {seed}")
    shutil.copytree(whole / "runs" / STORE / "features", runs / STORE / "features")
    problems: list[str] = []
    kept = Kept(runs)
    try:
        with fault.around(runs):
            while made.commands < strikes + COMMANDS:
                struck = strike_one_command(engine, fault, whole, kept, chance, strikes - made.injected)
                made.commands += 1
                made.injected += struck.times
                problems += struck.problems
                if struck.code == 0 and not struck.times:
                    break
                if not struck.times and made.injected == strikes:
                    problems.append(f"nobody struck it, and it ended with {struck.code}: {struck.said}")
            made.all_ok = all_ok(runs)
            made.weights_equal = weights(runs) == weights(whole / "runs")
            made.computed_twice = len(kept.lost)
            problems += fault.problems(runs)
            problems += [f"left over: {command}" for _, command in engine.left_over()]
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        problems.append(f"{type(error).__name__}: {error}")  # the other tries go on
    finally:
        shutil.rmtree(runs, ignore_errors=True)
        runs.with_suffix(".log").unlink(missing_ok=True)
    made.problems = " | ".join(problems)
    return made


@dataclass
class Struck:
    """How a command ended, and how often it was struck."""

    code: int
    said: str
    times: int
    problems: list[str]


def strike_one_command(
    engine: Any, fault: Fault, whole: Path, kept: Kept, chance: random.Random, most: int
) -> Struck:
    """Run the command once, and strike it at random moments until it has ended."""
    command, times = engine.begin(whole, kept.runs), 0
    while times < most and engine.moment(command, chance):
        kept.look()
        if fault.strike(command, chance):
            times += 1
            if fault.ends:
                break
    code, said = command.wait(RUN_S)
    fault.mend()
    # the next command meets what is left of a killed one, or does not
    problems = [f"left over: {c}" for _, c in engine.left_over()] if chance.random() < 0.5 else []
    kept.look()
    if "Traceback" in said:
        problems.append(f"a traceback: {said}")
    return Struck(code, said, times, problems)


@contextlib.contextmanager
def engines(name: str, folder: Path) -> Iterator[tuple[Any, Path]]:
    """Yield an executor and the folder of the undisturbed run."""
    if name not in LOCAL:
        with on_ray() if name == "ray" else on_slurm() as engine:
            yield engine, run_whole(folder)
        return
    with forking():
        (folder / "struck.yaml").write_text(SUITE)
        engine = Local(name)
        code, said = Local("process").begin(folder, folder / "runs").wait(RUN_S)
        assert code == 0, said
        yield engine, folder


def faults_of(engine: Any, offset: str) -> list[Fault]:
    """Return the kinds of faults that can be injected here."""
    found = list(engine.faults())
    if os.geteuid() == 0:
        found.append(FullDisk())
    if offset:
        found.append(JumpingClock(Path(offset)))
    return sorted(found, key=lambda fault: KINDS.index(fault.name))


def strike_executor(name: str, kinds: Sequence[str], rounds: int, strikes: int, first: int) -> Iterator[Try]:
    """Make every try of one executor, and say of each how it went."""
    with (
        tempfile.TemporaryDirectory(prefix="attnbench-faults-") as folder,
        engines(name, Path(folder)) as (engine, whole),
    ):
        assert all_ok(whole / "runs")
        assert len(weights(whole / "runs")) == 4
        for seed in range(first, first + rounds):
            for fault in faults_of(engine, os.environ.get(jumping_clock.OFFSET, "")):
                if kinds and fault.name not in kinds:
                    continue
                began = time.monotonic()
                made = attempt(engine, fault, whole, Path(folder) / "struck", seed, strikes)
                told = "good" if made.is_good else str(asdict(made))
                sys.stderr.write(
                    f"{name}, {made.kind}, seed {seed}: {made.injected} injected in {made.commands} "
                    f"commands, {time.monotonic() - began:.0f} s: {told}\n"
                )
                yield made


def strike_with_clock(name: str, asked: argparse.Namespace) -> Iterator[Try]:
    """Make the tries of one executor in a process whose clock, or whose children's, can be moved."""
    words = [sys.executable, __file__, "--one", name, "--rounds", asked.rounds, "--strikes", asked.strikes,
             "--first", asked.first, "--kinds", *asked.kinds]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="attnbench-clock-") as folder:
        clock = {} if jumping_clock.missing() else jumping_clock.build(Path(folder), WORDS.get(name, ""))
        places = os.pathsep.join(map(str, filter(None, (ROOT, os.environ.get("PYTHONPATH")))))
        environment = os.environ | clock | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            list(map(str, words)), env=environment, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                yield Try(**json.loads(line))
    if child.returncode:
        raise SystemExit(f"the tries of {name} ended with {child.returncode}")


def table(tries: Sequence[Try]) -> str:
    """Return the table of faults and executors, in Markdown."""
    lines = [
        "| fault | executor | injected | tries, all ok | computed twice | weights equal |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for kind in KINDS:
        for executor in EXECUTORS:
            of = [one for one in tries if (one.kind, one.executor) == (kind, executor)]
            if of:
                ok, same = (sum(getattr(one, name) for one in of) for name in ("all_ok", "weights_equal"))
                lines.append(
                    f"| {kind} | {executor} | {sum(one.injected for one in of)} | {ok} of {len(of)} | "
                    f"{sum(one.computed_twice for one in of)} | {same} of {len(of)} |"
                )
    ok, same = (sum(getattr(one, name) for one in tries) for name in ("all_ok", "weights_equal"))
    lines.append(
        f"| all | | {sum(one.injected for one in tries)} | {ok} of {len(tries)} | "
        f"{sum(one.computed_twice for one in tries)} | {same} of {len(tries)} |"
    )
    return "\n".join(lines)


def kept_tries() -> list[Try]:
    """Return the tries that are kept under reports/, of all executors."""
    paths = [REPORT / f"{name}.json" for name in EXECUTORS]
    return [Try(**one) for path in paths if path.exists() for one in json.loads(path.read_text())]


def keep(made: Try) -> None:
    """Write a try in place of an earlier one of its executor, kind and seed."""
    REPORT.mkdir(exist_ok=True)
    of = [one for one in kept_tries() if one.executor == made.executor]
    others = [one for one in of if (one.kind, one.seed) != (made.kind, made.seed)]
    both = sorted((*others, made), key=lambda one: (KINDS.index(one.kind), one.seed))
    lines = ",\n".join(json.dumps(asdict(one)) for one in both)
    (REPORT / f"{made.executor}.json").write_text(f"[\n{lines}\n]\n")


def main() -> int:
    """Strike every executor, and print the table; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=())
    parser.add_argument("--rounds", type=int, default=2, help="tries of each kind")
    parser.add_argument("--strikes", type=int, default=5, help="faults of a try, at most")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--one", choices=EXECUTORS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        for made in strike_executor(asked.one, asked.kinds, asked.rounds, asked.strikes, asked.first):
            print(json.dumps(asdict(made)), flush=True)
        return 0
    tries = []
    for name in asked.executors:
        for made in strike_with_clock(name, asked):
            tries.append(made)
            if asked.save:
                keep(made)
    for why in filter(None, (jumping_clock.missing(), os.geteuid() and "no full disk: mounting needs root")):
        print(why)
    print(table(tries))
    if asked.save:
        print(f"all that is kept in {REPORT.relative_to(ROOT)}:\n\n{table(kept_tries())}")
    return int(not all(one.is_good for one in tries))


if __name__ == "__main__":
    sys.exit(main())
