"""How long `attnbench report` takes, how much memory, and how large and quick its page is.

    python reports/page-speed/measure.py [--before CHECKOUT] [--rounds 7] [--runs 300,10000]

The run is the shipped one of `digits_all` (22 cases), copied; larger runs repeat its lines under other
labels, 10,000 lines being 300 cases run again and again, of which the last line counts. Each report is a
process of its own, started as the command line starts it. `--before` times the code of another checkout in
turns with this one. The page's paint is Chromium's own measure, where there is one, at 1280 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = next((ROOT / "reports" / "digits_all").iterdir())
COMMAND = "import sys; from attnbench.cli import main; main()"
MOST_CASES = 300


def report(run: Path, checkout: Path) -> tuple[float, float, float]:
    """Write one report; return seconds by the clock, seconds of CPU and peak MiB."""
    started = time.perf_counter()
    words = [sys.executable, "-c", COMMAND, "report", str(run)]
    process = subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": str(checkout)}, cwd=checkout, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"attnbench report {run} of {checkout} ended with {status}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def lines(count: int) -> Iterator[str]:
    """Return so many result lines of up to 300 cases, each with its own label and numbers."""
    shipped = [json.loads(line) for line in (SHIPPED / "results.jsonl").read_text().splitlines()]
    for i in range(count):
        case = i % MOST_CASES
        result = dict(shipped[case % len(shipped)])
        result.pop("checksum", None)
        result["case_id"] = f"{case:016x}"
        result["label"] = f"{result['label']} variant {case // len(shipped)}"
        scale = 1 + case / 1000
        result["measurements"] = [
            {**m, "values": [value * scale for value in m["values"]]} for m in result["measurements"]
        ]
        yield json.dumps(result)


def copied(run: Path) -> Path:
    """Copy the shipped run without its record, which an earlier build cannot read: every line counts then."""
    shutil.copytree(SHIPPED, run, ignore=shutil.ignore_patterns("run.json"))
    return run


def larger(folder: Path, count: int) -> Path:
    """Write a run of so many result lines and return its folder."""
    run = copied(folder / f"run-{count}")
    with (run / "results.jsonl").open("w") as file:
        file.writelines(f"{line}\n" for line in lines(count))
    return run


def shown(times: list[tuple[float, float, float]]) -> str:
    """Return medians with the least and the most."""
    clock, cpu, memory = zip(*times, strict=True)
    return (
        f"{statistics.median(clock):.2f} s ({min(clock):.2f} to {max(clock):.2f}), CPU "
        f"{statistics.median(cpu):.2f} s ({min(cpu):.2f} to {max(cpu):.2f}), {max(memory):.0f} MiB"
    )


def page(path: Path) -> str:
    """Return the size of a page with and without its images, and when it was painted."""
    html = path.read_text()
    images = sum(map(len, re.findall(r"data:image/png;base64,[^\"]*", html)))
    told = f"{len(html.encode()) / 1e6:.2f} MB, without images {(len(html.encode()) - images) / 1e6:.2f} MB"
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import CHROMIUM, chromium

    if CHROMIUM is None:
        return told
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.size(1280)
        painted = []
        for _ in range(5):
            browser.open(path)
            paint = "performance.getEntriesByName('first-contentful-paint')"
            browser.wait(f"{paint}.length")
            painted.append(browser.run(f"{paint}[0].startTime"))
        ready = browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    painted.sort()
    spread = f"{painted[0]:.0f} to {painted[-1]:.0f}"
    return f"{told}; painted after {painted[2]:.0f} ms ({spread}), loaded after {ready:.0f} ms"


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="another checkout, timed in turns with this one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", default="300,10000", help="result lines of the larger runs")
    arguments = parser.parse_args()
    checkouts = [ROOT, *([arguments.before.resolve()] if arguments.before else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = [copied(folder / f"digits-{i}") for i in range(len(checkouts))]
        times: list[list[tuple[float, float, float]]] = [[] for _ in checkouts]
        for _ in range(arguments.rounds):
            for at, run, taken in zip(checkouts, runs, times, strict=True):
                taken.append(report(run, at))
        for name, taken in zip(("digits_all", "digits_all, before"), times, strict=False):
            print(f"{name}: {shown(taken)}")
        if arguments.before:
            for i, what in enumerate(("clock", "CPU")):
                ratios = [old[i] / new[i] for new, old in zip(*times, strict=True)]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                print(f"before / now, {what}: {statistics.median(ratios):.2f} ({spread})")
        print(f"page of digits_all: {page(runs[0] / 'report.html')}")
        for count in (int(text) for text in arguments.runs.split(",") if text):
            run = larger(folder, count)
            size = (run / "results.jsonl").stat().st_size / 2**20
            print(f"{count} lines ({size:.0f} MiB): {shown([report(run, ROOT)])}")
            print(f"page of {count} lines: {page(run / 'report.html')}")


if __name__ == "__main__":
    main()
