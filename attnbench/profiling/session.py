"""One profiling session: multiply-adds on paper, memory of one process each, latency of processes in turn."""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from attnbench.devices import available_cores, check_device
from attnbench.errors import UnsupportedError, UserInputError
from attnbench.models.resolution import input_size
from attnbench.processes import Nursery
from attnbench.profiling.child import WORKER, Child
from attnbench.profiling.conditions import governor, load, throttle_count
from attnbench.profiling.counting import counts
from attnbench.profiling.draft import Draft
from attnbench.profiling.memory_plan import largest_batch, plan_memory
from attnbench.profiling.protocol import Ceilings, Job, Measured, Ready, Refusal, Round
from attnbench.profiling.rows import (
    LEAST_ROUNDS,
    Conditions,
    ProfileRequest,
    ProfileRow,
    is_clean,
)
from attnbench.profiling.threads import chosen_threads
from attnbench.profiling.traffic import pass_traffic
from attnbench.profiling.worker import refusal
from attnbench.progress import Progress
from attnbench.specs import ProfileSpec

GIVEN_UP = 2  # times the least, where none of them is clean
MOST_ROUNDS = 5  # times the least: a machine that never settles is not measured for ever
_WARM_UP_LIMIT_S = 1.5
_WARM_UP_SHARE = 0.2  # at most, of a row's time limit
_PASSES = 10  # of a row whose pass is long: 2 for the memory, 2 before the rounds, 6 rounds
_LARGE = 10**10  # multiply-adds of a pass from which on models are measured one at a time
_SET_UP_S = 2.0  # about, of a row's processes beside its passes

Say = Callable[[str], None]


def profile_models(
    requests: Sequence[ProfileRequest],
    spec: ProfileSpec,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    within_s: float | None = None,
    finished: Mapping[tuple[str, int], ProfileRow] | None = None,
    on_row: Callable[[ProfileRow], None] | None = None,
    say: Say = lambda text: None,
    worker: str = WORKER,
    fit_mib: float = 0.0,
) -> list[ProfileRow]:
    """Measure every request at every resolution of `spec`; rows in that order.

    Each row's memory and latency come from a process of its own each. The processes of one resolution live
    side by side and are timed in turn, in an order shuffled each round, so that a machine that slows down
    slows all of them. A row that cannot be had carries its status and reason. `within_s` is the time of the
    session: rows that would not fit into it are skipped. Those in `finished`, by label and resolution, are
    taken over.
    `on_row` hears each row when it is finished, also when the session is interrupted: then of those that
    have an interval; `say` hears what a reader of the rows must know. `worker` is the children's module.
    `fit_mib` asks a memory plan for the largest batch that so much memory holds.
    Raises UserInputError on a resolution, model, option or device that cannot be; nothing ran then.
    """
    if not spec.resolutions:
        raise UserInputError("nothing to profile: give at least one resolution in pixels, e.g. 256")
    check_device(device)
    known = dict(finished or {})
    missing = {
        resolution: [
            Draft(request=request, resolution=resolution, size=size)
            for request, size in (
                (request, input_size(request.config, resolution, request.latent_factor))
                for request in requests
            )
            if (request.label, resolution) not in known
        ]
        for resolution in spec.resolutions
    }
    num_missing = sum(map(len, missing.values()))
    planned = "memory-plan" in spec.measure
    steps = _Steps(total=num_missing * (3 + planned + spec.rounds), progress=progress)
    with contextlib.ExitStack() as stack:
        session = _Session(
            spec=spec,
            device=device,
            steps=steps,
            deadline=float("inf") if within_s is None else time.monotonic() + within_s,
            within_s=within_s or 0.0,
            fit_mib=fit_mib,
            say=say,
        )
        if num_missing and {"latency", "memory"} & set(spec.measure):
            session.nursery = stack.enter_context(Nursery(worker, _environment()))
        for resolution in sorted(missing):  # smaller ones say how long the larger ones will take
            drafts = missing[resolution]
            later = sum(1 for side, of_side in missing.items() if side > resolution and of_side)
            try:
                session.measure(drafts, groups_left=1 + later)
            except BaseException:
                for draft in drafts:
                    if draft.refusal is not None or len(draft.rounds) >= LEAST_ROUNDS:
                        _hand_over(draft.row(spec, device), known, on_row)
                raise
            for draft in drafts:
                _hand_over(draft.row(spec, device), known, on_row)
    steps.finish()
    return [known[request.label, side] for request in requests for side in spec.resolutions]


def _hand_over(
    row: ProfileRow, known: dict[tuple[str, int], ProfileRow], on_row: Callable[[ProfileRow], None] | None
) -> None:
    known[row.model, row.resolution] = row
    if on_row is not None:
        on_row(row)


def _environment() -> dict[str, str]:
    """Return the children's environment: threads that wait for each other sleep instead of spinning.

    A thread that spins for another one, which waits for the same core, keeps that core until the scheduler
    takes it away: passes of 1.3 ms took 300 ms beside other work.
    """
    return {"OMP_WAIT_POLICY": "passive", **os.environ}


@dataclass(kw_only=True)
class _Steps:
    """Counts what is done and tells whoever listens."""

    total: int
    progress: Progress | None
    done: int = 0

    def next(self, note: str) -> None:
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total, note)
        self.done += 1

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(self.total, self.total, "")


@dataclass(kw_only=True)
class _Session:
    """What all rows share: settings, device, threads, time and the process that starts the children."""

    spec: ProfileSpec
    device: str
    steps: _Steps
    deadline: float
    within_s: float
    say: Say
    nursery: Nursery | None = None
    fit_mib: float = 0.0
    threads: int = 0
    ceilings: Ceilings | None = None
    seconds_per_mac: dict[str, float] = field(default_factory=dict)
    """Of each label, as its last resolution took them."""

    def measure(self, drafts: Sequence[Draft], groups_left: int) -> None:
        """Fill in the drafts of one resolution."""
        for draft in drafts:
            self.steps.next(f"{draft.name}: multiply-adds")
            self._count(draft)
            if draft.refusal is None:
                self._plan(draft)
        self._leave_out(drafts)
        if self.nursery is None or not any(draft.refusal is None for draft in drafts):
            return
        if not self.threads:
            self._choose_threads(next(draft for draft in drafts if draft.refusal is None))
        if "roofline" in self.spec.measure and self.ceilings is None:
            self._find_ceilings(next(_alive(drafts), drafts[0]))
        slowed = throttle_count()
        if "memory" in self.spec.measure:
            with ThreadPoolExecutor(self._memory_at_once(drafts)) as pool:
                list(pool.map(self._measure_memory, _alive(drafts)))
        if "latency" in self.spec.measure:
            extra = (self.deadline - time.monotonic()) / (2 * groups_left)
            self._take_turns(drafts, extra_until=time.monotonic() + extra)
        heat = "the CPU was slowed down for its heat" if (throttle_count() or 0) > (slowed or 0) else ""
        now = Conditions(threads=self.threads, load=load(), governor=governor(), throttled=heat)
        for draft in drafts:
            draft.conditions = draft.with_device_clocks(now)
            draft.ceilings = self.ceilings

    def _count(self, draft: Draft) -> None:
        if not {"macs", "params"} & set(self.spec.measure):
            return
        request = draft.request
        try:
            for found in counts(
                request.config, draft.size, request.num_classes, self.spec.scope, self.spec.measure
            ):
                draft.counts |= found
        except UserInputError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may raise anything
            draft.refusal = refusal(error)

    def _plan(self, draft: Draft) -> None:
        """Fill in what is known without running: the bytes that a pass must move, the memory it takes."""
        if "roofline" in self.spec.measure:
            with contextlib.suppress(UnsupportedError):  # training steps and decoders have no such count
                draft.bytes_moved = pass_traffic(draft.workload(self.spec)).total
        if "memory-plan" in self.spec.measure:
            self.steps.next(f"{draft.name}: memory plan")
            try:
                draft.plan = plan_memory(draft.workload(self.spec), self.device)
                if self.fit_mib:
                    draft.largest_batch = largest_batch(draft.workload(self.spec), self.fit_mib, self.device)
            except UnsupportedError as error:
                draft.reason = f"no memory plan: {error}"

    def _leave_out(self, drafts: Sequence[Draft]) -> None:
        """Skip rows that would not fit into the session's time, the slowest first."""
        expected = {id(d): self._expected_s(d) for d in _alive(drafts)}
        remaining = self.deadline - time.monotonic()
        for draft in sorted(_alive(drafts), key=lambda d: -expected[id(d)]):
            total = sum(expected[id(d)] for d in _alive(drafts))
            if total <= remaining or expected[id(draft)] <= _SET_UP_S:
                return
            a_pass = (expected[id(draft)] - _SET_UP_S) / _PASSES
            draft.refusal = Refusal(
                status="skipped",
                reason=f"left out: at about {a_pass:.2g} s a pass, {expected[id(draft)]:.0f} s in all, it "
                "does not fit into the session's time; --within 0 measures every row",
            )

    def _expected_s(self, draft: Draft) -> float:
        """Return about how long a row will take by its model's last resolution, if there was one."""
        per_mac = self.seconds_per_mac.get(draft.request.label, 0.0)
        return _SET_UP_S + _PASSES * per_mac * draft.counts.get("macs_full", 0)

    def _choose_threads(self, draft: Draft) -> None:
        """Take as many threads as help a pass of the first row; say so where that is fewer than there are."""
        self.threads = self.spec.threads or available_cores()
        if self.spec.threads or self.device != "cpu" or "latency" not in self.spec.measure:
            return
        if self.threads > 1:
            with self._child() as child:
                self.threads, why = chosen_threads(
                    child.try_threads(self._job(draft, "threads")), self.threads
                )
            if why:
                self.say(f"{draft.name}: {why}")

    def _find_ceilings(self, draft: Draft) -> None:
        with self._child() as child:
            found = child.find_ceilings(self._job(draft, "ceilings"))
        if isinstance(found, Ceilings):
            self.ceilings = found
        else:
            self.say(f"no roofline: the machine's ceilings could not be measured: {found.reason}")

    def _memory_at_once(self, drafts: Sequence[Draft]) -> int:
        """Return how many processes may hold a model at once: nothing is timed in them, but they are big."""
        largest = max((draft.counts.get("macs_full", _LARGE) for draft in _alive(drafts)), default=_LARGE)
        small = self.device == "cpu" and largest * self.spec.batch_size < _LARGE
        return available_cores() if small else 1

    def _measure_memory(self, draft: Draft) -> None:
        self.steps.next(f"{draft.name}: memory")
        with self._child() as child:
            reply = child.measure_memory(self._job(draft, "memory"))
        if isinstance(reply, Measured):
            draft.memory = reply.memory
            draft.reason = "; ".join(filter(None, [draft.reason, reply.reason]))
        else:
            draft.refusal = reply

    def _take_turns(self, drafts: Sequence[Draft], extra_until: float) -> None:
        """Time rows in turns until each has its rounds and a narrow interval, or its time is out."""
        name = uuid.uuid4().hex[:12]
        with contextlib.ExitStack() as stack:
            children: list[tuple[Draft, Child]] = []
            for draft in _alive(drafts):
                self.steps.next(f"{draft.name}: setting up")
                draft.session = name
                child = stack.enter_context(self._child())
                reply = child.set_up(self._job(draft, "latency"))
                if isinstance(reply, Ready):
                    draft.ready = reply
                    children.append((draft, child))
                    macs = draft.counts.get("macs_full", 0) * self.spec.batch_size
                    if macs:
                        self.seconds_per_mac[draft.request.label] = 1e-3 * reply.pass_ms / macs
                else:
                    draft.refusal = reply
                    child.close()
            for number in range(MOST_ROUNDS * self.spec.rounds):
                order = [
                    (draft, child)
                    for draft, child in children
                    if not self._is_over(draft, child, extra_until)
                ]
                if not order:
                    break
                random.Random(number).shuffle(order)
                for draft, child in order:
                    if number < self.spec.rounds:
                        self.steps.next(f"{draft.name}: round {number + 1}")
                    taken = child.take_round()
                    if isinstance(taken, Round):
                        draft.rounds.append(taken)
                    else:
                        self._end(draft, taken)
                        child.close()
            for draft, _ in children:
                draft.stopped = draft.stopped or "rounds"

    def _is_over(self, draft: Draft, child: Child, extra_until: float) -> bool:
        """Whether a row takes no more rounds."""
        if draft.refusal is not None or draft.stopped:
            return True
        if len(draft.rounds) < self.spec.rounds:
            return False
        if draft.is_narrow(self.spec.interval):
            draft.stopped = "narrow"
        elif child.budget_s < child.longest_s or time.monotonic() > extra_until:
            draft.stopped = "time"
        elif len(draft.rounds) >= GIVEN_UP * self.spec.rounds and not any(map(is_clean, draft.rounds)):
            draft.stopped = "rounds"
        return bool(draft.stopped)

    def _end(self, draft: Draft, reply: Refusal) -> None:
        """A row that has an interval already keeps it where only its time is out."""
        if reply.status == "skipped" and len(draft.rounds) >= max(LEAST_ROUNDS, self.spec.rounds):
            draft.stopped = "time"
        else:
            draft.refusal = reply

    def _child(self) -> Child:
        return Child(self.spec.timeout_s, self.nursery)

    def _job(self, draft: Draft, task: str) -> Job:
        spec = self.spec
        return Job.model_validate(
            {
                "workload": draft.workload(spec),
                "device": self.device,
                "task": task,
                "threads": self.threads,
                "compile": spec.compile,
                "cuda_graphs": spec.cuda_graphs,
                "energy": "energy" in spec.measure,
                "warm_up_limit_s": min(_WARM_UP_LIMIT_S, _WARM_UP_SHARE * spec.timeout_s),
            }
        )


def _alive(drafts: Iterable[Draft]) -> Iterator[Draft]:
    return (draft for draft in drafts if draft.refusal is None)
