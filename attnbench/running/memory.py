"""What a case needs of a machine's memory: estimated before it runs, and what a machine has free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserInputError
from attnbench.running.estimates import model_side, num_classes, num_params
from attnbench.running.once import shared_by
from attnbench.specs import Case
from attnbench.stages.case import TRAINED_HERE
from attnbench.stages.latents.model_space import codec_of

MIB = 2**20
PROCESS_BYTES = {"cpu": 420 * MIB, "cuda": 2500 * MIB}
"""Resident memory of a case's process beside its model, with the data and networks of the digits:
`reports/engine-overhead` says what was measured. With CUDA its libraries, too, which is a guess."""
SCORING_BYTES = 1100 * MIB
"""Of a feature network or an autoencoder: EfficientNet-Lite0 on 64 images, which others exceed."""
CUDA_BYTES = 600 * MIB
"""Of a GPU: the context and cuBLAS's workspace, whatever a case does (a guess)."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that one case takes at its peak, of the machine and, on `cuda`, of its GPU."""

    least: int
    """What is certain: weights, gradients, AdamW's moments and averages, where they lie in the machine's."""
    estimate: int
    """With the process, and the most of what a training step keeps for its backward pass, what a call of the
    sampler takes, and what scores the samples."""
    is_whole: bool = True
    """Whether every network is counted: of feature networks and autoencoders only a guess is."""
    gpu: int = 0
    """Estimate of the GPU's; 0 on a CPU."""


def memory_need(case: Case, device: str, processes: int = 1, elsewhere: int = 0) -> MemoryNeed | None:
    """Estimate a case's need on `cpu` or `cuda`; None where its model cannot be followed on the meta device.

    The processes of one case each hold the model, or their part of it, and their part of the batch; those
    `elsewhere`, on other machines, take nothing of this one's memory.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    try:
        state = _state_bytes(case)
        activations = max(_training_bytes(case), _sampling_bytes(case))
    except (Exception, SystemExit):  # noqa: BLE001 - a stranger's backend may raise anything
        return None
    everywhere = processes + elsewhere
    each = state if case.train.sharding == "none" else state // everywhere
    base, is_whole = processes * PROCESS_BYTES[kind], _scores_by_itself(case)
    if kind == "cuda":
        gpu = each + activations // everywhere + CUDA_BYTES
        return MemoryNeed(least=0, estimate=base, gpu=gpu, is_whole=is_whole)
    held = processes * each + activations * processes // everywhere
    estimate = base + max(held, 0 if is_whole else SCORING_BYTES)
    return MemoryNeed(least=processes * each, estimate=estimate, is_whole=is_whole)


def _scores_by_itself(case: Case) -> bool:
    """Tell whether a case needs no network but its own and the small one that is trained on the data."""
    return case.evaluate.extractor == TRAINED_HERE and codec_of(case) is None


def _state_bytes(case: Case) -> int:
    """Weights, gradients, two moments, and the averages, all fp32."""
    copies = 4 + 1 + len(case.train.extra_ema_decays)
    return 4 * copies * num_params(case.model, model_side(case), num_classes(case))


def _training_bytes(case: Case) -> int:
    """What a step keeps of one part of its batch; half as much where tensors are bf16."""
    images = -(-case.train.batch_size // case.train.grad_accumulation)
    share = 2 if case.train.precision == "bf16" else 1
    depth = case.model.depth if case.train.activation_checkpointing else 1  # one block is kept at a time
    return images * _kept_bytes(case) // share // depth


def _sampling_bytes(case: Case) -> int:
    """What one block of a call holds: no graph is kept, so a block's share of what a training keeps."""
    calls = 1 if case.sample.guidance_scale == 1 else 2
    images = min(case.sample.batch_size, case.sample.per_class * num_classes(case))
    return calls * images * _kept_bytes(case) // case.model.depth


@shared_by(lambda case: (case.model.content_text(), case.data.text()))
def _kept_bytes(case: Case) -> int:
    from attnbench.profiling.kept_tensors import kept_bytes

    return kept_bytes(case.model, model_side(case), num_classes(case))


def free_bytes() -> int | None:
    """Return what is free for cases here: MemAvailable, or less by a cgroup's limit; None: unknown."""
    found = [free for free in (_available(), *_left_in_cgroups()) if free is not None]
    return min(found, default=None)


def total_bytes() -> int | None:
    """Return all that cases may ever have here: the machine's, or a cgroup's limit; None: unknown."""
    limits = [limit for limit in (_number(folder / name) for folder, name, *_ in _cgroups()) if limit]
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _available() -> int | None:
    lines = _lines(Path("/proc/meminfo"))
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _cgroups() -> Sequence[tuple[Path, str, str, str]]:
    """Return where limits may stand, of both versions of cgroups, this process's and those around it.

    A folder, and the names of its limit, of what is used, and of the cached files among that.
    """
    second = ("memory.max", "memory.current", "inactive_file")
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    found = [(CGROUP, *second), (CGROUP / "memory", *first)]
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        top, names = (CGROUP, second) if not controllers else (CGROUP / "memory", first)
        place = top / path.lstrip("/")
        if controllers in ("", "memory"):
            found += [(folder, *names) for folder in (place, *place.parents) if top in folder.parents]
    return found


def _left_in_cgroups() -> list[int]:
    left = []
    for folder, limit_name, used_name, cached_name in _cgroups():
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            left.append(max(0, limit - used + _cached(folder / "memory.stat", cached_name)))
    return left


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdecimal() and int(text) < 2**60 else None  # `max`, or more than there is


def _cached(path: Path, name: str) -> int:
    """Return the bytes of files that a cgroup gives back when they are wanted."""
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{name} ")), 0)


def check_holds(needs: Sequence[tuple[Case, MemoryNeed | None]], most: int | None, where: str) -> None:
    """Raise UserInputError where a case is certain to need more than `most` bytes, which `where` has."""
    if most is None:
        return
    too_large = [(need.least, case) for case, need in needs if need is not None and need.least > most]
    if not too_large:
        return
    least, case = max(too_large, key=lambda found: found[0])
    others = f" (and {len(too_large) - 1} more)" if len(too_large) > 1 else ""
    raise UserInputError(
        f"{case.label}{others} needs at least {in_gib(least)} of memory for weights, gradients and averages, "
        f"and {where} has {in_gib(most)}; lower model.dim or model.depth, cut the weights over processes "
        "(train.sharding=fsdp2 with --processes), or run it on a larger machine"
    )


def in_gib(num_bytes: float) -> str:
    """Return an amount of memory as people write it."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / MIB:.0f} MiB"
