"""The conformance test of executors: what `running/executors/interface.py` promises, asked of each."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from slurm_cluster import missing_programs, slurm_cluster

from attnbench.errors import UserInputError
from attnbench.plugins import registry
from attnbench.results import Result, read_results
from attnbench.running.executors import EXECUTORS, cradle, jobs, make_executor
from attnbench.running.executors.cradle import Cradle
from attnbench.running.executors.interface import Asked
from attnbench.running.listener import Listener
from attnbench.running.runner import SuiteRun, run
from attnbench.stages.interrupts import Stopped
from attnbench.storage.names import AVERAGED, CHECKPOINT, LOGS, RESULTS, STORE
from attnbench.suite.loading import Suite, load_suite

SUITE = """
name: promised
question: Does every executor keep what all promise?
model: {recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2}
data: digits
train: {objective: flow, steps: 40, batch_size: 8, lr: 1e-3, ema_decay: 0.5, log_every: 2, held_out_images: 0}
sample: {sampler: euler, num_steps: 2, per_class: 4}
evaluate: {extractor: digits-cnn, kd_subset_size: 20, kd_subsets: 4}
profile: {measure: [macs, params]}
matrix:
  model.attention: [{name: breaks, options: {}}, softmax]
  sample.guidance_scale: [1.0, 2.0]
"""
PLUGIN = '''
    """An attention that spoils the process of its case, prints and raises."""

    import os
    import random
    import sys

    import torch
    from torch import nn

    from attnbench.contract import AttentionBackend, MacCount
    from attnbench.hookspecs import hookimpl


    class Breaks(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.mix = nn.Linear(dim, dim)

        def forward(self, x, context):
            if x.device.type != "meta" and self.training:
                if sys.argv[0] == "attnbench.stages.case":  # not where cases share a process
                    torch.set_default_dtype(torch.float64)
                    nn.Linear.forward = lambda module, x: x * float("nan")
                    os.environ["OMP_NUM_THREADS"] = "many"
                    random.seed = None
                print("about to break")
                raise ValueError("a stranger's bug")
            return self.mix(x)


    @hookimpl
    def attnbench_backends():
        yield AttentionBackend(
            name="breaks", summary="-", source="-", build=lambda site, options: Breaks(site.dim),
            macs=lambda site, options: MacCount(linear=site.num_tokens * site.dim**2),
        )
'''
STEPS = {"ray": 400, "slurm": 900}  # what cases say comes late: a signal must find the training at work
LACKS = {
    "ray": "" if importlib.util.find_spec("ray") else "needs attnbench[ray]",
    "slurm": missing_programs() or ("" if importlib.util.find_spec("submitit") else "needs attnbench[slurm]"),
}
ENGINES = [
    pytest.param(
        name,
        marks=[pytest.mark.skipif(bool(LACKS[name]), reason=LACKS[name]), pytest.mark.slow]
        if name in LACKS  # they start a cluster of this machine
        else [],
    )
    for name in EXECUTORS
]
THREADS = 1  # of every case: trained weights depend on it


@dataclass(frozen=True)
class Did:
    """What an executor made of the suite: stopped in its first training, then run to its end."""

    stopped: Stopped
    outcome: SuiteRun
    ended: tuple[str, ...]
    """Stages that were computed, of both runs."""
    runs: Path
    left_over: tuple[str, ...]
    whole: Path
    """The runs folder of the same suite that nobody stopped."""
    steps: int


def asked() -> Asked:
    return Asked(jobs=2, threads=THREADS, device="cpu", num_cases=4)


def start(suite: Suite, runs: Path, name: str, listener: Listener) -> SuiteRun:
    request = (
        asked() if name in ("jobs", "ray", "slurm") else Asked(threads=THREADS, device="cpu", num_cases=4)
    )
    return run(suite, runs, device="cpu", executor=make_executor(name, request), listener=listener)


def children() -> tuple[str, ...]:
    """Return the commands of this process's children that are alive."""
    found = []
    for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for word in path.read_text().split():
            found.append(Path(f"/proc/{word}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return tuple(command for command in found if "attnbench" in command)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The suite, with its plugin installed the way pip would; two cores, whatever the machine has."""
    folder = tmp_path_factory.mktemp("suite")
    info = folder / "site" / "breaking-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "breaking.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: breaking\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attnbench]\nbreaking = breaking\n")
    (folder / "promised.yaml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        patch.setattr(jobs, "available_cores", lambda: 2)
        registry.cache_clear()
        yield load_suite(folder / "promised.yaml")
    registry.cache_clear()


@pytest.fixture(scope="module")
def undisturbed(suite, tmp_path_factory):
    """The runs folder that nobody stopped, in this process."""
    runs = tmp_path_factory.mktemp("undisturbed")
    start(suite, runs, "inline", Listener())
    return runs


@pytest.fixture(scope="module", params=ENGINES)
def did(request, suite, undisturbed, tmp_path_factory):
    """Run the suite by one executor, on a cluster of the test's own where it needs one."""
    with slurm_cluster(2) if request.param == "slurm" else contextlib.nullcontext():
        return do(request, suite, undisturbed, tmp_path_factory)


def do(request, suite, undisturbed, tmp_path_factory) -> Did:
    runs, ended = tmp_path_factory.mktemp(request.param), []
    steps = STEPS.get(request.param, 40)
    if steps != 40:  # a suite of its own, of longer trainings
        suite = load_suite(suite.path, [f"train.steps={steps}"])
        longer = tmp_path_factory.mktemp("undisturbed")
        shutil.copytree(undisturbed / STORE / "features", longer / STORE / "features")
        start(suite, longer, "inline", Listener())
        undisturbed = longer
    shutil.copytree(undisturbed / STORE / "features", runs / STORE / "features")

    def stop_in_training(case, stage, done, total, note):
        if stage == "train" and done >= 4 and not struck:
            struck.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    def hear_end(case, what, seconds):
        ended.append(f"{case.label}: {what}")

    struck: list[int] = []
    with pytest.raises(Stopped) as raised:
        start(suite, runs, request.param, Listener(progress=stop_in_training, stage_ended=hear_end))
    left = children()
    outcome = start(suite, runs, request.param, Listener(stage_ended=hear_end))
    left_over = (*left, *children())
    return Did(raised.value, outcome, tuple(ended), runs, left_over, undisturbed, steps)


def by_label(results: list[Result]) -> dict[str, Result]:
    return {result.label: result for result in results}


def test_a_signal_saves_what_is_under_way_and_says_so(did):
    """SIGTERM in a training: the run ends with the training's own words and the signal's exit code."""
    assert did.stopped.code == 128 + signal.SIGTERM
    assert "stopped at training step" in did.stopped.message
    assert "which is saved; run the same command again to go on from there" in did.stopped.message


def test_nothing_lives_on(did):
    """Neither a case's process nor what starts them outlives a run, stopped or ended."""
    assert did.left_over == ()


def test_a_failing_case_costs_no_other(did):
    """Each case has one result, in the suite's order; those that break say why, the others are fine."""
    assert [(result.label, result.status) for result in did.outcome.results] == [
        ("breaks · guidance_scale=1.0", "failed"),
        ("breaks · guidance_scale=2.0", "failed"),
        ("softmax · guidance_scale=1.0", "ok"),
        ("softmax · guidance_scale=2.0", "ok"),
    ]
    for result in did.outcome.results[:2]:
        assert "ValueError: a stranger's bug; raised in the plugin breaking" in result.reason


def test_lines_are_in_the_suites_order(did):
    """Whichever case ended first, results.jsonl names them as the suite does."""
    labels = [result.label for result in read_results(did.outcome.run_dir / RESULTS)]
    assert list(dict.fromkeys(labels)) == [result.label for result in did.outcome.results]


def test_a_shared_training_is_made_once(did):
    """Two cases of one training: it is computed once, and gone on with after the stop, not made anew."""
    trained = [what for what in did.ended if "train" in what]
    assert len(trained) == 1
    assert trained[0].endswith(f"train {did.steps} steps")


def test_weights_are_those_of_the_undisturbed_run(did):
    """With the same threads every executor trains the same bits, through a stop, whatever runs beside.

    What the first cases have done to their processes is seen in no other.
    """
    for name in (AVERAGED, CHECKPOINT):
        whole, now = (
            {path.relative_to(runs): path.read_bytes() for path in runs.glob(f"{STORE}/train/*/{name}")}
            for runs in (did.whole, did.runs)
        )
        assert len(whole) == 1
        assert now == whole


def test_a_result_says_the_threads_it_was_computed_with(did):
    """The thread count asked for is the one that computed, and stands in the result."""
    fine = [result for result in did.outcome.results if result.status == "ok"]
    assert {result.environment.threads for result in fine} == {THREADS}


def test_what_a_case_prints_is_kept(did):
    """In a file of its own, where its process is not this one."""
    logs = sorted((did.outcome.run_dir / LOGS).glob("breaks*.log"))
    if did.runs.name.startswith("inline"):
        assert logs == []
        return
    assert len(logs) == 2
    assert all("about to break" in path.read_text() for path in logs)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("inline", {"jobs": 2}, "--jobs is 2, and --inline runs cases one after the other"),
        ("jobs", {"jobs": 3}, "--jobs 3 needs 3 CPU cores, this process may use 2; choose --jobs 2 or fewer"),
        ("jobs", {"jobs": 2, "processes": 2}, "--jobs 2 x --processes 2 needs 4 CPU cores"),
        ("jobs", {"jobs": 2, "threads": 2}, "--threads 2 x --jobs 2 needs 4 CPU cores"),
        ("jobs", {"jobs": 3, "device": "cuda"}, "--jobs 3 needs 3 GPUs, cuda has 2 here; choose --jobs 2"),
        ("jobs", {"jobs": 2, "device": "cuda:1"}, "--jobs 2 needs 2 GPUs, cuda:1 has 1 here"),
        (
            "jobs",
            {"jobs": 2, "device": "cuda:1", "processes": 2, "share_gpus": True},
            "--processes 2 needs",
        ),
    ],
)
def test_more_than_the_machine_has_is_refused(monkeypatch, name, settings, said):
    """Before anything runs, with what would fit."""
    monkeypatch.setattr(jobs, "available_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(jobs.VISIBLE, raising=False)
    with pytest.raises(UserInputError, match=".*".join(map(_escaped, [said]))):
        make_executor(name, Asked(**{"device": "cpu", "num_cases": 8} | settings))


def _escaped(text: str) -> str:
    return text.replace(".", r"\.")


@pytest.mark.parametrize(
    ("settings", "visible", "expected"),
    [
        ({"jobs": 2, "device": "cpu"}, None, [("cpu", 4, None)] * 2),
        ({"jobs": 0, "device": "cpu", "num_cases": 3}, None, [("cpu", 2, None)] * 3),
        ({"jobs": 0, "device": "cpu", "processes": 4}, None, [("cpu", 4, None)] * 2),
        ({"jobs": 1, "device": "cuda"}, "4,5", [("cuda", 0, None)]),
        ({"jobs": 2, "device": "cuda"}, "4,5,6", [("cuda", 4, "4"), ("cuda", 4, "5")]),
        ({"jobs": 2, "device": "cuda", "processes": 2}, None, [("cuda", 4, "0,1"), ("cuda", 4, "2,3")]),
        ({"jobs": 0, "device": "cuda", "processes": 3}, None, [("cuda", 0, None)]),
        ({"jobs": 2, "device": "cuda:2", "share_gpus": True}, None, [("cuda", 4, "2")] * 2),
    ],
)
def test_cores_and_gpus_are_shared_out(monkeypatch, settings, visible, expected):
    """Of eight cores and four GPUs: threads for each case, and GPUs that no other has unless asked for."""
    monkeypatch.setattr(jobs, "available_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv(jobs.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(jobs.VISIBLE, visible)
    found = jobs.shares(Asked(**{"num_cases": 8} | settings))
    assert [(s.device, s.threads, s.environment.get(jobs.VISIBLE)) for s in found] == expected


def test_the_users_threads_are_each_cases(monkeypatch):
    """OMP_NUM_THREADS is what every case computes with, as without --jobs."""
    monkeypatch.setattr(jobs, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {share.threads for share in jobs.shares(Asked(jobs=2, num_cases=8))} == {3}


CASE = """
    import os
    from attnbench.processes import ParentProcess

    def main():
        parent = ParentProcess()
        parent.reply({"parent": os.getppid()})
        parent.request()

    if __name__ == "__main__":
        main()
"""


def test_cases_go_on_where_what_forks_them_was_killed(tmp_path, monkeypatch):
    """Out of memory, say: the next processes are fresh ones, which take longer."""
    (tmp_path / "imagined_case.py").write_text(textwrap.dedent(CASE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cradle, "MODULE", "imagined_case")
    reply = TypeAdapter(dict[str, int])
    with Cradle() as forks:
        with forks.child() as child:
            nursery = child.receive(reply, 60)["parent"]
            assert nursery != os.getpid()
        os.kill(nursery, signal.SIGKILL)
        with forks.child() as child:
            assert child.receive(reply, 60) == {"parent": os.getpid()}
