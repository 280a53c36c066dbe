"""Linear attention's core against diffusers' Sana processor, and whole layers against another checkout.

    python reports/linear-core/measure.py --before CHECKOUT [--rounds 5] [--threads 1,2] [--only core|layers]

Core: from one qkv [B, N, 3 C] to [B, N, C], in turns in this process; the processor is diffusers' own, its
three projections the three thirds of qkv. Before anything is timed both are held to the formula in float64
within the rounding that their types allow. Each round calls both forms until each has worked 40 ms (twice at
least; the first call does not count). With one thread times are of the CPU, with two of the clock. Layers:
two worker processes, one per checkout, asked in turns, CPU time of one thread; forward is in inference mode,
both is forward and backward in training form, down to the gradient of the input. The ratio is the median of
the rounds' ratios, how many times as fast today's code is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
HEAD = 32  # channels of a head, as Sana has them
EPS = 1e-15  # of diffusers' processor
# batch, tokens, width
CORES = [
    (1, 1024, 384),
    (8, 1024, 384),
    (1, 4096, 384),
    (1, 16384, 384),
    (1, 1024, 1152),
    (1, 4096, 1152),
    (1, 1024, 2240),
    (1, 4096, 2240),
]
BACKENDS = ["linear", "elu", "focused", "polaformer", "edit", "lit", "efficient", "performer", "mlla", "rala"]
ON_TWO_THREADS = [(1, 1024, 384), (1, 4096, 384), (1, 4096, 2240)]
LAYERS = [(8, 256, 384), (1, 4096, 384)]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUND_SECONDS = 0.04


class Third(torch.nn.Module):
    """A projection of Sana's that is computed already."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        """[B, N, 3 C] -> [B, N, C]."""
        return qkv.chunk(3, dim=-1)[self.index]


class Attention(torch.nn.Module):
    """What diffusers' processor asks of the module it is called by."""

    norm_q = norm_k = None

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = Third(0), Third(1), Third(2)
        self.to_out = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])


def forms(width: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return both forms as functions of qkv."""
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    from attnbench.layers import linear_attention, merge_heads, split_heads

    processor, module = SanaLinearAttnProcessor2_0(), Attention(width // HEAD)

    def ours(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (split_heads(z, width // HEAD) for z in qkv.chunk(3, dim=-1))
        return merge_heads(linear_attention(q, k, v, eps=EPS, rectify=True))

    return {"sana": lambda qkv: processor(module, qkv), "ours": ours}


def must_agree(qkv: torch.Tensor, width: int) -> None:
    """Hold both forms to the formula in float64: a rounding moves each of N + D sums' terms by at most u.

    Relative to the same sums of |v|, of numerator and denominator: 2 (N + D) + 8 times fp32's u; a half type
    rounds the result (Sana) and, in ours, a block's part of the state, the state and what is read from it.
    """
    q, k, v = (z.double().unflatten(-1, (-1, HEAD)).transpose(1, 2) for z in qkv.chunk(3, dim=-1))
    q, k = q.relu(), k.relu()
    mass = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + EPS

    def merged(values: torch.Tensor) -> torch.Tensor:
        return (q @ (k.mT @ values) / mass).transpose(1, 2).flatten(2)

    want, scale = merged(v), merged(v.abs())
    sums = (2 * (qkv.shape[1] + HEAD) + 8) * torch.finfo(torch.float32).eps / 2
    own = torch.finfo(qkv.dtype).eps / 2 if qkv.dtype is torch.bfloat16 else 0.0
    for (name, form), roundings in zip(forms(width).items(), (1, 4), strict=True):
        error = ((form(qkv).double() - want).abs() / scale.clamp_min(1e-30)).max().item()
        if error > (limit := 1.01 * roundings * own + sums):
            raise SystemExit(f"{name} is {error:.3g} off at {list(qkv.shape)} {qkv.dtype}: above {limit:.3g}")


KINDS = {
    "products": ("bmm", "baddbmm", "mm"),
    "copies and casts": ("copy_", "_to_copy", "clone"),
    "ReLU": ("clamp_min", "clamp_min_"),
    "sums": ("sum", "add_", "add"),
    "division": ("div", "div_"),
    "products of elements": ("mul", "mul_"),
    "padding": ("constant_pad_nd", "fill_"),
}


def profile() -> list[dict[str, Any]]:
    """Say where one image of 4,096 tokens of width 384 spends its time: us an operation's kind, a call.

    Medians of an operation's calls by the clock, times their number, so that a pause of the machine counts
    once. `whole` is the formula in whole operations, as the core was before.
    """
    from attnbench.layers.linear_blocks import Terms, unblocked
    from attnbench.layers.projection import merge_heads, split_heads

    def whole(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (split_heads(z, 384 // HEAD) for z in qkv.chunk(3, dim=-1))
        return merge_heads(unblocked(Terms(q, k, v, None, None, normalise=True, rectify=True, eps=EPS)))

    torch.set_num_threads(1)
    rows, calls = [], 20
    for type_name, dtype in TYPES.items():
        qkv = torch.randn(1, 4096, 3 * 384).to(dtype)
        for name, form in {**forms(384), "whole": whole}.items():
            with torch.no_grad():
                form(qkv)
                with torch.profiler.profile() as profiler:
                    for _ in range(calls):
                        form(qkv)
            taken: dict[str, list[float]] = {}
            for event in profiler.events():
                if event.name.startswith("aten::"):
                    taken.setdefault(event.name[6:], []).append(event.self_cpu_time_total)
            us = {op: statistics.median(times) * len(times) / calls for op, times in taken.items()}
            kinds = {kind: round(sum(us.get(op, 0.0) for op in ops)) for kind, ops in KINDS.items()}
            rest = round(sum(us.values())) - sum(kinds.values())
            rows.append({"form": name, "type": type_name} | kinds | {"rest": rest})
    return rows


def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return seconds a call, the first not counted."""
    run()
    calls, started = 0, clock()
    while calls < 2 or clock() - started < ROUND_SECONDS:
        run()
        calls += 1
    return (clock() - started) / calls


def core(rounds: int, threads_asked: list[int], keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Time both forms at all sizes; keep the rows after each."""
    rows = []
    for threads in threads_asked:
        clock = time.process_time if threads == 1 else time.perf_counter
        torch.set_num_threads(threads)
        for batch, tokens, width in CORES if threads == 1 else ON_TWO_THREADS:
            for type_name, dtype in TYPES.items():
                torch.manual_seed(0)
                qkv, grad = (torch.randn(batch, tokens, n * width).to(dtype) for n in (3, 1))
                if threads == 1:
                    must_agree(qkv, width)
                for way in ("forward", "both"):
                    if way == "both" and (threads == 2 or tokens * width > 4096 * 1152):
                        continue
                    runs = {name: caller(form, qkv, grad, way) for name, form in forms(width).items()}
                    taken: dict[str, list[float]] = {name: [] for name in runs}
                    for _ in range(rounds):
                        for name, run in runs.items():
                            taken[name].append(timed(run, clock))
                    row = {"threads": threads, "batch": batch, "tokens": tokens, "width": width}
                    rows.append(row | {"type": type_name, "way": way} | ratio(taken["sana"], taken["ours"]))
                    keep(rows)


def caller(
    form: Callable[[torch.Tensor], torch.Tensor], qkv: torch.Tensor, grad: torch.Tensor, way: str
) -> Callable[[], object]:
    """Return a function of no arguments that goes forward, or both ways."""
    if way == "forward":
        return torch.no_grad()(lambda: form(qkv))
    leaf = qkv.detach().requires_grad_()
    return lambda: torch.autograd.grad(form(leaf), leaf, grad)


def ratio(before: list[float], now: list[float]) -> dict[str, Any]:
    """Return medians in ms and the median of the rounds' ratios with its range."""
    ratios = [a / b for a, b in zip(before, now, strict=True)]
    return {
        "before_ms": round(1e3 * statistics.median(before), 2),
        "now_ms": round(1e3 * statistics.median(now), 2),
        "ratio": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def worker() -> None:
    """Answer one line of JSON with seconds, until there are no more."""
    from attnbench.contract import AttentionContext, AttentionSite
    from attnbench.plugins import registry

    torch.set_num_threads(1)
    last, run = "", None
    for line in sys.stdin:
        if line != last:
            asked = json.loads(line)
            side = round(asked["tokens"] ** 0.5)
            site = AttentionSite(dim=asked["width"], num_heads=asked["width"] // 64, grid=(side, side))
            backend = registry().backend(asked["backend"])
            torch.manual_seed(0)
            module = backend.build(site, backend.options()).to(TYPES[asked["type"]])
            x = torch.randn(asked["batch"], asked["tokens"], asked["width"]).to(TYPES[asked["type"]])
            last, run = line, layer(module, x, AttentionContext(grid=site.grid), asked["way"])
        assert run is not None
        print(timed(run, time.process_time), flush=True)


def layer(module: torch.nn.Module, x: torch.Tensor, context: Any, way: str) -> Callable[[], object]:
    """Return one pass of a layer."""
    if way == "forward":
        return torch.inference_mode()(lambda: module.eval()(x, context))
    grad, leaf = torch.randn_like(x), x.requires_grad_()
    wanted = [leaf, *module.parameters()]
    return lambda: torch.autograd.grad(module(leaf, context), wanted, grad, allow_unused=True)


def layers(before: Path, rounds: int, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Time every backend's layer in both checkouts; keep the rows after each."""
    workers = []
    for checkout in (before, HERE.parents[1]):
        command = [sys.executable, __file__, "--worker"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        pipe = subprocess.PIPE
        workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True))
    rows = []
    for batch, tokens, width in LAYERS:
        for backend in BACKENDS:
            for type_name, way in (("fp32", "forward"), ("fp32", "both"), ("bf16", "forward")):
                row = {"backend": backend, "batch": batch, "tokens": tokens, "width": width}
                row |= {"type": type_name, "way": way}
                taken: list[list[float]] = [[], []]
                for _ in range(rounds):
                    for process, times in zip(workers, taken, strict=True):
                        assert process.stdin is not None
                        assert process.stdout is not None
                        process.stdin.write(json.dumps(row) + "\n")
                        process.stdin.flush()
                        times.append(float(process.stdout.readline()))
                rows.append(row | ratio(*taken))
                keep(rows)
    for process in workers:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def table(rows: list[dict[str, Any]], of: tuple[str, ...], columns: tuple[str, ...]) -> list[str]:
    """Return Markdown lines: a row for each value of `of`, a column for each value of `columns`."""

    def values(row: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    across = sorted({values(row, columns) for row in rows}, key=str)
    down = list(dict.fromkeys(values(row, of) for row in rows))
    found = {(values(row, of), values(row, columns)): row for row in rows}
    heads = [*of, *(", ".join(map(str, column)) for column in across)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name in down:
        cells = [found.get((name, column)) for column in across]
        told = [f"{c['before_ms']} / {c['now_ms']} = {c['ratio']}" if c else "" for c in cells]
        lines.append(f"| {' | '.join([*map(str, name), *told])} |")
    return lines


def main() -> None:
    """Measure, write results.json, print the tables last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="a checkout of commit d7fcb6e")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2", help="of the core; two need a quiet machine")
    parser.add_argument("--only", choices=["core", "layers"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return
    if arguments.only != "core" and arguments.before is None:
        parser.error("layers are timed against a checkout of commit d7fcb6e: give --before CHECKOUT")
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    found |= {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}

    def keep(part: str, rows: list[dict[str, Any]]) -> None:
        print(json.dumps(rows[-1]), flush=True)
        found[part] = rows
        file.write_text(json.dumps(found, indent=1) + "\n")

    if arguments.only != "layers":
        found["profile"] = profile()
        core(arguments.rounds, [int(n) for n in arguments.threads.split(",")], partial(keep, "core"))
    if arguments.only != "core":
        layers(arguments.before.resolve(), arguments.rounds, partial(keep, "layers"))
    if "profile" in found:
        heads = list(found["profile"][0])
        print("\nProfile of 4,096 tokens, width 384: us\n")
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        print("\n".join(f"| {' | '.join(map(str, row.values()))} |" for row in found["profile"]))
    if "core" in found:
        print("\nCore: ms of diffusers' processor / ours = times as fast; threads, type and way across\n")
        print("\n".join(table(found["core"], ("batch", "tokens", "width"), ("threads", "type", "way"))))
    if "layers" in found:
        print("\nLayers: ms before / now = times as fast\n")
        print("\n".join(table(found["layers"], ("backend", "batch", "tokens"), ("type", "way"))))


if __name__ == "__main__":
    main()
