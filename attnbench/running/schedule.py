"""Which case runs next: longest first, nothing twice, nobody waiting for what another case is computing.

The executor says how many may be under way and runs them; what is finished is read from the store.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnbench.results import Result, append_result
from attnbench.running.executors.conversation import failed_result
from attnbench.running.executors.interface import Event, Executor, Finished, Order, Progress
from attnbench.running.listener import Listener
from attnbench.running.memory import MemoryNeed
from attnbench.specs import Case
from attnbench.stages.case import finished_case
from attnbench.stages.interrupts import GO_ON, Stopped, on_signal
from attnbench.stages.latents.model_space import codec_of
from attnbench.storage.claims import claim_folder, note_claim
from attnbench.storage.locks import alone_at_once, alone_in, is_held
from attnbench.storage.names import DONE, LOGS, RESULTS
from attnbench.storage.store import NOTICE, STAGE_ENDED, Stage, stages_of
from attnbench.storage.trainings import has_begun, of_any_length

LOOK_S = 0.5  # how often other runs' cases are looked at while cases of ours are under way

_Wanted = frozenset[tuple[Stage, str]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run keeps what, and the device it was asked for."""

    store: Path
    run_dir: Path
    device: str


def run_cases(
    cases: Sequence[Case],
    place: Place,
    executor: Executor,
    listener: Listener,
    times_s: Mapping[str, float],
    memory: Mapping[str, MemoryNeed | None] | None = None,
) -> tuple[list[Result], int]:
    """Return every case's result and how many were computed here.

    `times_s` and `memory` are what the plan estimates for each case, by its id. A case that another run works
    on comes last: runs of one suite, each on a GPU of its own, share them out. Lines are written to
    results.jsonl in the order of the cases. Raises Stopped when a signal came and all that was under way has
    saved its work.
    """
    schedule = _Schedule(
        cases=cases, place=place, executor=executor, listener=listener, times_s=times_s, memory=memory or {}
    )
    with contextlib.ExitStack() as stack:
        stack.callback(schedule.leave)
        stack.enter_context(executor)
        stack.enter_context(on_signal(schedule.stop))
        schedule.work()
    return [schedule.results[number] for number in range(len(cases))], len(schedule.computed)


def longest_first(numbers: Iterable[int], times: Mapping[int, float]) -> list[int]:
    """Return cases in the order they are begun: the longest last would leave the others waiting for it."""
    return sorted(numbers, key=lambda number: -times[number])


def shorter_trainings(cases: Mapping[int, Case]) -> dict[int, int]:
    """Return, by case, the one whose training it goes on from: the longest that differs in fewer steps alone.

    In the order of their steps, so that a chain of them stands from its shortest on.
    """
    last: dict[str, tuple[int, int]] = {}  # of trainings alike but for their steps: the longest so far
    found = {}
    untaught = {number: case for number, case in cases.items() if case.train.teacher is None}
    for number, case in sorted(untaught.items(), key=lambda item: item[1].train.steps):
        alike, steps = of_any_length(case), case.train.steps
        before = last.get(alike)
        if before is not None and before[0] < steps:
            found[number] = before[1]
        if before is None or before[0] < steps:
            last[alike] = (steps, number)
        elif before[1] in found:  # another case of the same training
            found[number] = found[before[1]]
    return found


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    number: int
    order: Order
    wanted: _Wanted
    claim: contextlib.ExitStack
    """Holds the case, against other runs."""


@dataclass(kw_only=True)
class _Schedule:
    cases: Sequence[Case]
    place: Place
    executor: Executor
    listener: Listener
    times_s: Mapping[str, float]
    memory: Mapping[str, MemoryNeed | None]
    results: dict[int, Result] = field(default_factory=dict)
    computed: set[int] = field(default_factory=set)
    pending: list[int] = field(default_factory=list)
    under_way: dict[int, _UnderWay] = field(default_factory=dict)
    """By the id of the order."""
    ended: int = 0
    """Cases, from the first on, that have ended."""
    written: set[int] = field(default_factory=set)
    """Those whose lines are in results.jsonl."""
    looked_s: float = float("-inf")
    """When it was last looked which cases can start, by the monotonic clock."""
    wanted: dict[int, _Wanted] = field(default_factory=dict)
    shorter: dict[int, int] = field(default_factory=dict)
    """Cases whose training goes on from that of another one, and which."""
    signals: list[int] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    unasked: list[tuple[int, Order, str]] = field(default_factory=list)
    """Cases that were interrupted without a signal to this run, by whoever ends processes on a cluster."""
    events: queue.SimpleQueue[tuple[Order, Event]] = field(default_factory=queue.SimpleQueue)
    thread: int = field(default_factory=threading.get_ident)

    def work(self) -> None:
        """Bring every case to its end, or raise Stopped."""
        for number, case in enumerate(self.cases):
            known = finished_case(case, self.place.store)
            if known is not None:
                self._end(number, known)
            else:
                self.pending.append(number)
        self.executor.check([self._order(self.cases[number]) for number in self.pending])
        self.shorter = shorter_trainings({number: self.cases[number] for number in self.pending})
        if self.executor.at_once > 1:
            times_s = {number: self.times_s.get(self.cases[number].id, 0.0) for number in self.pending}
            for longer, shorter in reversed(self.shorter.items()):  # the longer one has to wait for it
                times_s[shorter] += times_s[longer]
            self.pending = longest_first(self.pending, times_s)
        while self.pending or self.under_way:
            self._end_unasked()
            if not self.signals:
                self._start_what_can_start()
            if self.under_way:
                self._hear()
            elif self.signals:
                break
            elif self.pending:
                self._wait_for_another_run()
        self._end_unasked()
        if self.signals:
            raise Stopped(self.signals[0], "\n".join(self.saved) or f"stopped; {GO_ON}")

    def _end_unasked(self) -> None:
        """Take cases that were interrupted by nobody here for failed ones, as the run goes on."""
        for number, order, message in self.unasked:
            reason = f"{message}, though nobody has stopped the run"
            self._end(number, failed_result(order.case, reason, order.device))
        self.unasked.clear()

    def leave(self) -> None:
        """Write down what has ended and stands behind what has not, and let go of the cases."""
        for one in self.under_way.values():
            one.claim.close()
        self._write_down(self.results)

    def stop(self, number: int) -> None:
        """React to a signal: what is under way saves its work."""
        self.signals.append(number)
        if not self.under_way:
            raise Stopped(number, f"stopped; {GO_ON}")
        self.executor.stop(number)

    def _start_what_can_start(self) -> None:
        """Start cases while there are places for them, unless it was looked just now and nothing ended."""
        while self.pending and (free := self.executor.at_once - len(self.under_way)) > 0:
            if time.monotonic() - self.looked_s < LOOK_S:
                return
            found = self._startable(free)
            if not found:
                self.looked_s = time.monotonic()
                return
            self._start(found)

    def _startable(self, most: int) -> list[tuple[int, contextlib.ExitStack]]:
        """Return cases that need not wait for anybody, each with its claim."""
        found: list[tuple[int, contextlib.ExitStack]] = []
        busy = self._busy()
        beside = [one.order for one in self.under_way.values()]
        for number in tuple(self.pending):
            if len(found) >= most:
                break
            order = self._order(self.cases[number])
            if not self.executor.fits(order, beside):
                continue
            wanted = self._wanted(number)
            if busy & wanted or self._waits_for_shorter(number):
                continue
            if _in_other_hands(self.cases[number], self.place.store):
                continue
            claim = contextlib.ExitStack()
            mine = alone_at_once(claim_folder(self.cases[number], self.place.store), self.listener.notice)
            if claim.enter_context(mine):
                found.append((number, claim))
                beside.append(order)
                busy |= wanted
            else:
                claim.close()
        return found

    def _waits_for_shorter(self, number: int) -> bool:
        """Tell whether the training that this one goes on from is still to be made here."""
        shorter = self.shorter.get(number)
        if shorter is None or shorter in self.results or has_begun(self.cases[number], self.place.store):
            return False
        return not (self.place.store / "train" / self.cases[shorter].key("train") / DONE).exists()

    def _wanted(self, number: int) -> _Wanted:
        if number not in self.wanted:
            self.wanted[number] = _wanted(self.cases[number])
        return self.wanted[number]

    def _busy(self) -> _Wanted:
        """Return the stages that cases under way have yet to finish."""
        wanted = {one for under_way in self.under_way.values() for one in under_way.wanted}
        store = self.place.store
        return frozenset((stage, key) for stage, key in wanted if not (store / stage / key / DONE).exists())

    def _wait_for_another_run(self) -> None:
        """Take the first case when whoever holds it lets go of it."""
        number = next(number for number in self.pending if not self._waits_for_shorter(number))
        claim = contextlib.ExitStack()
        claim.enter_context(
            alone_in(claim_folder(self.cases[number], self.place.store), self.listener.notice)
        )
        self._start([(number, claim)])

    def _start(self, claimed: Sequence[tuple[int, contextlib.ExitStack]]) -> None:
        """Hand over cases that are held, except those that another run has finished meanwhile."""
        orders = []
        for number, claim in claimed:
            case = self.cases[number]
            self.pending.remove(number)
            known = finished_case(case, self.place.store)
            if known is not None:
                claim.close()
                self._end(number, known)
                continue
            note_claim(case, self.place.store)
            self.computed.add(number)
            order = self._order(case)
            self.under_way[id(order)] = _UnderWay(
                number=number, order=order, wanted=self._wanted(number), claim=claim
            )
            orders.append(order)
        if orders:
            self.executor.start(orders, self._tell)

    def _order(self, case: Case) -> Order:
        return Order(
            case=case,
            store=self.place.store,
            device=self.place.device,
            log=self.place.run_dir / LOGS / log_name(case),
            time_s=self.times_s.get(case.id, 0.0),
            memory=self.memory.get(case.id),
        )

    def _tell(self, order: Order, event: Event) -> None:
        self.events.put((order, event))
        if threading.get_ident() == self.thread:  # of an executor that works inside `start`
            self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(*self.events.get_nowait())

    def _hear(self) -> None:
        """Wait for what comes next, and take it in."""
        with contextlib.suppress(queue.Empty):
            self._take(*self.events.get(timeout=LOOK_S))
        self._drain()

    def _take(self, order: Order, event: Event) -> None:
        if isinstance(event, Progress):
            self._pass_on(order.case, event)
            return
        one = self.under_way.pop(id(order))
        one.claim.close()
        self.looked_s = float("-inf")
        if isinstance(event, Finished):
            self._end(one.number, event.result)
        elif self.signals:
            self.saved.append(event.message)
        else:
            self.unasked.append((one.number, order, event.message))

    def _pass_on(self, case: Case, event: Progress) -> None:
        if event.stage == NOTICE:
            self.listener.notice(event.note)
        elif event.stage == STAGE_ENDED:
            self.looked_s = float("-inf")  # others may have waited for this stage
            self.listener.stage_ended(case, event.note, event.done / 1000)
        else:
            self.listener.progress(case, event.stage, event.done, event.total, event.note)

    def _end(self, number: int, result: Result) -> None:
        self.results[number] = result
        ready = []
        while self.ended in self.results:
            ready.append(self.ended)
            self.ended += 1
        self._write_down(ready)
        self.listener.finished(result, number not in self.computed)

    def _write_down(self, numbers: Iterable[int]) -> None:
        """Add lines for cases that were computed here, each once."""
        new = [number for number in sorted(numbers) if number in self.computed and number not in self.written]
        if not new:
            return
        with alone_in(self.place.run_dir, self.listener.notice):
            for number in new:
                append_result(self.place.run_dir / RESULTS, self.results[number])
                self.written.add(number)


def log_name(case: Case) -> str:
    """Return the name of the file that keeps what a case prints: to be found by a person and by its id."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', case.label)[:60].strip('-')}-{case.id}.log"


def teacher_of(case: Case) -> Case | None:
    """Return the case of the same suite that teaches a case, or None."""
    return case.teacher.trains_here if case.teacher is not None else None


def _wanted(case: Case) -> _Wanted:
    """Return the stages of a case that are worth keeping others from meanwhile.

    `prepare` without latents takes no time: who meets another one in it waits for a moment. A case that is
    taught by one of its own suite needs that one's training, too.
    """
    stages = (stage for stage in stages_of(case) if stage != "prepare" or codec_of(case) is not None)
    wanted: set[tuple[Stage, str]] = {(stage, case.key(stage)) for stage in stages}
    teacher = teacher_of(case)
    if teacher is not None:
        wanted.add(("train", teacher.key("train")))
    return frozenset(wanted)


def _in_other_hands(case: Case, store: Path) -> bool:
    """Tell whether another run works on a case, on a training that it shares, or on its teacher's."""
    trainings = {case.key("train")} | ({teacher.key("train")} if (teacher := teacher_of(case)) else set())
    return is_held(claim_folder(case, store)) or any(is_held(store / "train" / key) for key in trainings)
