"""The child process of one row: build one model, measure it when asked (`python -m` this module)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from attnbench.errors import AttnbenchError, NonFiniteError, UnsupportedError
from attnbench.models import build_model, fuse_for_inference
from attnbench.processes import ParentProcess
from attnbench.profiling.latency import CpuTimer, CudaTimer, take_round, warm_up
from attnbench.profiling.memory import peak_memory
from attnbench.profiling.protocol import Job, Ready, Refusal, Samples, Started

_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


def main() -> None:
    """Serve one job, and then rounds of it, until the parent closes the talk."""
    parent = ParentProcess()

    def say(reply: Started | Ready | Samples | Refusal) -> None:
        parent.reply(reply.model_dump(mode="json"))

    with contextlib.suppress(OSError):  # if memory runs out, the system shall end this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    say(Started())
    try:
        for reply in serve(Job.model_validate_json(parent.request()), parent.requests()):
            say(reply)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's model may raise anything
        say(refusal(error))


def serve(job: Job, requests: Iterable[str]) -> Iterator[Ready | Samples]:
    """Build the model, measure its memory, warm it up; then one round for each line of `requests`."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    with torch.inference_mode():
        forward = _forward(job, device)
        memory, reason = None, ""
        if job.memory:
            try:
                memory = peak_memory(forward, device)
            except UnsupportedError as error:
                reason = str(error)
        if not job.latency:
            yield Ready(memory=memory, memory_reason=reason)
            return
        if not forward().isfinite().all():
            raise NonFiniteError("the model's output holds NaN or infinity, on N(0, 1) inputs; not timed")
        timer = CudaTimer(device) if device.type == "cuda" else CpuTimer()
        forward_ms = warm_up(forward, timer, limit_s=job.warm_up_limit_s)
        timer.rest()
        yield Ready(memory=memory, memory_reason=reason)
        for _ in requests:
            yield take_round(forward, timer, forward_ms=forward_ms)


def _forward(job: Job, device: torch.device) -> Callable[[], torch.Tensor]:
    """Return the pass to measure: the model in inference form on N(0, 1) inputs."""
    torch.manual_seed(job.seed)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    model: nn.Module = build_model(
        job.config, job.input_size, job.num_classes, seed=job.seed, dtype=dtype, device=device
    )
    _fill_zero_parameters(model)
    model = fuse_for_inference(model)
    x = torch.randn(job.batch_size, job.config.in_channels, job.input_size, job.input_size)
    x = x.to(device, dtype)
    # one timestep for all images, as in sampling; the last one, where attentions that follow it cost most
    t = torch.ones(job.batch_size, device=device)
    y = (torch.arange(job.batch_size) % job.num_classes).to(device)

    def forward() -> torch.Tensor:
        output: torch.Tensor = model(x, t, y)
        return output

    return forward


def _fill_zero_parameters(model: nn.Module) -> None:
    """Zero-initialised layers (AdaLN-Zero) would time products with zeros, which run faster."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


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
