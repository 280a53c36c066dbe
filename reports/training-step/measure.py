"""What one training step costs, of this build and of an earlier one, with every attention.

    python reports/training-step/measure.py --before CHECKOUT [--size quick|dit-s] [--only 'dydila*,linear']

The step is the trainer's own (batch, forward, loss, backward, norm of the gradient, AdamW, average of the
weights), `quick` at the settings of suites/digits_all.yaml, `dit-s` in DiT-S's shell on latents of 32x32x4 in
memory. Two processes, one for each build, make steps in turn, one thread each; times are the process's own
CPU time, so that what else runs on the machine hardly counts. A ratio is the median over rounds of now over
before.
`--profile` shows instead where the time of a step goes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {  # those of suites/digits_all.yaml, for 16 tokens
    "quick": {
        "agent": {"num_agents": 4},
        "mediators": {"schedule": [[333, 9], [667, 4], [1000, 1]]},
        "linformer": {"rank": 8},
        "window": {"kernel_size": 3},
    },
    "dit-s": {},
}
TRAIN = {
    "quick": {"objective": "flow", "batch_size": 128, "ema_decay": 0.99, "ema_warmup": True, "lr": 4e-3},
    "dit-s": {"batch_size": 2},
}
RECIPE = {"quick": "tiny-dit", "dit-s": "dit-s"}
ROUNDS = {"quick": 5, "dit-s": 3}
STEPS = {"quick": 2, "dit-s": 1}  # of a round
WARM = {"quick": 3, "dit-s": 1}
Answer = dict[str, Any]


class Worker:
    """A process that makes the steps of one build."""

    def __init__(self, checkout: Path) -> None:
        environment = {
            "OMP_NUM_THREADS": "1",  # and memory kept, as `attnbench run` sets it for its cases
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH", "")])),
        }
        words = [sys.executable, "-W", "ignore", str(HERE / "worker.py")]
        self.process = subprocess.Popen(
            words, env=environment, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: Answer) -> Answer:
        """Send one line and return the answer; raises RuntimeError with the worker's reason."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def attentions() -> list[tuple[str, str, dict[str, Any]]]:
    """Return the label, the name and the options of every attention of suites/digits_all.yaml."""
    sys.path.insert(0, str(ROOT))
    from attnbench.suite.loading import load_suite

    found = []
    for case in load_suite(ROOT / "suites" / "digits_all.yaml").cases:
        spec = case.model.attention_at(0)
        options = {"mode": spec.options["mode"]} if spec.name == "dydila" else {}
        found.append((case.label, spec.name, options))
    return found


def compare(workers: list[Worker], size: str, name: str, options: dict[str, Any], rounds: int) -> Answer:
    """Return the times of both builds, round by round, the earlier one last."""
    attention = {"name": name, "options": {**options, **OPTIONS[size].get(name, {})}}
    asked = {"recipe": RECIPE[size], "attention": attention, "train": TRAIN[size]}
    for worker in workers:
        worker.ask({"build": asked})
        worker.ask({"steps": WARM[size]})
    taken: list[list[float]] = [[] for _ in workers]
    losses = [0.0 for _ in workers]
    for turn in range(rounds):
        order = list(enumerate(workers))
        for at, worker in order if turn % 2 else reversed(order):
            answer = worker.ask({"steps": STEPS[size]})
            taken[at].append(min(answer["seconds"]))
            losses[at] = answer["loss"]
    return {"seconds": taken, "losses": losses}


def row(size: str, label: str, found: Answer) -> Answer:
    """Return what is kept of one attention: milliseconds and the ratio now / before with its range."""
    now, *before = found["seconds"]
    kept: Answer = {"size": size, "attention": label, "now_ms": 1e3 * statistics.median(now)}
    if before:
        ratios = [new / old for new, old in zip(now, before[0], strict=True)]
        kept |= {
            "before_ms": 1e3 * statistics.median(before[0]),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "loss_differs_by": abs(found["losses"][0] - found["losses"][1]),
        }
    return kept


def table(rows: list[Answer]) -> str:
    """Return all rows as a table."""
    lines = [f"{'size':6} {'attention':18} {'before ms':>10} {'now ms':>9} {'now/before':>10}  range"]
    for one in rows:
        start = f"{one['size']:6} {one['attention']:18}"
        if "error" in one:
            lines.append(f"{start} {one['error']}")
            continue
        before, ratio, spread = "", "", ""
        if "ratio" in one:
            before, ratio = f"{one['before_ms']:.1f}", f"{one['ratio']:.3f}"
            spread = "{:.3f} to {:.3f}".format(*one["ratio_range"])
        lines.append(f"{start} {before:>10} {one['now_ms']:9.1f} {ratio:>10}  {spread}")
    for size in RECIPE:
        ratios = [one["ratio"] for one in rows if one["size"] == size and "ratio" in one]
        if ratios:
            told = f"median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
            lines.append(f"{size}: now / before over {len(ratios)} attentions: {told}")
    return "\n".join(lines)


def profile(size: str, name: str, options: dict[str, Any]) -> None:
    """Print where the CPU time of a step goes: operators by their own time, and the parts of the step."""
    sys.path[:0] = [str(HERE), str(ROOT)]
    import torch
    from worker import Steps

    torch.set_num_threads(1)
    attention = {"name": name, "options": {**options, **OPTIONS[size].get(name, {})}}
    steps = Steps({"recipe": RECIPE[size], "attention": attention, "train": TRAIN[size]})
    steps.make(WARM[size] + 2)
    parts: dict[str, float] = {}

    def timed(label: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                parts[label] = parts.get(label, 0.0) + time.thread_time() - started

        return call

    trainer, count = steps.trainer, 10 if size == "quick" else 3
    backward, norm = torch.Tensor.backward, torch.nn.utils.get_total_norm
    trainer._loss = timed("forward and loss", trainer._loss)
    torch.Tensor.backward = timed("backward", backward)  # type: ignore[method-assign]
    torch.nn.utils.get_total_norm = timed("norm of the gradient", norm)
    trainer.optimizer.step = timed("AdamW", trainer.optimizer.step)
    trainer.optimizer.zero_grad = timed("gradients freed", trainer.optimizer.zero_grad)
    for average in trainer.averages.values():
        average.update = timed("average of weights", average.update)
    whole = sum(steps.make(count)) / count
    spent = {label: seconds / count for label, seconds in parts.items()}
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    torch.nn.utils.get_total_norm = norm
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        steps.make(3)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
    print(f"{size}, {name}: {1e3 * whole:.1f} ms of CPU a step")
    spent["rest: batches, loop"] = whole - sum(spent.values())
    for label, seconds in spent.items():
        print(f"  {label:22} {1e3 * seconds:8.2f} ms  {seconds / whole:6.1%}")
    steps.close()


def main() -> None:
    """Measure, print a line for each attention as it is done, and the table last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="another checkout, timed in turns with this one")
    parser.add_argument("--size", choices=["quick", "dit-s", "both"], default="both")
    parser.add_argument("--only", default="*", help="labels, with wildcards, separated by commas")
    parser.add_argument("--rounds", type=int, help="rounds of every attention")
    parser.add_argument("--profile", action="store_true", help="where the time goes, this build alone")
    parser.add_argument("--json", type=Path, help="where the rows go as well")
    arguments = parser.parse_args()
    sizes = list(RECIPE) if arguments.size == "both" else [arguments.size]
    patterns = arguments.only.split(",")
    chosen = [one for one in attentions() if any(fnmatch.fnmatch(one[0], p) for p in patterns)]
    if not chosen:
        labels = ", ".join(one[0] for one in attentions())
        parser.error(f"--only {arguments.only} fits no attention; there are {labels}")
    if arguments.profile:
        for size in sizes:
            for _, name, options in chosen:
                profile(size, name, options)
        return
    checkouts = [ROOT, *([arguments.before.resolve()] if arguments.before else [])]
    workers = [Worker(checkout) for checkout in checkouts]
    rows: list[Answer] = []
    started = time.monotonic()
    for size in sizes:
        for label, name, options in chosen:
            try:
                found = compare(workers, size, name, options, arguments.rounds or ROUNDS[size])
                rows.append(row(size, label, found))
            except RuntimeError as error:
                rows.append({"size": size, "attention": label, "error": str(error)})
            print(json.dumps(rows[-1]), flush=True)
    for worker in workers:
        worker.close()
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(f"{time.monotonic() - started:.0f} s\n\n{table(rows)}")


if __name__ == "__main__":
    main()
