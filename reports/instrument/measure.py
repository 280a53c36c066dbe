"""How far the profile can be trusted: busy machines, repeated runs, planted differences, and its own time.

    python reports/instrument/measure.py busy      # six attentions, idle and beside two busy loops
    python reports/instrument/measure.py repeat    # every backend at three sizes, twice
    python reports/instrument/measure.py planted   # attentions that are 0 % and 10 % slower, 20 sessions
    python reports/instrument/measure.py session --old FOLDER   # digits_all's session, this build and another

Run it on a machine that does nothing else. Each part prints its table and adds it to results.json here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIX = ("softmax", "linear", "focused", "elu", "dydila", "mlla")
SIZES = (128, 192, 256)  # at 64 px some backends have too few tokens
SHELL = {"dim": 96, "depth": 4, "num_heads": 4, "patch_size": 2, "input": "latent", "in_channels": 4}

PLANTED = '''
"""Attentions that are softmax attention and then idle for a share of the time that it took."""
import time

from torch import nn

from attnbench.contract import AttentionBackend
from attnbench.hookspecs import hookimpl
from attnbench.plugins import registry


class Slowed(nn.Module):
    def __init__(self, inner, share):
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, x, context):
        start = time.perf_counter()
        output = self.inner(x, context)
        end = time.perf_counter()
        end += self.share * (end - start)
        while time.perf_counter() < end:
            pass
        return output


def planted(name, share):
    def softmax():
        return registry().backends["softmax"].record

    return AttentionBackend(
        name=name, summary="-", source="-",
        build=lambda site, options: Slowed(softmax().build(site, softmax().options()), share),
        macs=lambda site, options: softmax().macs(site, softmax().options()),
    )


@hookimpl
def attnbench_backends():
    yield planted("plain", 0.0)
    yield planted("planted-0", 0.0)
    yield planted("planted-10", 0.1)
'''


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["busy", "repeat", "planted", "session"])
    parser.add_argument("--old", help="folder of the other build, for `session`")
    parser.add_argument("--times", type=int, default=0, help="sessions of `planted`, pairs of `session`")
    words = parser.parse_args()
    start = time.monotonic()
    found = {
        "busy": busy,
        "repeat": repeat,
        "planted": lambda: planted(words.times or 20),
        "session": lambda: sessions(words.old, words.times or 2),
    }[words.part]()
    keep(words.part, {**found, "minutes": round((time.monotonic() - start) / 60, 1)})


def keep(part: str, found: dict[str, Any]) -> None:
    from attnbench.results import environment

    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[part] = {"environment": environment("cpu").model_dump(mode="json"), **found}
    path.write_text(json.dumps(known, indent=1) + "\n")


def profile(names: tuple[str, ...], sizes: tuple[int, ...] = SIZES, **changes: Any) -> list[Any]:
    """Profile backends in the shell of the quick suite's size."""
    from attnbench.models.recipes import resolve
    from attnbench.profiling.rows import ProfileRequest
    from attnbench.profiling.session import profile_models
    from attnbench.specs import ProfileSpec

    requests = [
        ProfileRequest(label=name, config=resolve("dit-s", {**SHELL, "attention": name}), num_classes=10)
        for name in names
    ]
    settings = {"resolutions": list(sizes), "measure": ["macs", "latency"], **changes}
    return profile_models(requests, ProfileSpec(**settings), say=print)


@contextlib.contextmanager
def busy_loops(num: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def busy() -> dict[str, Any]:
    """The ratio of any two undisturbed rows, idle and busy; rows that are marked are not ranked."""
    idle = {(row.model, row.resolution): row for row in profile(SIX)}
    with busy_loops(2):
        loaded = {(row.model, row.resolution): row for row in profile(SIX)}
    print(f"{'':10}{'px':>5}{'idle ms':>10}{'busy ms':>10}  mark")
    for key, row in idle.items():
        print(
            f"{key[0]:10}{key[1]:5}{row.latency_ms:10.2f}{loaded[key].latency_ms:10.2f}  {mark(row)} "
            f"{mark(loaded[key])}"
        )
    moved = [
        abs(math.log(ratio(loaded[a], loaded[b]) / ratio(idle[a], idle[b])))
        for a, b in itertools.combinations(idle, 2)
        if a[1] == b[1] and not any(rows[key].disturbed for rows in (idle, loaded) for key in (a, b))
    ]
    worst = math.exp(max(moved, default=0.0)) - 1
    print(f"{len(moved)} ratios of undisturbed rows; the one that moved most: {worst:.1%}")
    table = [
        {
            "model": model, "px": px, "idle_ms": row.latency_ms, "busy_ms": loaded[model, px].latency_ms,
            "idle_disturbed": bool(row.disturbed), "busy_disturbed": bool(loaded[model, px].disturbed),
        }
        for (model, px), row in idle.items()
    ]  # fmt: skip
    return {"rows": table, "undisturbed_ratios": len(moved), "largest_move": worst}


def compared(ours: Any, theirs: Any) -> Any:
    """Return the time of one row over another's, and what reports say of it: by rounds taken side by side."""
    from attnbench.profiling.rows import to_measurements
    from attnbench.report.timings import time_ratio

    measured = [
        next(m for m in to_measurements(row) if m.name.startswith("latency_ms@")) for row in (ours, theirs)
    ]
    return time_ratio(*measured, same_environment=True)


def ratio(ours: Any, theirs: Any) -> float:
    found = compared(ours, theirs).value
    assert found is not None  # neither row is disturbed
    return float(found)


def mark(row: Any) -> str:
    return "disturbed" if row.disturbed else "-"


def repeat() -> dict[str, Any]:
    """Whether the intervals of two runs of the same profile cover each other; the harness's own time."""
    from attnbench.api import list_backends

    names = tuple(backend.name for backend in list_backends())
    runs, seconds = [], []
    for _ in range(2):
        start = time.monotonic()
        runs.append(profile(names))
        seconds.append(time.monotonic() - start)
    table, covered = [], 0
    for one, other in zip(*runs, strict=True):
        a, b = one.latency_interval_ms, other.latency_interval_ms
        meet = bool(a and b and a[0] <= b[1] and b[0] <= a[1])
        covered += meet
        found = {"model": one.model, "px": one.resolution, "status": one.status, "one_ms": a, "other_ms": b}
        table.append({**found, "cover": meet, "disturbed": bool(one.disturbed or other.disturbed)})
        print(f"{one.model:20}{one.resolution:5} {shown(a)} {shown(b)} {'' if meet else 'apart'}")
    missing = sum(row["status"] != "ok" for row in table)
    print(f"{covered} of {len(table)} rows cover each other; {missing} rows are missing")
    each = seconds[0] / len(table)
    print(f"a run took {seconds[0]:.0f} s, {each:.2f} s a row")
    return {"rows": table, "covered": covered, "missing": missing, "seconds": seconds, "seconds_a_row": each}


def shown(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:9.3f} to {ends[1]:9.3f}" if ends else " " * 22


def planted(times: int) -> dict[str, Any]:
    """How often an attention that is 10 % slower is found, and one that is not is called different."""
    verdicts: dict[str, list[str]] = {"planted-0": [], "planted-10": []}
    ratios: dict[str, list[float | None]] = {"planted-0": [], "planted-10": []}
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        for number in range(times):
            base, *others = profile(
                ("plain", *verdicts), (256,), scope="attention", rounds=24, measure=["latency"], threads=1
            )
            for row in others:
                found = compared(row, base)
                verdicts[row.model].append(found.words)
                ratios[row.model].append(found.value)
            print(
                number + 1,
                {name: (said[-1], ratios[name][-1:]) for name, said in verdicts.items()},
                flush=True,
            )
    found, wrong = (
        verdicts["planted-10"].count("slower"),
        times - verdicts["planted-0"].count("not distinguishable"),
    )
    print(f"10 % slower: found {found} of {times} times; 0 %: called otherwise than equal {wrong} of {times}")
    return {"sessions": times, "found": found, "wrong": wrong, "verdicts": verdicts, "ratios": ratios}


def install(folder: Path) -> None:
    """Put the planted attentions on sys.path as pip would install them, for this process and its children."""
    (folder / "planted_backends.py").write_text(PLANTED)
    info = folder / "planted_backends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attnbench]\nplanted = planted_backends\n")
    sys.path.insert(0, str(folder))


SESSION = """
import sys, tempfile, time
from pathlib import Path
from attnbench.stages.profile import profile_cases
from attnbench.suite.loading import load_suite
if __name__ == "__main__":
    suite = load_suite(sys.argv[1])
    with tempfile.TemporaryDirectory() as store:
        start = time.monotonic()
        found = profile_cases(suite.cases, Path(store), "cpu", lambda done, total, note: None)
        seconds = time.monotonic() - start
    import json
    latencies = {}
    for case in suite.cases:
        for m in found.costs[case.id]:
            if m.name.startswith("latency_ms"):
                latencies[case.label] = {"values": m.values, "rounds": getattr(m, "rounds", None)}
    print(json.dumps({"seconds": seconds, "latencies": latencies}))
"""


def sessions(old: str | None, times: int) -> dict[str, Any]:
    """The whole profile session of digits_all (22 rows): this build and another, in turns."""
    if old is None:
        sys.exit(
            "session: name the other build's folder with --old, e.g. a git worktree of an earlier commit"
        )
    suite = HERE.parent.parent / "suites" / "digits_all.yaml"
    builds = {"old": Path(old), "new": HERE.parent.parent}
    taken: dict[str, list[float]] = {name: [] for name in builds}
    widths: dict[str, list[float]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "session.py"
        script.write_text(SESSION)
        for _ in range(times):
            for name, build in builds.items():
                done = subprocess.run(
                    [sys.executable, str(script), str(build / "suites" / suite.name)],
                    env={**os.environ, "PYTHONPATH": str(build)}, cwd=folder,
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                said = json.loads(done.stdout.splitlines()[-1])
                taken[name].append(said["seconds"])
                widths[name].append(statistics.median(width(row) for row in said["latencies"].values()))
                print(
                    f"{name}: {taken[name][-1]:.1f} s; the intervals' median width {widths[name][-1]:.1%}",
                    flush=True,
                )
    ratio = statistics.median(taken["new"]) / statistics.median(taken["old"])
    print(f"new over old: {ratio:.2f}")
    return {"seconds": taken, "interval_widths": widths, "ratio": ratio}


def width(row: dict[str, Any]) -> float:
    """Return the relative width of the 95 % interval over rounds; samples without rounds are cut into 5."""
    from attnbench.profiling.statistics import median_interval

    if row["rounds"]:
        medians = row["values"]
    else:  # five rounds, which ended by the clock: cut into five equal parts, in order
        values = row["values"]
        size = max(1, len(values) // 5)
        medians = [statistics.median(values[i : i + size]) for i in range(0, size * 5, size)]
    found = median_interval(medians)
    return (found.high - found.low) / statistics.median(medians)


if __name__ == "__main__":
    main()
