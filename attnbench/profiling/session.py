"""One profiling session: multiply-adds on paper, memory of one process each, latency of processes in turn."""

from __future__ import annotations

import contextlib
import os
import time
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
from attnbench.profiling.draft import Draft, precision_of
from attnbench.profiling.memory_plan import largest_batch, plan_memory
from attnbench.profiling.protocol import Ceilings, Job, Measured, Ready, Refusal
from attnbench.profiling.rows import LEAST_ROUNDS, Conditions, ProfileRequest, ProfileRow
from attnbench.profiling.threads import chosen_threads, slow_bf16
from attnbench.profiling.traffic import pass_traffic
from attnbench.profiling.turns import RENEWED_BELOW_MS, SITTINGS, Group
from attnbench.profiling.worker import refusal
from attnbench.progress import Progress
from attnbench.specs import ProfileSpec

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
    compare_precisions: bool = True,
) -> list[ProfileRow]:
    """Measure every request at every resolution of `spec`; rows in that order.

    Each row's memory and latency come from processes of its own. Those of one resolution live side by side
    and are timed in turn, in an order shuffled each round, so that a machine that slows down slows all of
    them; where all passes are short, rows sit down five times, in new processes. A row that cannot be had
    carries its status and reason. `within_s` is the time of the session: rows that would not fit into it are
    skipped. Those in `finished`, by label and resolution, are taken over.
    `on_row` hears each row when it is finished, also when the session is interrupted: then of those that
    have an interval; `say` hears what a reader of the rows must know. `worker` is the children's module.
    `fit_mib` asks a memory plan for the largest batch that so much memory holds. `compare_precisions` tells
    of bf16 that is slower than fp32 on this CPU: whoever runs several sessions does in the first.
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
            compare_precisions=compare_precisions,
            say=say,
        )
        if num_missing and {"latency", "memory"} & set(spec.measure):
            session.nursery = stack.enter_context(Nursery(worker, _environment()))
        open_drafts = [draft for side in sorted(missing) for draft in missing[side]]

        def hand_over(drafts: Iterable[Draft]) -> None:
            for draft in drafts:
                open_drafts.remove(draft)
                row = draft.row(spec, device)
                known[row.model, row.resolution] = row
                if on_row is not None:
                    on_row(row)

        try:
            for resolution in sorted(missing):  # smaller ones say how long the larger ones will take
                drafts = missing[resolution]
                session.prepare(drafts)
                if session.are_long(drafts):  # whoever interrupts them has the rows of smaller sizes
                    hand_over(session.sit_again())
                later = sum(1 for side, of_side in missing.items() if side > resolution and of_side)
                hand_over(session.measure(drafts, groups_left=1 + later))
            hand_over(session.sit_again())
        except BaseException:
            hand_over([d for d in open_drafts if d.refusal is not None or len(d.rounds) >= LEAST_ROUNDS])
            raise
    steps.finish()
    return [known[request.label, side] for request in requests for side in spec.resolutions]


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
        self.note(note)
        self.done += 1

    def note(self, note: str) -> None:
        """Say what goes on beside what is counted."""
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total, note)

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
    compare_precisions: bool = True
    threads: int = 0
    ceilings: Ceilings | None = None
    seconds_per_mac: dict[str, float] = field(default_factory=dict)
    """Of each label, as its last resolution took them."""
    groups: list[Group] = field(default_factory=list)
    is_interrupted: bool = False

    def prepare(self, drafts: Sequence[Draft]) -> None:
        """Fill in what the drafts of one resolution cost on paper; leaves out what does not fit."""
        for draft in drafts:
            self.steps.next(f"{draft.name}: multiply-adds")
            self._count(draft)
            if draft.refusal is None:
                self._plan(draft)
        self._leave_out(drafts)

    def are_long(self, drafts: Sequence[Draft]) -> bool:
        """Whether passes of these are expected to be long, by their models' last resolution."""
        return any(1e3 * self._expected_pass_s(draft) >= RENEWED_BELOW_MS for draft in _alive(drafts))

    def measure(self, drafts: Sequence[Draft], groups_left: int) -> list[Draft]:
        """Run the prepared drafts of one resolution; returns those that are finished, not to sit again."""
        if self.nursery is None or not any(draft.refusal is None for draft in drafts):
            return list(drafts)
        if not self.threads:
            self._choose_threads(next(draft for draft in drafts if draft.refusal is None))
        self._compare_precisions(next(_alive(drafts)))
        if "roofline" in self.spec.measure and self.ceilings is None:
            self._find_ceilings(next(_alive(drafts), drafts[0]))
        slowed = throttle_count()
        if "memory" in self.spec.measure:
            with ThreadPoolExecutor(self._memory_at_once(drafts)) as pool:
                try:
                    list(pool.map(self._measure_memory, _alive(drafts)))
                except KeyboardInterrupt:
                    self.is_interrupted = True
                    self.nursery.close()  # or it would wait for passes that nobody asks for any more
                    raise
        for draft in drafts:
            draft.ceilings = self.ceilings
        if "latency" not in self.spec.measure:
            self._note_conditions(drafts, slowed)
            return list(drafts)
        extra = (self.deadline - time.monotonic()) / (2 * groups_left)
        group = Group(
            rows=list(_alive(drafts)),
            spec=self.spec,
            device=self.device,
            set_up=self._set_up,
            note=self.steps.next,
            extra_until=time.monotonic() + extra,
            give_up=self.nursery.close,
        )
        self._sit(group, slowed)
        for draft in group.rows:
            macs = draft.counts.get("macs_full", 0) * self.spec.batch_size
            if macs and draft.ready is not None:
                self.seconds_per_mac[draft.request.label] = 1e-3 * draft.ready.pass_ms / macs
        self.groups.append(group)
        return [draft for draft in drafts if draft.is_finished]

    def sit_again(self) -> list[Draft]:
        """Take the later sittings of rows with short passes, all resolutions in turns; returns these rows."""
        waiting = [draft for group in self.groups for draft in group.rows if not draft.is_finished]
        for _ in range(1, SITTINGS):
            for group in self.groups:
                if not group.is_over():
                    group.extra_until = self.deadline
                    self.steps.note(f"{group.rows[0].resolution} px once more, in new processes")
                    self._sit(group, throttle_count())
        self.groups.clear()
        return waiting

    def _sit(self, group: Group, slowed: int | None) -> None:
        group.sit()
        self._note_conditions(group.rows, slowed)

    def _note_conditions(self, drafts: Sequence[Draft], slowed: int | None) -> None:
        """Keep what the machine was like; `slowed` is how often its heat had slowed it before."""
        heat = "the CPU was slowed down for its heat" if (throttle_count() or 0) > (slowed or 0) else ""
        for draft in drafts:
            now = Conditions(
                threads=self.threads,
                load=load(),
                governor=governor(),
                throttled=draft.conditions.throttled or heat,  # in any of its sittings
            )
            draft.conditions = draft.with_device_clocks(now)

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
        return _SET_UP_S + _PASSES * self._expected_pass_s(draft)

    def _expected_pass_s(self, draft: Draft) -> float:
        macs = draft.counts.get("macs_full", 0) * self.spec.batch_size
        return self.seconds_per_mac.get(draft.request.label, 0.0) * macs

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

    def _compare_precisions(self, draft: Draft) -> None:
        """Say once where bf16 makes a pass of the first row slower on this CPU; it is timed as asked for."""
        is_asked = self.compare_precisions and "latency" in self.spec.measure
        if not is_asked or (precision_of(self.spec), self.device) != ("bf16", "cpu"):
            return
        self.compare_precisions = False
        with self._child() as child:
            tried = child.try_precisions(self._job(draft, "precisions"))
        if why := slow_bf16(tried):
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
        if self.is_interrupted:
            return  # its process was ended, which is no fault of the row
        if isinstance(reply, Measured):
            draft.memory = reply.memory
            draft.reason = "; ".join(filter(None, [draft.reason, reply.reason]))
        else:
            draft.refusal = reply

    def _set_up(self, draft: Draft) -> tuple[Child, Ready | Refusal]:
        """Start the process of a row; it may use what is left of the row's time."""
        child = Child(self.spec.timeout_s - draft.spent_s, self.nursery, limit_s=self.spec.timeout_s)
        return child, child.set_up(self._job(draft, "latency"))

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
