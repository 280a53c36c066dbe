"""Rows: what they show, and their measurements."""

from __future__ import annotations

import json

import pytest

from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import ProfileRow, is_clean, to_measurements
from attnbench.report.timings import rounds_interval


def row(**changes: object) -> ProfileRow:
    fixed = {
        "model": "m",
        "resolution": 256,
        "tokens": 256,
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 2,
    }
    return ProfileRow(**(fixed | changes))


def timed(*latency_ms: float, waited: list[float] | None = None, stolen: float = 0.0) -> Round:
    return Round(
        latency_ms=list(latency_ms),
        cpu_time_ms=list(latency_ms),
        waited_share=[0.0] * len(latency_ms) if waited is None else waited,
        stolen_share=stolen,
    )


def test_latency_is_the_median_of_the_rounds_medians():
    """A long round weighs no more than a short one; raw values and what is computed are in the JSON."""
    rounds = [timed(3.0, 100.0, 1.0), timed(2.0), timed(5.0, 7.0)]  # medians 3, 2, 6
    shown = row(rounds=rounds).model_dump_json()
    assert json.loads(shown)["latency_ms"] == 3.0
    assert json.loads(shown)["latency_interval_ms"] is None  # three rounds have no 95 % interval
    assert json.loads(shown)["rounds"][0]["latency_ms"] == [3.0, 100.0, 1.0]
    assert row().latency_ms is None
    assert ProfileRow.model_validate_json(shown) == row(rounds=rounds)  # as a session that goes on reads it


def test_the_interval_is_over_rounds():
    """Six rounds are the fewest whose range is a 95 % interval, however many samples they hold."""
    rounds = [timed(*[float(number)] * 50) for number in range(1, 7)]
    assert row(rounds=rounds).latency_interval_ms == (1.0, 6.0)
    assert row(rounds=rounds[:5]).latency_interval_ms is None


def test_the_interval_reaches_what_each_process_says():
    """Twelve rounds of 1 ms and six, of another process, of 2 ms: both are in the interval."""
    rounds = [timed(1.0) for _ in range(12)] + [
        timed(2.0).model_copy(update={"process": 1}) for _ in range(6)
    ]
    found = row(rounds=rounds)
    assert (found.latency_ms, found.latency_interval_ms) == (1.0, (1.0, 2.0))
    (latency, _) = to_measurements(found)
    assert latency.round_processes == [0] * 12 + [1] * 6
    assert latency.interval == rounds_interval(latency) == (1.0, 2.0)


def test_percentiles_of_all_samples():
    """p10, p50, p90 and p99 interpolate between raw samples: of 0 to 100 they are themselves."""
    values = [float(number) for number in range(101)]
    found = row(rounds=[timed(*values[:40]), timed(*values[40:])]).latency_percentiles_ms
    assert found == pytest.approx({"p10": 10, "p50": 50, "p90": 90, "p99": 99})


def test_clean_rounds_are_preferred_and_waiting_samples_do_not_count():
    """Six clean rounds are ranked without the disturbed ones; samples that waited fall out of a clean one."""
    clean = [timed(1.0, 1.0, 1.0, 50.0, waited=[0.0, 0.0, 0.0, 0.9]) for _ in range(6)]
    busy = timed(40.0, 41.0, 42.0, waited=[0.5, 0.5, 0.5])
    stolen = timed(30.0, 30.0, 30.0, stolen=0.2)
    assert [is_clean(r) for r in (clean[0], busy, stolen)] == [True, False, False]
    assert row(rounds=[*clean, busy, stolen]).latency_ms == 1.0
    five = row(rounds=[*clean[:5], busy, busy, busy, busy, busy, busy])  # too few clean ones: all count
    assert five.latency_ms == 41.0


def test_row_has_the_documented_keys():
    """A row's JSON has the keys that `attnbench profile --json` promises."""
    promised = "model resolution tokens params macs_paper macs_full latency_ms peak_memory_mib status reason"
    assert set(promised.split()) <= row().model_dump().keys()


def test_measurements():
    """Names carry the resolution, rounds stay rounds, and nothing unmeasured appears."""
    rounds = [timed(1.0, 2.0, 9.0), timed(4.0, 4.0, 4.0, 80.0, waited=[0, 0, 0, 0.7])]
    found = to_measurements(row(params=5, macs_full=7, rounds=rounds, session="s1", disturbed="busy"))
    by_name = {m.name: m for m in found}
    assert by_name.keys() == {
        "params", "macs_full@256", "latency_ms@256", "cpu_time_ms@256", "waited_latency_ms@256",
    }  # fmt: skip
    latency = by_name["latency_ms@256"]
    assert latency.rounds == [[1.0, 2.0, 9.0], [4.0, 4.0, 4.0]]
    assert (latency.values, latency.n, latency.unit, latency.better) == ([2.0, 4.0], 6, "ms", "lower")
    assert (latency.clean_rounds, latency.session, latency.disturbed) == ([True, True], "s1", "busy")
    assert by_name["waited_latency_ms@256"].values == [80.0]  # nothing measured is dropped
    assert "batch 2, fp32, cpu" in latency.note
    assert by_name["macs_full@256"].unit == "MAC"


def test_a_row_without_latency_says_why():
    """A refused row's reason travels as an empty measurement; a note on a good row is no measurement."""
    (refused,) = to_measurements(row(status="skipped", reason="out of memory"))
    assert (refused.name, refused.values, refused.note) == ("latency_ms@256", [], "skipped: out of memory")
    assert to_measurements(row(reason="peak memory needs Linux")) == []
