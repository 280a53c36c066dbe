"""Faults under every executor: the same command again must end well, and nothing finished is computed twice.

    python tests/faults.py [--executors inline process jobs ray slurm] [--rounds 2] [--strikes 5] [--save]

Each try takes one executor and one kind of fault (on a cluster, where a command takes long to begin, all
kinds in turn), strikes a small suite at random moments until it has met so many, beginning the same command
again wherever it has ended, and then lets it end. The seed of the moments is the try's name. In the end every
case is ok, every stage that was ever finished and every step that was ever saved is still the one it was, and
the trained weights are, to the bit, those of a run that nobody struck.

Commands of this machine are forks of this process, which need no imports; Ray and Slurm are clusters of two
nodes on the loopback device, whose parts are struck. Mounting a small disk and Slurm need root, moving the
clock needs a C compiler; what cannot be had is said. `--save` keeps every try under reports/faults/,
and the table of all that are kept in its README.md.
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
from fault_report import EXECUTORS, KINDS, REPORT, Try, keep, kept_tries, table, with_table
from kills import LOST_IN_A_FORK, clocks
from struck_runs import NAME, SUITE, all_ok, finished, weights
from whole_runs import forking

from attnbench.storage.names import RUN, STORE

NOBODY = "nobody"
WORDS = {"ray": "attnbench.stages.case", "slurm": "attnbench."}  # in the commands whose clock is moved
RUN_S = 900.0  # on a machine that others load
COMMANDS = 12  # beyond one for each strike: a suite that does not end by then never will


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


def attempt(
    engine: Any, faults: Sequence[Fault], whole: Path, runs: Path, seed: int, strikes: int
) -> list[Try]:
    """Strike the suite so many times with each kind of fault, and let it end; the folder is removed again.

    Returns what came of it for each kind; of several kinds the verdict is on all of them together.
    """
    chance = random.Random(f"{engine.name}, {', '.join(fault.name for fault in faults)}, {seed}")
    pending = [fault for _ in range(strikes) for fault in faults]
    shutil.copytree(whole / "runs" / STORE / "features", runs / STORE / "features")
    problems: list[str] = []
    kept, commands = Kept(runs), 0
    is_ok = is_same = False
    try:
        with contextlib.ExitStack() as stack:
            for fault in faults:
                stack.enter_context(fault.around(runs))
            while commands < strikes * len(faults) + COMMANDS:
                struck = strike_one_command(engine, pending, whole, kept, chance)
                commands += 1
                problems += struck.problems
                if struck.code == 0 and not struck.times:
                    break
                if not struck.times and not pending:
                    problems.append(f"nobody struck it, and it ended with {struck.code}: {struck.said}")
            is_ok, is_same = all_ok(runs), weights(runs) == weights(whole / "runs")
            for fault in faults:
                if fault not in pending:  # else the suite had ended before
                    problems += fault.problems(runs)
            problems += [f"left over: {command}" for _, command in engine.left_over()]
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        problems.append(f"{type(error).__name__}: {error}")  # the other tries go on
    finally:
        shutil.rmtree(runs, ignore_errors=True)
        runs.with_suffix(".log").unlink(missing_ok=True)
    return [
        Try(
            executor=engine.name,
            kind=fault.name,
            seed=seed,
            injected=strikes - pending.count(fault),
            commands=commands,
            all_ok=is_ok,
            computed_twice=len(kept.lost),
            weights_equal=is_same,
            problems=" | ".join(problems),
        )
        for fault in faults
    ]


@dataclass
class Struck:
    """How a command ended, and how often it was struck."""

    code: int
    said: str
    times: int
    problems: list[str]


def strike_one_command(
    engine: Any, pending: list[Fault], whole: Path, kept: Kept, chance: random.Random
) -> Struck:
    """Run the command once, striking it at random moments; takes away from `pending` what has struck."""
    command = engine.begin(whole, kept.runs)
    struck: list[Fault] = []
    while pending and engine.moment(command, chance):
        kept.look()
        fault = pending[0]
        if fault.strike(command, chance):
            struck.append(pending.pop(0))
            if fault.ends:
                break
    code, said = command.wait(RUN_S)
    for fault in struck:
        fault.mend()
    # the next command meets what is left of a killed one, or does not
    problems = [f"left over: {c}" for _, c in engine.left_over()] if chance.random() < 0.5 else []
    kept.look()
    if "Traceback" in LOST_IN_A_FORK.sub("", said):
        problems.append(f"a traceback: {said}")
    return Struck(code, said, len(struck), problems)


@contextlib.contextmanager
def engines(name: str) -> Iterator[Any]:
    """Yield an executor that is ready."""
    if name in LOCAL:
        with forking():
            yield Local(name)
        return
    with on_ray() if name == "ray" else on_slurm() as engine:
        yield engine


def undisturbed(folder: Path, suite: str) -> Path:
    """Run a suite that nobody strikes, as a fork of this process; return the folder with its runs."""
    (folder / "struck.yaml").write_text(suite)
    code, said = Local("process").begin(folder, folder / "runs").wait(RUN_S)
    assert code == 0, said
    return folder


def make_whole(folder: Path) -> None:
    """Have the undisturbed run in a folder, by a process whose own settings nobody else is to have."""
    if (folder / "runs" / NAME / RUN).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    places = os.pathsep.join(map(str, filter(None, (ROOT, os.environ.get("PYTHONPATH")))))
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--one", NOBODY, "--whole", folder]
    subprocess.run(list(map(str, words)), env=environment, check=True)


def faults_of(engine: Any, offset: str) -> list[Fault]:
    """Return the kinds of faults that can be injected here."""
    found = list(engine.faults())
    if os.geteuid() == 0:
        found.append(FullDisk())
    if offset:
        found.append(JumpingClock(Path(offset)))
    return sorted(found, key=lambda fault: KINDS.index(fault.name))


def strike_executor(
    name: str, whole: Path, kinds: Sequence[str], rounds: int, strikes: int, first: int
) -> Iterator[Try]:
    """Make every try of one executor, and say of each how it went."""
    with (
        tempfile.TemporaryDirectory(prefix="attnbench-faults-") as folder,
        engines(name) as engine,
    ):
        assert all_ok(whole / "runs")
        assert len(weights(whole / "runs")) == 4
        chosen = [
            fault
            for fault in faults_of(engine, os.environ.get(jumping_clock.OFFSET, ""))
            if not kinds or fault.name in kinds
        ]
        # a command on a cluster takes long to begin: there a try has faults of every kind
        groups = [[fault] for fault in chosen] if name in LOCAL else [chosen]
        for seed in range(first, first + rounds):
            for faults in groups:
                began = time.monotonic()
                for made in attempt(engine, faults, whole, Path(folder) / "struck", seed, strikes):
                    told = "good" if made.is_good else str(asdict(made))
                    sys.stderr.write(
                        f"{name}, {made.kind}, seed {seed}: {made.injected} injected in {made.commands} "
                        f"commands, {time.monotonic() - began:.0f} s: {told}\n"
                    )
                    yield made


def strike_with_clock(name: str, whole: Path, asked: argparse.Namespace) -> Iterator[Try]:
    """Make the tries of one executor in a process whose clock, or whose children's, can be moved."""
    words = [sys.executable, __file__, "--one", name, "--whole", whole, "--rounds", asked.rounds,
             "--strikes", asked.strikes, "--first", asked.first, "--kinds", *asked.kinds]  # fmt: skip
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


def main() -> int:
    """Strike every executor, and print the table; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=())
    parser.add_argument("--rounds", type=int, default=2, help="tries of each kind")
    parser.add_argument("--strikes", type=int, default=5, help="faults of a try, at most")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--whole", type=Path, help="keep the undisturbed run there, and take it from there")
    parser.add_argument("--one", choices=(*EXECUTORS, NOBODY), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one == NOBODY:
        with forking():
            undisturbed(asked.whole, SUITE)
        return 0
    if asked.one:
        for made in strike_executor(
            asked.one, asked.whole, asked.kinds, asked.rounds, asked.strikes, asked.first
        ):
            print(json.dumps(asdict(made)), flush=True)
        return 0
    tries = []
    with tempfile.TemporaryDirectory(prefix="attnbench-whole-") as folder:
        whole = (asked.whole or Path(folder)).resolve()
        make_whole(whole)
        for name in asked.executors:
            for made in strike_with_clock(name, whole, asked):
                tries.append(made)
                if asked.save and made.injected:  # else it has tried nothing
                    keep(made)
    for why in filter(None, (jumping_clock.missing(), os.geteuid() and "no full disk: mounting needs root")):
        print(why)
    print(table(tries))
    if asked.save:
        readme = REPORT / "README.md"
        readme.write_text(with_table(readme.read_text(), kept_tries()))
    return int(not all(one.is_good for one in tries))


if __name__ == "__main__":
    sys.exit(main())
