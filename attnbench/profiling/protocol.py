"""What a measuring child and its parent say to each other: one JSON object a line.

The child says `Started` when its imports are done. The parent sends a `Job`; the child answers
`Ready` (or `Refusal`). Each further line of the parent's asks for one round, answered by `Samples`.
The child ends when its input does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from attnbench.results import Record
from attnbench.specs import ModelConfig, Precision

ROUND = '{"ask": "round"}'


class Job(Record):
    """One row: which model, on what, and which quantities."""

    config: ModelConfig
    input_size: int
    num_classes: int
    batch_size: int
    precision: Precision
    device: str
    threads: int
    memory: bool
    latency: bool
    warm_up_limit_s: float
    seed: int = 0


class Memory(Record):
    """Peak of one forward pass, MiB.

    On a CPU the process's resident set; on a GPU what the allocator handed out (`peak`) and held
    (`reserved`). `extra` is the peak over what was in use just before.
    """

    peak_mib: float
    extra_mib: float
    reserved_mib: float | None = None


class Started(Record):
    """The child has imported everything and waits for its job."""

    event: Literal["started"] = "started"


class Ready(Record):
    """The model is built, its memory measured, and it is warm."""

    event: Literal["ready"] = "ready"
    memory: Memory | None = None
    memory_reason: str = ""
    """Why there is no memory, where it was asked for."""


class Samples(Record):
    """One round of timings of the same forward pass, in the order they were taken."""

    event: Literal["samples"] = "samples"
    latency_ms: list[float]
    """Wall clock on a CPU; device events with a flushed L2 cache on a GPU."""
    warm_latency_ms: list[float] = Field(default_factory=list)
    """GPU only: device events, the pass repeated without a flush."""
    cpu_time_ms: list[float]
    """CPU time of the whole process, all threads."""
    clean: list[bool]
    """No involuntary context switch in any thread meanwhile."""


class Refusal(Record):
    """No (further) measurement: the row's status and reason."""

    event: Literal["refusal"] = "refusal"
    status: Literal["skipped", "failed"]
    reason: str


Reply = Annotated[Started | Ready | Samples | Refusal, Field(discriminator="event")]
REPLY: TypeAdapter[Started | Ready | Samples | Refusal] = TypeAdapter(Reply)
