"""How long the quick suite takes: by another checkout, and by this one with one and two cases at a time.

    python reports/quick-suite-speed/measure.py --before CHECKOUT [--rounds 1] [-o KEY=VALUE ...]

Every run is `attnbench run` of the suite file that lies in the other checkout, with a store of its own, one
run after the other, in turns. `-o` is handed to all of them: for a trial with a shorter suite. The time by
the clock counts, so nothing else should run beside it. The start of a case is that of a process which finds
its case finished: it imports, reads and answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMAND = "import sys; from attnbench.cli import main; main()"
LEAST_ACCURACY = 0.95
STARTS = 5


@dataclass(frozen=True)
class Ran:
    """One run: seconds by the clock, in parts, and what came out."""

    build: str
    wall_s: float
    cases_s: float
    """Until the last case was evaluated."""
    profile_s: float
    """From there until the last cost was kept."""
    report_s: float
    cpu_s: float
    train_s: float
    """Sum over cases, as their results say it; they may have run side by side."""
    sample_s: float
    accuracies: dict[str, float]
    latency_intervals: dict[str, float]
    """Of each case, the width of the latency's interval over the median."""
    threads: int
    load_before: float


def run(build: str, checkout: Path, suite: Path, words: list[str], folder: Path) -> Ran:
    """Run the suite by one build into a new folder."""
    load, began, wall = os.getloadavg()[0], time.time(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", str(suite), "--runs", str(folder), "--device", "cpu", *words],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - wall
    if status:
        raise RuntimeError(f"{build}: attnbench run ended with {status}")
    evaluated = max(path.stat().st_mtime for path in folder.glob("store/evaluate/*/done.json"))
    profiled = max(path.stat().st_mtime for path in folder.glob("store/profile/*/session.json"))
    results = read(next(folder.glob("*/results.jsonl")))
    return Ran(
        build=build,
        wall_s=wall,
        cases_s=evaluated - began,
        profile_s=profiled - evaluated,
        report_s=began + wall - profiled,
        cpu_s=usage.ru_utime + usage.ru_stime,
        train_s=sum(value(result, "train_time_s") for result in results),
        sample_s=sum(value(result, "sample_time_s") for result in results),
        accuracies={result["label"]: value(result, "class_accuracy") for result in results},
        latency_intervals={result["label"]: width(result) for result in results},
        threads=results[0]["environment"]["threads"],
        load_before=load,
    )


def read(path: Path) -> list[dict[str, Any]]:
    """Return the last line of each case."""
    return list({line["case_id"]: line for line in map(json.loads, path.read_text().splitlines())}.values())


def measurement(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the measurement whose name starts so."""
    return next((m for m in result["measurements"] if m["name"].partition("@")[0] == name), None)


def value(result: dict[str, Any], name: str) -> float:
    """Return its value."""
    found = measurement(result, name)
    if found is None:
        raise RuntimeError(f"{result['label']} has no {name}: {result['reason']}")
    return float(found["values"][0])


def width(result: dict[str, Any]) -> float:
    """Return the width of the latency's interval over its median; NaN where there is none."""
    found = measurement(result, "latency_ms")
    interval = found.get("interval") if found else None
    if found is None or not interval or not found["values"]:
        return float("nan")
    return (interval[1] - interval[0]) / statistics.median(found["values"])


def starts(suite: Path, words: list[str], folder: Path) -> dict[str, list[float]]:
    """Return the seconds from asking for a finished case to its process's end, fresh and forked."""
    from attnbench.running.executors.cradle import Cradle
    from attnbench.running.executors.process import run_in_process
    from attnbench.storage.names import STORE
    from attnbench.suite.loading import load_suite

    case = load_suite(str(suite), words[1::2]).cases[0]
    taken: dict[str, list[float]] = {"fresh": [], "forked": []}
    with Cradle() as cradle:
        run_in_process(case, folder / STORE, "cpu", lambda *_: None, cradle=cradle)  # its imports
        for _ in range(STARTS):
            for how, used in (("fresh", None), ("forked", cradle)):
                began = time.perf_counter()
                result = run_in_process(case, folder / STORE, "cpu", lambda *_: None, cradle=used)
                taken[how].append(time.perf_counter() - began)
                if result.status != "ok":
                    raise RuntimeError(result.reason)
    return taken


def main() -> None:
    """Run all builds in turns, write results.json, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--to", type=Path, default=HERE / "results.json")
    asked = parser.parse_args()
    before = asked.before.resolve()
    suite = before / "suites" / "quick.yaml"
    words = [word for override in asked.override for word in ("-o", override)]
    builds = (
        ("before", before, words),
        ("now, --jobs 1", ROOT, [*words, "--jobs", "1"]),
        ("now, --jobs 2", ROOT, [*words, "--jobs", "2"]),
    )
    ran: list[Ran] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quick-suite-speed-")))
        for number in range(asked.rounds):
            for build, checkout, its_words in builds:
                place = folder / f"{len(ran)}"
                ran.append(run(build, checkout, suite, its_words, place))
                print(f"round {number + 1}, {build}: {ran[-1].wall_s:.1f} s", flush=True)
        sys.path.insert(0, str(ROOT))
        os.environ["PYTHONPATH"] = str(ROOT)
        taken = starts(suite, words, folder / f"{len(ran) - 1}")
    asked.to.write_text(
        json.dumps(
            {
                "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
                "overrides": asked.override,
                "runs": [asdict(one) for one in ran],
                "starts_s": taken,
            },
            indent=2,
        )
        + "\n"
    )
    print_table(ran, taken)


def print_table(ran: list[Ran], taken: dict[str, list[float]]) -> None:
    """Print medians of each build, over the build before, and what every accuracy is."""
    builds = {one.build: [r for r in ran if r.build == one.build] for one in ran}

    def median(build: str, name: str) -> float:
        return statistics.median(getattr(one, name) for one in builds[build])

    print("\n| run | clock | over before | cases | profile | report | CPU | train, sum | sample, sum |")
    print("|---|---|---|---|---|---|---|---|---|")
    for build in builds:
        over = median(build, "wall_s") / median("before", "wall_s")
        names = ("cases_s", "profile_s", "report_s", "cpu_s", "train_s", "sample_s")
        cells = " | ".join(f"{median(build, name):.1f} s" for name in names)
        print(f"| {build} | {median(build, 'wall_s'):.1f} s | {over:.2f} | {cells} |")
    print("\n| run | threads of a case | least class accuracy | widest latency interval |")
    print("|---|---|---|---|")
    for build, of_build in builds.items():
        least = min(value for one in of_build for value in one.accuracies.values())
        widest = max(value for one in of_build for value in one.latency_intervals.values())
        print(f"| {build} | {of_build[0].threads} | {least:.3f} | {100 * widest:.1f} % |")
        if least < LEAST_ACCURACY:
            print(f"{build}: a class accuracy is below {LEAST_ACCURACY}")
    for how, seconds in taken.items():
        print(f"start and end of a case that is finished, {how} process: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
