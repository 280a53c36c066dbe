"""The child process of one row: build one pass, measure it when asked (`python -m` this module)."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from attnbench.errors import AttnbenchError, NonFiniteError, UnsupportedError
from attnbench.processes import ParentProcess
from attnbench.profiling.latency import CpuTimer, Timer, take_round, warm_up
from attnbench.profiling.memory import peak_memory, prepare_for_memory
from attnbench.profiling.passes import Decode, build_pass
from attnbench.profiling.protocol import (
    Answer,
    Ceilings,
    Energy,
    Job,
    Measured,
    Ready,
    Refusal,
    Samples,
    Started,
    Tried,
    TriedPrecisions,
)
from attnbench.profiling.roofline import measure_ceilings
from attnbench.specs import CodecSpec, Precision

Run = Callable[[], torch.Tensor]
DecoderOf = Callable[[CodecSpec, torch.device], Decode]

_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
_TRIAL_S = 0.1
_TRIALS = 3


def main(decoder_of: DecoderOf | None = None) -> None:
    """Serve one job, and then rounds of it, until the parent closes the talk.

    `decoder_of` loads the autoencoder that a workload of scope end-to-end names.
    """
    parent = ParentProcess()

    def say(reply: Answer) -> None:
        parent.reply(reply.model_dump(mode="json"))

    with contextlib.suppress(OSError):  # if memory runs out, the system shall end this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    say(Started())
    try:
        for reply in serve(Job.model_validate_json(parent.request()), parent.requests(), decoder_of):
            say(reply)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's model may raise anything
        say(refusal(error))


def serve(
    job: Job, requests: Iterable[str], decoder_of: DecoderOf | None = None
) -> Iterator[Measured | Tried | TriedPrecisions | Ceilings | Ready | Samples]:
    """Do a job; one that times takes one round for each line of `requests`."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    if job.task == "ceilings":
        yield measure_ceilings(job.device, job.workload.precision, job.threads)
        return
    if job.task == "memory" and device.type == "cpu":
        try:
            prepare_for_memory()  # before the model is built
        except UnsupportedError as error:
            yield Measured(reason=str(error))
            return
    if job.task == "precisions":
        yield _tried_precisions(job, device)
        return
    codec = job.workload.codec
    decode = decoder_of(codec, device) if codec is not None and decoder_of is not None else None
    run = build_pass(job.workload, device, decode, compiled=job.compile and job.task == "latency").run
    match job.task:
        case "memory":
            yield _memory(run, device)
        case "threads":
            yield _tried(run, job.threads)
        case "latency":
            yield from _timed(run, job, device, requests)


def _memory(run: Run, device: torch.device) -> Measured:
    try:
        return Measured(memory=peak_memory(run, device))
    except UnsupportedError as error:
        return Measured(reason=str(error))


def _tried(run: Run, most: int) -> Tried:
    """Time a pass with all threads, half of them and so on down to one, in turns."""
    numbers = [most]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    taken: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(_TRIALS):
        for number in numbers:
            torch.set_num_threads(number)
            run()
            taken[number].append(_seconds_per_pass(run))
    return Tried(pass_ms={number: 1e3 * statistics.median(times) for number, times in taken.items()})


def _tried_precisions(job: Job, device: torch.device) -> TriedPrecisions:
    """Time a pass in either precision, in turns; of the model, without its decoder."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    runs: dict[Precision, Run] = {}
    for precision in precisions:
        scope = "model" if job.workload.scope == "end-to-end" else job.workload.scope
        asked = {"precision": precision, "scope": scope, "codec": None}
        runs[precision] = build_pass(job.workload.model_copy(update=asked), device).run
    taken: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    for _ in range(_TRIALS):
        for precision, run in runs.items():
            run()
            taken[precision].append(_seconds_per_pass(run))
    fp32, bf16 = (1e3 * statistics.median(taken[precision]) for precision in precisions)
    return TriedPrecisions(fp32_ms=fp32, bf16_ms=bf16)


def _seconds_per_pass(run: Run) -> float:
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < _TRIAL_S:
        run()
        count += 1
    return (time.perf_counter() - start) / count


def _timed(run: Run, job: Job, device: torch.device, requests: Iterable[str]) -> Iterator[Ready | Samples]:
    compile_s = None
    if job.compile:
        compile_s = _compile(run)
    if not run().isfinite().all():
        raise NonFiniteError("the output holds NaN or infinity, on N(0, 1) inputs; not timed")
    if device.type == "cuda":
        yield from _timed_on_cuda(run, job, device, requests, compile_s)
        return
    timer = CpuTimer()
    pass_ms = warm_up(run, timer, limit_s=job.warm_up_limit_s)
    reason = "energy is read on CUDA devices alone" if job.energy else ""
    yield Ready(pass_ms=pass_ms, compile_s=compile_s, energy_reason=reason)
    for _ in requests:
        yield Samples(round=take_round(run, timer, pass_ms=pass_ms))
        _check_threads(job)


def _timed_on_cuda(
    run: Run, job: Job, device: torch.device, requests: Iterable[str], compile_s: float | None
) -> Iterator[Ready | Samples]:
    """Time a pass by device events, with what the device says of itself."""
    from attnbench.profiling.cuda import CudaTimer, attention_kernels, captured
    from attnbench.profiling.nvml import Clocks

    torch.cuda.set_device(device)
    kernels = attention_kernels(run)
    if job.cuda_graphs:
        run = captured(run, device)
    clocks = Clocks.of(device)
    timer: Timer = CudaTimer(device, watch=clocks.read)
    pass_ms = warm_up(run, timer, limit_s=job.warm_up_limit_s)
    energy, energy_reason = _energy(run, job, device) if job.energy else (None, "")
    timer.rest()
    yield Ready(
        pass_ms=pass_ms,
        compile_s=compile_s,
        kernels=kernels,
        energy=energy,
        energy_reason=energy_reason,
    )
    for _ in requests:
        taken = take_round(run, timer, pass_ms=pass_ms)
        yield Samples(
            round=taken.model_copy(update={"clock_mhz": clocks.clock_mhz, "throttled": clocks.throttled})
        )


def _energy(run: Run, job: Job, device: torch.device) -> tuple[Energy | None, str]:
    """Return the energy of an image, or why there is none."""
    from attnbench.profiling.nvml import NvmlMeter, measure_energy

    try:
        meter = NvmlMeter(device)
        images = job.workload.batch_size
        return measure_energy(run, images, meter, synchronize=lambda: torch.cuda.synchronize(device)), ""
    except UnsupportedError as error:
        return None, str(error)


def _check_threads(job: Job) -> None:
    """Refuse what a plugin's pass has done to the number of threads: its times would be of another number."""
    if torch.get_num_threads() != job.threads:
        raise UnsupportedError(
            f"a pass set the number of CPU threads from {job.threads} to {torch.get_num_threads()} "
            "(torch.set_num_threads): its times are not those of the others; take that call out"
        )


def _compile(run: Run) -> float:
    """Run a pass whose model is compiled until it is; return the time that this took, s.

    From then on a recompilation is an error: it would be timed.
    """
    start = time.perf_counter()
    run()
    run()  # some graphs are compiled a second time, once sizes are known to stay
    seconds = time.perf_counter() - start
    torch._dynamo.config.error_on_recompile = True
    return seconds


def refusal(error: BaseException) -> Refusal:
    """Turn what went wrong into a row's status and reason."""
    text = str(error).strip().split("\n")[0]
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )
    if no_memory:
        return Refusal(status="skipped", reason=f"out of memory: {text or type(error).__name__}")
    if isinstance(error, UnsupportedError):
        return Refusal(status="skipped", reason=text)
    name = "" if isinstance(error, AttnbenchError) else f"{type(error).__name__}: "
    return Refusal(status="failed", reason=f"{name}{text}")


if __name__ == "__main__":
    main()
