"""A case on several machines: they compare what they have, lend processes, and notice each other's end."""

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from process_cases import assert_same_but_for_rounding, digits_case, trained
from safetensors.torch import load_file
from torch.distributed import TCPStore

from attnbench.errors import AttnbenchError, UserInputError
from attnbench.running.executors import agreement, gathering, process
from attnbench.running.executors.conversation import failed_result
from attnbench.running.executors.interface import Asked, Order
from attnbench.running.executors.launcher import Launch
from attnbench.stages import interrupts, train
from attnbench.stages.distributed import machines, talk
from attnbench.stages.interrupts import GO_ON, Stopped
from attnbench.storage.store import Host, Workspace

KEY = "ab" * 32


@pytest.fixture
def host(monkeypatch):
    """Another machine on the loopback device, which lends one process."""
    monkeypatch.setenv(talk.INTERFACE, "lo")
    monkeypatch.delenv(talk.INTERFACE)  # to be found; what is set meanwhile goes
    lender = machines.Lender("127.0.0.1", KEY)
    yield Host(name="2 (there)", address="127.0.0.1", port=lender.port, processes=1, key=KEY)
    lender.close(10)


def over(root: Path, host: Host, **settings) -> Workspace:
    return Workspace(root=root, device=torch.device("cpu"), processes=2, hosts=(host,), **settings)


@pytest.mark.parametrize("sharding", ["none", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_process_of_another_machine_trains_what_one_trains(tmp_path, host, sharding):
    """Losses and weights are those of one process, but for rounding; gloo takes the machines' interface."""
    case = digits_case(steps=4, sharding=sharding)
    workspace = over(tmp_path / "two", host)
    losses = [loss for _, loss in train.run(case, workspace).curves["loss"]]
    weights = load_file(workspace.folder("train", case) / "checkpoint.safetensors")
    assert_same_but_for_rounding(trained(tmp_path / "one", case, 1), (weights, losses), steps=4)
    assert os.environ[talk.INTERFACE] == "lo"


def test_a_process_that_dies_on_another_machine_is_told(tmp_path, monkeypatch, host):
    """The first machine's error names the process, its machine and how it ended there."""
    started = []
    child = machines.ChildProcess

    def remember(*words, **settings):
        started.append(child(*words, **settings))
        return started[-1]

    monkeypatch.setattr(machines, "ChildProcess", remember)

    def kill(stage, done, total, note):
        if done >= 2 and started[0].is_alive:
            os.kill(started[0].pid, signal.SIGKILL)

    case = digits_case(steps=4000, log_every=1)
    with pytest.raises(AttnbenchError, match=r"process 1 of 2 on machine 2 \(there\) was killed by SIG"):
        train.run(case, over(tmp_path, host, progress=kill))


def test_nobody_without_the_key_is_lent_a_process(host):
    """A stranger is refused before it has asked for anything."""
    stranger = host.model_copy(update={"key": "cd" * 32})
    with pytest.raises(AttnbenchError, match=r"what listens there is not of this run"):
        talk.open_talk(stranger)
    assert KEY not in repr(host)


@pytest.fixture
def launches():
    """Two machines of one process each that find each other in a store as torchrun's agent has it."""
    board = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launch = partial(Launch, processes=2, here=1, machines=2, address="127.0.0.1", port=board.port)
    return board, launch(machine=0), launch(machine=1)


def gather(launches, store, *, cases, others=None, end=nullcontext):
    """Let two machines compare; return what each has come to: an exit code or an error."""
    _, first, second = launches

    def lead():
        with gathering.gathered(first, cases, store, "cpu", lambda text: None) as crew, end():
            crew.code = 7
        return crew.code

    def other():
        return gathering.lend(second, cases if others is None else others, "cpu", lambda text: None)

    with ThreadPoolExecutor(2) as pool:
        return [future.exception() or future.result() for future in [pool.submit(lead), pool.submit(other)]]


def test_the_other_machine_ends_with_the_code_of_the_first(tmp_path, launches):
    """As torchrun wants it: all copies fail, or none. What an attempt before has left confuses nobody."""
    cases = [digits_case()]
    assert gather(launches, tmp_path, cases=cases) == [7, 7]
    assert gather(launches, tmp_path, cases=cases) == [7, 7]
    assert not list((tmp_path / "cells").iterdir())  # the mark and the key are gone

    def fail():
        raise UserInputError("no such suite")

    codes = gather(launches, tmp_path, cases=cases, end=lambda: nullcontext(fail()))
    assert codes[1] == 2


def test_machines_that_do_not_fit_are_refused_on_both(tmp_path, monkeypatch, launches):
    """Another suite, store or torch: one error, which names the machine, before anything trains."""
    cases = [digits_case()]
    other = digits_case(lr=1e-4)

    def refusal(**settings):
        found = gather(launches, tmp_path, cases=cases, **settings)
        assert [type(error) for error in found] == [UserInputError, UserInputError]
        assert str(found[0]) == str(found[1])
        return str(found[0])

    assert "machine 2 (" in refusal(others=[other])
    assert "its suite has other settings: case differs from the first machine's" in refusal(others=[other])
    assert "1 cases" not in refusal(others=[*cases, other])
    assert "2 cases, and the first machine 1" in refusal(others=[*cases, other])
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "held_mark", lambda folder: nullcontext(folder.mkdir(parents=True)))
        assert "does not see the file locks" in refusal() or "has no folder" in refusal()
    versions, main = agreement.versions, {}

    def differ():
        main.setdefault(threading.get_ident(), len(main))
        return versions() | {"torch": f"2.{main[threading.get_ident()]}"}

    with monkeypatch.context() as patch:
        patch.setattr(agreement, "versions", differ)
        assert "it has torch 2." in refusal()


def test_no_case_starts_after_a_signal_that_the_last_one_did_not_survive(tmp_path, monkeypatch):
    """A lost machine fails the case under way and stops the run: the others are not to fail in turn."""

    def die(case, *_, signals, **__):
        signals.append(signal.SIGTERM)
        return failed_result(case, "its machine is lost", "cpu")

    monkeypatch.setattr(process, "run_in_process", die)
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log")
    told = []
    with pytest.raises(Stopped) as stopped:
        process.OneProcess(Asked()).start([order, order], lambda _, event: told.append(event))
    assert stopped.value.message == f"case: failed; {GO_ON}"
    assert [event.result.status for event in told] == ["failed"]


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (talk.Talk.close, "is lost: it is gone or cannot be reached; the run stops"),
        (lambda end: end.send(gathering.StopHere(number=15)), "was told to stop by SIGTERM: the run stops"),
    ],
)
def test_what_happens_to_the_other_machine_stops_the_run(tmp_path, monkeypatch, launches, happens, says):
    """It is as a signal to the first: what is saved is kept, and torchrun may start anew."""
    stopped, told, killed = threading.Event(), [], []

    def kill(pid, number):
        killed.append((pid, number))
        stopped.set()

    monkeypatch.setattr(gathering.os, "kill", kill)
    monkeypatch.setattr(interrupts, "_heard", [])
    _, first, second = launches

    def lead():
        with gathering.gathered(first, [digits_case()], tmp_path, "cpu", told.append):
            return stopped.wait(20)

    with ThreadPoolExecutor(1) as pool:
        leads = pool.submit(lead)
        lender, _ = gathering._answer(second, [digits_case()], "cpu")
        happens(lender.watch.get(timeout=20))
        assert leads.result()
    assert killed == [(os.getpid(), signal.SIGTERM)]
    lender.close(1)
    assert [says in text for text in told] == [True]


def test_a_machine_that_stops_with_all_others_is_no_second_signal(monkeypatch):
    """The first machine is saving already: a second signal would end it at once."""
    monkeypatch.setattr(gathering.os, "kill", lambda pid, number: pytest.fail("was told twice"))
    monkeypatch.setattr(interrupts, "_heard", [signal.SIGTERM])
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = talk.Talk(socket.create_connection(server.getsockname()))
        there = talk.Talk(server.accept()[0])
    there.send(gathering.StopHere(number=15))
    machine = Host(name="2", address="", port=0, processes=1, key=KEY)
    gathering._watch(here, machine, gathering.Crew(), pytest.fail)
    here.forget()
    there.forget()


def test_the_end_of_the_first_machine_ends_the_others(tmp_path, launches):
    """Killed, it says no farewell: the others fail, too, so that torchrun starts all of them again."""
    _, first, second = launches
    with ThreadPoolExecutor(1) as pool:
        lends = pool.submit(gathering.lend, second, [digits_case()], "cpu", lambda text: None)
        board = gathering._board(first)
        (host,) = gathering._agree(board, first, [digits_case()], tmp_path, "cpu")
        machines.watch(host).close()
        with pytest.raises(AttnbenchError, match="the first machine is gone or cannot be reached; torchrun"):
            lends.result()
