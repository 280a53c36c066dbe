"""How near a suite's makespan comes to its lower bound on many GPUs, by simulation.

    python reports/scheduling/measure.py    # two minutes of one core; writes results.json and makespan.svg

Discrete events: a free GPU takes the case with the longest estimate left, as `running/schedule.py` orders
them. Nodes of eight GPUs fail; their cases go on from the last checkpoint on the GPU that is free next.
"""

from __future__ import annotations

import heapq
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from attnbench.running.estimates import stage_time_s
from attnbench.running.machines import Machine
from attnbench.running.schedule import longest_first
from attnbench.storage.store import stages_of
from attnbench.suite.loading import load_suite

HERE = Path(__file__).resolve().parent
GPUS = (8, 64, 256, 1000)
SUITES = (10, 100, 1000)  # seeds of Table 1's 18 trainings
RATE = 2e14  # multiply-adds a second and GPU: only the unit of time hangs on it
MACHINE = Machine(macs_per_s={"fp32": RATE, "bf16": RATE}, said="a rate that is made up")
NODE = 8  # GPUs that fail together
FAILURES_PER_NODE_HOUR = (0.0, 1e-3, 1e-2)
AWAY_H = 1.0  # until a failed node is back
CHECKPOINT_H = 10 / 60  # train.checkpoint_minutes: at most so much is lost
RESTART_H = 2 / 60  # imports, data and the checkpoint
SPREAD = 0.5  # sd of the logarithm of true time over estimate
DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One simulated run; hours."""

    makespan: float
    bound: float
    failures: int


def estimates_h() -> list[float]:
    """Return what the plan says of each training of Table 1 with its samples, in hours of one GPU."""
    cases = load_suite("subin_256").cases
    seconds: dict[str, float] = {}
    for case in cases:
        key = case.key("train")  # cases of several guidance scales share it
        seconds[key] = seconds.get(key, stage_time_s(case, "train", MACHINE) or 0.0)
        seconds[key] += sum(stage_time_s(case, s, MACHINE) or 0.0 for s in stages_of(case) if s != "train")
    return [value / 3600 for value in seconds.values()]


def simulate(times: Sequence[tuple[float, float]], gpus: int, rate: float, draw: random.Random) -> Outcome:
    """Run cases of (estimated, true) hours on GPUs whose nodes fail at a rate an hour."""
    order = longest_first(range(len(times)), {number: one[0] for number, one in enumerate(times)})
    waiting, again = list(reversed(order)), []
    left = [one[1] for one in times]
    free, running = list(range(gpus)), {}
    nodes = (gpus + NODE - 1) // NODE
    events: list[tuple[float, int, str, int]] = []
    if rate:
        for node in range(nodes):
            heapq.heappush(events, (draw.expovariate(rate), node, "fails", node))
    now, done, failures, serial = 0.0, 0, 0, nodes
    away: set[int] = set()
    while done < len(times):
        while free and (waiting or again):
            gpu, number = free.pop(), (again or waiting).pop()
            serial += 1
            running[gpu] = (number, now, serial)
            heapq.heappush(events, (now + left[number], serial, "ends", gpu))
        now, which, what, where = heapq.heappop(events)
        if what == "ends" and where in running and running[where][2] == which:
            del running[where]
            free.append(where)
            done += 1
        elif what == "fails":
            failures += 1
            away.add(where)
            mine = range(where * NODE, min(gpus, (where + 1) * NODE))
            for gpu in mine:
                if gpu in running:
                    number, since, _ = running.pop(gpu)
                    saved = max(0.0, now - since - draw.uniform(0, CHECKPOINT_H))
                    left[number] += RESTART_H - saved
                    again.append(number)
            free = [gpu for gpu in free if gpu not in mine]
            heapq.heappush(events, (now + AWAY_H, which, "returns", where))
        elif what == "returns":
            away.discard(where)
            free += range(where * NODE, min(gpus, (where + 1) * NODE))
            heapq.heappush(events, (now + draw.expovariate(rate), which, "fails", where))
    truth = [one[1] for one in times]
    return Outcome(makespan=now, bound=max(max(truth), sum(truth) / gpus), failures=failures)


def main() -> None:
    """Simulate every size, print and keep the table, draw it."""
    base = estimates_h()
    rows = []
    for seeds in SUITES:
        for gpus in GPUS:
            for rate in FAILURES_PER_NODE_HOUR:
                found, known = [], []
                for number in range(DRAWS):
                    draw = random.Random(f"{seeds} {gpus} {rate} {number}")
                    times = [(e, e * draw.lognormvariate(0, SPREAD)) for e in base for _ in range(seeds)]
                    found.append(simulate(times, gpus, rate, draw))
                    if not rate:
                        known.append(simulate([(truth, truth) for _, truth in times], gpus, rate, draw))
                ratios = [one.makespan / one.bound for one in found]
                rows.append(
                    {
                        "cases": seeds * len(base),
                        "gpus": gpus,
                        "failures_per_node_hour": rate,
                        "failures": statistics.fmean(one.failures for one in found),
                        "makespan_h": statistics.fmean(one.makespan for one in found),
                        "ratio_median": statistics.median(ratios),
                        "ratio_max": max(ratios),
                        "ratio_if_times_were_known": statistics.median(o.makespan / o.bound for o in known)
                        if known
                        else None,
                    }
                )
    (HERE / "results.json").write_text(json.dumps({"estimates_h": base, "rows": rows}, indent=1) + "\n")
    draw_chart(rows)
    print(f"a case: {min(base):.1f} to {max(base):.1f} h by the plan, at {RATE:g} multiply-adds a second")
    print("| cases | GPUs | failures per node-hour | failures | makespan, h | ratio | most | times known |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        known = row["ratio_if_times_were_known"]
        cells = [
            f"{row['cases']:,}",
            f"{row['gpus']:,}",
            f"{row['failures_per_node_hour']:g}",
            f"{row['failures']:.1f}",
            f"{row['makespan_h']:.1f}",
            f"{row['ratio_median']:.3f}",
            f"{row['ratio_max']:.3f}",
            "" if known is None else f"{known:.3f}",
        ]
        print(f"| {' | '.join(cells)} |")


def draw_chart(rows: Sequence[dict[str, float]]) -> None:
    """Draw makespan over bound against GPUs, a panel for each number of cases."""
    plt.rcParams["svg.hashsalt"] = "attnbench"
    sizes = sorted({row["cases"] for row in rows})
    figure, panels = plt.subplots(1, len(sizes), figsize=(9, 3), sharey=True, layout="constrained")
    for panel, size in zip(panels, sizes, strict=True):
        for rate in FAILURES_PER_NODE_HOUR:
            mine = [r for r in rows if r["cases"] == size and r["failures_per_node_hour"] == rate]
            panel.plot([r["gpus"] for r in mine], [r["ratio_median"] for r in mine], "o-", label=f"{rate:g}")
        panel.axhline(1.15, color="grey", linestyle=":")
        panel.set(xscale="log", title=f"{size:,} cases", xlabel="GPUs")
    panels[0].set_ylabel("makespan over lower bound")
    panels[-1].legend(title="failures per node-hour", fontsize="small")
    figure.savefig(HERE / "makespan.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
