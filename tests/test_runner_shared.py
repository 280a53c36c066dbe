"""Runs that work at the same time in the same folders: they wait, say for whom, and share out the cases."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from functools import partial
from pathlib import Path

import pytest
from runner_cases import tiny_suite

from attnbench.errors import StorageError
from attnbench.results import latest, read_results
from attnbench.running.executors.inline import run_inline
from attnbench.running.runner import Listener, run
from attnbench.storage.locks import alone_in


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One folder of runs for the whole module, so that the digit classifier is trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def suite(tmp_path):
    """Make a suite with another name (and so another run folder)."""
    return partial(tiny_suite, tmp_path)


@pytest.mark.parametrize(("shared", "more"), [("twice", []), ("store/profile", ["profile.rounds=3"])])
def test_a_run_waits_for_another_in_the_folders_they_share(store, suite, shared, more):
    """Results and report are written, and costs measured, by one run at a time; the notice says by whom."""
    run(suite("twice"), store, device="cpu", executor=run_inline)
    told: list[str] = []
    with contextlib.ExitStack() as other:
        other.enter_context(alone_in(store / shared, print))

        def hear(text: str) -> None:
            told.append(text)
            other.close()  # the other one ends, now that it has been waited for

        outcome = run(
            suite("twice", *more), store, device="cpu", executor=run_inline, listener=Listener(notice=hear)
        )
    assert outcome.exit_code == 0
    assert len(told) == 1
    assert f"waiting for process {os.getpid()} on " in told[0]
    assert f"which works in {store / shared};" in told[0]


def test_missing_file_locks_are_reported_once(store, suite, monkeypatch):
    """On a file system without flock a run works and says once what that means, not at each stage."""

    def refuse(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told: list[str] = []
    loaded = suite("nolocks", "seed=11", "matrix.model.attention=[softmax]")
    outcome = run(loaded, store, device="cpu", executor=run_inline, listener=Listener(notice=told.append))
    assert outcome.exit_code == 0
    assert len(told) == 1
    assert "this file system has no file locks (flock: Function not implemented)" in told[0]


def test_a_picture_cut_by_a_full_disk_is_copied_again(store, suite, monkeypatch):
    """Half a copy beside the report is not taken for the picture by the next run."""
    outcome = run(suite("twice"), store, device="cpu", executor=run_inline)
    picture = next((outcome.run_dir / "pictures").iterdir())
    whole = picture.read_bytes()
    picture.unlink()

    write = Path.write_bytes

    def cut(path, data):
        if data != whole:
            return write(path, data)
        write(path, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(StorageError, match=r"\.png: No space left on device"):
            run(suite("twice"), store, device="cpu", executor=run_inline)
    assert run(suite("twice"), store, device="cpu", executor=run_inline).exit_code == 0
    assert picture.read_bytes() == whole


def test_a_picture_that_the_store_has_lost_costs_the_picture_alone(store, suite):
    """The run ends well, the report and a notice say which file is missing; drawn anew, it is shown again."""
    told: list[str] = []
    outcome = run(suite("twice"), store, device="cpu", executor=run_inline)
    case = suite("twice").cases[0]
    lost = store / "store" / "sample" / case.key("sample") / "grid.png"
    shown = outcome.run_dir / "pictures" / f"{case.id}-grid.png"
    lost.unlink()
    shown.unlink()
    listener = Listener(notice=told.append)
    again = run(suite("twice"), store, device="cpu", executor=run_inline, listener=listener)
    assert again.exit_code == 0
    done = lost.parent / "done.json"
    assert told == [
        f"{case.label} goes without its picture: cannot read {lost}: No such file or directory; "
        f"remove {done} and run the same command again to have it drawn anew"
    ]
    assert "its grid cannot be read: No such file or directory" in again.report.html.read_text()
    done.unlink()
    assert run(suite("twice"), store, device="cpu", executor=run_inline).exit_code == 0
    assert shown.read_bytes() == lost.read_bytes()


def test_a_case_in_other_hands_comes_last(store, suite):
    """Where another run trains the first case, this one takes the second first: they share the work."""
    ready, order = suite("shared-out", "seed=3"), []
    claimed = contextlib.ExitStack()
    claimed.enter_context(alone_in(store / "store/train" / ready.cases[0].key("train"), print))

    def compute(case, *rest):
        order.append(case.label)
        claimed.close()  # the other run is done, or was killed
        return run_inline(case, *rest)

    outcome = run(ready, store, device="cpu", executor=compute)
    assert order == [ready.cases[1].label, ready.cases[0].label]
    assert [result.label for result in outcome.results] == [case.label for case in ready.cases]
    assert outcome.computed == 2


def test_what_another_run_finished_meanwhile_is_read(store, suite):
    """A case that was waited for and is finished then is not computed again."""
    ready = suite("meanwhile", "seed=4", "matrix.model.attention=[softmax]")
    (case,) = ready.cases
    root = store / "store"

    def finish_as_the_other(text):
        if other is not None:
            run_inline(case, root, "cpu", lambda *_: None)
            other.close()

    other = contextlib.ExitStack()
    other.enter_context(alone_in(root / "cells" / case.key("evaluate"), print))
    forbidden = lambda *_: pytest.fail("computed again")  # noqa: E731
    listener = Listener(notice=finish_as_the_other)
    outcome = run(ready, store, device="cpu", executor=forbidden, listener=listener)
    assert outcome.computed == 0
    assert [result.status for result in outcome.results] == ["ok"]


def test_what_failed_here_and_was_finished_elsewhere_is_finished(store, suite):
    """A run whose case failed while another run finished it reports the finished one, not its failure."""
    ready = suite("overtaken", "seed=5", "matrix.model.attention=[softmax]")

    def fail_while_another_succeeds(case, root, device, progress):
        done = run_inline(case, root, device, progress)
        return done.model_copy(update={"status": "failed", "reason": "the GPU was full", "measurements": []})

    outcome = run(ready, store, device="cpu", executor=fail_while_another_succeeds)
    assert [result.status for result in outcome.results] == ["ok"]
    (result,) = latest(read_results(outcome.run_dir / "results.jsonl"))
    assert (result.status, bool(result.measurement("macs_full@8"))) == ("ok", True)


def test_a_finished_profile_needs_no_lock(store, suite):
    """Another run that measures, or a store that cannot be written, does not keep a finished suite."""
    run(suite("measured", "seed=6"), store, device="cpu", executor=run_inline)
    told = []
    with alone_in(store / "store" / "profile", print):
        outcome = run(suite("measured", "seed=6"), store, device="cpu", listener=Listener(notice=told.append))
    assert (outcome.computed, told) == (0, [])
