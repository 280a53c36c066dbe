"""What is asked of a profiling session and what it answers: one row per model, resolution and batch size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, computed_field, model_validator

from attnbench.models.resolution import LATENT_FACTOR
from attnbench.profiling.protocol import Energy, Round
from attnbench.profiling.statistics import grouped_interval, percentiles
from attnbench.results import Measurement, Record, Status
from attnbench.specs import CodecSpec, Mode, ModelConfig, Precision, Scope

CLEAN_BELOW = 0.05
"""Share of its time that a clean sample's threads may have waited for a core; it is slower by no more."""
LEAST_SAMPLES = 3
LEAST_ROUNDS = 6
"""The fewest values whose range is a 95 % interval of their median: 1 - 2 / 2^6 = 0.97."""

Stopped = Literal["", "narrow", "time", "rounds"]
Bound = Literal["", "arithmetic", "memory"]


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """One model to profile, and how the rows call it."""

    label: str
    config: ModelConfig
    num_classes: int
    title: str = ""
    """How a person calls it; empty: as the rows do."""
    codec: CodecSpec | None = None
    """The autoencoder of its latents, for the scope end-to-end."""
    latent_factor: int = LATENT_FACTOR
    """Side of a decoded image over side of its latents; does not matter to a model on pixels."""


class Conditions(Record):
    """The machine during one row, as far as it can be read."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cpu: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of Python and of the packages that a time depends on; rows of earlier versions have none."""
    threads: int = 1
    """CPU threads of a pass."""
    load: float | None = None
    """The system's load average over a minute, at the row's end."""
    governor: str = ""
    throttled: str = ""
    """What a device says of its clocks: empty where it ran freely or says nothing."""
    clock_mhz: float | None = None
    """CUDA: the multiprocessors' clock, median while measuring."""


class ProfileRow(Record):
    """The cost of one model at one resolution; what was not asked for or not reached is None or empty.

    Multiply-adds are of one forward pass at batch 1, without guidance and autoencoder: `macs_paper`
    in the convention of arXiv:2601.13683, `macs_full` every matmul and convolution that executes. Those of
    another scope are the scope's own.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    size: str = ""
    """S, B or L where the paper names a size."""
    resolution: int
    """Side of the decoded image, pixels."""
    tokens: int
    device: str
    mode: Mode = "forward"
    scope: Scope = "model"
    precision: Precision
    batch_size: int
    """Images per pass of latency and memory."""
    session: str = ""
    """Rows of one session at one resolution and batch size were timed in turns: their rounds are pairs."""
    conditions: Conditions = Conditions()
    params: int | None = None
    """Trainable parameters, before fusion."""
    macs_paper: int | None = None
    macs_published: int | None = None
    """What arXiv:2601.13683 prints for this recipe at this resolution (two digits after the point)."""
    macs_full: int | None = None
    attention_macs: int | None = None
    """Part of macs_full in all attention modules, their projections included."""
    block_macs: int | None = None
    """Part of macs_full in all transformer blocks."""
    rounds: list[Round] = Field(default_factory=list)
    """All rounds in the order taken, none dropped: round i of the rows of one session is a pair."""
    stopped: Stopped = ""
    """Why no more rounds were taken: the interval was narrow enough, the time or the rounds were out."""
    disturbed: str = ""
    """Why the times of this row are not to be ranked; empty where they are."""
    compile_s: float | None = None
    peak_memory_mib: float | None = None
    """CPU: the process's peak resident set. GPU: the allocator's peak."""
    extra_memory_mib: float | None = None
    """Peak over what was in use just before the pass."""
    live_memory_mib: float | None = None
    """The same by the sizes of the tensors alone."""
    reserved_memory_mib: float | None = None
    """GPU only: what the allocator held at its peak."""
    weights_mib: float | None = None
    """Planned: parameters and buffers."""
    planned_memory_mib: float | None = None
    """Planned: weights, inputs and the peak of everything else that a pass holds at once."""
    largest_batch: int | None = None
    """Planned: the most images per pass that the asked-for memory holds; 0: not even one."""
    bytes_moved: int | None = None
    """Closed form at this batch size: weights, inputs and outputs of every layer, each once."""
    ceiling_share: float | None = None
    """The roofline's time over the measured one: 1 is as fast as this machine can be."""
    bound: Bound = ""
    """What the roofline says bounds the pass."""
    energy: Energy | None = None
    """GPU only: of an image, gross, with the board's idle power beside it."""
    kernels: list[str] = Field(default_factory=list)
    """GPU only: the attention kernels that ran."""
    status: Status = "ok"
    reason: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_computed(cls, data: Any) -> Any:
        """Take a row as it was written: what is computed from the rounds is computed again."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in cls.model_computed_fields}

    @property
    def ranked_rounds(self) -> list[Round]:
        """The undisturbed rounds where there are enough of them for an interval, else all."""
        return ranked(self.rounds)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def latency_ms(self) -> float | None:
        """Median of the rounds' medians."""
        medians = round_medians(self.ranked_rounds)
        return statistics.median(medians) if medians else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def latency_interval_ms(self) -> tuple[float, float] | None:
        """95 % interval of that median over rounds and processes; None where there are too few rounds."""
        return interval(self.ranked_rounds)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def latency_percentiles_ms(self) -> dict[str, float]:
        """p10, p50, p90 and p99 of all raw samples, disturbed or not."""
        return percentiles([value for r in self.rounds for value in r.latency_ms])


def is_clean(timed: Round) -> bool:
    """Whether the machine left enough of a round alone: three samples, or all where it has fewer."""
    return timed.stolen_share <= CLEAN_BELOW and len(_clean(timed)) >= min(
        LEAST_SAMPLES, len(timed.latency_ms)
    )


def _clean(timed: Round) -> list[float]:
    """Return the latencies during which no thread waited for a core."""
    waited = timed.waited_share or [0.0] * len(timed.latency_ms)
    return [ms for ms, share in zip(timed.latency_ms, waited, strict=True) if share <= CLEAN_BELOW]


def ranked(rounds: Sequence[Round]) -> list[Round]:
    """Return the clean rounds where there are enough of them for an interval, else all."""
    clean = [r for r in rounds if is_clean(r)]
    return clean if len(clean) >= LEAST_ROUNDS else list(rounds)


def counted(timed: Round) -> list[float]:
    """Return the latencies of a round that count: the clean ones of a clean round, else all."""
    return _clean(timed) if is_clean(timed) else timed.latency_ms


def round_medians(rounds: Sequence[Round]) -> list[float]:
    """Return each round's median latency, ms."""
    return [statistics.median(counted(r)) for r in rounds]


def interval(rounds: Sequence[Round]) -> tuple[float, float] | None:
    """Return the 95 % interval of the median of rounds' medians (order statistics), or None of too few.

    It reaches the median of each process's rounds.
    """
    found = grouped_interval(round_medians(rounds), [r.process for r in rounds]) if rounds else None
    return (found.low, found.high) if found is not None and found.sufficient else None


def to_measurements(row: ProfileRow) -> list[Measurement]:
    """Return a row's quantities under the names results and reports know, e.g. `latency_ms@256`."""
    at = f"@{row.resolution}"
    single = [
        ("params", "", row.params),
        (f"macs_paper{at}", "MAC", row.macs_paper),
        (f"macs_full{at}", "MAC", row.macs_full),
        (f"peak_memory_mib{at}", "MiB", row.peak_memory_mib),
        (f"extra_memory_mib{at}", "MiB", row.extra_memory_mib),
        (f"live_memory_mib{at}", "MiB", row.live_memory_mib),
        (f"reserved_memory_mib{at}", "MiB", row.reserved_memory_mib),
    ]
    found = [
        Measurement(name=name, unit=unit, values=[float(value)], better="lower")
        for name, unit, value in single
        if value is not None
    ]
    if row.status != "ok":  # no value, but the reader is told why
        found.append(
            Measurement(name=f"latency_ms{at}", unit="ms", values=[], note=f"{row.status}: {row.reason}")
        )
    note = f"batch {row.batch_size}, {row.precision}, {row.device}, {row.conditions.threads} threads"
    clean = [is_clean(r) for r in row.rounds]
    series = [
        (f"latency_ms{at}", [counted(r) for r in row.rounds]),
        (f"warm_latency_ms{at}", [r.warm_latency_ms for r in row.rounds]),
        (f"cpu_time_ms{at}", [r.cpu_time_ms for r in row.rounds]),
    ]
    found += [_of_rounds(name, rounds, clean, row, note) for name, rounds in series if any(rounds)]
    left_out = [ms for r in row.rounds for ms in _left_out(r)]
    if left_out:
        found.append(
            Measurement(
                name=f"waited_latency_ms{at}",
                unit="ms",
                values=left_out,
                n=len(left_out),
                note="samples that do not count: a thread waited for a core that something else held",
            )
        )
    return found


def _left_out(timed: Round) -> list[float]:
    """Return the latencies of a clean round that do not count."""
    if not is_clean(timed) or not timed.waited_share:
        return []
    return [ms for ms, share in zip(timed.latency_ms, timed.waited_share, strict=True) if share > CLEAN_BELOW]


def _of_rounds(
    name: str, rounds: list[list[float]], clean: list[bool], row: ProfileRow, note: str
) -> Measurement:
    """Return one timed quantity: its values are the medians of the rounds that are ranked."""
    taken = list(zip(rounds, [r.process for r in row.rounds], strict=True))
    chosen = [pair for pair, good in zip(taken, clean, strict=True) if good]
    ranked_pairs = chosen if len(chosen) >= LEAST_ROUNDS else taken
    medians = [statistics.median(samples) for samples, _ in ranked_pairs]
    found = grouped_interval(medians, [process for _, process in ranked_pairs])
    return Measurement(
        name=name,
        unit="ms",
        values=medians,
        n=sum(len(r) for r in rounds),
        better="lower",
        interval=(found.low, found.high) if found.sufficient else None,
        note=note,
        rounds=rounds,
        clean_rounds=clean,
        round_processes=[r.process for r in row.rounds],
        session=row.session,
        disturbed=row.disturbed,
    )
