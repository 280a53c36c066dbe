"""Hold planned memory against torch's allocator, and a process's peak against its tensors, on this machine.

Writes results.json beside this file: `plan` (every built-in backend, forward and training, three sizes) and
`process` (six whole models). The allocator's peak is that of torch's profiler, which sees every allocation.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import attnbench
from attnbench.models.recipes import recipe, resolve
from attnbench.models.resolution import input_size
from attnbench.profiling.memory import peak_memory, prepare_for_memory
from attnbench.profiling.memory_plan import plan_memory
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload
from attnbench.specs import Mode, ModelConfig

MIB = 2**20
CPU = torch.device("cpu")
HERE = Path(__file__).parent
MODELS = ("dit-s", "sana-s", "dydi-lit-s", "pixart-sigma-s", "edit-s", "moh-dit-s")
SIZES = (256, 320, 384)  # pixels


def workload(config: ModelConfig, resolution: int, batch_size: int, mode: Mode) -> Workload:
    side = input_size(config, resolution)
    return Workload(config=config, input_size=side, num_classes=100, batch_size=batch_size, mode=mode)


def allocator_peak(run: Callable[[], object]) -> float:
    """Peak over the second pass of what torch's allocator handed out and has not got back, MiB."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: Any = profiler.profiler.kineto_results.events()
    steps = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, num_bytes in steps:
        live += num_bytes
        peak = max(peak, live)
    return peak / MIB


def compare_plans() -> list[dict[str, Any]]:
    rows = []
    torch.set_num_threads(1)
    for resolution in SIZES:
        for backend in attnbench.list_backends():
            config = resolve("dit-s", {"depth": 1, "attention": {"name": backend.name}})
            for mode in ("forward", "train"):
                work = workload(config, resolution, 1, mode)  # type: ignore[arg-type]
                planned = plan_memory(work).activations_mib
                measured = allocator_peak(build_pass(work, CPU).run)
                row = {"attention": backend.name, "resolution": resolution, "mode": mode}
                row |= {"planned_mib": round(planned, 3), "measured_mib": round(measured, 3)}
                rows.append(row | {"error_percent": round(100 * (planned / measured - 1), 2)})
                print(rows[-1], flush=True)
    return rows


def measure_process(model: str) -> None:
    """Print one model's peak in this process, made for it."""
    prepare_for_memory()
    work = workload(recipe(model), 256, 8, "forward")
    run = build_pass(work, CPU).run
    memory = peak_memory(run, CPU)
    planned = plan_memory(work).activations_mib
    print(
        json.dumps(
            {
                "model": model,
                "process_mib": round(memory.extra_mib, 3),
                "live_mib": round(memory.live_mib or 0.0, 3),
                "allocator_mib": round(allocator_peak(run), 3),
                "planned_mib": round(planned, 3),
            }
        )
    )


def compare_processes() -> list[dict[str, Any]]:
    rows = []
    for model in MODELS:
        command = [sys.executable, __file__, "--model", model]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append(json.loads(answer.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="plan,process")
    parser.add_argument("--to", type=Path, default=HERE / "results.json")
    parser.add_argument("--model", help=argparse.SUPPRESS)  # a process of compare_processes
    options = parser.parse_args()
    if options.model:
        measure_process(options.model)
        return
    file = options.to
    results = json.loads(file.read_text()) if file.exists() else {}
    results["torch"] = torch.__version__
    for part, compare in (("process", compare_processes), ("plan", compare_plans)):
        if part in options.parts.split(","):
            start = time.perf_counter()
            results[part] = compare()
            results[f"{part}_s"] = round(time.perf_counter() - start)
            file.write_text(json.dumps(results, indent=1) + "\n")
    if "plan" in results:
        worst = max(results["plan"], key=lambda row: abs(row["error_percent"]))
        print("worst plan:", worst)


if __name__ == "__main__":
    main()
