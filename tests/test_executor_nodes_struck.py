"""A case on two nodes of a real cluster, whose parts are struck: what was saved goes on, to the same bits."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray_strikes
import slurm_strikes
from ray_cluster import LocalCluster, descendants, local_cluster, wait_for
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from struck_runs import NAME, RUN_S, SUITE, Driver, command, finished, python_path, weights
from test_torchrun_machines import ASKED

from attnbench.results import latest, read_results
from attnbench.storage.names import RESULTS

SHORTER = {"[softmax, linear]": "[softmax]", "steps: 600": "steps: 240", "_every: 50": "_every: 20"}
PROCESSES = ["--processes", "2"]
ON_TWO = ["--nodes", "2", *PROCESSES]
LENDER = "LendingNode"  # in the name of a worker of Ray
WORKER = "attnbench.stages.worker"
GOES_ON = "goes on from its checkpoint"


def lacks(module: str, programs: str = "") -> pytest.MarkDecorator:
    missing = programs or ("" if importlib.util.find_spec(module) else f"needs attnbench[{module}]")
    why = missing or ("" if ASKED in os.environ else f"takes minutes; {ASKED}=1 runs it")
    return pytest.mark.skipif(bool(why), reason=why)


real_ray = lacks("ray")
real_slurm = lacks("submitit", missing_programs())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The suite, of one case, as two processes of this machine run it."""
    folder, text = tmp_path_factory.mktemp("whole"), SUITE
    for old, new in SHORTER.items():
        text = text.replace(old, new)
    (folder / "struck.yaml").write_text(text)
    words = ["run", folder / "struck.yaml", "--runs", folder / "runs", "--device", "cpu", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    subprocess.run(command([*words, *PROCESSES]), check=True, env=environment, timeout=RUN_S)
    return folder


def lending_task(cluster: SlurmCluster) -> int:
    """Return what lends on the second node; raises IndexError."""
    tasks = slurm_strikes.processes(cluster, "submitit.core._submit")
    return next(pid for pid in tasks if b"SLURM_PROCID=1\0" in Path(f"/proc/{pid}/environ").read_bytes())


def kill_lending_task(cluster: SlurmCluster, driver: Driver) -> None:
    os.kill(lending_task(cluster), signal.SIGKILL)


def kill_lending_node(cluster: SlurmCluster, driver: Driver) -> None:
    environment = Path(f"/proc/{lending_task(cluster)}/environ").read_bytes().split(b"\0")
    name = next(word for word in environment if word.startswith(b"SLURMD_NODENAME="))
    node = name.partition(b"=")[2].decode()
    cluster.kill_node(node)
    slurm_strikes.wait_until_down(cluster, node)
    cluster.start_node(node)


def kill_lending_actor(cluster: LocalCluster, driver: Driver) -> None:
    os.kill(ray_strikes.of_cluster(cluster, LENDER)[0], signal.SIGKILL)


def kill_lending_raylet(cluster: LocalCluster, driver: Driver) -> None:
    def lends(node: Any) -> bool:
        return any(LENDER in words for words in descendants(node.pid).values())

    node = next(node for node in cluster.nodes if lends(node))
    os.kill(cluster.raylet(node), signal.SIGKILL)
    ray_strikes.replace(cluster, node)


def end(driver: Driver, whole: Path) -> str:
    """Hear a run out; its only case is ok, computed on two nodes, with the weights of one machine."""
    code, log = driver.wait()
    assert code == 0, log
    (result,) = latest(read_results(driver.runs / NAME / RESULTS))
    assert (result.status, result.environment.threads) == ("ok", 1)
    assert "2 processes on 2 machines" in result.environment.note
    assert weights(driver.runs) == weights(whole / "runs")
    return log


def strike_and_end(
    begin: Callable[[], Driver], strike: Callable[[Driver], None], whole: Path, said: str
) -> None:
    driver = begin()
    driver.wait_for_checkpoint()
    before = finished(driver.runs)
    strike(driver)
    assert said in end(driver, whole)
    now = finished(driver.runs)
    assert {path: now[path] for path in before} == before


def stop_and_end(begin: Callable[[], Driver], whole: Path) -> None:
    driver = begin()
    driver.wait_for_checkpoint()
    driver.process.terminate()
    code, log = driver.wait()
    assert code == 128 + signal.SIGTERM, log
    assert "stopped at training step" in log
    end(begin(), whole)


@pytest.fixture(scope="module")
def slurm():
    """A controller and two nodes of one CPU each."""
    with slurm_cluster(2) as started:
        yield started


def start_slurm(cluster: SlurmCluster, whole: Path, runs: Path) -> Driver:
    environment = os.environ | cluster.environment | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    return Driver(whole, runs, ["--executor", "slurm", *ON_TWO], environment)


@real_slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("strike", "said"),
    [
        (kill_lending_task, GOES_ON),
        (kill_lending_node, GOES_ON),
        (slurm_strikes.announce_the_limit, ""),
        (slurm_strikes.preempt, ""),
    ],
)
def test_a_struck_case_on_two_nodes_of_slurm_goes_on(slurm, whole, tmp_path, strike, said):
    """A lost node, or a task that is requeued: the case goes on from its checkpoint, within the same run."""
    begin = partial(start_slurm, slurm, whole, tmp_path / "runs")
    strike_and_end(begin, partial(strike, slurm), whole, said)
    wait_for(lambda: not slurm.ask("squeue", "-h").strip(), 60, "an empty queue")
    assert not slurm_strikes.processes(slurm, WORKER)


@real_slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_saves_a_case_on_two_nodes_of_slurm(slurm, whole, tmp_path):
    """SIGTERM to the driver reaches all nodes: the others stay until the first one has saved."""
    stop_and_end(partial(start_slurm, slurm, whole, tmp_path / "runs"), whole)
    wait_for(lambda: not slurm.ask("squeue", "-h").strip(), 60, "an empty queue")


@pytest.fixture(scope="module")
def ray():
    """A head and two nodes of one CPU each."""
    with local_cluster(2, python_path()) as started:
        yield started


def start_ray(cluster: LocalCluster, whole: Path, runs: Path) -> Driver:
    words = ["--executor", "ray", "--address", cluster.address, *ON_TWO]
    return Driver(whole, runs, words, cluster.environment)


@real_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strike", [kill_lending_actor, kill_lending_raylet])
def test_a_struck_case_on_two_nodes_of_ray_goes_on(ray, whole, tmp_path, strike):
    """A lost node: the case goes on from its checkpoint in a new group, and the old one is given back."""
    begin = partial(start_ray, ray, whole, tmp_path / "runs")
    strike_and_end(begin, partial(strike, ray), whole, GOES_ON)
    wait_for(lambda: not ray_strikes.of_cluster(ray, WORKER), 30, "the end of what was lent")


@real_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_saves_a_case_on_two_nodes_of_ray(ray, whole, tmp_path):
    """SIGTERM to the driver: the case saves, and what was lent ends."""
    stop_and_end(partial(start_ray, ray, whole, tmp_path / "runs"), whole)
    wait_for(lambda: not ray_strikes.of_cluster(ray, WORKER), 30, "the end of what was lent")
