"""Signals at random moments: the same command again must end where an undisturbed run does.

    python tests/kills.py [--count 200] [--first 0] [--cold]

A try runs `attnbench run` on a tiny suite, strikes it with SIGKILL, SIGTERM or SIGINT at a random moment (the
process alone, or its whole group, as a terminal's Ctrl-C does; sometimes a second signal right after), runs
the same command again, strikes again, and then lets it end. After each strike nobody may be left over, no
traceback may stand on stderr and what was finished must stay; in the end every number, curve, checkpoint,
sample and picture is that of the undisturbed run, except what a clock says.

Every process is a fork of this one, which has imported everything already, so that a try takes seconds;
`--cold` starts real ones, whose imports can be struck, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corruption import CLOCK
from whole_runs import Start, forking, left_over, start_cold, start_warm, wait

from attnbench.report.quantities import NOTED
from attnbench.results import Result, latest, read_results
from attnbench.stages.training.checkpoint import load_newest
from attnbench.stages.training.log import read_lines
from attnbench.stages.training.loss_curve import Timing
from attnbench.storage.names import CHECKPOINT, DONE, FEATURES, RESULTS, SAMPLE_SHARDS, STORE, TIMING

NAME = "struck"
SUITE = f"""
name: {NAME}
question: Does a signal lose or change anything?
model: {{recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2, learned_variance: false}}
data: digits
train:
  {{objective: flow, steps: 60, batch_size: 8, lr: 1e-3, ema_decay: 0.5, checkpoint_every: 5, log_every: 5}}
sample: {{sampler: euler, num_steps: 10, per_class: 12, batch_size: 30}}
evaluate: {{extractor: digits-cnn, kd_subset_size: 50, kd_subsets: 5}}
profile: {{measure: [macs, params, latency], rounds: 1}}
diagnose: {{images: 4, timesteps: [500], map_images: 1}}
matrix:
  model.attention: [softmax, linear]
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STRIKES = 2
RUN_LIMIT_S = 400.0
# Ctrl-C inside a fork's hook, which Python drops with a traceback; a real process is started without hooks
LOST_IN_A_FORK = re.compile(
    r"Exception ignored in: <function _\w+Lock.*?(KeyboardInterrupt|Interrupted): *\n", re.DOTALL
)
SAVED = re.compile(r"stopped at training step (\d+) of")


@dataclass(frozen=True)
class Try:
    """What two strikes did: which they were, and everything that is wrong."""

    seed: int
    strikes: tuple[str, ...]
    problems: tuple[str, ...]


class Undisturbed:
    """A run nobody strikes: its results, its files, how long it takes, and a store to start from."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder, self.start = folder, start
        self.suite, self.runs = folder / f"{NAME}.yaml", folder / "whole"
        self.suite.write_text(SUITE)
        code, said, _ = self.run(self.runs)
        assert code == 0, said
        self.warm = folder / "warm"  # with the digits' network alone, which takes most of the time
        shutil.copytree(self.runs / STORE / "features", self.warm / STORE / "features")
        again = folder / "again"
        shutil.copytree(self.warm, again)
        code, said, self.seconds = self.run(again)
        assert code == 0, said
        self.results = _results(self.runs)
        # the harness itself: two undisturbed runs must not differ
        assert list(differences(self, again)) == []
        shutil.rmtree(again)

    def run(self, runs: Path, strikes: Sequence[Strike] = ()) -> tuple[int, str, float]:
        """Run the command, strike it, and wait for its end; return its code, what it said, and its time."""
        log = runs.with_suffix(".log")
        log.write_text("")  # it may be struck before it opens it
        words = ["run", str(self.suite), "--runs", str(runs), "--device", "cpu"]
        began = time.monotonic()
        leader = self.start(words, log)
        code: int | None = None
        for strike in strikes:
            code = code if code is not None else wait(leader, began + strike.after_s)
            if code is None:
                strike.hit(leader)
        code = code if code is not None else wait(leader, time.monotonic() + RUN_LIMIT_S)
        if code is None:
            os.killpg(leader, signal.SIGKILL)
            code = wait(leader, float("inf"))
            return -1000, f"it did not end within {RUN_LIMIT_S:g} s\n{log.read_text()}", 0.0
        return code, log.read_text(errors="replace"), time.monotonic() - began


@dataclass(frozen=True)
class Strike:
    """One signal, so many seconds after the start."""

    after_s: float
    number: signal.Signals
    group: bool

    def __str__(self) -> str:
        whom = "group" if self.group else "leader"
        return f"{self.number.name} to the {whom} after {self.after_s:.2f} s"

    def hit(self, leader: int) -> None:
        """Send it; who has just ended is left in peace."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if self.group else os.kill)(leader, self.number)


def choose(chance: random.Random, seconds: float) -> list[Strike]:
    """Return one signal at a random moment of what is left of a run, or two in a row."""
    first = Strike(chance.uniform(0, max(1.0, seconds)), chance.choice(SIGNALS), chance.random() < 0.5)
    if chance.random() < 0.7:
        return [first]
    again = Strike(first.after_s + chance.uniform(0, 0.5), chance.choice(SIGNALS), chance.random() < 0.5)
    return [first, again]


def attempt(whole: Undisturbed, seed: int) -> Try:
    """Make one try in a folder of its own, which is removed again."""
    chance = random.Random(seed)
    runs = whole.folder / f"try-{seed}"
    shutil.copytree(whole.warm, runs)
    told: list[str] = []
    problems: list[str] = []
    try:
        left = whole.seconds
        for _ in range(STRIKES):
            strikes = choose(chance, left)
            before = finished(runs)
            code, said, took = whole.run(runs, strikes)
            if code == 0 and left == whole.seconds:  # struck too late: the machine has become faster
                whole.seconds = took
            left -= took
            told.append(f"{' and '.join(map(str, strikes))}: {code}")
            problems += _after_a_strike(runs, code, said, strikes, before)
        before, trained = finished(runs), clocks(runs)
        code, said, _ = whole.run(runs)
        problems += _after_a_strike(runs, code, said, (), before)
        if code == 0:
            problems += _redone(runs, trained)
            problems += differences(whole, runs)
        else:
            problems.append(f"the last run ended with {code}: {said}")
    finally:
        shutil.rmtree(runs)
        runs.with_suffix(".log").unlink(missing_ok=True)
    return Try(seed, tuple(told), tuple(problems))


def _after_a_strike(
    runs: Path, code: int, said: str, strikes: Sequence[Strike], before: Mapping[Path, tuple[int, int]]
) -> Iterator[str]:
    """Yield what is wrong after a run, however it ended."""
    allowed = {0, *(c for s in strikes for c in (-s.number, 128 + s.number))}
    if code not in allowed:
        yield f"ended with {code} after {[str(s) for s in strikes]}: {said}"
    said_by_us = LOST_IN_A_FORK.sub("", said)
    for word in ("Traceback", "Error:", "damaged"):
        if word in said_by_us:
            yield f"{word} on stderr: {said}"
    for pid, command in left_over():
        yield f"process {pid} is left over: {command}"
    now = finished(runs)
    for path, mark in before.items():
        if now.get(path) != mark:
            yield f"{path} was finished and has been made again"
    step = SAVED.search(said)
    if step is not None and code in (130, 143):
        saved = [_saved_step(path.parent) for path in (runs / STORE).glob(f"train/*/{CHECKPOINT}")]
        if int(step[1]) not in saved:
            yield f"it said step {step[1]} is saved, but there are {saved}"


def _saved_step(folder: Path) -> int:
    found = load_newest(folder / CHECKPOINT, folder.name)
    return found[0].progress.step if found is not None else 0


def finished(runs: Path) -> dict[Path, tuple[int, int]]:
    """Return which file marks each finished stage: another file there means that it was done again."""
    paths = (runs / STORE).glob(f"*/*/{DONE}")
    return {path.relative_to(runs): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def clocks(runs: Path) -> dict[str, list[Timing]]:
    """Return what the clock said of the steps that are saved, by training."""
    found = {}
    for folder in (runs / STORE / "train").glob("*"):
        step = _saved_step(folder)
        found[folder.name] = [t for t in read_lines(folder / TIMING, Timing) if t.step <= step]
    return found


def _redone(runs: Path, trained: Mapping[str, list[Timing]]) -> Iterator[str]:
    """Yield the trainings that did not go on from what they had saved."""
    for key, before in trained.items():
        now = read_lines(runs / STORE / "train" / key / TIMING, Timing)
        if now[: len(before)] != before:
            yield f"training {key} had saved {len(before)} intervals and made some of them again"


def _results(runs: Path) -> dict[str, Result]:
    return {result.case_id: result for result in latest(read_results(runs / NAME / RESULTS))}


def differences(whole: Undisturbed, runs: Path) -> Iterator[str]:
    """Yield what a run left otherwise than the undisturbed one."""
    after = _results(runs)
    for case_id, one in whole.results.items():
        two = after.get(case_id)
        if two is None:
            yield f"{one.label} has no result"
            continue
        for name in ("label", "axes", "status", "curves", "case"):
            if getattr(one, name) != getattr(two, name):
                yield f"{one.label}: {name} was {getattr(one, name)}, is {getattr(two, name)}"
        found = {m.name: m for m in two.measurements}
        differing = found.keys() ^ {m.name for m in one.measurements}
        # samples that waited for a core are there only where some did
        if any(not name.startswith("waited_") for name in differing):
            yield f"{one.label}: measurements {differing}"
            continue
        for m in (m for m in one.measurements if m.name in found):
            if found[m.name] != m and not CLOCK.search(m.name) and m.name not in NOTED:
                yield f"{one.label}: {m.name} was {m}, is {found[m.name]}"
    for pattern in (
        "train/*/*.safetensors",
        "train/*/train.jsonl",
        f"sample/*/{SAMPLE_SHARDS}",
        "sample/*/*.png",
        "diagnose/*/diagnosis.json",
    ):
        one, two = (
            {p.relative_to(r): p.read_bytes() for p in (r / STORE).glob(pattern)} for r in (whole.runs, runs)
        )
        one = {Path(*path.parts[1:]): content for path, content in one.items()}
        two = {Path(*path.parts[1:]): content for path, content in two.items()}
        if one != two:
            names = sorted(str(n) for n in one.keys() | two.keys() if one.get(n) != two.get(n))
            yield f"other bytes in {', '.join(names)}"
    # features are written by several processes at once: nobody knows whose an unfinished file is
    places = [path.relative_to(runs) for path in runs.rglob(".*.part")]
    parts = [str(place) for place in places if place.parts[:2] != (STORE, FEATURES)]
    if parts:
        yield f"unfinished files are left: {', '.join(parts)}"


def _kept_bytes(runs: Path) -> dict[Path, bytes]:
    """Return what ends in the same bytes: weights, the training's log, samples and pictures."""
    patterns = ("train/*/*.safetensors", "train/*/train.jsonl", f"sample/*/{SAMPLE_SHARDS}", "sample/*/*.png")
    paths = [path for pattern in patterns for path in (runs / STORE).glob(pattern)]
    return {path.relative_to(runs): path.read_bytes() for path in paths}


@contextlib.contextmanager
def harness(folder: Path, *, cold: bool = False) -> Iterator[Undisturbed]:
    """Make the undisturbed run; orphans become children of this process meanwhile."""
    with forking():
        yield Undisturbed(folder, start_cold if cold else start_warm)


def main() -> int:
    """Make many tries and say how they ended; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--cold", action="store_true", help="start real processes, which import everything")
    asked = parser.parse_args()
    ends: Counter[str] = Counter()
    bad = 0
    with (
        tempfile.TemporaryDirectory(prefix="attnbench-kills-") as folder,
        harness(Path(folder), cold=asked.cold) as whole,
    ):
        print(f"an undisturbed run takes {whole.seconds:.1f} s", flush=True)
        for seed in range(asked.first, asked.first + asked.count):
            found = attempt(whole, seed)
            bad += bool(found.problems)
            ends.update(strike.rpartition(": ")[2] for strike in found.strikes)
            print(
                f"{seed} {'; '.join(found.strikes)}: {' | '.join(found.problems) or 'the same'}", flush=True
            )
    print(f"{asked.count} tries, {bad} with something wrong; exit codes {dict(ends)}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
