"""Some of the faults of faults.py, on this machine; the long run is `python tests/faults.py`."""

from __future__ import annotations

import os
import random
import shutil

import pytest
from fault_engines import Local
from fault_kinds import FullDisk
from fault_report import REPORT, kept_tries, with_table
from faults import Kept, attempt, faults_of, undisturbed
from struck_runs import SUITE, all_ok, weights
from whole_runs import forking

from attnbench.metrics import classifier
from attnbench.storage.names import DONE, STORE

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A shorter suite that nobody struck, whose digits network is not trained."""
    short = SUITE.replace("steps: 600", "steps: 60").replace("every: 50", "every: 10")
    with forking(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_train", lambda *words: None)
        yield undisturbed(tmp_path_factory.mktemp("whole"), short)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "kind"),
    [
        ("jobs", "kill -9 of a worker"),
        pytest.param("inline", "full disk", marks=AS_ROOT),
    ],
)
def test_the_same_command_again_ends_as_if_nothing_had_been(whole, tmp_path, executor, kind):
    """Every case is ok, nothing finished is computed twice, and the weights are the same bits."""
    engine = Local(executor, longest_gap_s=0.3)  # a command takes a second
    faults = [fault for fault in faults_of(engine, "") if fault.name == kind]
    (made,) = attempt(engine, faults, whole, tmp_path / "runs", seed=1, strikes=2)
    assert made.injected > 0
    assert made.is_good, made


def test_what_is_made_anew_is_seen(whole, tmp_path):
    """The harness can fail: a stage finished a second time, a training made anew, no result."""
    runs = tmp_path / "runs"
    shutil.copytree(whole / "runs", runs)
    kept = Kept(runs)
    kept.look()
    kept.look()
    assert (kept.lost, all_ok(runs)) == (set(), True)
    assert weights(runs) == weights(whole / "runs")
    done = next((runs / STORE).glob(f"sample/*/{DONE}"))
    again = done.with_name("again")
    again.write_bytes(done.read_bytes())
    again.replace(done)
    for training in (runs / STORE / "train").iterdir():
        shutil.rmtree(training)
    kept.look()
    assert len(kept.lost) == 1 + 2 * 2  # a training loses its mark and its steps
    assert weights(runs) == {}
    (runs / "struck" / "results.jsonl").unlink()
    assert not all_ok(runs)


@AS_ROOT
def test_a_full_disk_is_full(tmp_path):
    """Up to some pages, until it is mended; what lay in the folder is there meanwhile, and the disk goes."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "kept").write_text("kept")
    fault = FullDisk()
    with fault.around(runs):
        assert (runs / "kept").read_text() == "kept"
        assert fault.strike(None, random.Random(0))
        with pytest.raises(OSError, match="No space left"):
            (runs / "more").write_bytes(bytes(2**20))
        fault.mend()
        (runs / "more").write_bytes(bytes(2**20))
    assert list(tmp_path.iterdir()) == [runs]
    assert list(runs.iterdir()) == []


def test_the_report_shows_the_tries_that_are_kept():
    """Its table is what the script makes of them, and its finding says how many faults they were."""
    readme, tries = (REPORT / "README.md").read_text(), kept_tries()
    assert readme == with_table(readme, tries)
    assert f"Finding: Of {sum(one.injected for one in tries)} faults" in readme
