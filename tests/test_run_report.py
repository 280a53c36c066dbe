"""A run's report: `attnbench report` writes what `run` wrote, and what it tells a shell to do is true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import ROOT, attnbench_here
from report_cases import make_result
from runner_cases import TINY, tiny_suite

from attnbench.report.sections import reproduce_command
from attnbench.results import append_result, read_results
from attnbench.running.executors.inline import run_inline
from attnbench.running.runner import run
from attnbench.storage.names import RESULTS, RUN
from attnbench.storage.run_folders import RunRecord, read_run
from attnbench.suite.choosing import choose_cases
from attnbench.suite.loading import load_suite

FIRST = "matrix.model.attention=[linear, softmax]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder in which a suite ran three times: with overrides, with others, and one of its cases."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("place")
    runs = place / "runs"
    run(tiny_suite(place, "tiny", FIRST), runs, device="cpu", executor=run_inline)
    keep(runs / "tiny", place / "first")
    other = tiny_suite(place, "tiny", "sample.num_steps=3", "question=Which?")
    run(other, runs, device="cpu", executor=run_inline)
    keep(runs / "tiny", place / "second")
    run(choose_cases(other, ["lin*"]), runs, device="cpu", executor=run_inline)
    keep(runs / "tiny", place / "third")
    return runs


def keep(run_dir: Path, target: Path) -> None:
    """Copy what a run wrote."""
    shutil.copytree(run_dir, target)


def written(folder: Path) -> dict[str, bytes]:
    """Return what a report consists of."""
    paths = (folder / "report.md", folder / "report.html", *(folder / "figures").glob("*.svg"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def again(folder: Path) -> dict[str, bytes]:
    """Remove the report of a run's folder, and return it as `attnbench report` writes it."""
    before = written(folder)
    for name in before:
        (folder / name).unlink()
    done = attnbench_here("report", folder, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return written(folder)


@pytest.mark.parametrize("which", ["first", "second", "third"])
def test_report_writes_what_run_wrote(runs, which, tmp_path):
    """Byte for byte, in a folder that was copied elsewhere: cases of older overrides do not come back."""
    folder = tmp_path / which
    shutil.copytree(runs.parent / which, folder)
    before = written(folder)
    assert again(folder) == before
    labels = {"first": ["linear", "softmax"], "second": ["softmax", "linear"], "third": ["linear"]}
    read = read_run(folder, tmp_path)
    assert [result.label for result in read.results] == labels[which]
    assert read.question == ("Does the road hold?" if which == "first" else "Which?")


def test_a_run_that_computes_nothing_writes_the_same(runs, tmp_path):
    """The first overrides once more, after the others: the first report, with the dates of its results."""
    first = tiny_suite(tmp_path, "tiny", FIRST)
    outcome = run(first, runs, device="cpu", executor=run_inline)
    assert outcome.computed == 0
    before, now = written(runs.parent / "first"), written(runs / "tiny")
    assert now.keys() == before.keys()
    place = str(runs.parent / "tiny.yaml").encode(), str(tmp_path / "tiny.yaml").encode()
    assert {name: text.replace(*place) for name, text in before.items()} == now


def test_a_case_that_failed_and_was_finished_later_is_reported_alike(tmp_path, runs):
    """The last line of a case counts for both."""
    folder = tmp_path / "failed"
    shutil.copytree(runs.parent / "first", folder)
    (first, *_) = read_run(folder, tmp_path).results
    failed = first.model_copy(update={"status": "failed", "reason": "killed", "measurements": []})
    append_result(folder / RESULTS, failed)
    assert b"killed" in again(folder)["report.md"]
    append_result(folder / RESULTS, first)
    assert again(folder)["report.md"] == (runs.parent / "first/report.md").read_bytes()


def test_a_record_that_cannot_be_trusted_is_said(runs, tmp_path):
    """A damaged one is refused; one of a case without a line warns; without one every case counts."""
    folder = tmp_path / "copy"
    shutil.copytree(runs.parent / "third", folder)
    whole = (folder / RUN).read_text()
    (folder / RUN).write_text(whole.replace("lin*", "sof*"))
    done = attnbench_here("report", folder)
    assert done.returncode == 2
    assert f"{folder / RUN}: not what was written: its content does not have the checksum" in done.stderr
    (folder / RUN).unlink()
    assert attnbench_here("report", folder).returncode == 0
    text = (folder / "report.md").read_text()
    assert "**Cases** 4 (4 ok)" in text
    assert "only the suite's name was kept, not its overrides\nattnbench run tiny\n" in text
    (folder / RUN).write_text(whole)
    lines = (folder / RESULTS).read_text().splitlines(keepends=True)
    kept = read_run(folder, tmp_path).record.case_ids[0]
    other = [line for line in lines if kept not in line]
    (folder / RESULTS).write_text("".join(other))
    done = attnbench_here("report", folder)
    assert done.returncode == 2, "no case of the record is left"
    assert f"holds no result of the cases that {RUN} names; run the suite again" in done.stderr


def test_a_folder_of_the_suites_name_does_not_hide_its_run(runs, tmp_path, monkeypatch):
    """`attnbench report tiny`, called where a folder `tiny` holds something else."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_run("tiny", runs).folder == runs / "tiny"


# --- reproducing


def command_of(folder: Path) -> str:
    """Return what a report's last block tells a shell."""
    return re.findall(r"```+sh\n(.*?)\n```", (folder / "report.md").read_text(), re.DOTALL)[-1]


def shell(command: str, cwd: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that finds `attnbench`, as this tree has it."""
    tools.mkdir(exist_ok=True)
    tool = tools / "attnbench"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m attnbench.cli "$@"\n')
    tool.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-e", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


def test_the_command_of_a_report_makes_the_same_cases_in_any_folder(runs, tmp_path, monkeypatch):
    """A user's suite that extends another, overrides with quotes, a choice of cases, and seeds.

    The store is there, so that what is the same case is found finished.
    """
    (tmp_path / "o'clock").mkdir()
    monkeypatch.chdir(tmp_path / "o'clock")
    Path("base.yaml").write_text(TINY.replace("name: tiny\n", "").partition("matrix:")[0])
    own = "name: mine\nquestion: Whose?\nextends: base.yaml\nmatrix: {model.attention: [softmax, linear]}\n"
    Path("own.yaml").write_text(own)
    overrides = ["question=Whose clock, o'clock or `mine`?", "sample.num_steps=2", "train.init_from=null"]
    suite = choose_cases(load_suite("own.yaml", overrides, seeds=2), ["linear*", "*seed=0"])
    outcome = run(suite, runs, device="cpu", executor=run_inline)
    assert [result.label for result in outcome.results] == [
        "softmax · seed=0", "linear · seed=0", "linear · seed=1",
    ]  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "runs").mkdir(parents=True)
    (elsewhere / "runs/store").symlink_to(runs / "store")
    command = command_of(runs / "mine")
    assert re.match(
        r"# computed by attnbench [\w.]+, commit [0-9a-f]{40}(, with uncommitted changes)?\n", command
    )
    done = shell(command, elsewhere, tmp_path / "tools")
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = read_run("mine", runs), read_run("mine", elsewhere / "runs")
    assert theirs.record == ours.record
    assert theirs.record.case_ids == tuple(case.id for case in suite.cases)
    assert [r.label for r in theirs.results] == [r.label for r in ours.results]
    assert len(read_results(elsewhere / "runs/mine" / RESULTS)) == len(suite.cases), "nothing was computed"
    assert (elsewhere / "runs/mine/report.md").read_text() == (runs / "mine/report.md").read_text()


def record(**changed) -> RunRecord:
    return RunRecord(suite="quick", source="quick", case_ids=("1",), **changed)


def test_a_shipped_suite_is_named_and_every_word_is_one():
    """By its name wherever it lies; words are quoted for the shell, unprintable ones by their bytes."""
    asked = record(
        overrides=("question=a b", "x=$(rm -rf /)"), chosen=("a'b\n\x1b*", "\udcff"), seeds=3, device="cuda:1"
    )
    results = [make_result("a")]
    last = reproduce_command(results, asked).splitlines()[-1]
    assert last == (
        "attnbench run quick -o 'question=a b' -o 'x=$(rm -rf /)' --case $'a\\x27b\\x0a\\x1b*' "
        "--case $'\\xff' --seeds 3 --device cuda:1"
    )
    said = subprocess.run(["bash", "-c", f'set -- {last}; printf %s "$9"'], capture_output=True)
    assert said.stdout == b"a'b\n\x1b*"


def test_the_code_is_named_once_for_each_commit():
    """Cases of one report may be of several versions; a wheel knows no commit."""
    here = make_result("a").environment
    packages = {**here.packages, "attnbench": "9.9"}
    of_wheel = here.model_copy(update={"git_commit": "", "packages": packages})
    dirty = of_wheel.model_copy(update={"git_commit": "c" * 40, "git_dirty": True})
    results = [make_result("a", i, environment=e) for i, e in enumerate((of_wheel, dirty, of_wheel))]
    assert reproduce_command(results, record()).splitlines() == [
        "# computed by attnbench 9.9, not from a git checkout",
        f"# computed by attnbench 9.9, commit {'c' * 40}, with uncommitted changes",
        "attnbench run quick",
    ]
