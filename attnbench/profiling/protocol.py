"""What a measuring child and its parent say to each other: one JSON object a line.

The child says `Started` when it is there. The parent sends a `Job`; the child answers `Measured`, `Tried`,
`TriedPrecisions`, `Ceilings` or `Ready`, by the job's task (or `Refusal`). When it is ready, each further
line of the parent's asks for one round, answered by `Samples`. The child ends when its input does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from attnbench.results import Record
from attnbench.specs import CodecSpec, Mode, ModelConfig, Precision, Scope

ROUND = '{"ask": "round"}'


class Workload(Record):
    """What one pass of a row is: which model, which part of it, doing what, on how many images."""

    config: ModelConfig
    input_size: int
    """Side of the model's input: of latents, or pixels."""
    num_classes: int
    batch_size: int = 1
    mode: Mode = "forward"
    scope: Scope = "model"
    precision: Precision = "fp32"
    codec: CodecSpec | None = None
    """Of the decoder, for scope end-to-end."""
    seed: int = 0


class Job(Record):
    """One row: which pass, on what, and which quantities."""

    workload: Workload
    device: str
    task: Literal["memory", "latency", "threads", "precisions", "ceilings"]
    """Each in a process of its own: the memory's holds its allocator still, which a timed pass must not."""
    threads: int
    """Of a pass; with the task `threads`, the most that are tried."""
    compile: bool = False
    cuda_graphs: bool = False
    energy: bool = False
    warm_up_limit_s: float


class Memory(Record):
    """Peak of one pass, MiB.

    `extra` is the peak over what was in use just before: on a CPU of the process's resident set, where every
    large tensor has pages of its own; on a GPU of what the allocator handed out. `live` is the same by the
    sizes of the tensors alone.
    """

    peak_mib: float
    extra_mib: float
    live_mib: float | None = None
    reserved_mib: float | None = None


class Round(Record):
    """One round of timings of the same pass, in the order taken; one entry of each list a sample."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    latency_ms: list[float]
    """Wall clock on a CPU; device events with a flushed L2 cache on a GPU."""
    warm_latency_ms: list[float] = Field(default_factory=list)
    """GPU only: device events, the pass repeated without a flush."""
    cpu_time_ms: list[float]
    """CPU time of the whole process, all threads."""
    waited_share: list[float] = Field(default_factory=list)
    """Time that its threads waited for a core, although they could have run, over wall time; empty where the
    system does not say."""
    stolen_share: float = 0.0
    """Part of the round that a virtual machine's host gave to others."""
    process: int = 0
    """Which of the row's processes, one after another, took it."""
    clock_mhz: float | None = None
    """GPU only: the multiprocessors' clock, median."""
    throttled: str = ""
    """GPU only: why the device slowed its clocks; empty where it ran freely or says nothing."""


class Energy(Record):
    """Energy of passes that ran back to back for a second or more.

    Gross: the whole board's, with whatever else ran on it; `idle_w` is the board's power just before, with
    the process's context, when nothing ran. Net energy per image is energy_j - idle_w * seconds / images.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    energy_j: float
    """Per image."""
    power_w: float
    """Mean while they ran."""
    idle_w: float
    seconds: float
    """Length of the window."""
    images: int
    """Images in the window."""
    resolution: float
    """Largest relative error that reading the counter now and then can have made."""


class Ceilings(Record):
    """The best a machine does, of what can be tried in a second."""

    event: Literal["ceilings"] = "ceilings"
    device: str
    precision: Precision
    threads: int
    macs_per_s: float
    """Of a large matrix product in the precision's type."""
    bytes_per_s: float
    """Of a large copy, read and written bytes together, or of a large sum's, if that is faster."""


class Started(Record):
    """The child has imported everything and waits for its job."""

    event: Literal["started"] = "started"


class Measured(Record):
    """The memory of one pass, or why there is none."""

    event: Literal["measured"] = "measured"
    memory: Memory | None = None
    reason: str = ""


class Tried(Record):
    """What a pass took with each number of threads, ms."""

    event: Literal["tried"] = "tried"
    pass_ms: dict[int, float]


class TriedPrecisions(Record):
    """What a pass took in each precision, ms."""

    event: Literal["tried-precisions"] = "tried-precisions"
    fp32_ms: float
    bf16_ms: float


class Ready(Record):
    """The model is built and warm."""

    event: Literal["ready"] = "ready"
    pass_ms: float
    """Time of a pass at the end of the warm-up."""
    compile_s: float | None = None
    kernels: list[str] = Field(default_factory=list)
    """CUDA: the attention kernels that ran."""
    energy: Energy | None = None
    energy_reason: str = ""


class Samples(Record):
    """One round."""

    event: Literal["samples"] = "samples"
    round: Round


class Refusal(Record):
    """No (further) measurement: the row's status and reason."""

    event: Literal["refusal"] = "refusal"
    status: Literal["skipped", "failed"]
    reason: str


Answer = Started | Measured | Tried | TriedPrecisions | Ceilings | Ready | Samples | Refusal
REPLY: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="event")])
