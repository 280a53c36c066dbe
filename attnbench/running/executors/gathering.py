"""Several machines for each case of a run: the first finds the others, and they lend it processes.

torchrun starts the same command on each. The first machine runs the cases, as it does alone; the others lend
processes to a case while it trains or samples, and wait without any collective, and so without its time
limit, during all else. Before anything trains the machines compare versions, code, settings, data and the
store. A machine that is lost, or told to stop, stops the run; with torchrun's --max-restarts the machines
that there are then find each other again, and what was saved goes on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined] # it has no list of names

from attnbench.errors import AttnbenchError, UserInputError
from attnbench.results import Record
from attnbench.running.executors.agreement import Answer, First, first_word, lacks
from attnbench.running.executors.asking import held_mark
from attnbench.running.executors.cradle import KEEP_MEMORY_MAPPED
from attnbench.running.executors.launcher import Launch
from attnbench.running.executors.lending import new_key, write_key
from attnbench.specs import Case
from attnbench.stages.distributed.machines import ENDING_S, Lender, watch
from attnbench.stages.distributed.talk import Talk
from attnbench.stages.interrupts import GO_ON, Stopped, on_signal, was_told_to_stop
from attnbench.storage.names import CLAIMS
from attnbench.storage.store import Host

GATHER_S = 300.0  # for all machines to start, read the suite and compare
LOOK_S = 0.1
ASIDE_S = 2.0  # for the first machine to hear a signal itself that all machines get
_FIRST, _VERDICT, _ANSWER = "attnbench/first", "attnbench/verdict", "attnbench/machine"
_KEY = "key"
_AGAIN = f"torchrun starts the run again as often as its --max-restarts says; else {GO_ON}"
Tell = Callable[[str], None]


class Farewell(Record):
    """The run on the first machine has ended with this exit code."""

    code: int


class StopHere(Record):
    """This machine was told to stop, by a signal."""

    number: int


@dataclass(kw_only=True)
class Crew:
    """The other machines of a run, and the exit code that they are to end with."""

    hosts: tuple[Host, ...] = ()
    code: int = 1
    is_over: threading.Event = field(default_factory=threading.Event)
    """Or stops: what becomes of another machine is no reason to stop any more."""
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def gathered(launch: Launch, cases: Sequence[Case], store: Path, device: str, tell: Tell) -> Iterator[Crew]:
    """Find the other machines of a launch and keep them for the block; none where it has one machine.

    Raises UserInputError where one has not what the run needs, AttnbenchError where one does not answer.
    A machine that is lost or told to stop is as SIGTERM to this process.
    """
    if launch.machines == 1:
        yield Crew()
        return
    with _reaching(launch):
        board = _board(launch)  # kept to the end, since this process may be the one that serves it
        crew = Crew(hosts=_agree(board, launch, cases, store, device))
    talks: list[Talk] = []
    try:
        for host in crew.hosts:
            talks.append(watch(host))
            threading.Thread(target=_watch, args=(talks[-1], host, crew, tell), daemon=True).start()
        yield crew
    except UserInputError:
        crew.code = 2
        raise
    except SystemExit as stop:
        crew.code = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        crew.is_over.set()
        for talk in talks:
            talk.send(Farewell(code=crew.code))
            talk.close()


def lend(launch: Launch, cases: Sequence[Case], device: str, tell: Tell) -> int:
    """Lend processes to the first machine until its run ends; return its exit code.

    Raises UserInputError where the machines do not fit, and AttnbenchError where the first one is lost. A
    signal stops the first machine's run, which saves first; a second one ends this process.
    """
    with _reaching(launch):
        lender, verdict = _answer(launch, cases, device)
    if verdict or lender is None:
        raise UserInputError(verdict)
    lost = f"machine {_name(launch)}: the first machine is gone or cannot be reached; {_AGAIN}"
    try:
        talk = lender.watch.get(timeout=GATHER_S)
        tell(f"machine {_name(launch)} lends {launch.here} processes to the first one")
        signals: list[int] = []

        def stop(number: int) -> None:
            signals.append(number)
            if len(signals) > 1:
                raise Stopped(number, "stopped at once; what the first machine has saved is kept")
            telling = threading.Timer(ASIDE_S, talk.send, [StopHere(number=number)])
            telling.daemon = True
            telling.start()

        with on_signal(stop):
            farewell = talk.receive(Farewell)
    except queue.Empty:
        raise AttnbenchError(lost) from None
    finally:
        lender.close(2 * ENDING_S)
    if farewell is None:
        raise AttnbenchError(lost)
    return farewell.code


def _watch(talk: Talk, host: Host, crew: Crew, tell: Tell) -> None:
    """Stop this process as a signal would when another machine is lost or told to stop.

    Once: a second signal would end it before it has saved, and a scheduler may tell all machines.
    """
    told = talk.receive(StopHere)
    with crew.one_at_a_time:
        if crew.is_over.is_set() or was_told_to_stop():
            return
        crew.is_over.set()
    if told is None:
        tell(f"machine {host.name} is lost: it is gone or cannot be reached; the run stops. {_AGAIN}")
    else:
        tell(f"machine {host.name} was told to stop by {signal.Signals(told.number).name}: the run stops")
    os.kill(os.getpid(), signal.SIGTERM)


def _agree(board: Store, launch: Launch, cases: Sequence[Case], store: Path, device: str) -> tuple[Host, ...]:
    """Ask every other machine what it lacks; return all, or raise UserInputError with what they lack."""
    attempt, key = secrets.token_hex(8), new_key()
    mark = Path(CLAIMS) / f"machines-{attempt}"
    with held_mark(store / mark):
        write_key(store / mark / _KEY, key)
        first = first_word(attempt, cases, store, mark, device)
        board.set(_FIRST, first.model_dump_json())
        answers = [_await_answer(board, number, launch, attempt) for number in range(1, launch.machines)]
        problems = [f"machine {one.name}: {text}" for one in answers for text in one.problems]
        board.set(f"{_VERDICT}/{attempt}", "\n  ".join(problems))
    if problems:
        raise UserInputError("\n  ".join(problems))
    return tuple(
        Host(name=one.name, address=one.address, port=one.port, processes=one.processes, key=key)
        for one in answers
    )


def _await_answer(board: Store, number: int, launch: Launch, attempt: str) -> Answer:
    until, key = time.monotonic() + GATHER_S, f"{_ANSWER}/{number}"
    while time.monotonic() < until:
        if board.check([key]):
            answer = Answer.model_validate_json(board.get(key))
            if answer.attempt == attempt:
                return answer
        time.sleep(LOOK_S)
    raise AttnbenchError(
        f"machine {number + 1} of {launch.machines} has not answered within {GATHER_S:g} s; look at what "
        "attnbench has printed there, and start the same command on each machine"
    )


def _answer(launch: Launch, cases: Sequence[Case], device: str) -> tuple[Lender | None, str]:
    """Tell the first machine what this one lacks; return what listens here, and what the first one found.

    What the first machine of an attempt before has left in the store has its verdict already.
    """
    board, until = _board(launch), time.monotonic() + GATHER_S
    seen: set[str] = set()
    answered, lender = "", None
    while time.monotonic() < until:
        first = First.model_validate_json(board.get(_FIRST)) if board.check([_FIRST]) else None
        verdict = None if first is None else f"{_VERDICT}/{first.attempt}"
        is_decided = verdict is not None and board.check([verdict])
        if first is not None and first.attempt not in seen:
            seen.add(first.attempt)
            if not is_decided:
                answered, lender = first.attempt, _reply(board, launch, first, cases, device)
        elif first is not None and is_decided and first.attempt == answered:
            return lender, board.get(str(verdict)).decode()
        else:
            time.sleep(LOOK_S)
    raise AttnbenchError(
        f"machine {_name(launch)}: the first machine has not begun a run within {GATHER_S:g} s; look at what "
        "attnbench has printed there"
    )


def _reply(board: Store, launch: Launch, first: First, cases: Sequence[Case], device: str) -> Lender | None:
    with socket.create_connection((launch.address, launch.port), GATHER_S) as asking:
        address = asking.getsockname()[0]
    problems, lender = lacks(first, launch, cases, device), None
    if not problems:
        path = first.store / first.mark / _KEY
        try:
            lender = Lender(address, path.read_text(), KEEP_MEMORY_MAPPED)
        except OSError as error:
            problems = [f"{path}: {error.strerror or error}; the same user must run attnbench everywhere"]
    answer = Answer(
        attempt=first.attempt,
        name=_name(launch),
        address=address,
        port=lender.port if lender is not None else 0,
        processes=launch.here,
        problems=problems,
    )
    board.set(f"{_ANSWER}/{launch.machine}", answer.model_dump_json())
    return lender


def _name(launch: Launch) -> str:
    return f"{launch.machine + 1} ({socket.gethostname()})"


def _board(launch: Launch) -> Store:
    """Return the store through which machines find each other."""
    return TCPStore(
        launch.address,
        launch.port,
        is_master=launch.serves and launch.machine == 0,
        wait_for_workers=False,
        timeout=timedelta(seconds=GATHER_S),
    )


@contextlib.contextmanager
def _reaching(launch: Launch) -> Iterator[None]:
    """Turn an error of that store into an AttnbenchError."""
    try:
        yield
    except RuntimeError as error:
        raise AttnbenchError(
            f"machine {_name(launch)}: the launcher's store at {launch.address}:{launch.port} cannot be "
            f"reached, or its machine is gone: {str(error).splitlines()[0]}; {_AGAIN}"
        ) from error
