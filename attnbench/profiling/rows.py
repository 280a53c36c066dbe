"""What is asked of a profiling session and what it answers: one row per model and resolution."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from pydantic import Field, computed_field

from attnbench.models.resolution import LATENT_FACTOR
from attnbench.results import Measurement, Record, Status
from attnbench.specs import ModelConfig, Precision


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """One model to profile, and how the rows call it."""

    label: str
    config: ModelConfig
    num_classes: int
    latent_factor: int = LATENT_FACTOR
    """Side of a decoded image over side of its latents; does not matter to a model on pixels."""


class ProfileRow(Record):
    """The cost of one model at one resolution; what was not asked for or not reached is None or empty.

    Multiply-adds are of one forward pass at batch 1, without guidance and autoencoder: `macs_paper`
    in the convention of arXiv:2601.13683, `macs_full` every matmul and convolution that executes.
    """

    model: str
    size: str = ""
    """S, B or L where the paper names a size."""
    resolution: int
    """Side of the decoded image, pixels."""
    tokens: int
    device: str
    precision: Precision
    batch_size: int
    """Images per forward pass of latency and memory."""
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
    latency_ms_values: list[float] = Field(default_factory=list)
    """All samples in the order taken, none dropped. On a GPU with a flushed L2 cache."""
    warm_latency_ms_values: list[float] = Field(default_factory=list)
    """GPU only: without the flush."""
    cpu_time_ms_values: list[float] = Field(default_factory=list)
    """CPU time of the process, all its threads, per forward pass; one for each latency."""
    clean_share: float | None = None
    """Part of the samples during which no thread was interrupted by another process."""
    peak_memory_mib: float | None = None
    """CPU: the process's peak resident set. GPU: the allocator's peak."""
    extra_memory_mib: float | None = None
    """Peak over what was in use just before the forward pass."""
    reserved_memory_mib: float | None = None
    """GPU only: what the allocator held at its peak."""
    status: Status = "ok"
    reason: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def latency_ms(self) -> float | None:
        """Median of all samples."""
        return statistics.median(self.latency_ms_values) if self.latency_ms_values else None


def to_measurements(row: ProfileRow) -> list[Measurement]:
    """Return a row's quantities under the names results and reports know, e.g. `latency_ms@256`."""
    at = f"@{row.resolution}"
    single = [
        ("params", "", row.params),
        (f"macs_paper{at}", "MAC", row.macs_paper),
        (f"macs_full{at}", "MAC", row.macs_full),
        (f"peak_memory_mib{at}", "MiB", row.peak_memory_mib),
        (f"extra_memory_mib{at}", "MiB", row.extra_memory_mib),
        (f"reserved_memory_mib{at}", "MiB", row.reserved_memory_mib),
    ]
    found = [
        Measurement(name=name, unit=unit, values=[float(value)], better="lower")
        for name, unit, value in single
        if value is not None
    ]
    series = [
        (f"latency_ms{at}", row.latency_ms_values),
        (f"warm_latency_ms{at}", row.warm_latency_ms_values),
        (f"cpu_time_ms{at}", row.cpu_time_ms_values),
    ]
    if row.status != "ok":  # no value, but the reader is told why
        found.append(
            Measurement(name=f"latency_ms{at}", unit="ms", values=[], note=f"{row.status}: {row.reason}")
        )
    note = f"batch {row.batch_size}, {row.precision}, {row.device}"
    if row.clean_share is not None:
        note += f"; {row.clean_share:.0%} of the samples undisturbed"
    found += [
        Measurement(name=name, unit="ms", values=values, n=len(values), better="lower", note=note)
        for name, values in series
        if values
    ]
    return found
