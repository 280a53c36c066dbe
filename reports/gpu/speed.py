"""Eager, compiled and CUDA-graph forms of every attention on a GPU, and what bounds each. 4 to 5 minutes.

    python reports/gpu/speed.py                # 240 s; --budget 300 for more of the compiled forms
    python reports/gpu/speed.py --dry-run      # two attentions on the CPU, to try the script

An attention module at S (width 384, 6 heads), bf16 by autocast with weights in fp32, 32,768 tokens a pass in
images of 256 to 16,384 tokens; forward alone, or forward and backward. Beside them the peers: timm's
attention on torch's flash kernel, and diffusers' Sana processor. Last, one training step of DiT-S beside the
public DiT's (reports/train-step). A form's time is the median of device events over passes back to back.
`least` is the time of multiply-adds and bytes at the card's own rates (attnbench.profiling.roofline), `bound`
what holds the eager form: `launches`, where the graph takes less than 0.7 of it, else arithmetic or memory.

Results go to $OUT/speed.jsonl; started again, it measures what that file misses. Compiled code is made ahead
by several processes, so that the measuring one finds it in the cache. The table comes last.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from gpu_course import ROOT, Call, Record, Results, Schedule, columns, out_folder, reason, say
from speed_modules import build, inputs, pass_of

sys.path.insert(0, str(ROOT))

SIDES = (16, 32, 64, 128)  # of the token grid
MODES, FORMS = ("forward", "train"), ("eager", "graph", "compiled")
FIRST = ("softmax", "linear", "dydila token", "dydila map", "peer: diffusers Sana", "peer: timm, flash")
DRY = ("linear", "peer: diffusers Sana")
PROCESSES = 10  # that compile ahead
LAUNCHES = 0.7  # a graph that takes so little of eager's time shows that eager waits for launches


def subjects() -> list[str]:
    """Return what is measured, most important first."""
    from attnbench.plugins import registry

    names = [name for name, one in registry().backends.items() if one.origin == "built-in"]
    modes = [
        text for name in names for text in ([f"{name} token", f"{name} map"] if name == "dydila" else [name])
    ]
    return [*FIRST, *(name for name in modes if name not in FIRST)]


def timed_ms(run: Callable[[], Any], device: str) -> float:
    """Return the median time of a pass: of several back to back on a GPU, of one by the clock on a CPU."""
    import torch

    if device == "cpu":
        run()
        started = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - started)
    from attnbench.profiling.cuda import CudaTimer

    timer = CudaTimer(torch.device(device))
    for _ in range(2):
        run()
    first = timer.sample(run, 2).warm_latency_ms or 1.0
    repeats = max(2, min(20, int(20 / first)))
    return statistics.median(timer.sample(run, repeats).warm_latency_ms or 0.0 for _ in range(5))


def measure(subject: str, side: int, mode: str, form: str, device: str, tiny: bool) -> Record:
    """Return the time of one form of one attention, memory, and multiply-adds of the pass."""
    import torch

    x = inputs(side, device, tiny)
    module, call, macs = build(subject, side, len(x), device, tiny)
    if form == "compiled":
        torch._dynamo.reset()
        call = torch.compile(call, backend="aot_eager" if tiny else "inductor")
    run = pass_of(module, call, x, mode)
    found: Record = {"images": len(x), "macs": macs * len(x) * (3 if mode == "train" else 1)}
    if form == "graph":
        from attnbench.profiling.cuda import captured

        if device == "cpu":
            return {**found, "left_out": "no CUDA graph on a CPU"}
        run = captured(run, torch.device(device))
    started = time.perf_counter()
    run()
    found["first_s"] = time.perf_counter() - started
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found["ms"] = timed_ms(run, device)
    if device != "cpu":
        found["extra_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    if form == "eager":
        found["bytes"] = bytes_of(module, run)
    return found


def bytes_of(module: Any, run: Callable[[], Any]) -> int:
    """Return the bytes a pass must move, by the roofline's definition; 0 where it cannot tell."""
    from attnbench.profiling.traffic import count_traffic

    try:
        return count_traffic(module, run, "bf16").total
    except Exception:  # noqa: BLE001 - a row without its memory bound is still a row
        return 0


class GraphWorker:
    """A process that captures graphs: a failed capture leaves torch in it, so that a new one takes over."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.refused: dict[tuple[str, str], str] = {}

    def measure(self, subject: str, side: int, mode: str, form: str, device: str, tiny: bool) -> Record:
        """Measure; an attention that refused at another size is not asked again."""
        refused = self.refused.get((subject, mode))
        if refused is not None:
            raise RuntimeError(refused)
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(measure, subject, side, mode, form, device, tiny).result()
        except Exception as error:
            if "no CUDA graph" in str(error):
                self.refused[subject, mode] = str(error)
            self.close()
            raise
        except BaseException:  # the time limit
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self.pool is not None:
            end(self.pool)
        self.pool = None


def end(pool: ProcessPoolExecutor) -> None:
    """End a pool whatever its processes do."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


GRAPHS = GraphWorker()


def compile_ahead(jobs: Sequence[tuple[str, int, str]], device: str) -> None:
    """Compile in several processes into the cache on disk; what fails is told when measured."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(PROCESSES, mp_context=context)
    try:
        waiting = [pool.submit(_compile_once, *job, device) for job in jobs]
        for one in waiting:
            one.exception()
    finally:
        end(pool)


def _compile_once(subject: str, side: int, mode: str, device: str) -> None:
    import torch

    x = inputs(side, device, False)
    module, call, _ = build(subject, side, len(x), device, False)
    pass_of(module, torch.compile(call), x, mode)()
    torch.cuda.synchronize()


def course(names: Sequence[str], sides: Sequence[int], tiny: bool) -> list[Call]:
    """Return the calls: the first systems in all forms before the other attentions."""

    def calls(some: Sequence[str], form: str, where: Sequence[int], seconds: float) -> list[Call]:
        return [
            Call(form, seconds, {"subject": name, "side": side, "mode": mode})
            for side in where
            for mode in MODES
            for name in some
        ]

    first = [name for name in FIRST if name in names]
    rest = [name for name in names if name not in FIRST]
    at = sides[min(1, len(sides) - 1) :][:1]  # the size that is compiled ahead
    ahead = [] if tiny else [Call("ahead", 50, {"subjects": list(names), "sides": list(at)})]
    return [
        *calls(first, "eager", sides, 0.25),
        *calls(rest, "eager", sides, 0.25),
        *calls(first, "graph", sides, 0.3),
        Call("step", 45, {}),
        *ahead,
        *calls(first, "compiled", at, 1.5),
        *calls(rest, "compiled", at, 1.5),
        *calls(rest, "graph", sides, 0.3),
        *calls(first, "compiled", [side for side in sides if side not in at], 4.0),
    ]


def training_step(left_s: float, tiny: bool) -> Record:
    """Return what reports/train-step says of our step beside the public DiT's."""
    script = ROOT / "reports" / "train-step" / "measure.py"
    if tiny:
        return {"left_out": "not in the dry run", "script": script.is_file()}
    words = [
        sys.executable,
        str(script),
        "--device",
        "cuda",
        "--bf16",
        "--compile",
        "--batch",
        "256",
        "--rounds",
        "5",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=max(left_s - 3, 1))
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return {"told": done.stdout.strip().splitlines()}


def rates(device: str) -> Record:
    """Return the card's own rates: multiply-adds and bytes a second."""
    from attnbench.profiling.roofline import measure_ceilings

    found = measure_ceilings(device, "bf16", 1)
    return {"macs_per_s": found.macs_per_s, "bytes_per_s": found.bytes_per_s}


def bound(forms: dict[str, Record], ceilings: Record) -> tuple[float | None, str]:
    """Return the least time of a pass in ms and what bounds its eager form."""
    eager, graph = forms.get("eager", {}), forms.get("graph", {})
    if "ms" not in eager or not ceilings:
        return None, ""
    arithmetic = 1e3 * eager["macs"] / ceilings["macs_per_s"]
    memory = 1e3 * eager.get("bytes", 0) / ceilings["bytes_per_s"]
    if "ms" in graph and graph["ms"] < LAUNCHES * eager["ms"]:
        return max(arithmetic, memory), "launches"
    return max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory"


def table(records: Sequence[Record]) -> str:
    """Return a line for each attention, size and mode: its forms' times, and what bounds it."""
    rows: dict[tuple[int, str, str], dict[str, Record]] = {}
    for one in records:
        if "subject" in one:
            rows.setdefault((one["side"], one["mode"], one["subject"]), {})[one["form"]] = one
    ceilings = next((one for one in records if one["name"] == "rates" and "macs_per_s" in one), {})
    head = ("tokens", "mode", "attention", *(f"{form} ms" for form in FORMS), "least ms", "bound")
    lines: list[tuple[object, ...]] = [(*head, "/ Sana, time", "/ Sana, MACs", "MiB", "why not")]
    for (side, mode, subject), forms in sorted(rows.items()):
        least, why = bound(forms, ceilings)
        peers = rows.get((side, mode, "peer: diffusers Sana"), {})
        best = min((one["ms"] for one in forms.values() if "ms" in one), default=None)
        peer = min((one["ms"] for one in peers.values() if "ms" in one), default=None)
        eager, theirs = forms.get("eager", {}), peers.get("eager", {})
        notes = [f"{form}: {told}" for form, one in forms.items() if (told := one.get("error"))]
        lines.append(
            (
                side * side,
                mode,
                subject,
                *(forms.get(form, {}).get("ms") for form in FORMS),
                least,
                why,
                best / peer if best and peer else None,
                eager["macs"] / theirs["macs"] if "macs" in eager and theirs.get("macs") else None,
                eager.get("extra_mib"),
                "; ".join(notes)[:120],
            )
        )
    step = next((one for one in records if one["name"] == "step"), {})
    told = step.get("told") or [step.get("error") or step.get("left_out", "not measured")]
    return "\n".join([columns(lines), "training step of DiT-S beside the public DiT's:", *told])


def perform(call: Call, left_s: float, device: str, tiny: bool, results: Results) -> None:
    """Do one call; an error is a record."""
    settings = call.settings
    name = " ".join([call.section, *(str(value) for value in settings.values())])
    try:
        if call.section == "ahead":
            jobs = [
                (one, side, mode)
                for one in settings["subjects"]
                for side in settings["sides"]
                for mode in MODES
            ]
            compile_ahead(jobs, device)
        elif call.section == "step":
            results.keep("step", training_step(left_s, tiny))
        else:
            told = {**settings, "form": call.section}
            run = GRAPHS.measure if call.section == "graph" and device != "cpu" else measure
            results.keep(name, {**told, **run(**settings, form=call.section, device=device, tiny=tiny)})
    except Exception as error:  # noqa: BLE001 - a row with its reason; the others are still wanted
        kept = {**settings, "form": call.section} if "subject" in settings else {}
        results.keep("step" if call.section == "step" else name, {**kept, "error": reason(error)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=240.0, help="seconds, from start to table")
    parser.add_argument("--dry-run", action="store_true", help="few attentions, small, on the CPU")
    args = parser.parse_args()
    schedule, results = Schedule(args.budget), Results(out_folder() / "speed.jsonl")
    device, tiny = ("cpu", True) if args.dry_run else ("cuda", False)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # of each process
    try:
        names = list(DRY) if tiny else subjects()
        if not results.has("rates"):
            results.keep("rates", rates(device))
    except Exception as error:  # noqa: BLE001 - a package that is missing is told as every failure
        results.keep("rates", {"error": reason(error)})
        names = []
    calls = course(names, (4,) if tiny else SIDES, tiny)
    waiting = [
        one for one in calls if not results.has(" ".join([one.section, *map(str, one.settings.values())]))
    ]

    def do(call: Call, left_s: float) -> None:
        perform(call, left_s, device, tiny, results)

    left_out = schedule.run(waiting, do)
    GRAPHS.close()
    say(table(results.records))
    counts: dict[str, int] = {}
    for call, why in left_out:
        counts[f"{call.section}: {why}"] = counts.get(f"{call.section}: {why}", 0) + 1
    for text, count in counts.items():
        say(f"left out, {count} of {text}")


if __name__ == "__main__":
    main()
