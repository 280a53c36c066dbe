"""How long a DyDiLA layer takes, by CPU time of one thread, against another checkout and a linear layer.

    python reports/dydila-speed/measure.py --before CHECKOUT [--rounds 5] [--only 384/4096]

Two worker processes, one per checkout, are asked in turns; each answer is the CPU time of one call (of
several, where one is short). Forward is inference form under `inference_mode`; both is forward and backward
in training form, down to the gradient of the input. `linear` is the Sana layer of equal width in this
checkout, and `beyond` the time of DyDiLA over its own, divided by the ratio of their multiply-adds: what
DyDiLA costs beyond its arithmetic. The step is that of a whole DyDi-LiT at the quick suite's size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# width, heads, tokens, batch
SIZES = [
    *((384, heads, tokens, 1) for tokens in (256, 1024, 4096, 16384) for heads in (1, 6)),
    *((768, heads, tokens, 1) for tokens in (256, 1024, 4096) for heads in (1, 12)),
    (96, 4, 16, 128),
]
HALF = [(384, 6, 1024, 1), (384, 6, 4096, 1)]
ROUND_SECONDS = 0.08


class Worker:
    """A process of one checkout that times what it is asked to."""

    def __init__(self, checkout: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __call__(self, **asked: Any) -> float:
        """Return seconds of CPU time a call, or multiply-adds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended at {asked}")
        return float(answer)


def worker() -> None:
    """Answer one line of JSON with one number, until there are no more."""
    import torch

    torch.set_num_threads(1)
    ready: dict[str, tuple[Callable[[], object], int]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["way"] == "macs":
            print(multiply_adds(**asked), flush=True)
            continue
        if line not in ready:
            ready.clear()  # memory for one at a time
            run = train_step() if asked["way"] == "step" else layer(**asked)
            started = time.process_time()
            run()
            if time.process_time() - started < 1:  # else the first call's own costs are little beside it
                started = time.process_time()
                run()
            ready[line] = run, max(1, round(ROUND_SECONDS / (time.process_time() - started)))
        run, calls = ready[line]
        started = time.process_time()
        for _ in range(calls):
            run()
        print((time.process_time() - started) / calls, flush=True)


def site_of(dim: int, heads: int, tokens: int) -> Any:
    from attnbench.contract import AttentionSite

    side = round(tokens**0.5)
    return AttentionSite(dim=dim, num_heads=heads, grid=(side, side))


def multiply_adds(backend: str, dim: int, heads: int, tokens: int, **_: Any) -> float:
    """Return all multiply-adds of a layer, in inference form, as executed."""
    from attnbench.plugins import registry

    record = registry().backend(backend)
    count = record.macs(site_of(dim, heads, tokens), record.options())
    return float(count.linear + count.attention + count.unhooked)


def layer(
    backend: str, way: str, dim: int, heads: int, tokens: int, batch: int, dtype: str
) -> Callable[[], object]:
    """Return a call of a layer."""
    import torch

    from attnbench.contract import AttentionContext
    from attnbench.layers import fuse_reparameterised
    from attnbench.plugins import registry

    record, site = registry().backend(backend), site_of(dim, heads, tokens)
    torch.manual_seed(0)
    precision = getattr(torch, dtype)
    holder = torch.nn.ModuleDict({"layer": record.build(site, record.options())}).to(precision)
    x = torch.randn(batch, tokens, dim, dtype=precision)
    weights = torch.randn(batch, tokens, dim, dtype=precision)
    context = AttentionContext(grid=site.grid)
    if way == "forward":
        module = fuse_reparameterised(holder)["layer"]

        def forward() -> object:
            with torch.inference_mode():
                return module(x, context)

        return forward
    module = holder["layer"].train()

    def both() -> object:
        module.zero_grad()
        given = x.detach().requires_grad_()
        module(given, context).backward(weights)
        return given.grad

    return both


def train_step() -> Callable[[], object]:
    """Return a step of AdamW of the quick suite's DyDi-LiT: width 96, 4 blocks, 16 tokens, 128 images."""
    import torch

    from attnbench.models import build_model
    from attnbench.models.recipes import recipe
    from attnbench.specs import AttentionSpec

    config = recipe("tiny-dit").model_copy(update={"attention": AttentionSpec(name="dydila")})
    torch.manual_seed(0)
    model = build_model(config, 8, 10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = 128
    x, t = torch.randn(images, 1, 8, 8), torch.randint(1000, (images,))
    labels = torch.randint(10, (images,))

    def step() -> object:
        optimizer.zero_grad()
        model(x, t, labels).square().mean().backward()
        optimizer.step()

    return step


def compare(asked: dict[str, Any], workers: dict[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Ask all workers in turns, in alternating order."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    names = list(workers)
    for turn in range(rounds):
        for name in names if turn % 2 else reversed(names):
            backend = "linear" if name == "linear" else "dydila"
            times[name].append(workers[name](**asked, backend=backend))
    return times


def main() -> None:
    """Print a table, and write all times beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="beginnings of dim/tokens/dtype, or `step`, with commas")
    parser.add_argument("--save", action="store_true", help="write results.json beside this file")
    asked = parser.parse_args()
    before, now, linear = (Worker(path) for path in (asked.before.resolve(), ROOT, ROOT))
    rows = []
    sizes = [(size, "float32") for size in SIZES] + [(size, "bfloat16") for size in HALF]
    for (dim, heads, tokens, batch), dtype in sizes:
        if not f"{dim}/{tokens}/{dtype}".startswith(tuple(asked.only.split(","))):
            continue
        size = {"dim": dim, "heads": heads, "tokens": tokens, "batch": batch, "dtype": dtype}
        for way in ("forward", "both"):
            rounds = 3 if tokens > 4096 else asked.rounds
            workers = {"before": before, "now": now, "linear": linear}
            times = compare({"way": way} | size, workers, rounds)
            macs = {b: now(**size, way="macs", backend=b) for b in ("dydila", "linear")}
            rows.append({"way": way} | size | {"seconds": times, "macs": macs})
            print(told(rows[-1]), file=sys.stderr, flush=True)
    if not asked.only or "step" in asked.only:
        times = compare({"way": "step"}, {"before": before, "now": now}, asked.rounds)
        rows.append({"way": "step", "dim": 96, "heads": 4, "tokens": 16, "batch": 128, "seconds": times})
    if asked.save:
        (Path(__file__).parent / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| dtype | width | heads | tokens | batch | way | before ms | now ms | now / before | beyond |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(told(row))


def told(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    seconds = row["seconds"]
    before, now = (statistics.median(seconds[name]) for name in ("before", "now"))
    ratios = [b / a for a, b in zip(seconds["before"], seconds["now"], strict=True)]
    beyond = "-"
    if "linear" in seconds:
        arithmetic = row["macs"]["dydila"] / row["macs"]["linear"]
        then, today = (
            statistics.median(a / b for a, b in zip(seconds[name], seconds["linear"], strict=True))
            / arithmetic
            for name in ("before", "now")
        )
        beyond = f"{then:.2f} -> {today:.2f}"
    size = " | ".join(str(row[key]) for key in ("dim", "heads", "tokens", "batch"))
    times = f"{1e3 * before:.2f} | {1e3 * now:.2f}"
    return (
        f"| {row.get('dtype', 'float32')} | {size} | {row['way']} | {times} | "
        f"{statistics.median(ratios):.2f} | {beyond} |"
    )


if __name__ == "__main__":
    worker() if "--worker" in sys.argv else main()
