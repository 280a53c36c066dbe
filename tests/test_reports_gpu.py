"""The scripts for a GPU: they end in time, whatever their guesses are worth, and run dry on a CPU."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import ProfileRow

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "reports" / "gpu"
sys.path.insert(0, str(FOLDER))
try:
    import cifar10
    import correctness
    import gpu_course
    import profile_models
    import speed
    from gpu_course import Call, Results, Schedule
finally:
    sys.path.remove(str(FOLDER))


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

    left_out = Schedule(gpu_course.RESERVE_S + 0.2).run([Call("a", 0.01), Call("b", 0.01)], hang)
    assert returned == []
    assert [call.section for call, _ in left_out] == ["a", "b"]
    assert "not finished" in left_out[0][1]


def test_the_course_holds_what_was_asked():
    """Three systems from 256 to 2048 px, forward and training, both precisions, L, and every backend."""
    course = profile_models.calls_on_gpu(["softmax", "linear"])
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
    head, first, second = profile_models.table([{"kind": "time"}, *records]).splitlines()
    assert [
        first[head.index(name) :].split()[0] for name in ("cold ms", "warm ms", "peak MiB", "kernels")
    ] == [
        "2",
        "1.5",
        "140.2",
        "cudnn",
    ]
    assert second.endswith("skipped: out of memory")


def run_dry(name, out, *words):
    """Run a script as the runner does, without a GPU."""
    paths = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--dry-run", *words],
        env={**os.environ, "OUT": str(out), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


def test_correctness_runs_dry(tmp_path):
    """All three parts end and agree; started again, nothing is done twice."""
    done = run_dry("correctness", tmp_path, "--budget", "250")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"reference, bfloat16 gradient +2 of 2 within", done.stdout)
    assert re.search(r"kit linear +ok +3 of 3 passed", done.stdout)
    assert re.search(r"tests +ok .*skipped", done.stdout)


def test_speed_runs_dry(tmp_path):
    """Every form of every attention is a row, the peer beside ours."""
    done = run_dry("speed", tmp_path, "--budget", "250")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    timed = {(one["subject"], one["mode"], one["form"]) for one in records if "ms" in one}
    forms = ("eager", "compiled")
    assert timed == {(one, mode, form) for one in speed.DRY for mode in speed.MODES for form in forms}
    assert not any(one.get("error") for one in records)


@pytest.mark.slow  # three processes of the profile, each with its imports
def test_profile_runs_dry(tmp_path):
    """Rows at two sizes and the crossover between them come last."""
    done = run_dry("profile_models", tmp_path, "--budget", "250")
    assert done.returncode == 0, done.stderr
    assert re.search(r"backends +linear +16 +2 +fp32 +forward", done.stdout)
    assert "linear less than softmax" in done.stdout.splitlines()[-1]


@pytest.mark.slow  # a whole case: prepared, trained, sampled, evaluated by a real network, profiled, packed
def test_cifar10_runs_dry_and_its_store_comes_back(tmp_path):
    """What it packs is enough for another machine to have nothing left to train."""
    work = tmp_path / "work"
    done = run_dry("cifar10", tmp_path / "out", "--work", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"softmax +2 .*finished +ok", done.stdout)
    work.rename(tmp_path / "lost")
    again = run_dry("cifar10", tmp_path / "again", "--work", str(work), "--from", str(tmp_path / "out"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train" not in (tmp_path / "again" / "cifar10.log").read_text().replace(
        "train.warmup_steps", ""
    ).replace("train.steps", "").replace("train.lr", "")


def test_results_are_taken_up(tmp_path):
    """A line that was cut off and a row that failed are made again, others kept."""
    path = tmp_path / "results.jsonl"
    first = Results(path)
    first.keep("a", {"ms": 1.0})
    first.keep("b", {"error": "RuntimeError: no"})
    with path.open("a") as file:
        file.write('{"name": "c", "m')
    again = Results(path)
    assert [again.has(name) for name in "abc"] == [True, False, False]
    again.keep("b", {"ms": 2.0})
    assert Results(path).records == [{"name": "a", "ms": 1.0}, {"name": "b", "ms": 2.0}]


def test_a_missing_package_is_a_row(tmp_path, monkeypatch):
    """Without diffusers its row has the reason, and ours is measured."""
    monkeypatch.setitem(sys.modules, "diffusers.models.attention_processor", None)
    results = Results(tmp_path / "speed.jsonl")
    for subject in speed.DRY:
        call = Call("eager", 1, {"subject": subject, "side": 4, "mode": "forward"})
        speed.perform(call, 60, "cpu", True, results)
    ours, peer = (next(one for one in results.records if one["subject"] == name) for name in speed.DRY)
    assert ours["ms"] > 0
    assert "ModuleNotFoundError" in peer["error"]
    assert "ModuleNotFoundError" in speed.table(results.records)


def test_a_wrong_result_is_told(tmp_path):
    """A number over its allowance makes a line of its own."""
    results = Results(tmp_path / "correctness.jsonl")
    for name, found in (("linear", 0.01), ("moh", 0.3)):
        record = {"part": "reference", "found": found, "allowed": 0.1, "ok": found <= 0.1}
        results.keep(f"reference {name} bfloat16 output", record)
    _, kind, wrong = correctness.table(results.records).splitlines()
    assert "1 of 2 within" in kind
    assert wrong.split()[1] == "moh"
    assert "WRONG" in wrong


def test_the_store_is_packed_in_parts(tmp_path, monkeypatch):
    """Parts put together are the store, without the checkpoints of finished trainings."""
    monkeypatch.setattr(cifar10, "PART_BYTES", 1000)
    runs, out, back = (tmp_path / name for name in ("runs", "out", "back"))
    for folder in (out, back):
        folder.mkdir()
    for key, names in {"done": ["done.json", "ema.safetensors"], "open": []}.items():
        folder = runs / "store" / "train" / key
        folder.mkdir(parents=True)
        for name in [*names, "checkpoint.safetensors"]:
            (folder / name).write_bytes(os.urandom(500))
    assert cifar10.pack(runs, out) == "the whole store"
    assert len(list(out.iterdir())) == 2
    cifar10.unpack(out, back)
    files = sorted(
        str(path.relative_to(back / "store" / "train")) for path in back.rglob("*") if path.is_file()
    )
    assert files == ["done/done.json", "done/ema.safetensors", "open/checkpoint.safetensors"]


def test_the_runner_goes_on_after_a_failure(tmp_path):
    """Each script gets its limit; one that fails is a line of the summary."""
    stand_in = tmp_path / "python3"
    stand_in.write_text('#!/bin/sh\ncase "$1" in *speed.py) exit 3;; *) echo "$@";; esac\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CIFAR": "images.tar"}
    words = ["bash", str(FOLDER / "run.sh"), "--dry-run", "speed", "nonsense", "cifar10"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"{FOLDER}/cifar10.py --budget 150 --dry-run --data images.tar" in done.stdout
    told = done.stdout.splitlines()[-3:]
    assert re.fullmatch(r"speed: exit code 3 after \d+ s", told[0])
    assert told[1].startswith("nonsense: there is no such script")
    assert re.fullmatch(r"cifar10: exit code 0 after \d+ s", told[2])


def test_wheels_are_pinned_and_complete():
    """Each has one version, and whatever we depend on is among them or on the machine."""
    lines = (FOLDER / "wheels.txt").read_text().splitlines()
    wheels = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9a-z.]+", line) for line in wheels)
    carried = {line.split("==")[0] for line in wheels} | set(re.findall(r"([a-z]+)==", " ".join(lines)))
    there = set(" ".join(lines).partition("already:")[2].replace("#", " ").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[><=]", one)[0] for one in project["dependencies"]}
    assert needed - carried - there == set()
