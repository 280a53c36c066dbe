"""Rows: what they show, and their measurements."""

from __future__ import annotations

import json

from attnbench.profiling.rows import ProfileRow, to_measurements


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


def test_latency_is_the_median_of_all_samples():
    """The median is in the row's JSON beside the raw values."""
    shown = json.loads(row(latency_ms_values=[3.0, 100.0, 1.0, 2.0]).model_dump_json())
    assert shown["latency_ms"] == 2.5
    assert shown["latency_ms_values"] == [3.0, 100.0, 1.0, 2.0]
    assert row().latency_ms is None


def test_row_has_the_documented_keys():
    """A row's JSON has the keys that `attnbench profile --json` promises."""
    promised = "model resolution tokens params macs_paper macs_full latency_ms peak_memory_mib status reason"
    assert set(promised.split()) <= row().model_dump().keys()


def test_measurements():
    """Names carry the resolution, latency all its raw values, and nothing unmeasured appears."""
    found = to_measurements(row(params=5, macs_full=7, latency_ms_values=[1.0, 2.0, 9.0], clean_share=2 / 3))
    by_name = {m.name: m for m in found}
    assert by_name.keys() == {"params", "macs_full@256", "latency_ms@256"}
    latency = by_name["latency_ms@256"]
    assert (latency.values, latency.n, latency.unit, latency.better) == ([1.0, 2.0, 9.0], 3, "ms", "lower")
    assert "67% of the samples undisturbed" in latency.note
    assert "batch 2, fp32, cpu" in latency.note
    assert by_name["macs_full@256"].unit == "MAC"


def test_a_row_without_latency_says_why():
    """A refused row's reason travels as an empty measurement; a note on a good row is no measurement."""
    (refused,) = to_measurements(row(status="skipped", reason="out of memory"))
    assert (refused.name, refused.values, refused.note) == ("latency_ms@256", [], "skipped: out of memory")
    assert to_measurements(row(reason="peak memory needs Linux")) == []
