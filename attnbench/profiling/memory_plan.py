"""The memory of a pass before it is run: planned on fake tensors, which have sizes and lifetimes only."""

from __future__ import annotations

import contextlib
import gc

import torch
from torch import nn

from attnbench.contract import AttentionSite
from attnbench.errors import AttnbenchError, UnsupportedError, UserInputError
from attnbench.models.options import resolve_attention
from attnbench.models.skeleton import token_grid
from attnbench.profiling.cuda_rules import CudaRules
from attnbench.profiling.fake_pass import fake_tensors, materialise
from attnbench.profiling.kernel_memory import Machine
from attnbench.profiling.live_tensors import LiveTensors
from attnbench.profiling.passes import build_trained, in_form_of, pass_of
from attnbench.profiling.protocol import Workload
from attnbench.results import Record

_MIB = 2**20
LARGEST_BATCH = 65_536  # images; a pass that has room for more is said to take so many
_DEVICES = ("cpu", "cuda")


class MemoryPlan(Record):
    """Planned memory of one pass, MiB, as torch's allocator would count it."""

    weights_mib: float
    """Parameters and buffers of what is run."""
    inputs_mib: float
    """What else is there before a pass: its inputs; in training also AdamW's two averages of each weight."""
    activations_mib: float
    """The peak of everything that a pass makes, gradients included."""
    workspace_mib: float
    """CUDA: what cuBLAS keeps from the first product on; none on a CPU."""
    planned_peak_mib: float
    """All of these together."""


def plan_memory(workload: Workload, device: str = "cpu") -> MemoryPlan:
    """Plan the second pass of a workload (the first of a training makes AdamW's averages), running nothing.

    `device` is `cpu` or `cuda`; no GPU is needed for either. On a CPU some kernels have a buffer for each of
    the threads that torch is set to. Raises UnsupportedError with the reason where a pass cannot be run on
    fake tensors (its way depends on numbers, or an operation hides what it takes), and UserInputError on
    sizes that do not fit.
    Source: a storage lives from the operation that makes it until nothing refers to it, as torch's
    torch.distributed._tools.mem_tracker counts; kernels' own memory by `kernel_memory`.
    """
    if device not in _DEVICES:
        raise UserInputError(f"a plan is for one of {', '.join(_DEVICES)}, got {device!r}")
    if workload.scope == "end-to-end":
        raise UnsupportedError(
            "a plan of scope end-to-end is not there yet: the autoencoder is not followed; use scope model"
        )
    _refuse_what_cannot_run(workload)
    tensors = LiveTensors(Machine(device=device, threads=torch.get_num_threads()))
    rules = CudaRules() if device == "cuda" else contextlib.nullcontext()
    try:
        model = in_form_of(workload, build_trained(workload, torch.device("meta")))
        with fake_tensors(), tensors, rules:
            materialise(model)
            planned = pass_of(workload, model, torch.device("cpu"))
            del model  # of which a pass of one block keeps that block
            planned.run()
            before = tensors.live
            tensors.start_anew()
            planned.run()
            weights = _bytes_of(planned.module, tensors.machine)
    except AttnbenchError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"the memory of {workload.config.name} cannot be planned: on fake tensors it fails with "
            f"{type(error).__name__}: {told}; measure the peak instead"
        ) from error
    finally:
        gc.collect()
    return MemoryPlan(
        weights_mib=weights / _MIB,
        inputs_mib=(before - weights) / _MIB,
        activations_mib=(tensors.peak - before) / _MIB,
        workspace_mib=tensors.machine.workspace / _MIB,
        planned_peak_mib=(tensors.peak + tensors.machine.workspace) / _MIB,
    )


def largest_batch(workload: Workload, memory_mib: float, device: str = "cpu") -> int:
    """Return the most images per pass whose planned peak is at most `memory_mib`; batch_size plays no part.

    0 where not even one fits; at most LARGEST_BATCH. The peak grows with the batch, nearly in proportion: two
    plans give the slope, two more confirm that the batch it leads to fits and the next does not. Raises as
    `plan_memory` does.
    """

    def peak(batch: int) -> float:
        return plan_memory(workload.model_copy(update={"batch_size": batch}), device).planned_peak_mib

    fits, too_many = (1, peak(1)), LARGEST_BATCH + 1
    if fits[1] > memory_mib:
        return 0
    guess, step = 2, 0
    while too_many - fits[0] > 1:
        batch = min(max(guess, fits[0] + 1), too_many - 1)
        planned = peak(batch)
        slope = (planned - fits[1]) / (batch - fits[0])
        if planned <= memory_mib:
            fits = (batch, planned)
        else:
            too_many = batch
        step += 1
        if slope > 0 and step < 8:
            guess = fits[0] + int((memory_mib - fits[1]) / slope)
        else:
            guess = (fits[0] + too_many) // 2
    return fits[0]


def _refuse_what_cannot_run(workload: Workload) -> None:
    """Ask every backend about the CPU, as which fake tensors pass; the meta device takes anything."""
    config = workload.config
    grid = token_grid(config, workload.input_size)
    for layer_idx in range(config.depth):
        backend, options = resolve_attention(config.attention_at(layer_idx))
        site = AttentionSite(
            dim=config.dim, num_heads=config.num_heads, grid=grid, layer_idx=layer_idx, depth=config.depth
        )
        reason = backend.supports(site, options, torch.float32, torch.device("cpu"))
        if reason:
            raise UnsupportedError(
                f"the memory of {backend.name} at blocks.{layer_idx} has no plan: {reason}"
            )


def _bytes_of(module: nn.Module, machine: Machine) -> int:
    tensors = {id(x): x for x in (*module.parameters(), *module.buffers())}  # shared ones once
    return sum(machine.allocated(x.untyped_storage().nbytes()) for x in tensors.values())
