"""Which case runs next, asked with an executor that computes nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

import pytest
from process_cases import digits_case

from attnbench.results import Result, environment, timestamp
from attnbench.running.executors.interface import Executor, Finished, Interrupted, Order, Progress, Tell
from attnbench.running.listener import Listener
from attnbench.running.schedule import Place, run_cases
from attnbench.specs import Case
from attnbench.stages.interrupts import Stopped
from attnbench.storage.claims import claim_folder
from attnbench.storage.locks import alone_in, is_held
from attnbench.storage.store import STAGE_ENDED, StageOutput, write_output


class Imagined(Executor):
    """Two at a time; each case ends as the test says, in a thread as cases of real executors do."""

    at_once = 2

    def __init__(self, behave) -> None:
        self.behave, self.started, self.stopped = behave, [], threading.Event()

    def start(self, orders: Sequence[Order], tell: Tell) -> None:
        for order in orders:
            self.started.append(order.case.label)
            threading.Thread(target=self.behave, args=(self, order, tell), daemon=True).start()

    def stop(self, number: int) -> None:
        self.stopped.set()


def result_of(case: Case, status: str = "ok") -> Result:
    return Result(
        case_id=case.id, suite=case.suite, label=case.label, status=status, environment=environment("cpu"),
        created=timestamp(),
    )  # fmt: skip


def a_case(label: str, seed: int, guidance: float = 1.0) -> Case:
    """Return a case; those of one seed share a training."""
    case = digits_case()
    sample = case.sample.model_copy(update={"guidance_scale": guidance})
    return case.model_copy(update={"label": label, "seed": seed, "sample": sample})


def run_all(tmp_path, cases, executor, times_s=None, listener=None):
    place = Place(store=tmp_path / "store", run_dir=tmp_path / "run", device="cpu")
    place.store.mkdir(exist_ok=True)
    place.run_dir.mkdir(exist_ok=True)
    seconds = {case.id: (times_s or {}).get(case.label, 0.0) for case in cases}
    return run_cases(cases, place, executor, listener or Listener(), seconds)


def ends(executor: Imagined, order: Order, tell: Tell) -> None:
    tell(order, Finished(result_of(order.case)))


def test_the_longest_start_first(tmp_path):
    """By the plan's estimates, and results come in the order of the suite all the same."""
    cases = [a_case(label, seed) for seed, label in enumerate("abcd")]
    executor = Imagined(ends)
    results, computed = run_all(tmp_path, cases, executor, {"a": 1.0, "b": 9.0, "c": 3.0, "d": 5.0})
    assert executor.started == ["b", "d", "c", "a"]
    assert ([result.label for result in results], computed) == (list("abcd"), 4)


def test_nobody_waits_for_a_training_while_there_is_other_work(tmp_path):
    """A second case of a training that is being made lets another go first, until the training is there."""
    cases = [a_case("first", 0), a_case("same training", 0, guidance=2.0), a_case("other", 1)]
    trained, third = threading.Event(), threading.Event()

    def behave(executor, order, tell):
        if order.case.label == "first":
            assert third.wait(30)
            folder = order.store / "train" / order.case.key("train")
            folder.mkdir(parents=True)
            write_output(folder, StageOutput())
            tell(order, Progress(STAGE_ENDED, 1, 0, "train"))
            assert trained.wait(30)  # it still samples while the second case begins
        elif order.case.label == "other":
            third.set()
        else:
            trained.set()
        ends(executor, order, tell)

    executor = Imagined(behave)
    run_all(tmp_path, cases, executor)
    assert executor.started == ["first", "other", "same training"]


def trained_for(label: str, steps: int, seed: int = 0) -> Case:
    case = a_case(label, seed)
    return case.model_copy(update={"train": case.train.model_copy(update={"steps": steps})})


def test_a_longer_training_waits_for_the_shorter_one(tmp_path):
    """Trainings that differ in their steps alone are begun from the shortest on, each when the last is there.

    Others are begun meanwhile; a shorter one that fails does not keep the longer from its own training.
    """
    cases = [trained_for("9", 9), trained_for("3", 3), trained_for("6", 6), trained_for("9 of 1", 9, seed=1)]
    there: list[tuple[str, bool]] = []

    def behave(executor, order, tell):
        store = order.store / "train"
        there.append((order.case.label, (store / cases[1].key("train") / "done.json").exists()))
        if order.case.label == "3":
            time.sleep(0.1)
            folder = store / order.case.key("train")
            folder.mkdir(parents=True)
            write_output(folder, StageOutput())
            tell(order, Progress(STAGE_ENDED, 1, 0, "train"))
        tell(order, Finished(result_of(order.case, "failed" if order.case.label == "6" else "ok")))

    executor = Imagined(behave)
    run_all(tmp_path, cases, executor, {"9": 9.0, "3": 3.0, "6": 6.0, "9 of 1": 9.0})
    assert executor.started == ["3", "9 of 1", "6", "9"]
    assert [seen for label, seen in there if label in ("6", "9")] == [True, True]


def test_a_shorter_training_in_other_hands_is_waited_for(tmp_path):
    """The longer one, though it comes first, does not begin from nothing meanwhile."""
    cases = [trained_for("9", 9), trained_for("3", 3)]
    theirs, told = alone_in(claim_folder(cases[1], tmp_path / "store"), print), []

    def notice(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            theirs.__exit__(None, None, None)

    theirs.__enter__()
    executor = Imagined(ends)
    run_all(tmp_path, cases, executor, {"9": 9.0, "3": 3.0}, listener=Listener(notice=notice))
    assert executor.started == ["3", "9"]
    assert "waiting for process" in told[0]


def test_a_case_is_held_while_it_is_under_way(tmp_path):
    """Against other runs, from start to end; one that another run holds comes last, and is waited for."""
    cases = [a_case("theirs", 0), a_case("ours", 1)]
    held: list[tuple[str, bool]] = []
    theirs, told = alone_in(claim_folder(cases[0], tmp_path / "store"), print), []

    def behave(executor, order, tell):
        held.append((order.case.label, is_held(claim_folder(order.case, order.store))))
        ends(executor, order, tell)

    def notice(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            theirs.__exit__(None, None, None)

    theirs.__enter__()
    run_all(tmp_path, cases, Imagined(behave), listener=Listener(notice=notice))
    assert held == [("ours", True), ("theirs", True)]
    assert "waiting for process" in told[0]
    assert not any(is_held(claim_folder(case, tmp_path / "store")) for case in cases)


def test_a_signal_waits_for_all_and_says_what_each_saved(tmp_path):
    """No case is started any more; one that ends just then counts as finished."""
    cases = [a_case(label, seed) for seed, label in enumerate(("saves", "ends", "never"))]
    heard: list[str] = []

    def behave(executor, order, tell):
        tell(order, Progress("train", 1, 2, ""))
        assert executor.stopped.wait(30)
        if order.case.label == "saves":
            time.sleep(0.1)
            tell(order, Interrupted("saves: step 7 is saved"))
        else:
            ends(executor, order, tell)

    def progress(*words) -> None:
        heard.append("progress")
        if len(heard) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    executor = Imagined(behave)
    finished: list[str] = []
    listener = Listener(progress=progress, finished=lambda result, cached: finished.append(result.label))
    with pytest.raises(Stopped) as raised:
        run_all(tmp_path, cases, executor, listener=listener)
    assert (raised.value.message, raised.value.code) == ("saves: step 7 is saved", 130)
    assert (executor.started, finished) == (["saves", "ends"], ["ends"])
    assert "ends" in (tmp_path / "run" / "results.jsonl").read_text()


def test_a_case_that_a_cluster_ends_is_a_failed_one(tmp_path):
    """Interrupted without a signal to the run: a result with the reason, and the others go on."""

    def behave(executor, order, tell):
        if order.case.label == "ended":
            tell(order, Interrupted("its task was ended"))
        else:
            tell(order, Finished(result_of(order.case)))

    cases = [a_case("ended", 0), a_case("other", 1)]
    results, _ = run_all(tmp_path, cases, Imagined(behave))
    assert [result.status for result in results] == ["failed", "ok"]
    assert results[0].reason == "its task was ended, though nobody has stopped the run"
