"""What DiT, Sana, DyDi-LiT and every attention cost on a GPU, 256 to 2048 px, and crossovers. 4 minutes.

    python reports/gpu/profile_models.py                    # 230 s; --budget 340: fp32, L, CUDA graphs
    python reports/gpu/profile_models.py --dry-run          # tiny models on the CPU, to try the script
    python reports/gpu/profile_models.py --course           # the calls and their guessed times; runs nothing
    python reports/gpu/profile_models.py --sections large,graphs   # the rest, another time

What matters most comes first; what no longer fits is named with its reason. Results go to
$OUT/profile.jsonl; started again, it takes up what that file misses. The table and the crossovers come last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_course import ROOT, Call, Record, Results, Schedule, cell, columns, out_folder, reason, say

sys.path.insert(0, str(ROOT))

SMALL, LARGE = ("dit-s", "sana-s", "dydi-lit-s"), ("dit-l", "sana-l", "dydi-lit-l")


def calls_on_gpu(backends: Sequence[str]) -> list[Call]:
    """Return the course, what matters most first."""

    def small(section: str, resolution: int, estimate_s: float, **settings: Any) -> Call:
        return Call(section, estimate_s, {"models": SMALL, "resolutions": (resolution,), **settings})

    bf16, fp32 = {"precision": "bf16"}, {"precision": "fp32"}

    def in_shell(resolution: int, estimate_s: float, **settings: Any) -> Call:
        shell = {"models": (), "backends": tuple(backends), "recipe": "dit-s", **bf16}
        return Call("backends", estimate_s, {**shell, "resolutions": (resolution,), **settings})

    return [
        Call("checks", 25),
        small("forward", 256, 35, **bf16, energy=True),
        small("forward", 1024, 28, **bf16),
        small("forward", 2048, 38, **bf16, energy=True),
        in_shell(1024, 60, batch_sizes=(2,)),
        small("train", 256, 28, **bf16, mode="train", batch_sizes=(32,)),
        small("forward", 512, 26, **bf16),
        small("train", 1024, 30, **bf16, mode="train"),
        small("train", 2048, 40, **bf16, mode="train"),
        small("forward", 256, 26, **fp32),
        small("forward", 1024, 28, **fp32),
        small("graphs", 256, 28, **bf16, cuda_graphs=True),
        Call("large", 50, {"models": LARGE, "resolutions": (256,), **bf16}),
        Call("large", 50, {"models": LARGE, "resolutions": (1024,), **bf16}),
        small("train", 256, 30, **fp32, mode="train", batch_sizes=(32,)),
        in_shell(256, 60, batch_sizes=(32,)),
        in_shell(2048, 90),
        in_shell(256, 110, mode="train", batch_sizes=(32,)),
    ]


def calls_of_dry_run() -> list[Call]:
    """Return the same kinds of calls on models for a CPU."""
    tiny = {"models": ("tiny-dit",), "resolutions": (8, 16), "num_classes": 10, "rounds": 1}
    in_shell = {**tiny, "models": (), "backends": ("softmax", "linear"), "recipe": "tiny-dit"}
    return [
        Call("checks", 3),
        Call("backends", 15, {**in_shell, "batch_sizes": (2,)}),
    ]


def profile_rows(call: Call, device: str, left_s: float) -> Iterator[Record]:
    """Run one call of `attnbench.profile`; yield a record for each row."""
    import attnbench

    settings = dict(call.settings)
    energy = ["energy"] if settings.pop("energy", False) else []
    measure = ["macs", "params", "latency", "memory", "memory-plan", *energy]
    settings = {"rounds": 6, "interval": 0.2, **settings}  # wide intervals are shown; time is short
    timeout_s = min(60.0, left_s / 2)
    rows = attnbench.profile(device=device, measure=tuple(measure), timeout_s=timeout_s, **settings)
    for row in rows:
        yield {"kind": "row", "row": row.model_dump(mode="json")}


def checks(device_name: str, tiny: bool) -> Iterator[Record]:
    """Check what only a GPU can show: the card's own limits, kernels, energy, and captured graphs."""
    import torch

    device = torch.device(device_name)
    model, resolution = ("tiny-dit", 8) if tiny else ("dit-s", 256)
    yield {"check": "machine", **machine(device)}
    for precision in ("bf16", "fp32"):
        for mode in ("forward", "train"):
            run = pass_of(model, resolution, device, precision=precision, mode=mode)
            yield {"check": f"kernels {precision} {mode}", **kernels_of(run, device)}
    if device.type != "cuda":
        return
    long = pass_of(model, 2048, device, precision="bf16")
    yield {"check": "kernels bf16 forward 2048", **kernels_of(long, device)}
    run = pass_of(model, resolution, device, precision="bf16")
    yield {"check": "energy", **energy_of(run, device)}
    yield {"check": "graph", **graph_of(run, device)}
    broken = pass_of("dit-s", 256, device, precision="bf16", attention={"name": "mediators"})
    yield {"check": "graph refused", **graph_of(broken, device)}  # last: torch is left in the capture


def pass_of(
    model: str, resolution: int, device: Any, *, precision: str, mode: str = "forward", **overrides: Any
) -> Callable[[], Any]:
    """Return one pass of a model, after two of them."""
    from attnbench.models.recipes import resolve
    from attnbench.models.resolution import input_size
    from attnbench.profiling.passes import build_pass
    from attnbench.profiling.protocol import Workload

    config = resolve(model, overrides)
    size = input_size(config, resolution)
    run = build_pass(
        Workload(config=config, input_size=size, num_classes=10, mode=mode, precision=precision), device
    ).run
    for _ in range(2):
        run()
    return run


def machine(device: Any) -> Record:
    """Return what the card is and the two rates that bound every pass on it."""
    import torch

    found: Record = {"torch": torch.__version__, "device": device.type}
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**28, device=device)  # 1 GiB
    target = torch.empty_like(source)
    return found | {
        "name": properties.name,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "bf16_tflops": 2 * 8192**3 / seconds_of(lambda: torch.mm(a, b)) / 1e12,
        "copy_gb_s": 2 * 2**30 / seconds_of(lambda: target.copy_(source)) / 1e9,
    }


def seconds_of(run: Callable[[], object]) -> float:
    """Return the median time of a pass on the GPU, events around each."""
    from statistics import median

    import torch

    from attnbench.profiling.cuda import CudaTimer

    timer = CudaTimer(torch.device("cuda"))
    return median(timer.sample(run, 5).warm_latency_ms or 0.0 for _ in range(7)) / 1e3


def kernels_of(run: Callable[[], object], device: Any) -> Record:
    """Return the attention kernels by operators and, on a GPU, by the device's own names: they must agree."""
    from attnbench.profiling.cuda import attention_kernels, device_kernels, name_kernels

    found: Record = {"by_operators": attention_kernels(run)}
    if device.type == "cuda":
        names = device_kernels(run)
        found |= {"by_device": name_kernels(names), "names": names}
    return found


def energy_of(run: Callable[[], object], device: Any) -> Record:
    """Return the energy of a pass at batch 1 and the clocks meanwhile, or why there are none."""
    import torch

    from attnbench.errors import UnsupportedError
    from attnbench.profiling.cuda import CudaTimer
    from attnbench.profiling.nvml import Clocks, NvmlMeter, measure_energy

    clocks = Clocks.of(device)
    timer = CudaTimer(device, watch=clocks.read)
    for _ in range(20):
        timer.sample(run, 10)
    found = {"clock_mhz": clocks.clock_mhz, "throttled": clocks.throttled, "no_clock": clocks.reason}
    try:
        energy = measure_energy(run, 1, NvmlMeter(device), synchronize=torch.cuda.synchronize)
    except UnsupportedError as error:
        return {**found, "reason": str(error)}
    return {**found, **energy.model_dump()}


def graph_of(run: Callable[[], Any], device: Any) -> Record:
    """Return the times of a pass and of its captured graph, and how far their outputs are apart."""
    from attnbench.errors import UnsupportedError
    from attnbench.profiling.cuda import captured

    expected, before = run().float().clone(), seconds_of(run)
    try:
        replay = captured(run, device)
    except UnsupportedError as error:
        return {"reason": str(error)}
    got = replay().float()
    return {
        "eager_ms": 1e3 * before,
        "replay_ms": 1e3 * seconds_of(replay),
        "relative_error": float((got - expected).norm() / expected.norm()),
    }


def table(records: Sequence[Record]) -> str:
    """Return the rows as a table; memory is the allocator's peak beside the plan's."""
    head = ("section", "model", "px", "batch", "prec", "mode", "cold ms", "95 %", "warm ms", "peak MiB")
    lines = [(*head, "planned", "J/image", "kernels or reason")]
    for record in records:
        if "row" not in record:
            continue
        row = record["row"]
        interval = row["latency_interval_ms"]
        warm = [value for one in row["rounds"] for value in one["warm_latency_ms"]]
        lines.append(
            (
                record["section"],
                row["model"],
                str(row["resolution"]),
                str(row["batch_size"]),
                row["precision"],
                row["mode"],
                cell(row["latency_ms"]),
                f"{interval[0]:.3g}-{interval[1]:.3g}" if interval else "",
                cell(sorted(warm)[len(warm) // 2] if warm else None),
                cell(row["peak_memory_mib"]),
                cell(row["planned_memory_mib"]),
                cell((row["energy"] or {}).get("energy_j")),
                ", ".join(row["kernels"]) if row["status"] == "ok" else f"{row['status']}: {row['reason']}",
            )
        )
    return columns(lines)


def crossings(records: Sequence[Record]) -> list[str]:
    """Return from which size on each model takes less than softmax attention, one line each."""
    from attnbench.profiling.crossovers import crossovers
    from attnbench.profiling.rows import ProfileRow

    rows = [ProfileRow.model_validate_json(json.dumps(one["row"])) for one in records if "row" in one]
    found = []
    for one in crossovers(rows, ("dit-s", "dit-l", "softmax", "tiny-dit")):
        if len(one.resolutions) < 2:
            continue
        told = one.verdict if one.resolution is None else f"from {one.resolution:.0f} px on"
        ratios = " ".join(f"{px}: {ratio:.3g}" for px, ratio in zip(one.resolutions, one.ratios, strict=True))
        found.append(
            f"{one.setting}, {one.quantity}: {one.model} less than {one.baseline}: {told} ({ratios})"
        )
    return found


def course(args: argparse.Namespace) -> list[Call]:
    """Return the calls that were asked for."""
    if args.dry_run:
        calls = calls_of_dry_run()
    else:
        import attnbench

        calls = calls_on_gpu([backend.name for backend in attnbench.list_backends()])
    wanted = [name for name in args.sections.split(",") if name]
    return [call for call in calls if not wanted or call.section in wanted]


def perform(call: Call, left_s: float, device: str, tiny: bool, results: Results) -> None:
    """Do one call and keep its records under its name; an error is a record."""
    name = name_of(call)
    if results.has(name):
        return
    try:
        if call.section == "checks":
            for found in checks(device, tiny):
                results.keep(f"{name}: {found['check']}", {"kind": "check", **found})
                say(str({key: value for key, value in found.items() if key != "names"}))
        else:
            for number, found in enumerate(profile_rows(call, device, left_s)):
                results.keep(f"{name}: row {number}", {**found, "section": call.section})
        results.keep(name, {"kind": "done", "section": call.section})
    except Exception as error:  # noqa: BLE001 - the other sections are still worth having
        results.keep(name, {"kind": "error", "section": call.section, "error": reason(error)})
        say(f"{name}: {reason(error)}")


def name_of(call: Call) -> str:
    """Return what a call's records are found by."""
    return f"{call.section} {json.dumps(call.settings)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="instead of $OUT/profile.jsonl")
    parser.add_argument("--budget", type=float, default=230.0, help="seconds, from start to table")
    parser.add_argument("--sections", default="", help="only these, e.g. large,graphs")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--course", action="store_true", help="print the calls and their guessed times")
    args = parser.parse_args()
    schedule, calls = Schedule(args.budget), course(args)
    if args.course:
        for call in calls:
            say(f"{call.estimate_s:5.0f} s  {call.section:10} {json.dumps(call.settings)}")
        say(f"{sum(call.estimate_s for call in calls):5.0f} s")
        return
    results = Results(args.out or out_folder() / "profile.jsonl")
    device = "cpu" if args.dry_run else "cuda"

    def do(call: Call, left_s: float) -> None:
        perform(call, left_s, device, args.dry_run, results)

    waiting = [call for call in calls if not results.has(name_of(call))]
    left_out = schedule.run(waiting, do)
    say(table(results.records))
    for line in crossings(results.records):
        say(line)
    for record in results.records:
        if record.get("error"):
            say(f"failed: {record['name']}: {record['error']}")
    for call, why in left_out:
        say(f"left out: {name_of(call)}: {why}")


if __name__ == "__main__":
    main()
