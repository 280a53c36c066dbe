"""Random damage to a store: no try may end in another number without a word, or in a traceback.

    python tests/corruption.py [--count 500] [--first 0]

A small suite is finished once, and half finished twice. Each try copies one of the three, damages one random
file in one random way, reports from what is there, runs the suite again and compares every number.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from attnbench.commands.suites import report
from attnbench.errors import AttnbenchError
from attnbench.report.quantities import NOTED
from attnbench.results import Result, latest, read_results
from attnbench.running import runner
from attnbench.running.executors.inline import run_inline
from attnbench.running.runner import Listener, run
from attnbench.specs import Case
from attnbench.stages import case as case_module
from attnbench.stages.sampling import shards
from attnbench.stages.training.log import read_lines
from attnbench.stages.training.loss_curve import Timing
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.names import DONE, LOCK, RESULTS, TIMING
from attnbench.storage.store import stages_of
from attnbench.suite.loading import Suite, load_suite

NAME = "damaged"
SUITE = f"""
name: {NAME}
question: Does damage go unnoticed?
model: {{recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2, learned_variance: false}}
data: digits
train:
  {{objective: flow, steps: 20, batch_size: 16, lr: 1e-3, ema_decay: 0.5, checkpoint_every: 5, log_every: 5}}
sample: {{sampler: euler, num_steps: 3, per_class: 12}}
evaluate: {{extractor: digits-cnn, kd_subset_size: 50, kd_subsets: 5, per_class: true}}
profile: {{measure: [macs, params, latency], rounds: 1}}
diagnose: {{images: 4, timesteps: [500], map_images: 1}}
matrix:
  model.attention: [softmax, linear]
"""
HALF = 10  # steps of the training that is interrupted
SHARD_SIZE = 60  # images, so that there are two shards
STATES = ("finished", "unscored", "interrupted")
CLOCK = re.compile(r"_ms|_time_s|_per_s|data_wait_share|clean_share|memory")  # in a measurement's name
GOOD = ("the same", "told", "failed with a reason", "one clear error")


@dataclass(frozen=True)
class Try:
    """What one damage did: where it was, of what kind, how it ended, and what was said."""

    seed: int
    state: str
    file: str
    damage: str
    outcome: str
    words: str = ""


@functools.cache
def suite(folder: Path) -> Suite:
    """Write and load the suite."""
    path = folder / f"{NAME}.yaml"
    path.write_text(SUITE)
    return load_suite(path, [])


class Interrupted(BaseException):
    """Ends a training where a signal would."""


def make_stores(folder: Path) -> list[Result]:
    """Make the three stores below a folder and return the results of the finished one."""
    finished = folder / "finished"
    with settings():
        outcome = run(suite(folder), finished, device="cpu", executor=run_inline, listener=quiet([]))
        assert outcome.exit_code == 0, [result.reason for result in outcome.results]
        unscored, interrupted = (shutil.copytree(finished, folder / state) for state in STATES[1:])
        shutil.rmtree(unscored / "store" / "evaluate")
        shutil.rmtree(unscored / NAME)
        _interrupt(suite(folder), interrupted)
    return list(outcome.results)


def _interrupt(loaded: Suite, runs: Path) -> None:
    """Leave the first case without its score and half of its samples, the second in its training."""
    store, (first, second) = runs / "store", loaded.cases
    shutil.rmtree(runs / NAME)
    for stage in stages_of(second)[1:]:
        shutil.rmtree(store / stage / second.key(stage))
    train_until = Trainer.train_until

    def half(trainer: Trainer, last: int) -> None:
        train_until(trainer, HALF)
        raise Interrupted

    with patch.object(Trainer, "train_until", half), contextlib.suppress(Interrupted):
        run(loaded, runs, device="cpu", executor=run_inline, listener=quiet([]))
    shutil.rmtree(store / "evaluate" / first.key("evaluate"))
    (store / "sample" / first.key("sample") / DONE).unlink()
    shards.shard_path(store / "sample" / first.key("sample"), 1).unlink()


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """One thread, so that equal work gives equal bits, and small shards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with patch.object(shards, "SHARD_SIZE", SHARD_SIZE), contextlib.redirect_stderr(io.StringIO()):
        yield
    torch.set_num_threads(threads)


def quiet(told: list[str]) -> Listener:
    """Return a listener that keeps notices."""
    return Listener(notice=told.append)


def empty(content: bytes, chance: random.Random) -> bytes:
    """Leave nothing."""
    return b""


def cut(content: bytes, chance: random.Random) -> bytes:
    """Leave the beginning."""
    return content[: chance.randrange(len(content))]


def bit(content: bytes, chance: random.Random) -> bytes:
    """Flip one bit."""
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def digit(content: bytes, chance: random.Random) -> bytes:
    """Change one digit; a bit where there is none."""
    places = [place for place, byte in enumerate(content) if chr(byte) in "0123456789"]
    if not places:
        return bit(content, chance)
    place = chance.choice(places)
    other = chance.choice([d for d in b"0123456789" if d != content[place]])
    return content[:place] + bytes([other]) + content[place + 1 :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (empty, cut, bit, digit)


def damage_one(runs: Path, chance: random.Random) -> tuple[str, str]:
    """Damage one file that holds something; return its place and what was done."""
    files = sorted(p for p in runs.rglob("*") if p.is_file() and p.name != LOCK and p.stat().st_size)
    path = chance.choice(files)
    others = [p for p in files if p.name == path.name and p.read_bytes() != path.read_bytes()]
    kind = chance.randrange(len(DAMAGES) + 1)
    if kind == len(DAMAGES) and others:  # of the same name in another folder
        other, content = chance.choice(others), path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return str(path.relative_to(runs)), "exchanged"
    change = DAMAGES[kind % len(DAMAGES)]
    path.write_bytes(change(path.read_bytes(), chance))
    return str(path.relative_to(runs)), change.__name__


def attempt(folder: Path, whole: list[Result], seed: int) -> Try:
    """Make one try in a copy, which is removed again."""
    chance = random.Random(seed)
    state = chance.choice(STATES)
    runs = folder / f"try-{seed}"
    shutil.copytree(folder / state, runs)
    try:
        file, damage = damage_one(runs, chance)
        outcome, words = _outcome(folder, runs, whole, state, file)
    finally:
        shutil.rmtree(runs)
    return Try(seed, state, file, damage, outcome, words)


def _outcome(folder: Path, runs: Path, whole: list[Result], state: str, place: str) -> tuple[str, str]:
    told: list[str] = []
    crashes: list[str] = []
    crash = lambda: crashes.append(traceback.format_exc())  # noqa: E731
    with (
        settings(),
        patch.object(case_module.traceback, "print_exc", crash),
        patch.object(runner, "write_report_where_needed"),  # drawing takes most of the time
    ):
        try:
            if place.startswith(f"{NAME}/"):
                _report(runs, whole)
            outcome = run(suite(folder), runs, device="cpu", executor=run_inline, listener=quiet(told))
            if place.startswith(f"{NAME}/"):
                _report(runs, whole)
        except AttnbenchError as error:
            return "one clear error", str(error)
        except _ChangedError as error:
            return "CHANGED in a report", str(error)
        except Exception:  # noqa: BLE001 - that is the finding
            return "TRACEBACK", traceback.format_exc()
    if crashes:
        return "TRACEBACK", crashes[0]
    failed = [result.reason for result in outcome.results if result.status != "ok"]
    if failed:
        return ("failed with a reason" if all(failed) else "FAILED WITHOUT A REASON"), "; ".join(failed)
    notes = told + [m.note for r in outcome.results for m in r.measurements if m.name in NOTED]
    problems = [
        text
        for case, before, after in zip(suite(folder).cases, whole, outcome.results, strict=True)
        for text in _differences(case, before, after, runs, folder, state, bool(notes))
    ]
    if problems:
        return "CHANGED", "; ".join(problems)
    return ("told" if notes else "the same"), "; ".join(notes)


class _ChangedError(Exception):
    """A report shows another number than was measured."""


def _report(runs: Path, whole: list[Result]) -> None:
    """Write the report from the results alone; what it shows is what was measured, or less."""
    with contextlib.redirect_stdout(io.StringIO()):
        report(NAME, runs)
    known = {result.case_id: result for result in whole}
    for result in latest(read_results(runs / NAME / RESULTS)):
        for m in result.measurements:
            before = known[result.case_id].measurement(m.name)
            if not CLOCK.search(m.name) and m.name not in NOTED and before != m:
                raise _ChangedError(f"{result.label}: {m.name} was {before}, is {m}")


def _differences(
    case: Case, before: Result, after: Result, runs: Path, folder: Path, state: str, said: bool
) -> Iterator[str]:
    """Yield what a case shows otherwise than before, though nobody said why."""
    for name in ("label", "axes", "status", "curves", "case"):
        if getattr(before, name) != getattr(after, name):
            yield f"{name} was {getattr(before, name)}, is {getattr(after, name)}"
    if after.environment.model_copy(update={"note": ""}) != before.environment and not after.environment.note:
        yield "another environment"
    found = {m.name: m for m in after.measurements if m.name not in NOTED}
    differing = found.keys() ^ {m.name for m in before.measurements}
    if any(
        not name.startswith("waited_") for name in differing
    ):  # those are there only where a sample waited
        yield f"measurements {differing}"
        return
    measured_now = _measured_now(case, folder, state)
    for m in (m for m in before.measurements if m.name in found):
        may_differ = said or found[m.name].note != m.note or measured_now.search(m.name)
        if found[m.name] != m and not (may_differ and CLOCK.search(m.name)):
            yield f"{m.name} was {m}, is {found[m.name]}"
    trained = Path("store", "train", case.key("train"))
    early, now = (
        [t for t in read_lines(place / trained / TIMING, Timing) if t.step <= HALF]
        for place in (folder / state, runs)
    )
    noted = any(m.note.startswith("of ") for m in after.measurements if m.name == "train_time_s")
    # of a finished training nobody reads that file
    if not (folder / state / trained / DONE).exists() and early != now and not (said or noted):
        yield f"the clock of the first {HALF} steps"
    for name, path in after.artefacts.items():
        kept = folder / "finished" / NAME / path
        shown = runs / NAME / path
        if not (shown.exists() and shown.read_bytes() == kept.read_bytes()) and not said:
            yield f"the picture or table {name}"


def _measured_now(case: Case, folder: Path, state: str) -> re.Pattern[str]:
    """Return which times a try must measure itself, since the store it starts from has not got them."""
    if state != "interrupted":
        return re.compile(r"(?!)")
    trained = (folder / state / "store" / "train" / case.key("train") / DONE).exists()
    return re.compile("sample|decode|denoise|images_per_s|latency|cpu_time|clean" if trained else "")


def main() -> int:
    """Make many tries and say how they ended; 1 where one of them ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attnbench-corruption-") as folder:
        whole = make_stores(Path(folder))
        tries = []
        for seed in range(asked.first, asked.first + asked.count):
            tries.append(attempt(Path(folder), whole, seed))
            found = tries[-1]
            words = "" if found.outcome == "the same" else found.words
            print(f"{seed} {found.state} {found.file} {found.damage}: {found.outcome} {words}", flush=True)
    for (file, outcome), count in sorted(Counter((_kind(t.file), t.outcome) for t in tries).items()):
        print(f"{count:5}  {file:40} {outcome}")
    for outcome, count in Counter(t.outcome for t in tries).items():
        print(f"{count:5}  {outcome}")
    return int(any(t.outcome not in GOOD for t in tries))


def _kind(file: str) -> str:
    """Return a file's place without keys and numbers."""
    return re.sub(r"[0-9a-f]{16,64}|\d{5}", "*", file)


if __name__ == "__main__":
    sys.exit(main())
