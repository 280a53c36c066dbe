"""What the engine costs beside the work: planning, answering and reporting many cases, and between two cases.

    python reports/engine-overhead/measure.py [plan] [answer] [gaps] [memory] [--before CHECKOUT]

Without names all parts. `plan`: `attnbench plan` of 10,000 cases. `answer`: 1,000 finished cases run again
and reported: one case is trained for real (one step), and its stages' outputs are written for all the others
by the store's own functions. `gaps`: from the end of a case to the start of the next one, as the driver sees
it, for each executor (Ray where it is installed). `memory`: what the plan estimates against the peak of real
cases. `--before` measures the commands of another checkout, too. Every command is a process of its own; CPU
time and peak memory are the kernel's. Nothing is downloaded; all is written to a temporary folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ATTENTIONS = (
    *("softmax", "linear", "focused", "pixart-sigma", "edit", "moh", "lit", "elu", "efficient", "performer"),
    *("differential", "polaformer", "rala", "mlla", "linfusion", "feature-fixation", "inline"),
    *("gated-softmax", "gated-conv", "dydila"),
)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a command took."""

    cpu_s: float
    clock_s: float
    peak_mib: float
    output: str


def attnbench(*words: object, checkout: Path = ROOT) -> Taken:
    """Run a command to its end; raises RuntimeError where it fails."""
    environment = {**os.environ, "PYTHONPATH": _path(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "attnbench.cli", *map(str, words)],
            env=environment,
            cwd=checkout,
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
        clock_s = time.perf_counter() - began
        output.seek(0)
        said = output.read().decode(errors="replace")
    if status:
        raise RuntimeError(f"attnbench {' '.join(map(str, words))} ended with {status}:\n{said[-3000:]}")
    return Taken(
        cpu_s=usage.ru_utime + usage.ru_stime, clock_s=clock_s, peak_mib=usage.ru_maxrss / 1024, output=said
    )


def _path(checkout: Path) -> str:
    return os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH", ""))))


def suite(path: Path, *, attentions: int, rates: int, seeds: int = 10, steps: int = 1) -> Path:
    """Write a suite of attentions x learning rates x seeds on digits."""
    path.write_text(f"""name: many
question: What does the engine cost?
seed: {list(range(seeds))}
model: tiny-dit
data: digits
train: {{objective: flow, steps: {steps}, batch_size: 32, ema_decay: 0.5, checkpoint_every: 1000}}
sample: {{sampler: euler, num_steps: 2, per_class: 2, batch_size: 20}}
evaluate: {{extractor: digits-cnn, metrics: [fd, kd], kd_subset_size: 20}}
profile: {{measure: [macs, params]}}
matrix:
  model.attention: [{", ".join(ATTENTIONS[:attentions])}]
  train.lr: {[round(1e-4 * (1 + number / 10), 7) for number in range(rates)]}
""")
    return path


def shown(name: str, taken: Taken) -> None:
    """Print one line of a table."""
    print(f"| {name} | {taken.cpu_s:.2f} | {taken.clock_s:.2f} | {taken.peak_mib:.0f} |", flush=True)


def plan(folder: Path, checkouts: Sequence[tuple[str, Path]]) -> None:
    """Plan one case and 10,000."""
    sizes = {1: (1, 1, 1), 1_000: (20, 5, 10), 10_000: (20, 50, 10)}
    for number, (attentions, rates, seeds) in sizes.items():
        path = suite(folder / f"plan-{number}.yaml", attentions=attentions, rates=rates, seeds=seeds)
        for name, checkout in checkouts:
            if name and number > 1_000:
                continue  # 20 ms a case, as 1,000 say
            taken = attnbench("plan", path, "--runs", folder / "none", checkout=checkout)
            shown(f"plan of {number:,} cases{name}", taken)


def answer(folder: Path, checkouts: Sequence[tuple[str, Path]]) -> None:
    """Answer and report 1,000 finished cases."""
    runs = folder / "runs"
    path = suite(folder / "many.yaml", attentions=10, rates=10)
    attnbench("run", path, "--runs", runs, "--case", "softmax · lr=0.0001 · seed=0")
    write_outputs(path, runs)
    attnbench("run", path, "--runs", runs)  # measures the cost of ten models
    single = suite(folder / "single.yaml", attentions=1, rates=1, seeds=1)
    for name, checkout in checkouts:
        shown(
            f"run of 1 finished case{name}",
            attnbench("run", single, "--runs", runs, "-o", "name=one", checkout=checkout),
        )
        shown(f"run of 1,000 finished cases{name}", attnbench("run", path, "--runs", runs, checkout=checkout))
        shown(f"report of them{name}", attnbench("report", "many", "--runs", runs, checkout=checkout))


def write_outputs(path: Path, runs: Path) -> None:
    """Finish every case of a suite in the store as its first one is, by what that one left there."""
    from attnbench.results import Environment
    from attnbench.storage.names import ENVIRONMENT, STORE
    from attnbench.storage.records import read_record, write_record
    from attnbench.storage.store import STAGES, read_output, write_output
    from attnbench.suite.loading import load_suite

    first, *others = load_suite(path).cases
    store = runs.absolute() / STORE
    for stage in STAGES:
        model = store / stage / first.key(stage)
        output = read_output(model)
        assert output is not None
        for case in others:
            folder = store / stage / case.key(stage)
            if read_output(folder) is not None:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for name in output.artefacts.values():
                shutil.copyfile(model / name, folder / name)
            write_output(folder, output.model_copy(deep=True))
            if stage == "evaluate":
                where = read_record(model / ENVIRONMENT, Environment)
                assert where is not None
                write_record(folder / ENVIRONMENT, where)


MEMORY = """
import resource, sys
from pathlib import Path
from attnbench.running.executors.inline import run_inline
from attnbench.running.memory import memory_need
from attnbench.suite.loading import load_suite
(case,) = load_suite(sys.argv[1], sys.argv[3:]).cases
need = memory_need(case, "cpu")
result = run_inline(case, Path(sys.argv[2]), "cpu", lambda *words: None, threads=1)
assert result.status == "ok", result.reason
print(need.least // 2**20, need.estimate // 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
SIZED = (
    ("tiny-dit, batch 32", ()),
    ("tiny-dit, batch 2,048", ("train.batch_size=2048",)),
    ("softmax, 8 x 256, batch 512", ("model.dim=256", "model.depth=8", "train.batch_size=512")),
    (
        "dydila, 4 x 192, batch 512",
        ("model.dim=192", "train.batch_size=512", "matrix.model.attention=[dydila]"),
    ),
)


def memory(folder: Path, checkouts: Sequence[tuple[str, Path]]) -> None:
    """Print what the plan says that cases need, and the peak of their processes."""
    path = suite(folder / "memory.yaml", attentions=1, rates=1, seeds=1)
    print(
        "\n| case | certain, MiB | estimate, MiB | peak, MiB | peak / estimate |\n|---|---:|---:|---:|---:|"
    )
    for name, overrides in SIZED:
        words = [sys.executable, "-c", MEMORY, str(path), str(folder / "memory"), *overrides]
        environment = {**os.environ, "PYTHONPATH": _path(ROOT), "OMP_NUM_THREADS": "1"}
        said = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
        least, estimate, peak = map(int, said.split()[-3:])
        print(f"| {name} | {least} | {estimate} | {peak} | {peak / estimate:.2f} |", flush=True)


GAPS = """
import statistics, sys, time
from pathlib import Path
from attnbench.running.executors import make_executor
from attnbench.running.executors.interface import Asked, Finished
from attnbench.running.runner import run
from attnbench.suite.loading import load_suite
suite = load_suite(sys.argv[1])
executor = make_executor(sys.argv[2], Asked(jobs=1, threads=1, device="cpu", num_cases=len(suite.cases)))
ended, gaps, firsts, begun = [], [], [], {}
start = executor.start
def started(orders, tell):
    now = time.perf_counter(), time.process_time()
    if ended:
        gaps.append([here - there for here, there in zip(now, ended[-1])])
    begun[id(orders[0])] = now[0]
    def told(order, event):
        if id(order) in begun:
            firsts.append(time.perf_counter() - begun.pop(id(order)))
        if isinstance(event, Finished):
            assert event.result.status == "ok", event.result.reason
            ended.append((time.perf_counter(), time.process_time()))
        tell(order, event)
    start(orders, told)
executor.start = started
run(suite, Path(sys.argv[3]), device="cpu", executor=executor)
clock, cpu = zip(*gaps)
found = statistics.median(clock), max(clock), statistics.median(cpu), statistics.median(firsts[1:])
print(*(f"{value:.4f}" for value in found))
"""


def gaps(folder: Path, checkouts: Sequence[tuple[str, Path]]) -> None:
    """Print the time between the end of a case and the start of the next one, as the driver sees it."""
    path = suite(folder / "gaps.yaml", attentions=1, rates=1, seeds=5)
    engines = ["process", "jobs", *(["ray"] if importlib.util.find_spec("ray") else [])]
    columns = (
        "executor",
        "end to next start, s",
        "most, s",
        "driver's CPU in it, s",
        "start to first word, s",
    )
    print(f"\n| {' | '.join(columns)} |\n|---{'|---:' * 4}|")
    for name in engines:
        words = [sys.executable, "-c", GAPS, str(path), name, str(folder / f"gaps-{name}")]
        environment = {**os.environ, "PYTHONPATH": _path(ROOT), "OMP_NUM_THREADS": "1"}
        said = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
        print(f"| {name} | {' | '.join(said.split()[-4:])} |", flush=True)


PARTS: dict[str, Callable[[Path, Sequence[tuple[str, Path]]], None]] = {
    "plan": plan,
    "answer": answer,
    "gaps": gaps,
    "memory": memory,
}


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--before", type=Path, help="another checkout, measured beside this one")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    sys.path.insert(0, str(ROOT))
    checkouts = [("", ROOT)]
    if arguments.before:
        checkouts.append((", before", arguments.before.resolve()))
    if not arguments.parts or {"plan", "answer"} & set(arguments.parts):
        print("| command | CPU, s | clock, s | peak MiB |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for part in arguments.parts or PARTS:
            PARTS[part](Path(temporary), checkouts)


if __name__ == "__main__":
    main()
