"""The rounds of one resolution: rows side by side in processes of their own, renewed where that is cheap."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil

from attnbench.devices import available_cores
from attnbench.profiling.child import Child
from attnbench.profiling.draft import Draft
from attnbench.profiling.protocol import Ready, Refusal
from attnbench.profiling.rows import LEAST_ROUNDS, is_clean
from attnbench.specs import ProfileSpec

SITTINGS = 5
"""How often a row with short passes sits down, each time with a new process: of two equal rows all five say
the same in 2 of 32 cases."""
RENEWED_BELOW_MS = 50.0
"""Passes shorter than this are short; a new process costs about 0.2 s of a core."""
MOST_ROUNDS = 5  # times the least: a machine that never settles is not measured for ever
GIVEN_UP = 2  # times the least, where none of them is clean

SetUp = Callable[[Draft], tuple[Child, Ready | Refusal]]


@dataclass(kw_only=True)
class Group:
    """The rows of one resolution, which take their rounds in turns.

    Two processes of the same code differ by their luck with memory, by up to 6 % in passes of a millisecond,
    and a machine's pace drifts over minutes. So where all passes are short, rows take their rounds in five
    sittings, each with a new process, the other resolutions in between. Where one is long, on a GPU and
    compiled, all keep one process until their intervals are narrow: luck is small, rounds last long, or a new
    process costs too much. Either way round i of two rows was taken side by side: they are pairs.
    """

    rows: Sequence[Draft]
    spec: ProfileSpec
    device: str
    set_up: SetUp
    """Starts a row's process and has its pass built and warmed up."""
    note: Callable[[str], None]
    extra_until: float
    """On the monotonic clock: from then on no row takes more rounds than it must."""
    give_up: Callable[[], None] = lambda: None
    """Ends the processes that are being set up: an interruption does not wait for their passes."""
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _sittings: int = 0

    def is_over(self) -> bool:
        """Whether no row takes more rounds; each is asked, so that it says why."""
        found = [self._is_over(draft) for draft in self.rows]
        return all(found)

    def sit(self) -> None:
        """Take a sitting of every row that is not over; fills in their rounds, or why they have none."""
        rows = [draft for draft in self.rows if not self._is_over(draft)]
        children: dict[int, Child] = {}
        try:
            self._start(rows, children)
            for number in range(MOST_ROUNDS * self.spec.rounds):
                turns = [d for d in rows if id(d) in children and self._sits_on(d, number)]
                if not turns:
                    break
                random.Random(f"{self._sittings} {number}").shuffle(turns)
                for draft in turns:
                    self._take_round(draft, number, children)
        finally:
            for child in children.values():
                child.close()
        self._sittings += 1
        self.is_over()

    def _start(self, rows: Sequence[Draft], children: dict[int, Child]) -> None:
        """Set up the rows' processes; the first ones alone, since the length of their passes decides."""

        interrupted: list[bool] = []

        def start(draft: Draft) -> None:
            self._say(f"{draft.name}: setting up")
            draft.session = self._name
            child, reply = self.set_up(draft)
            children[id(draft)] = child
            if interrupted:
                return  # its process was ended, which is no fault of the row
            self._account(draft, child)
            if isinstance(reply, Ready):
                draft.ready = draft.ready or reply
            else:
                self._end(draft, reply, children)

        with ThreadPoolExecutor(available_cores() if self._sittings else 1) as pool:
            try:
                list(pool.map(start, rows))
            except KeyboardInterrupt:
                interrupted.append(True)
                self.give_up()
                raise

    def _take_round(self, draft: Draft, number: int, children: dict[int, Child]) -> None:
        if number < self.spec.rounds:
            self._say(f"{draft.name}: round {number + 1}")
        child = children[id(draft)]
        taken = child.take_round()
        self._account(draft, child)
        if isinstance(taken, Refusal):
            self._end(draft, taken, children)
        else:
            draft.rounds.append(taken.model_copy(update={"process": self._sittings}))

    def _say(self, what: str) -> None:
        if not self._sittings:  # later ones are not counted in advance: which rows have them is not known
            self.note(what)

    def _account(self, draft: Draft, child: Child) -> None:
        draft.spent_s = self.spec.timeout_s - child.budget_s

    def _sits_on(self, draft: Draft, number: int) -> bool:
        return not self._is_over(draft) and (number < self._in_a_sitting or not self._is_renewed)

    @property
    def _in_a_sitting(self) -> int:
        """Rounds of a row that is renewed: half of the least, two and a half times the least in all."""
        return ceil(self.spec.rounds / 2)

    @property
    def _is_renewed(self) -> bool:
        """Whether each sitting has new processes: of all rows or none, or rounds would be no pairs."""
        passes = [draft.ready.pass_ms for draft in self.rows if draft.ready is not None]
        cheap = self.device == "cpu" and not self.spec.compile
        return cheap and max(passes, default=RENEWED_BELOW_MS) < RENEWED_BELOW_MS

    def _is_over(self, draft: Draft) -> bool:
        """Whether a row takes no more rounds; says why."""
        if draft.is_finished:
            return True
        count, least = len(draft.rounds), self.spec.rounds
        renewed = self._is_renewed
        if count < least:
            return False
        if not renewed and draft.is_narrow(self.spec.interval):
            draft.stopped = "narrow"
        elif self._is_out_of_time(draft):
            draft.stopped = "time"
        elif count >= (SITTINGS * self._in_a_sitting if renewed else MOST_ROUNDS * least) or (
            not renewed and count >= least * GIVEN_UP and not any(map(is_clean, draft.rounds))
        ):
            draft.stopped = "narrow" if draft.is_narrow(self.spec.interval) else "rounds"
        return bool(draft.stopped)

    def _is_out_of_time(self, draft: Draft) -> bool:
        a_round = draft.spent_s / (len(draft.rounds) or 1)
        return draft.spent_s + a_round > self.spec.timeout_s or time.monotonic() > self.extra_until

    def _end(self, draft: Draft, reply: Refusal, children: dict[int, Child]) -> None:
        """A row that has an interval already keeps it where only its time is out."""
        children.pop(id(draft)).close()
        if reply.status == "skipped" and len(draft.rounds) >= max(LEAST_ROUNDS, self.spec.rounds):
            draft.stopped = "time"
        else:
            draft.refusal = reply
