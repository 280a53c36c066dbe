"""Cases as tasks of Ray: what is refused, what nodes lack, and real clusters whose parts are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import ROOT, attnbench_here
from process_cases import digits_case
from ray_cluster import local_cluster, wait_for
from ray_strikes import CASE, cut_off_node, kill_case, kill_raylet, kill_worker, of_cluster
from runner_cases import tiny_suite
from struck_runs import Driver, assert_nothing_is_lost, command, kill_driver, python_path, run_whole

from attnbench.errors import UserInputError
from attnbench.running.executors import make_executor, ray_cluster
from attnbench.running.executors.asking import distinct, lacking, source_digest
from attnbench.running.executors.cluster_shares import Node, Share, share_of_each
from attnbench.running.executors.inline import run_inline
from attnbench.running.executors.interface import Asked, Interrupted, Order
from attnbench.running.executors.ray import Ray, _Task
from attnbench.running.executors.ray_cluster import Cluster, _by_value
from attnbench.running.executors.ray_node import KEPT, Mailbox
from attnbench.running.runner import run
from attnbench.storage.locks import alone_in
from attnbench.storage.names import LOCK, LOGS, STORE
from attnbench.storage.store import NOTICE

real_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs attnbench[ray]")
RUN_S = 280.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "rai"], "unknown executor 'rai' (did you mean 'ray'?); available: local, ray"),
        (["--executor", "ray", "--inline"], "--inline is of this machine, --executor ray runs"),
        (["--executor", "ray", "--share-gpus"], "--share-gpus is of this machine, --executor ray runs"),
        (["--address", "auto"], "--address is of a Ray cluster; add --executor ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(here, words, said):
    """One line each, exit code 2, before the suite is read."""
    done = attnbench_here("run", "no-such-suite", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_ray_its_extra_is_named(monkeypatch):
    """Before anything is connected or run."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserInputError, match=r"pip install 'attnbench\[ray\]'"):
        make_executor("ray", Asked())


def test_a_suite_that_is_finished_needs_no_cluster(tmp_path):
    """Nothing to run, nothing to connect to: an address where nobody listens is no obstacle."""
    suite = tiny_suite(tmp_path, "tiny", "train.steps=2")
    first = run(suite, tmp_path / "runs", device="cpu", executor=run_inline)
    again = run(suite, tmp_path / "runs", device="cpu", executor=Ray(Asked(address="127.0.0.1:9")))
    assert (first.computed, again.computed) == (2, 0)
    assert [result.status for result in again.results] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "is of Ray's client, whose driver is elsewhere"),
        ("head", "it is auto or host:port of a cluster's head"),
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9: Connection refused; start one there"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(address, said):
    """Without Ray's own minutes of trying."""
    with pytest.raises(UserInputError, match=r".*".join([said.replace(".", r"\.")])):
        Cluster(address).connect()


FAKES = {
    "RuntimeError('Version mismatch: The cluster was started with:\\n Ray: 1.0.0')": (
        "cannot be used: Version mismatch: The cluster was started with: Ray: 1.0.0"
    ),
    "__import__('time').sleep(60)": "has not answered as a Ray cluster within 5 s",
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_cluster_that_cannot_be_used_says_why(tmp_path, monkeypatch, fake):
    """Another version, or something that listens and is no Ray: in one line, within a limit."""
    (tmp_path / "ray.py").write_text(f"def init(**words):\n    raise {fake}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ray_cluster, "CONNECT_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as listens:
        address = f"127.0.0.1:{listens.getsockname()[1]}"
        with pytest.raises(UserInputError) as raised:
            Cluster(address).connect()
    assert FAKES[fake] in str(raised.value)
    assert "\n" not in str(raised.value)


def nodes(*sizes: tuple[int, int]) -> list[Node]:
    return [Node(id=str(n), address=f"10.0.0.{n}", cpus=c, gpus=g) for n, (c, g) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("asked", "sizes", "device", "threads", "cpus", "gpus", "at_once"),
    [
        ({"device": "cpu"}, [(8, 0), (4, 0)], "cpu", 4, 4, 0, 3),
        ({"device": "cpu"}, [(0, 0), (4, 0)], "cpu", 4, 4, 0, 1),
        ({"device": "cpu", "jobs": 2}, [(8, 0)], "cpu", 4, 4, 0, 2),
        ({"device": "auto", "threads": 3}, [(8, 0)], "cpu", 3, 3, 0, 2),
        ({"device": "auto"}, [(16, 4), (64, 8), (8, 0)], "cuda", 4, 4, 1, 12),
        ({"device": "cuda", "processes": 2}, [(16, 4), (64, 8)], "cuda", 8, 8, 2, 6),
        ({"device": "cpu", "threads": 1, "processes": 2}, [(4, 0)], "cpu", 1, 2, 0, 2),
    ],
)
def test_cases_get_the_same_share_on_every_node(
    monkeypatch, asked, sizes, device, threads, cpus, gpus, at_once
):
    """Threads are the same wherever a case runs, since weights depend on them; GPUs are not shared."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = share_of_each(Asked(**{"jobs": 0} | asked), nodes(*sizes))
    assert share == Share(device=device, threads=threads, cpus=cpus, gpus=gpus)
    assert sum(node.holds(share) for node in nodes(*sizes)) == at_once


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"device": "cuda", "processes": 2, "threads": 8},
            "a case needs 8 CPUs and 2 GPUs on one node, and the nodes of the cluster have 2 CPUs and 0 "
            "GPUs, 4 CPUs and 1 GPUs; lower --threads or --processes, or choose another --device",
        ),
        ({"device": "cuda:1"}, "--device cuda:1 names a GPU of one machine, and the cluster hands out its"),
    ],
)
def test_what_no_node_has_is_refused(asked, said):
    """With what they have."""
    with pytest.raises(UserInputError) as raised:
        share_of_each(Asked(**asked), nodes((4, 1), (4, 1), (2, 0)))
    assert said in str(raised.value)


def test_a_run_whose_nodes_are_all_gone_says_that_it_waits(tmp_path, monkeypatch):
    """Instead of bars that stand still; and it hands out one case at most."""
    executor, told = Ray(Asked(jobs=0)), []
    monkeypatch.setattr(executor, "_cluster", SimpleNamespace(nodes=lambda: nodes((0, 0))))
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log")
    executor._tasks["ref"] = _Task(order=order, tell=lambda *words: told.append(words), key="k", tries=1)
    executor._look_at_nodes()
    assert [(to, event.stage, event.note.partition(";")[0]) for to, event in told] == [
        (order, NOTICE, "no node of the Ray cluster holds a case any more")
    ]
    assert executor.at_once == 1


def test_a_task_of_a_node_that_is_no_more_is_tried_again(tmp_path, monkeypatch):
    """Without Ray's word, which comes minutes later; one whose node is alive or not known yet goes on.

    So does one that has ended before its node went: its answer is there.
    """
    executor, told, again = Ray(Asked(jobs=0)), [], []
    monkeypatch.setattr(executor, "_unanswered", lambda refs: [ref for ref in refs if ref != "ended"])
    monkeypatch.setattr(executor, "_cluster", SimpleNamespace(nodes=lambda: nodes((1, 0))))
    monkeypatch.setattr(executor, "_submit", again.append)
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log")
    for ref, node in {"alive": "0", "gone": "1", "not begun": "", "ended": "1"}.items():
        task = _Task(order=order, tell=lambda *words: told.append(words), key=ref, tries=1, node=node)
        executor._tasks[ref] = task
    executor._look_at_nodes()
    assert executor._tasks.keys() == {"alive", "not begun", "ended"}
    assert [(task.tries, task.node) for task in again] == [(2, "")]
    assert [event.note for _, event in told] == [
        f"{order.case.label}: its Ray task was lost (its node is dead or cut off); try 2 of 4 goes on "
        "from its checkpoint"
    ]


def test_a_case_that_cannot_be_submitted_again_is_answered(tmp_path, monkeypatch):
    """Of a cluster that restarts, say: it fails with both reasons, and nobody waits for it."""
    executor, told = Ray(Asked()), []

    def refuse(task):
        raise ConnectionError("no head")

    monkeypatch.setattr(executor, "_submit", refuse)
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log")
    task = _Task(order=order, tell=lambda *words: told.append(words[1]), key="k", tries=1)
    event = executor._lost(task, "its node is dead or cut off")
    assert event.result.status == "failed"
    assert (
        "dead or cut off, and it could not be submitted again (ConnectionError: no head)"
        in event.result.reason
    )


@pytest.mark.parametrize("signals", [[], [signal.SIGTERM]])
def test_a_case_that_somebody_else_stopped_is_tried_again(tmp_path, monkeypatch, signals):
    """As where a machine is taken back: every process there is told, the case's, too."""
    pytest.importorskip("ray")
    executor, told, again = Ray(Asked()), [], []
    monkeypatch.setattr("ray.get", lambda ref: {"interrupted": "stopped at training step 50"})
    monkeypatch.setattr(executor, "_submit", again.append)
    order = Order(case=digits_case(), store=tmp_path, device="cpu", log=tmp_path / "log")
    executor._tasks["ref"] = _Task(order=order, tell=lambda *words: told.append(words[1]), key="k", tries=1)
    executor._signals.extend(signals)
    executor._answer("ref")
    assert [task.tries for task in again] == ([] if signals else [2])
    assert [isinstance(event, Interrupted) for event in told] == [bool(signals)]


def test_what_a_node_lacks_is_found(tmp_path):
    """Another attnbench, another folder, no locks, a plugin or data that are not there; and nothing else."""
    case = digits_case()
    held = tmp_path / "mark"
    strange = case.model_copy(update={"code": {"softmax": "0" * 16, "stranger": "1" * 16}})
    absent = case.model_copy(
        update={"train": case.train.model_copy(update={"init_from": tmp_path / "absent"})}
    )
    with alone_in(held, print):
        ask = subprocess.run(  # a lock is not seen by the process that holds it
            [sys.executable, "-c", "import sys, json\n"
             "from pathlib import Path\n"
             "from attnbench.running.executors.asking import lacking\n"
             "asked = json.loads(sys.stdin.read())\n"
             "print(json.dumps([lacking(c, Path(s), m, d) for c, s, m, d in asked]))"],
            input=json.dumps([
                (distinct([case]), str(tmp_path), f"mark/{LOCK}", source_digest()),
                (distinct([case]), str(tmp_path), "other", source_digest()),
                (distinct([strange, absent]), str(tmp_path), f"mark/{LOCK}", source_digest()),
                (distinct([case]), str(tmp_path), f"mark/{LOCK}", "f" * 16),
            ]),
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    fine, elsewhere, lacks, other_code = json.loads(ask.stdout)
    assert fine == []
    assert [text.partition(";")[0] for text in elsewhere] == [
        f"it has no folder {tmp_path} or another one than the driver"
    ]
    assert [text.partition(";")[0] for text in lacks] == [
        "its plugin of 'softmax' is of other code than the driver's",
        "unknown backend 'stranger'",
        f"train.init_from: {tmp_path / 'absent'} does not exist",
    ]
    assert "of other code, which may have other results" in other_code[0]
    # nobody holds it any more: a file system whose locks are of one machine looks like this
    unseen = lacking(distinct([case]), tmp_path, f"mark/{LOCK}", source_digest())
    assert "does not see the file locks (flock)" in unseen[0]


@pytest.mark.parametrize("left", [1, 0])
def test_a_node_that_is_lost_while_it_is_asked_is_left_out(monkeypatch, left):
    """Neither waited for nor a reason to refuse the run, unless no other is there."""
    pytest.importorskip("ray")
    cluster, asked = Cluster(""), dict(zip("ab", nodes((1, 0), (1, 0)), strict=True))
    monkeypatch.setattr(cluster, "nodes", lambda: list(asked.values())[:left])
    monkeypatch.setattr("ray.wait", lambda refs, **words: (refs[:1], refs[1:]))
    monkeypatch.setattr("ray.get", lambda ref: [f"{ref} lacks something"])
    if left:
        assert cluster._hear(asked) == [(asked["a"], ["a lacks something"])]
        return
    with pytest.raises(UserInputError, match="was lost while it was asked what it has"):
        cluster._hear(asked)


def test_another_version_on_a_node_is_named():
    """By the function that travels as code, since attnbench may not be there at all."""
    assert "it has attnbench" in _by_value()([], "/", "m", "c", "0.0.0")[0]


def test_cases_that_need_the_same_are_asked_for_once():
    case = digits_case()
    other = case.model_copy(update={"seed": 1, "label": "other"})
    assert len(distinct([case, other])) == 1
    assert len(distinct([case, digits_case("linear").model_copy(update={"code": {"linear": "1"}})])) == 2


def test_the_mailbox_is_bounded_and_lets_nothing_begin_after_a_signal():
    """Of progress the last, of notices the last KEPT; what was told once is not told again."""
    box = Mailbox()
    assert box.begin("a", "node")
    for step in range(3 * KEPT):
        said = [(NOTICE, 0, 0, str(step))]
        signals, _ = box.post("a", "node", ("train", step, 600, ""), said)
    assert signals == []
    begun, news = box.fetch([15], [])
    assert begun == {"a": "node"}
    assert len(news["a"]) == KEPT + 1
    assert news["a"][-1] == ("train", 3 * KEPT - 1, 600, "")
    assert not box.begin("b", "node")
    assert box.post("a", "node", None, ())[0] == [15]
    assert box.fetch([15], ["a"]) == ({}, {})


@pytest.fixture(scope="module")
def cluster():
    """A head and two nodes of one CPU each."""
    with local_cluster(2, python_path()) as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The suite as the process executor runs it."""
    return run_whole(tmp_path_factory.mktemp("whole"))


def start(cluster, whole: Path, runs: Path) -> Driver:
    words = ["--executor", "ray", "--address", cluster.address]
    return Driver(whole, runs, words, cluster.environment)


@real_ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("strike", "codes", "said"),
    [
        (kill_case, {1}, "the case's process was killed by SIGKILL"),
        (kill_worker, {0}, "try 2 of 4 goes on from its checkpoint"),
        (kill_raylet, {0}, "try 2 of 4 goes on from its checkpoint"),
        (kill_driver, {-signal.SIGKILL}, ""),
        (cut_off_node, {0}, "(its node is dead or cut off); try 2 of 4 goes on from its checkpoint"),
    ],
)
def test_what_is_struck_loses_nothing(cluster, whole, tmp_path, strike, codes, said):
    """The same command again ends with every case ok; what was finished or saved is not computed twice."""

    def strike_beside_the_mailbox(driver: Driver) -> None:
        assert not of_cluster(
            cluster, "ray::Mailbox"
        )  # it is beside the driver, not on a node that is struck
        strike(cluster, driver)

    begin = partial(start, cluster, whole, tmp_path / "runs")
    assert_nothing_is_lost(begin, strike_beside_the_mailbox, whole, codes, said)


@real_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_saves_every_case_of_a_cluster(cluster, whole, tmp_path):
    """SIGTERM to the driver: the cases save, say so, and leave the cluster as it was."""
    runs = tmp_path / "runs"
    driver = start(cluster, whole, runs)
    driver.wait_for_checkpoint()
    driver.process.terminate()
    code, log = driver.wait()
    assert code == 128 + signal.SIGTERM, log
    assert "stopped at training step" in log
    wait_for(lambda: not of_cluster(cluster, CASE), 30, "the end of the cases")
    assert all(node.poll() is None for node in cluster.nodes)
    logs = [path.name for path in (runs / "struck" / LOGS).glob("*")]
    assert logs == [] or all("Traceback" not in (runs / "struck" / LOGS / n).read_text() for n in logs)


@real_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_cluster_lacks_is_found_before_anything_trains(cluster, whole, tmp_path):
    """More CPUs than any node has: exit code 2, one line."""
    words = ["run", whole / "struck.yaml", "--runs", tmp_path / "runs", "--device", "cpu",
             "--executor", "ray", "--address", cluster.address]  # fmt: skip
    done = subprocess.run(
        command([*words, "--threads", "2"]),
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert "error: a case needs 2 CPUs on one node, and the nodes of the cluster have 0 CPUs" in done.stderr
    assert not (tmp_path / "runs" / STORE / "train").exists()
