"""The whole profile on one GPU within a time limit: what matters most first, what no longer fits left out.

Every result is written at once, a JSON object a line; the table comes last. `--device cpu --smoke` runs the
same course on tiny models, to try the script.

    python reports/gpu/measure.py --out gpu.jsonl --budget 340
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESERVE_S = 5.0  # for the table
SAFETY = 1.1  # of an estimate
SMALL, LARGE = ("dit-s", "sana-s", "dydi-lit-s"), ("dit-l", "sana-l", "dydi-lit-l")
Record = dict[str, Any]


class TimeUp(BaseException):
    """The time limit; no `except Exception` on the way up takes it for a failed row."""


@dataclass(frozen=True)
class Call:
    """One call of `attnbench.profile` (or one of the checks below): its seconds on an H100, guessed."""

    section: str
    estimate_s: float
    settings: Record = field(default_factory=dict)


@dataclass
class Schedule:
    """Which calls still fit: guesses are corrected by how long those before took."""

    budget_s: float
    now: Callable[[], float] = time.monotonic
    guessed_s: float = 0.0
    took_s: float = 0.0

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def left_s(self) -> float:
        """Seconds until the table must be written."""
        return self.start + self.budget_s - RESERVE_S - self.now()

    def expected_s(self, call: Call) -> float:
        """Return the guess, by the pace so far; one short call does not yet make a pace."""
        pace = (self.took_s + 20) / (self.guessed_s + 20)
        return SAFETY * pace * call.estimate_s

    def run(self, calls: Sequence[Call], do: Callable[[Call, float], None]) -> list[tuple[Call, str]]:
        """Do each call that fits, in order; return those left out and why. A later one may still fit."""
        left_out = []
        for call in calls:
            expected, left = self.expected_s(call), self.left_s
            if expected > left:
                left_out.append((call, f"needs {expected:.0f} s, {max(left, 0):.0f} s are left"))
                continue
            began = self.now()
            try:
                with time_limit(left):
                    do(call, left)
            except TimeUp:
                left_out.append((call, f"not finished within {left:.0f} s"))
            self.guessed_s += call.estimate_s
            self.took_s += self.now() - began
        return left_out


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in here after so many seconds."""

    def ring(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def calls_on_gpu(backends: Sequence[str]) -> list[Call]:
    """Return the course, what matters most first."""

    def small(section: str, resolution: int, estimate_s: float, **settings: Any) -> Call:
        return Call(section, estimate_s, {"models": SMALL, "resolutions": (resolution,), **settings})

    bf16, fp32 = {"precision": "bf16"}, {"precision": "fp32"}
    in_shell = {"models": (), "backends": tuple(backends), "recipe": "dit-s", "resolutions": (256,), **bf16}
    return [
        Call("checks", 25),
        small("forward", 256, 35, **bf16, energy=True),
        small("forward", 1024, 28, **bf16),
        small("forward", 2048, 38, **bf16, energy=True),
        Call("backends", 100, {**in_shell, "batch_sizes": (32,)}),
        small("train", 256, 28, **bf16, mode="train", batch_sizes=(32,)),
        small("forward", 256, 26, **fp32),
        small("forward", 1024, 28, **fp32),
        small("graphs", 256, 28, **bf16, cuda_graphs=True),
        Call("large", 50, {"models": LARGE, "resolutions": (256,), **bf16}),
        Call("large", 50, {"models": LARGE, "resolutions": (1024,), **bf16}),
        small("train", 1024, 30, **bf16, mode="train"),
        small("forward", 512, 26, **bf16),
        small("train", 256, 30, **fp32, mode="train", batch_sizes=(32,)),
        Call("backends", 110, {**in_shell, "mode": "train", "batch_sizes": (32,)}),
        small("train", 2048, 40, **bf16, mode="train"),
    ]


def calls_of_smoke() -> list[Call]:
    """Return the same kinds of calls on models for a CPU."""
    tiny = {"models": ("tiny-dit",), "resolutions": (8,), "num_classes": 10, "rounds": 1}
    in_shell = {**tiny, "models": (), "backends": ("softmax", "linear"), "recipe": "tiny-dit"}
    return [
        Call("checks", 3),
        Call("forward", 12, {**tiny, "energy": True}),
        Call("backends", 15, {**in_shell, "batch_sizes": (2,)}),
        Call("train", 12, {**tiny, "mode": "train"}),
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


def checks(device_name: str, smoke: bool) -> Iterator[Record]:
    """Check what only a GPU can show: the card's own limits, kernels, energy, and captured graphs."""
    import torch

    device = torch.device(device_name)
    model, resolution = ("tiny-dit", 8) if smoke else ("dit-s", 256)
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
                number(row["latency_ms"]),
                f"{interval[0]:.3g}-{interval[1]:.3g}" if interval else "",
                number(sorted(warm)[len(warm) // 2] if warm else None),
                number(row["peak_memory_mib"]),
                number(row["planned_memory_mib"]),
                number((row["energy"] or {}).get("energy_j")),
                ", ".join(row["kernels"]) if row["status"] == "ok" else f"{row['status']}: {row['reason']}",
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def number(value: float | None) -> str:
    """Return three digits, or nothing."""
    return "" if value is None else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-profile.jsonl"))
    parser.add_argument("--budget", type=float, default=340.0, help="seconds, from start to table")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny models")
    parser.add_argument("--sections", default="", help="only these, e.g. large,graphs")
    parser.add_argument("--dry-run", action="store_true", help="print the course and its guessed times")
    args = parser.parse_args()
    schedule = Schedule(args.budget)

    def course() -> list[Call]:
        if args.smoke:
            return calls_of_smoke()
        import attnbench

        return calls_on_gpu([backend.name for backend in attnbench.list_backends()])

    wanted = [name for name in args.sections.split(",") if name]
    calls = [call for call in course() if not wanted or call.section in wanted]
    if args.dry_run:
        for call in calls:
            print(f"{call.estimate_s:5.0f} s  {call.section:10} {json.dumps(call.settings)}")
        print(f"{sum(call.estimate_s for call in calls):5.0f} s")
        return
    records: list[Record] = []
    with args.out.open("w") as file:

        def keep(record: Record) -> None:
            records.append(record)
            print(json.dumps(record), file=file, flush=True)

        def do(call: Call, left_s: float) -> None:
            began = time.monotonic()
            try:
                if call.section == "checks":
                    for found in checks(args.device, args.smoke):
                        keep({"kind": "check", **found})
                        print({k: v for k, v in found.items() if k != "names"}, flush=True)
                else:
                    for found in profile_rows(call, args.device, left_s):
                        keep({**found, "section": call.section})
            except Exception as error:  # noqa: BLE001 - the other sections are still worth having
                keep({"kind": "error", "section": call.section, "error": f"{type(error).__name__}: {error}"})
                print(f"{call.section}: {type(error).__name__}: {error}", flush=True)
            keep({"kind": "time", "section": call.section, "seconds": time.monotonic() - began})

        for call, reason in schedule.run(calls, do):
            keep({"kind": "left out", "section": call.section, "settings": call.settings, "reason": reason})
            print(f"left out: {call.section} {json.dumps(call.settings)}: {reason}")
    print(table(records))


if __name__ == "__main__":
    main()
