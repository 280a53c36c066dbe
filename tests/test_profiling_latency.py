"""Warm-up and rounds against a scripted clock, so that no assertion is about real time."""

from __future__ import annotations

import itertools

import pytest

from attnbench.profiling import latency
from attnbench.profiling.latency import CpuTimer, Sample, take_round, warm_up
from attnbench.profiling.rows import is_clean


class Scripted:
    """A timer whose samples are given, and a clock that they advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, samples_ms: object) -> None:
        self.samples_ms, self.now_s, self.repeats, self.rests = iter(samples_ms), 0.0, [], 0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now_s)

    def sample(self, forward: object, repeats: int) -> Sample:
        latency_ms = next(self.samples_ms)
        self.repeats.append(repeats)
        self.now_s += latency_ms * repeats / 1e3
        waited = 0.0 if latency_ms < 15 else 0.5
        return Sample(latency_ms=latency_ms, cpu_time_ms=2 * latency_ms, waited_share=waited)

    def rest(self) -> None:
        self.rests += 1


def test_warm_up_ends_when_stable(monkeypatch):
    """Two windows of five that agree within 3 % end the warm-up; the slow first samples do not count."""
    timer = Scripted(monkeypatch, [900, 300, 100, *itertools.repeat(10.0, 50)])
    assert warm_up(lambda: None, timer, limit_s=100) == 10.0
    assert len(timer.repeats) == 11  # by then 10 of the two windows' medians; a third window would be idle


def test_warm_up_goes_on_while_it_gets_faster(monkeypatch):
    """A pass that still speeds up by more than 3 % a window is not warm."""
    falling = [1000 * 0.98**i for i in range(60)]
    timer = Scripted(monkeypatch, [*falling, *itertools.repeat(falling[-1], 50)])
    assert warm_up(lambda: None, timer, limit_s=1000) == pytest.approx(falling[-1])
    assert len(timer.repeats) >= 60


def test_warm_up_ends_at_its_limit(monkeypatch):
    """A machine too noisy to become stable is measured all the same."""
    timer = Scripted(monkeypatch, itertools.cycle([10.0] * 5 + [20.0] * 5))
    warm_up(lambda: None, timer, limit_s=2.0)
    assert 2.0 <= timer.now_s <= 2.021  # the sample under way at the limit is the last


def test_short_passes_are_repeated(monkeypatch):
    """A sample lasts at least 2 ms."""
    timer = Scripted(monkeypatch, itertools.repeat(0.3, 10_000))
    taken = take_round(lambda: None, timer, pass_ms=0.3)
    assert set(timer.repeats) == {7}  # 7 x 0.3 ms = 2.1 ms
    assert len(taken.latency_ms) == len(timer.repeats)


def test_every_sample_is_kept(monkeypatch):
    """Samples whose threads waited stay where they fell, with their share of waiting; three must be clean."""
    timer = Scripted(monkeypatch, [10.0, 50.0, 11.0, 12.0, 13.0])
    taken = take_round(lambda: None, timer, pass_ms=10)
    assert taken.latency_ms == [10.0, 50.0, 11.0, 12.0]  # 0.03 s are over, and the third clean one ends it
    assert taken.cpu_time_ms == [20.0, 100.0, 22.0, 24.0]
    assert taken.waited_share == [0.0, 0.5, 0.0, 0.0]
    assert timer.rests == 1


def test_a_round_that_never_gets_clean_ends(monkeypatch):
    """On a machine that is busy all the time a round ends after five times its length."""
    timer = Scripted(monkeypatch, itertools.repeat(40.0))
    taken = take_round(lambda: None, timer, pass_ms=40)
    assert timer.now_s == pytest.approx(0.16)  # the first sample that ends after 0.15 s
    assert not is_clean(taken)


@pytest.mark.parametrize(("pass_ms", "samples", "passes_before"), [(499.0, 3, 1), (501.0, 1, 0)])
def test_long_passes_take_few_samples(monkeypatch, pass_ms, samples, passes_before):
    """A round is three samples after one unmeasured pass; one sample alone when a pass takes seconds."""
    timer, unmeasured = Scripted(monkeypatch, itertools.repeat(pass_ms)), []
    taken = take_round(lambda: unmeasured.append(1), timer, pass_ms=pass_ms)
    assert (len(taken.latency_ms), len(unmeasured)) == (samples, passes_before)


def test_cpu_timer_runs_what_it_times():
    """One sample runs the pass as often as asked and divides by that."""
    calls = []
    sample = CpuTimer().sample(lambda: calls.append(1), 5)
    assert len(calls) == 5
    assert sample.latency_ms > 0
    assert sample.cpu_time_ms >= 0
