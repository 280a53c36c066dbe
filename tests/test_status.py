"""`attnbench status`: which cases are finished, running, failed or queued, from the store alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import ROOT, attnbench_here
from runner_cases import tiny_suite

from attnbench.results import Result, append_result, environment, timestamp
from attnbench.running.executors.inline import run_inline
from attnbench.running.runner import run
from attnbench.running.status import statuses
from attnbench.storage.claims import claim_folder
from attnbench.storage.names import LOCK, RESULTS, STORE

HOLDING = """
import sys
from pathlib import Path
from attnbench.storage.locks import alone_in
with alone_in(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Start a process that holds a folder; it ends with the test."""
    started = []

    def hold(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDING, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_running_is_what_a_living_process_holds(tmp_path, holder):
    """A dead one's lock file still names it, and the kernel has let go of it: queued, or failed as before."""
    suite = tiny_suite(tmp_path, "tiny")
    store, case = tmp_path / STORE, suite.cases[0]
    failed = Result(
        case_id=case.id, suite=suite.name, label=case.label, status="failed", reason="no luck",
        environment=environment("cpu"), created=timestamp(),
    )  # fmt: skip
    process = holder(claim_folder(case, store))
    held, other = statuses(suite.cases, store, {case.id: failed})
    assert (held.state, other.state) == ("running", "queued")
    assert held.detail.startswith(f"prepare: process {process.pid} on ")
    process.kill()
    process.wait()
    assert str(process.pid) in (claim_folder(case, store) / LOCK).read_text()
    left, _ = statuses(suite.cases, store, {case.id: failed})
    assert (left.state, left.detail) == ("failed", "no luck")
    assert [one.state for one in statuses(suite.cases, store, {})] == ["queued", "queued"]


def test_the_command_counts_and_gives_reasons(tmp_path):
    """Before a run has ended by the suite, then by the run's record; other overrides are other cases."""
    suite = tiny_suite(tmp_path, "tiny", "train.steps=2")
    words = ["status", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "-o", "train.steps=2"]
    before = attnbench_here(*words)
    assert before.stdout.startswith("tiny: 2 queued\n"), before.stderr
    run(suite, tmp_path / "runs", device="cpu", executor=run_inline)
    case = suite.cases[0]
    for word, status, reason in (
        ("1 finished, 1 failed", "failed", "a stranger's bug"),
        ("2 finished", "ok", ""),
    ):
        if status == "failed":
            done = tmp_path / "runs" / STORE / "train" / case.key("train") / "done.json"
            done.rename(done.with_name("aside"))
            append_result(
                tmp_path / "runs" / "tiny" / RESULTS,
                Result(
                    case_id=case.id, suite=suite.name, label=case.label, status=status, reason=reason,
                    environment=environment("cpu"), created=timestamp(),
                ),
            )  # fmt: skip
        else:
            done.with_name("aside").rename(done)
        said = attnbench_here("status", "tiny", "--runs", tmp_path / "runs")
        assert said.stdout.startswith(f"tiny: {word}\n"), said.stderr
        assert reason in said.stdout
    longer = attnbench_here("status", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs")
    assert longer.stdout.startswith("tiny: 2 queued\n"), longer.stderr
