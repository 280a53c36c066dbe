"""Whether a GPU computes the formulas: bf16 and fp32 against float64, the kit, the tests. 2.5 minutes.

    python reports/gpu/correctness.py               # 140 s
    python reports/gpu/correctness.py --dry-run     # two attentions on the CPU, to try the script

Three parts, in this order. `reference`: every case of tests/references in bf16 and in fp32 on the GPU
against the float64 formula on the CPU, output and gradient of the input. `kit`: `attnbench check` on the
GPU, a few attentions at once. `tests`: pytest's tests marked gpu. Results go to $OUT/correctness.jsonl;
started again, it does what that file misses. The table comes last; the exit code is 1 where something is
wrong.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from gpu_course import (
    ROOT,
    Call,
    Record,
    Results,
    Schedule,
    columns,
    import_tests,
    out_folder,
    reason,
    say,
)

import_tests()

DRY_CASES = ("softmax", "linear")
DRY_BACKENDS, DRY_CHECKS = ("linear",), ("shape-square", "determinism", "dtype")
DIM, HEADS, GRID = 48, 3, (8, 8)  # heads of 16: the fused attention kernels take multiples of 8
STORED = 16
"""Stored intermediates between input and output at the most, as in tests/test_backends.py: each rounds once,
so that a run in low precision may be off by so many times what one rounding of the input does, or what one
rounding is by itself, where the result hardly depends on the input. A gradient has passed twice as many."""
PROCESSES = 6  # of the kit: its checks are small and wait for the host


def reference_cases() -> list[str]:
    """Return the labels of all reference cases."""
    from references import CASES

    return list(CASES)


def against_reference(label: str, device: str) -> Iterator[tuple[str, Record]]:
    """Compare one case in both precisions; yield a name and its error beside what is allowed."""
    import torch
    from references import FILES
    from test_backends import build

    from attnbench.contract import AttentionContext

    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: products have it off by default
    module, name = build(label, dim=DIM, num_heads=HEADS, grid=GRID, continuous=True)
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    conditioning, x0, weight = (
        drawn(2, DIM),
        drawn(2, GRID[0] * GRID[1], DIM),
        drawn(2, GRID[0] * GRID[1], DIM),
    )

    def passed(call: Any, x: torch.Tensor) -> list[torch.Tensor]:
        """Return output and gradient of the input, in float64 on the CPU."""
        context = AttentionContext(
            grid=GRID,
            timestep=torch.tensor([20.0, 980.0], device=x.device),
            conditioning=conditioning.to(x),
        )
        x = x.detach().requires_grad_()
        y = call(x, context)
        (gradient,) = torch.autograd.grad((y * weight.to(y)).sum(), x)
        return [one.detach().double().cpu() for one in (y, gradient)]

    module.eval()
    for dtype in (torch.bfloat16, torch.float32):
        low = copy.deepcopy(module).to(dtype)
        exact, x = copy.deepcopy(low).double(), x0.to(dtype)

        def formula(x: torch.Tensor, context: Any, exact: Any = exact) -> torch.Tensor:
            return FILES[name].reference(exact, x, context)

        expected = passed(formula, x.double())
        got = passed(low.to(device), x.to(device))
        moved = []
        for _ in range(4):
            signs = torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1
            moved.append(passed(exact, x.double() * (1 + torch.finfo(dtype).eps * signs / 2)))
        for at, (what, times) in enumerate((("output", STORED), ("gradient", 2 * STORED))):
            scale = float(expected[at].norm())
            condition = max(float((one[at] - expected[at]).norm()) for one in moved) / scale
            error = float((got[at] - expected[at]).norm()) / scale
            allowed = times * max(condition, torch.finfo(dtype).eps / 2)
            short = str(dtype).removeprefix("torch.")
            yield (
                f"{label} {short} {what}",
                {"found": error, "allowed": allowed, "ok": error <= allowed},
            )


def kit_of(backend: str, device: str, only: tuple[str, ...] | None) -> list[Record]:
    """Return the results of one attention's conformance kit."""
    from attnbench.plugins import registry
    from attnbench.testing import run_checks

    found = run_checks(registry().backend(backend), only=only, device=device)
    return [{"check": one.name, "status": one.status, "detail": one.detail, "bad": one.bad} for one in found]


def run_reference(labels: list[str], device: str, results: Results) -> None:
    """Compare all cases, one after the other."""
    for label in labels:
        name = f"reference {label}"
        if results.has(name):
            continue
        try:
            for one, found in against_reference(label, device):
                results.keep(f"reference {one}", {"part": "reference", **found})
            results.keep(name, {"part": "case"})
        except Exception as error:  # noqa: BLE001 - the other cases are still worth having
            results.keep(name, {"part": "reference", "ok": False, "error": reason(error)})


def run_kit(backends: list[str], device: str, only: tuple[str, ...] | None, results: Results) -> None:
    """Ask the kit of all attentions, some at once: each in a process, whose failure is a row."""
    waiting = [name for name in backends if not results.has(f"kit {name}")]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(PROCESSES, len(waiting) or 1), mp_context=context)
    try:
        asked = {pool.submit(kit_of, name, device, only): name for name in waiting}
        for future in as_completed(asked):
            name = f"kit {asked[future]}"
            try:
                found = future.result()
            except Exception as error:  # noqa: BLE001 - also a process that died
                results.keep(name, {"part": "kit", "ok": False, "error": reason(error)})
                continue
            bad = [f"{one['check']}: {one['status']}: {one['detail']}" for one in found if one["bad"]]
            passed = sum(one["status"] == "passed" for one in found)
            told = f"{passed} of {len(found)} passed" + "".join(f"; {text}" for text in bad)
            results.keep(name, {"part": "kit", "ok": not bad, "told": told, "checks": found})
    finally:
        for process in list((pool._processes or {}).values()):  # at the time limit: what still runs is ended
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)


def run_tests(left_s: float, dry: bool, results: Results) -> None:
    """Run pytest's tests marked gpu; without a GPU they are skipped."""
    files = ["tests/test_profiling_cuda.py"] if dry else []
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--timeout", "60"]
    try:
        done = subprocess.run(
            [*words, *files], cwd=ROOT, capture_output=True, text=True, timeout=max(left_s - 2, 1)
        )
    except subprocess.TimeoutExpired:
        results.keep("tests", {"part": "tests", "ok": False, "error": "not finished in time"})
        return
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    told = "; ".join([line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:])
    results.keep("tests", {"part": "tests", "ok": done.returncode == 0, "told": told})


def table(records: list[Record]) -> str:
    """Return a line for each part of each attention, the worst number of each kind of comparison."""
    lines: list[tuple[object, ...]] = [("what", "result", "worst error / allowed", "at")]
    reference = [one for one in records if one.get("part") == "reference" and "found" in one]
    for kind in ("bfloat16 output", "bfloat16 gradient", "float32 output", "float32 gradient"):
        some = [one for one in reference if one["name"].endswith(kind)]
        if some:
            share = {one["name"]: one["found"] / max(one["allowed"], 1e-300) for one in some}
            worst = max(share, key=lambda name: share[name])
            good = sum(one["ok"] for one in some)
            lines.append((f"reference, {kind}", f"{good} of {len(some)} within", share[worst], worst))
    for one in records:
        if one.get("part") == "reference" and not one["ok"]:
            told = one.get("error") or f"{one['found']:.3g} where {one['allowed']:.3g} is allowed"
            lines.append((one["name"], "WRONG", None, told))
        if one.get("part") in ("kit", "tests"):
            lines.append(
                (one["name"], "ok" if one["ok"] else "WRONG", None, one.get("told", one.get("error")))
            )
    return columns(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=140.0, help="seconds, from start to table")
    parser.add_argument("--dry-run", action="store_true", help="few attentions, on the CPU")
    args = parser.parse_args()
    results = Results(out_folder() / "correctness.jsonl")
    device, dry = ("cpu", True) if args.dry_run else ("cuda", False)
    try:
        from attnbench.plugins import registry

        built_in = [name for name, one in registry().backends.items() if one.origin == "built-in"]
        labels = list(DRY_CASES) if dry else reference_cases()
    except Exception as error:  # noqa: BLE001 - a package that is missing is told as every failure
        results.keep("imports", {"part": "tests", "ok": False, "error": reason(error)})
        say(table(results.records))
        return 1

    def do(call: Call, left_s: float) -> None:
        if call.section == "reference":
            run_reference(labels, device, results)
        elif call.section == "kit":
            run_kit(list(DRY_BACKENDS) if dry else built_in, device, DRY_CHECKS if dry else None, results)
        elif not results.has("tests"):
            run_tests(left_s, dry, results)

    calls = [Call("reference", 40), Call("kit", 50), Call("tests", 35)]
    left_out = Schedule(args.budget).run(calls, do)
    say(table(results.records))
    for call, why in left_out:
        say(f"left out: {call.section}: {why}")
    return int(any(one.get("ok") is False for one in results.records))


if __name__ == "__main__":
    sys.exit(main())
