"""The GPU report's schedule: it ends in time, whatever its guesses are worth."""

from __future__ import annotations

import contextlib
import runpy
import time
from pathlib import Path

from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import ProfileRow

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "reports" / "gpu" / "measure.py"))
Call, Schedule = SCRIPT["Call"], SCRIPT["Schedule"]


def run(budget_s, calls, seconds):
    """Run calls that take `seconds` by their section on a scripted clock; return done, left out, time."""
    now, done = [100.0], []

    def do(call, left_s):
        now[0] += seconds[call.section]
        done.append(call.section)

    left_out = Schedule(budget_s, now=lambda: now[0]).run(calls, do)
    return done, [call.section for call, _ in left_out], now[0] - 100.0


def test_what_fits_is_done_in_order():
    """A call too long for what is left goes, a shorter one after it may still fit."""
    calls = [Call("a", 50), Call("b", 80), Call("c", 20)]
    done, left_out, _ = run(120, calls, {"a": 50, "b": 80, "c": 20})
    assert (done, left_out) == (["a", "c"], ["b"])


def test_guesses_follow_the_pace():
    """On a machine three times slower than guessed the last calls are left out, not begun too late."""
    calls = [Call(name, 20) for name in "abcdefgh"]
    done, left_out, took = run(200, calls, dict.fromkeys("abcdefgh", 60))
    assert took <= 200
    assert len(done) == 3
    assert done + left_out == list("abcdefgh")


def test_one_slow_start_stops_nothing():
    """A short first call that takes much longer than guessed is no pace for the rest."""
    calls = [Call("checks", 3), *(Call(name, 20) for name in "abc")]
    done, left_out, _ = run(200, calls, {"checks": 15, "a": 20, "b": 20, "c": 20})
    assert (done, left_out) == (["checks", "a", "b", "c"], [])


def test_a_call_that_hangs_is_ended():
    """What comes after a call that does not return is the table, and the call is named with the reason."""
    returned = []

    def hang(call, left_s):
        with contextlib.suppress(Exception):  # as rows do with their errors
            time.sleep(20)
        returned.append(call)

    left_out = Schedule(SCRIPT["RESERVE_S"] + 0.2).run([Call("a", 0.01), Call("b", 0.01)], hang)
    assert returned == []
    assert [call.section for call, _ in left_out] == ["a", "b"]
    assert "not finished" in left_out[0][1]


def test_the_course_holds_what_was_asked():
    """Three systems from 256 to 2048 px, forward and training, both precisions, L, and every backend."""
    course = SCRIPT["calls_on_gpu"](["softmax", "linear"])
    settings = [call.settings for call in course]
    assert {"forward", "train"} == {one.get("mode", "forward") for one in settings}
    assert {256, 512, 1024, 2048} == {px for one in settings for px in one.get("resolutions", ())}
    assert {"bf16", "fp32"} == {one["precision"] for one in settings if one}
    models = {name for one in settings for name in one.get("models", ())}
    assert models == {f"{name}-{size}" for name in ("dit", "sana", "dydi-lit") for size in "sl"}
    assert ("softmax", "linear") in [one.get("backends") for one in settings]


def test_table_shows_rows_and_reasons():
    """Measured and skipped rows, each in the columns it has."""
    rounds = [Round(latency_ms=[2.0], warm_latency_ms=[1.5], cpu_time_ms=[1.0])] * 6
    common = {"resolution": 256, "tokens": 256, "device": "cuda", "precision": "bf16", "batch_size": 1}
    rows = [
        ProfileRow(model="dit-s", rounds=rounds, kernels=["cudnn"], peak_memory_mib=140.25, **common),
        ProfileRow(model="sana-s", status="skipped", reason="out of memory", **common),
    ]
    records = [{"kind": "row", "section": "forward", "row": row.model_dump(mode="json")} for row in rows]
    head, first, second = SCRIPT["table"]([{"kind": "time"}, *records]).splitlines()
    assert [
        first[head.index(name) :].split()[0] for name in ("cold ms", "warm ms", "peak MiB", "kernels")
    ] == [
        "2",
        "1.5",
        "140.2",
        "cudnn",
    ]
    assert second.endswith("skipped: out of memory")
