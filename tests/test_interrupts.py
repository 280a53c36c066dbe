"""Ctrl-C and SIGTERM: heard at once, and what a command says of what it keeps is true."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, attnbench_here
from PIL import Image

from attnbench.commands import check as check_command
from attnbench.commands import data as data_command
from attnbench.commands import suites as suite_commands
from attnbench.evaluation.scorer import Scorer
from attnbench.running import runner
from attnbench.running.executors.conversation import failed_result
from attnbench.running.executors.launcher import Launch
from attnbench.stages.interrupts import Interrupted, Stopped, interrupt, keeping
from attnbench.suite.loading import load_suite

ONE_STEP = """
import hashlib
from attnbench.stages.interrupts import heard_at_once
with heard_at_once(lambda text: print(text, flush=True)):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # half an hour of C, in which Python calls no handler
"""


def stop(*_, **__):
    interrupt(signal.SIGTERM)


def cpu_ticks(pid):
    """Return the hundredths of a second that a process has computed."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_signal_is_heard_inside_a_step_that_goes_on():
    """The word comes while the step still runs; a third signal ends it there."""
    command = [sys.executable, "-c", ONE_STEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "begun\n"
        before = cpu_ticks(process.pid)
        while cpu_ticks(process.pid) < before + 20:  # a fifth of a second: it is in the step by now
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("Ctrl-C heard: stopping after the step")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM heard again: ending at once\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("error", [Interrupted(signal.SIGINT), KeyboardInterrupt()])
def test_an_interrupted_block_says_what_it_keeps(error):
    """What is kept is asked for then, not before; a plain KeyboardInterrupt is Ctrl-C."""
    kept = []

    def work():
        with keeping(lambda: f"{len(kept)} rows"):
            kept.append(1)
            raise error

    with pytest.raises(Stopped) as stopped:
        work()
    assert (stopped.value.code, stopped.value.message) == (130, "interrupted: 1 rows")


def test_a_command_that_keeps_nothing_claims_nothing(monkeypatch):
    """No checkpoint is spoken of where there is none."""
    monkeypatch.setattr("attnbench.suite.loading.load_suite", stop)
    done = attnbench_here("validate", "quick")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_stopped_preparation_tells_its_shards(tmp_path, monkeypatch):
    """Whole shards are counted where they lie."""
    (tmp_path / "set" / "train").mkdir(parents=True)
    (tmp_path / "set" / "train" / "images-00000.npy").touch()
    monkeypatch.setattr(data_command, "make", stop)
    done = attnbench_here("data", "prepare", "images", "--to", "set", "-q", cwd=tmp_path)
    assert done.returncode == 143
    assert done.stderr == "interrupted: finished shards: 1, in set; the same command goes on after them\n"


def test_a_stopped_check_prints_the_backends_that_are_done(monkeypatch):
    """The second of two is interrupted."""
    checked = iter([[check_command.CheckResult(name="shapes", status="passed", detail="fine")], None])
    monkeypatch.setattr(check_command, "run_checks", lambda *_, **__: next(checked) or stop())
    done = attnbench_here("check", "linear", "softmax", "-q")
    assert done.returncode == 143
    assert "conformance of linear" in done.stdout
    assert "interrupted: 1 of 2 backends are checked" in done.stderr


def test_a_stopped_evaluation_prints_the_sets_that_are_scored(tmp_path, monkeypatch):
    """Scores of the first set are printed when the second is interrupted."""
    generator = np.random.default_rng(0)
    for name in ("real", "first", "second"):
        (tmp_path / name).mkdir()
        for number in range(4):
            picture = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    measure = Scorer.measure
    monkeypatch.setattr(
        Scorer, "measure", lambda *words: stop() if words[2].name == "second" else measure(*words)
    )
    words = ["first", "--also", "second", "--reference", "real", "--metrics", "fd", "--device", "cpu", "-q"]
    done = attnbench_here("evaluate", *words, cwd=tmp_path)
    assert done.returncode == 143
    assert "FD-efflite0" in done.stdout
    assert "interrupted: 1 of 2 sets are scored; features that were found are kept" in done.stderr


@pytest.mark.parametrize(
    ("finished", "says"),
    [
        (1, "interrupted: 1 of 2 cases are finished; run the same command again to go on"),
        (2, "interrupted: 2 of 2 cases are finished; of their costs what was measured is kept"),
    ],
)
def test_a_stopped_run_prints_the_cases_that_are_finished(tmp_path, monkeypatch, capsys, finished, says):
    """Their table is on the screen; while costs are measured, it is costs that are spoken of."""
    suite = load_suite("quick", ["matrix.model.attention=[softmax, linear]"])

    def run(suite, runs, *, listener, **_):
        for case in suite.cases[:finished]:
            listener.finished(failed_result(case, "", "cpu").model_copy(update={"status": "ok"}), False)
        stop()

    monkeypatch.setattr(runner, "run", run)
    with pytest.raises(Stopped) as stopped:
        suite_commands.run(
            suite, tmp_path, device="cpu", engine="inline", nodes=1, address="", jobs=1, threads=0,
            share_gpus=False, quiet=True, launch=Launch(processes=1, here=1),
        )  # fmt: skip
    assert stopped.value.code == 143
    assert says in stopped.value.message
    shown = capsys.readouterr().out
    assert "softmax" in shown
    assert ("linear" in shown) == (finished == 2)
