"""A case on several nodes of a cluster: what is refused, how nodes meet, and what becomes of a lost one."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import replace
from itertools import product

import pytest
import torch
from command_line import attnbench_here
from process_cases import digits_case

from attnbench.errors import UserInputError
from attnbench.running.executors import lending, slurm_nodes, slurm_queue, slurm_submit
from attnbench.running.executors.asking import Asking, plain, source_digest
from attnbench.running.executors.cluster_shares import (
    Node,
    Share,
    asked_memory,
    cases_at_once,
    check_memory,
    share_of_each,
)
from attnbench.running.executors.conversation import failed_result
from attnbench.running.executors.interface import Asked, Finished, Interrupted, Order
from attnbench.running.executors.slurm import Slurm, _Task
from attnbench.running.executors.slurm_task import ANSWER, PROGRESS, SlurmTask
from attnbench.running.memory import MemoryNeed

HERE, KEY = "127.0.0.1", lending.new_key()
SHARE = Share(device="cpu", threads=1, cpus=1, gpus=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--nodes", "2"],
            "--nodes is 2, which is of a cluster; add --executor ray or slurm, or leave",
        ),
        (["--nodes", "2", "--jobs", "2"], "torchrun on each machine says it by --nnodes"),
        (
            ["--executor", "slurm", "--nodes", "2"],
            "--processes is 1, and each of --nodes 2 has as many of them; choose a multiple of 2",
        ),
        (
            ["--executor", "ray", "--nodes", "2", "--processes", "3"],
            "--processes is 3, and each of",
        ),
    ],
)
def test_nodes_that_cannot_be_had_are_refused(here, words, said):
    """One line, exit code 2, before the suite is read."""
    done = attnbench_here("run", "no-such-suite", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def nodes(*sizes: tuple[int, int]) -> list[Node]:
    return [Node(id=str(n), address="", cpus=c, gpus=g, memory=n * 2**30) for n, (c, g) in enumerate(sizes)]


def test_each_node_holds_its_share_of_the_processes(monkeypatch):
    """Threads are those of a case on each of its nodes, as under torchrun."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    asked = Asked(device="cuda", processes=8, nodes=2, jobs=0)
    half = Share(device="cuda", threads=16, cpus=16, gpus=4)
    assert share_of_each(asked, nodes((32, 8), (32, 8))) == half
    asked = Asked(device="cpu", processes=6, nodes=2, threads=2)
    assert share_of_each(asked, nodes((4, 0), (4, 0))) == replace(SHARE, threads=2, cpus=3)


def test_too_few_nodes_are_refused_with_what_they_have():
    """One node that would hold it twice is not two."""
    with pytest.raises(UserInputError) as raised:
        share_of_each(Asked(device="cpu", processes=4, nodes=2, threads=2), nodes((4, 0), (1, 0)))
    assert str(raised.value) == (
        "a case needs 2 CPUs on each of 2 nodes, and 1 of the cluster's 2 has that (1 CPUs and 0 GPUs, "
        "4 CPUs and 0 GPUs); lower --nodes, --threads or --processes, or choose another --device"
    )


def most_at_once(held: tuple[int, ...], of_each: int) -> int:
    """Return how many cases find `of_each` different nodes, by trying every choice of the next one's."""
    choices = [taken for taken in product((0, 1), repeat=len(held)) if sum(taken) == of_each]
    left = [tuple(h - t for h, t in zip(held, taken, strict=True)) for taken in choices]
    return max((1 + most_at_once(one, of_each) for one in left if min(one) >= 0), default=0)


@pytest.mark.parametrize("of_each", [1, 2, 3])
def test_cases_at_once_are_counted_on_different_nodes(of_each):
    """As trying all ways to place them does: three nodes of 3, 1 and 1 hold two cases of two nodes."""
    for held in product(range(4), repeat=3):
        given = nodes(*((cpus, 0) for cpus in held))
        assert cases_at_once(SHARE, given, of_each) == most_at_once(held, of_each), held


def test_memory_is_what_each_of_a_cases_nodes_has(tmp_path):
    """The second largest counts, where two are needed."""
    given = nodes((1, 0), (1, 0), (1, 0))  # of 0, 1 and 2 GiB
    assert (asked_memory(2**40, given), asked_memory(2**40, given, 2)) == (2**31, 2**30)
    need = MemoryNeed(least=3 * 2**29, estimate=2**31)
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log", memory=need)
    check_memory([order], given)
    with pytest.raises(UserInputError, match=r"each of its 2 largest nodes has 1.0 GiB"):
        check_memory([order], given, 2)


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs attnbench[slurm]")
def test_the_script_asks_for_the_nodes_with_what_each_needs(monkeypatch, tmp_path):
    """Memory and cores are a node's, in Slurm's words as well; sbatch's own option is not a further one."""
    pair = nodes((8, 0), (8, 0), (8, 0))
    monkeypatch.setattr(slurm_queue, "nodes_of", lambda partition: pair)
    need = MemoryNeed(least=0, estimate=100 * 2**20)
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "logs/log", memory=need)
    asked = Asked(device="cpu", processes=4, nodes=2, threads=3)
    said = slurm_submit.script(asked, replace(SHARE, threads=3, cpus=3), [order])
    for line in ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=3", "--mem=125M"):
        assert f"#SBATCH {line}\n" in said
    driver = Slurm(asked)
    assert (driver.processes, driver.elsewhere) == (2, 2)


def test_sbatchs_own_number_of_nodes_is_said_by_ours():
    with pytest.raises(UserInputError, match=r"nodes is no further option: say it by --nodes"):
        slurm_submit._further(["nodes=2"])


@pytest.fixture
def asking(tmp_path):
    """A case of one process on each of two nodes."""
    return Asking(
        case=plain(digits_case()), store=tmp_path, log=tmp_path / "log", device="cpu", processes=2, nodes=2,
        threads=1, note="", beside_others=True,
    )  # fmt: skip


@pytest.fixture
def lent(asking):
    """What another node of it, this machine, has said, and what listens there."""
    said, lender = lending.lend(asking, "n2", source_digest(), HERE, KEY)
    yield said, lender
    lender.close(5)


def failure(asking: Asking) -> Finished:
    return Finished(failed_result(asking.request().case, "process 1 of 2 is lost", "cpu"))


def test_a_failed_case_whose_node_is_gone_is_lost(asking, lent):
    """Not failed, so that it is tried again; with all its nodes there it is, and what is done is done."""
    said, lender = lent
    done = failure(asking)
    fine = Finished(done.result.model_copy(update={"status": "ok"}))
    with lending.Crew(asking, KEY, [said]) as crew:
        assert [(host.name, host.address, host.processes) for host in crew.hosts] == [("n2", HERE, 1)]
        assert crew.answer(done)["result"]["reason"] == "process 1 of 2 is lost"
        lender.watch.get(timeout=5).close()
        assert crew.answer(done) == {"lost": "node n2 is lost: it is gone or cannot be reached"}
        assert crew.answer(fine)["result"]["status"] == "ok"
        assert crew.answer(Interrupted("saved")) == {"interrupted": "saved"}


def test_a_node_that_answers_nobody_any_more_is_lost(asking, lent):
    """Without a word, as when its power fails: the open connection says nothing yet, a new one does."""
    said, lender = lent
    with lending.Crew(asking, KEY, [said]) as crew:
        still_open = lender.watch.get(timeout=5)
        lender.close(0)
        assert crew.answer(failure(asking))["lost"].startswith(f"machine n2 ({HERE}:{said.port}) cannot be")
        still_open.forget()
    with pytest.raises(lending.CannotJoinError) as raised, lending.Crew(asking, KEY, [said]):
        pytest.fail("nobody listens there")
    assert "cannot be reached" in raised.value.answer["lost"]


def test_what_a_node_lacks_fails_the_case_in_words(asking, lent):
    """Other code, or another torch than the first node's."""
    other_torch = lent[0].model_copy(update={"name": "n3", "versions": lent[0].versions | {"torch": "1.0"}})
    other_code, lender = lending.lend(asking, "n2", "f" * 16, HERE, KEY)
    assert lender is None
    crew = lending.Crew(asking, KEY, [other_code, other_torch])
    with pytest.raises(lending.CannotJoinError) as raised, crew:
        pytest.fail("they do not fit")
    reason = raised.value.answer["result"]["reason"]
    assert reason.startswith("node n2: its attnbench is of the driver's version, but of other code")
    assert f"node n3: it has torch 1.0, the first machine {torch.__version__}; install the same" in reason


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task's folder under Slurm, which this process is a node of."""
    monkeypatch.setattr(slurm_nodes, "LOOK_S", 0.01)
    told = {"SLURMD_NODENAME": "n2", "SLURM_LAUNCH_NODE_IPADDR": HERE, "SLURM_PROCID": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    place = tmp_path / "task"
    place.mkdir()
    lending.write_key(place / slurm_nodes.KEY, KEY)
    return place


def start(task) -> threading.Thread:
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    return thread


def test_nodes_of_slurm_meet_in_the_tasks_folder(asking, folder, monkeypatch):
    """The other one stays as long as the first one; what an attempt before has left there is not it."""
    assert (folder / slurm_nodes.KEY).stat().st_mode & 0o777 == 0o600
    old = lending.Lent(name="old", versions={}, problems=["it was another attempt"])
    (folder / "lender-0-1").write_text(old.model_dump_json())
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lends = start(SlurmTask(asking, folder, source_digest()))
    crew = slurm_nodes.gather(asking, folder, lambda: False)
    with crew:
        lends.join(0.3)
        assert lends.is_alive()
        assert [(host.name, host.address) for host in crew.hosts] == [("n2", HERE)]
    lends.join(20)
    assert not lends.is_alive()


def test_nodes_that_do_not_come_are_waited_for_no_longer_than_that(asking, folder, monkeypatch):
    """Then the case is tried again; where the driver wants no more, it ends at once."""
    assert slurm_nodes.gather(asking, folder, lambda: True) is None
    monkeypatch.setattr(slurm_nodes, "GATHER_S", 0.02)
    with pytest.raises(lending.CannotJoinError) as raised:
        slurm_nodes.gather(asking, folder, lambda: False)
    assert raised.value.answer["lost"].startswith(
        "node 2 of 2 has not answered within 0.02 s; what it printed"
    )
    lends = start(SlurmTask(asking, folder, source_digest()))
    lends.join(20)  # nobody ever watches it
    assert not lends.is_alive()


def test_a_node_ends_when_the_case_is_answered_without_it(asking, folder, monkeypatch):
    """As where the first one lacks something; and a task that is requeued after its end does nothing."""
    lends = start(SlurmTask(asking, folder, source_digest()))
    while not (folder / "lender-0-1").exists():
        lends.join(0.01)
    (folder / ANSWER).write_text("{}")
    lends.join(20)
    assert not lends.is_alive()
    monkeypatch.setenv("SLURM_PROCID", "0")
    SlurmTask(asking, folder, source_digest())()
    assert (folder / ANSWER).read_text() == "{}"
    assert not (folder / PROGRESS).exists()


@pytest.mark.parametrize("signals", [[], [15]])
def test_a_driver_of_slurm_tries_a_lost_case_again(asking, folder, monkeypatch, signals):
    """As it does where Slurm itself has lost the node; after a signal it is interrupted."""
    told, again = [], []
    driver = Slurm(Asked(processes=2, nodes=2))
    driver._spool, driver._signals = folder.parent, signals
    monkeypatch.setattr(driver, "_submit", again.extend)
    order = Order(case=digits_case(), store=folder, device="cpu", log=folder / "log")
    task = _Task(order=order, tell=lambda _, event: told.append(event), folder=folder, tries=1, job="7_0")
    driver._tasks = [task]
    (folder / ANSWER).write_text('{"lost": "node n2 is lost"}')
    driver._hear_one(task)
    (event,) = told
    if signals:
        assert isinstance(event, Interrupted)
        assert event.message.startswith("case: node n2 is lost; ")
    else:
        assert "Slurm task 7_0: node n2 is lost; try 2 of 4 goes on from its checkpoint" in event.note
    assert [task.tries for task in again] == ([] if signals else [2])
