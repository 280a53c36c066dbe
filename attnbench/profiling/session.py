"""One profiling session: multiply-adds on paper, latency and memory of child processes in turn."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from attnbench.devices import check_device
from attnbench.errors import AttnbenchError, UnsupportedError, UserInputError
from attnbench.models import build_model, fuse_for_inference
from attnbench.models.macs import macs_by_part
from attnbench.models.published import published_gflops
from attnbench.models.resolution import input_size
from attnbench.profiling.child import Child
from attnbench.profiling.counters import check_agreement, count_with_fvcore, count_with_torch
from attnbench.profiling.protocol import Job, Ready, Refusal, Samples
from attnbench.profiling.rows import ProfileRequest, ProfileRow
from attnbench.progress import Progress
from attnbench.specs import ProfileSpec

_WARM_UP_LIMIT_S = 3.0
_WARM_UP_SHARE = 0.2  # at most, of a row's time limit


def profile_models(
    requests: Sequence[ProfileRequest],
    spec: ProfileSpec,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[ProfileRow]:
    """Measure every request at every resolution of `spec`; rows in that order.

    Each row's latency and memory come from a fresh process of its own. The processes of one
    resolution live side by side and are timed in turn, in an order shuffled each round, so that a
    machine that slows down slows all of them. A row that cannot be had carries its status and reason.
    Raises UserInputError on a resolution, model, option or device that cannot be; nothing ran then.
    """
    if not spec.resolutions:
        raise UserInputError("nothing to profile: give at least one resolution in pixels, e.g. 256")
    check_device(device)
    sizes = {
        (i, r): input_size(q.config, r, q.latent_factor)
        for i, q in enumerate(requests)
        for r in spec.resolutions
    }
    timed = "latency" in spec.measure
    steps = _Steps(total=len(sizes) * (2 + (spec.rounds if timed else 0)), progress=progress)
    rows: dict[tuple[int, int], ProfileRow] = {}
    for resolution in spec.resolutions:
        drafts = [
            _Draft(request=request, resolution=resolution, size=sizes[i, resolution])
            for i, request in enumerate(requests)
        ]
        for draft in drafts:
            steps.next(f"{draft.name}: multiply-adds")
            _count(draft, spec)
        _run_children(drafts, spec, device, steps)
        rows |= {(i, resolution): draft.row(spec, device) for i, draft in enumerate(drafts)}
    steps.finish()
    return [rows[i, r] for i in range(len(requests)) for r in spec.resolutions]


@dataclass(kw_only=True)
class _Steps:
    """Counts what is done and tells whoever listens."""

    total: int
    progress: Progress | None
    done: int = 0

    def next(self, note: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, note)
        self.done += 1

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(self.total, self.total, "")


@dataclass(kw_only=True)
class _Draft:
    """A row in the making."""

    request: ProfileRequest
    resolution: int
    size: int
    counts: dict[str, int] = field(default_factory=dict)
    ready: Ready = field(default_factory=Ready)
    rounds: list[Samples] = field(default_factory=list)
    refusal: Refusal | None = None

    @property
    def name(self) -> str:
        return f"{self.request.label} at {self.resolution} px"

    def _published(self) -> int | None:
        printed = published_gflops(self.request.config, self.resolution)
        return None if printed is None else round(printed * 1e9)

    def row(self, spec: ProfileSpec, device: str) -> ProfileRow:
        """Put the row together; an unfinished series of rounds is no latency."""
        rounds = self.rounds if self.refusal is None else []
        clean = [flag for r in rounds for flag in r.clean]
        memory = self.ready.memory
        return ProfileRow(
            model=self.request.label,
            size=self.request.config.size,
            macs_published=self._published() if "macs" in spec.measure else None,
            resolution=self.resolution,
            tokens=(self.size // self.request.config.patch_size) ** 2,
            device=device,
            precision=spec.precision,
            batch_size=spec.batch_size,
            **self.counts,
            latency_ms_values=[v for r in rounds for v in r.latency_ms],
            warm_latency_ms_values=[v for r in rounds for v in r.warm_latency_ms],
            cpu_time_ms_values=[v for r in rounds for v in r.cpu_time_ms],
            clean_share=sum(clean) / len(clean) if clean else None,
            peak_memory_mib=memory.peak_mib if memory else None,
            extra_memory_mib=memory.extra_mib if memory else None,
            reserved_memory_mib=memory.reserved_mib if memory else None,
            status=self.refusal.status if self.refusal else "ok",
            reason=self.refusal.reason if self.refusal else self.ready.memory_reason,
        )


def _count(draft: _Draft, spec: ProfileSpec) -> None:
    """Fill in parameters and multiply-adds, on the meta device: nothing is allocated or computed."""
    if not {"macs", "params"} & set(spec.measure):
        return
    config, classes = draft.request.config, draft.request.num_classes
    try:
        model = build_model(config, draft.size, classes, device="meta").to("meta")
        if "params" in spec.measure:
            draft.counts["params"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if "macs" in spec.measure:
            draft.counts |= _agreed_macs(draft, fuse_for_inference(model))
    except UserInputError:
        raise
    except UnsupportedError as error:
        draft.refusal = Refusal(status="skipped", reason=str(error))
    except AttnbenchError as error:
        draft.refusal = Refusal(status="failed", reason=str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may raise anything
        draft.refusal = Refusal(status="failed", reason=f"{type(error).__name__}: {error}")


def _agreed_macs(draft: _Draft, model: torch.nn.Module) -> dict[str, int]:
    """Return both counts of the closed form, once both counters have confirmed the full one."""
    config = draft.request.config
    with torch.device("meta"):
        inputs = (
            torch.empty(1, config.in_channels, draft.size, draft.size),
            torch.empty(1),
            torch.empty(1, dtype=torch.int64),
        )
    counted = macs_by_part(config, draft.size)
    by_fvcore, by_torch = count_with_fvcore(model, inputs), count_with_torch(model, inputs)
    check_agreement(counted.total.full, by_fvcore.macs, by_torch.macs)
    return {
        "macs_paper": counted.total.paper,
        "macs_full": counted.total.full,
        "attention_macs": counted.attention.full,
        "block_macs": counted.blocks.full,
    }


def _run_children(drafts: Sequence[_Draft], spec: ProfileSpec, device: str, steps: _Steps) -> None:
    """Measure one resolution: start all, set up one after the other, then time them in turn."""
    if not {"latency", "memory"} & set(spec.measure):
        return
    with contextlib.ExitStack() as stack:
        alive = [
            (draft, stack.enter_context(Child(spec.timeout_s))) for draft in drafts if draft.refusal is None
        ]
        for draft, child in alive:
            _take(draft, child, child.wait_until_started())
        for draft, child in _still(alive):
            steps.next(f"{draft.name}: setting up")
            reply = child.set_up(_job(draft, spec, device))
            if isinstance(reply, Ready):
                draft.ready = reply
            _take(draft, child, reply)
        if "latency" not in spec.measure:
            return
        for number in range(spec.rounds):
            order = list(_still(alive))
            random.Random(number).shuffle(order)
            for draft, child in order:
                steps.next(f"{draft.name}: round {number + 1} of {spec.rounds}")
                samples = child.take_round()
                if isinstance(samples, Samples):
                    draft.rounds.append(samples)
                _take(draft, child, samples)


def _still(alive: Sequence[tuple[_Draft, Child]]) -> Iterator[tuple[_Draft, Child]]:
    return ((draft, child) for draft, child in alive if draft.refusal is None)


def _take(draft: _Draft, child: Child, reply: Any) -> None:
    """Keep a refusal as the row's end, and free what its process holds."""
    if isinstance(reply, Refusal):
        draft.refusal = reply
        child.close()


def _job(draft: _Draft, spec: ProfileSpec, device: str) -> Job:
    return Job(
        config=draft.request.config,
        input_size=draft.size,
        num_classes=draft.request.num_classes,
        batch_size=spec.batch_size,
        precision=spec.precision,
        device=device,
        threads=torch.get_num_threads(),
        memory="memory" in spec.measure,
        latency="latency" in spec.measure,
        warm_up_limit_s=min(_WARM_UP_LIMIT_S, _WARM_UP_SHARE * spec.timeout_s),
    )
