"""A row in the making: what is known of it so far, when it is done, and whether it was disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attnbench.models.published import published_gflops
from attnbench.profiling.conditions import machine
from attnbench.profiling.memory_plan import MemoryPlan
from attnbench.profiling.protocol import Ceilings, Memory, Ready, Refusal, Round, Workload
from attnbench.profiling.roofline import roofline
from attnbench.profiling.rows import (
    LEAST_ROUNDS,
    Conditions,
    ProfileRequest,
    ProfileRow,
    Stopped,
    interval,
    is_clean,
    ranked,
    round_medians,
)
from attnbench.profiling.traffic import images_per_pass
from attnbench.specs import Precision, ProfileSpec

CLEAN_ROUNDS = 8
"""Clean rounds of a row that ends early: with two more than an interval needs, rows that lose a round each to
the machine still share six."""


def precision_of(spec: ProfileSpec) -> Precision:
    """Return the precision that is asked for; whoever asks for none has no case to take it from."""
    return spec.precision or "fp32"


@dataclass(kw_only=True, eq=False)
class Draft:
    """A row in the making."""

    request: ProfileRequest
    resolution: int
    size: int
    session: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    memory: Memory | None = None
    reason: str = ""
    ready: Ready | None = None
    spent_s: float = 0.0
    """On its latency, of the row's time."""
    rounds: list[Round] = field(default_factory=list)
    stopped: Stopped = ""
    refusal: Refusal | None = None
    conditions: Conditions = field(default_factory=Conditions)
    bytes_moved: int | None = None
    plan: MemoryPlan | None = None
    largest_batch: int | None = None
    ceilings: Ceilings | None = None

    @property
    def is_finished(self) -> bool:
        """Whether no round of it is to be taken any more."""
        return self.refusal is not None or bool(self.stopped)

    @property
    def name(self) -> str:
        return f"{self.request.title or self.request.label} at {self.resolution} px"

    @property
    def _remark(self) -> str:
        """Why something that was asked for is missing in a row that is fine otherwise."""
        return "; ".join(filter(None, [self.reason, self.ready.energy_reason if self.ready else ""]))

    def workload(self, spec: ProfileSpec) -> Workload:
        """Return what a pass of this row is."""
        return Workload(
            config=self.request.config,
            input_size=self.size,
            num_classes=self.request.num_classes,
            batch_size=spec.batch_size,
            mode=spec.mode,
            scope=spec.scope,
            precision=precision_of(spec),
            codec=self.request.codec if spec.scope == "end-to-end" else None,
        )

    def is_narrow(self, share: float) -> bool:
        """Whether the 95 % interval of the median is at most this share of it wide."""
        rounds = ranked(self.rounds)
        medians = round_medians(rounds)
        found = interval(rounds) if sum(map(is_clean, self.rounds)) >= CLEAN_ROUNDS else None
        return found is not None and found[1] - found[0] <= share * sorted(medians)[len(medians) // 2]

    def with_device_clocks(self, conditions: Conditions) -> Conditions:
        """Add what a GPU said of its clocks in the last round: its readings go on from round to round."""
        if not self.rounds or self.rounds[-1].clock_mhz is None:
            return conditions
        last = self.rounds[-1]
        return conditions.model_copy(update={"clock_mhz": last.clock_mhz, "throttled": last.throttled})

    def row(self, spec: ProfileSpec, device: str) -> ProfileRow:
        """Put the row together; too few rounds are no latency."""
        refused = self.refusal
        rounds = self.rounds if refused is None else []
        memory = self.memory or Memory(peak_mib=0, extra_mib=0)
        has_memory = self.memory is not None
        printed = published_gflops(self.request.config, self.resolution)
        whole = "macs" in spec.measure and spec.scope == "model"
        cpu, versions = machine()
        row = ProfileRow(
            model=self.request.label,
            size=self.request.config.size,
            macs_published=round(printed * 1e9) if printed is not None and whole else None,
            resolution=self.resolution,
            tokens=(self.size // self.request.config.patch_size) ** 2,
            device=device,
            mode=spec.mode,
            scope=spec.scope,
            precision=precision_of(spec),
            batch_size=spec.batch_size,
            session=self.session if rounds else "",
            conditions=self.conditions.model_copy(update={"cpu": cpu, "versions": versions}),
            **self.counts,
            rounds=rounds,
            stopped=self.stopped if rounds else "",
            disturbed=_disturbance(rounds),
            compile_s=self.ready.compile_s if self.ready else None,
            kernels=self.ready.kernels if self.ready else [],
            energy=self.ready.energy if self.ready else None,
            peak_memory_mib=memory.peak_mib if has_memory else None,
            extra_memory_mib=memory.extra_mib if has_memory else None,
            live_memory_mib=memory.live_mib,
            reserved_memory_mib=memory.reserved_mib,
            status=refused.status if refused else "ok",
            reason=refused.reason if refused else self._remark,
            bytes_moved=self.bytes_moved,
            weights_mib=self.plan.weights_mib if self.plan else None,
            planned_memory_mib=self.plan.planned_peak_mib if self.plan else None,
            largest_batch=self.largest_batch,
        )
        return self._under_the_roofline(row, spec)

    def _under_the_roofline(self, row: ProfileRow, spec: ProfileSpec) -> ProfileRow:
        """Add what share of the machine's ceiling the pass reaches, where it was timed and can be counted."""
        if not row.latency_ms or row.bytes_moved is None or row.macs_full is None or self.ceilings is None:
            return row
        macs = images_per_pass(self.workload(spec)) * row.macs_full
        share, bound = roofline(macs, row.bytes_moved, row.latency_ms, self.ceilings)
        return row.model_copy(update={"ceiling_share": share, "bound": bound})


def _disturbance(rounds: Sequence[Round]) -> str:
    """Return why the times of these rounds are not to be ranked; empty where they are."""
    clean = sum(map(is_clean, rounds))
    if not rounds or clean >= min(LEAST_ROUNDS, len(rounds)):
        return ""
    waited = [share for r in rounds for share in r.waited_share]
    share = sum(waited) / len(waited) if waited else 0.0
    stolen = sum(r.stolen_share for r in rounds) / len(rounds)
    what = (
        f"its threads waited for a core {share:.0%} of the time"
        if share > stolen
        else (f"the host of this virtual machine took {stolen:.0%} of its time")
    )
    return (
        f"{what}, {len(rounds) - clean} of {len(rounds)} rounds were disturbed: other work runs beside it; "
        "end it and profile again (threads: 1 suffers least)"
    )
