"""Whole sessions with real child processes, some of which misbehave in every way a plugin can."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from attnbench.devices import available_cores
from attnbench.errors import AttnbenchError, UnsupportedError, UserInputError
from attnbench.plugins import registry
from attnbench.profiling import session, turns
from attnbench.profiling.child import Child
from attnbench.profiling.draft import Draft
from attnbench.profiling.profile import profile_batches
from attnbench.profiling.protocol import Job, Ready, Refusal, Round, Tried, TriedPrecisions, Workload
from attnbench.profiling.rows import ProfileRequest, ProfileRow
from attnbench.profiling.session import profile_models
from attnbench.profiling.threads import chosen_threads, slow_bf16
from attnbench.profiling.worker import refusal, serve
from attnbench.specs import AttentionSpec, ModelConfig, ProfileSpec

STRANGERS = '''
    """Attention backends that misbehave when they really run, as a third party would ship them."""

    import os
    import signal
    import sys
    import time

    import torch
    from torch import nn

    from attnbench.contract import AttentionBackend, MacCount
    from attnbench.hookspecs import hookimpl


    class Misbehaves(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how = how

        def forward(self, x, context):
            return x if x.device.type == "meta" else self.how(x)


    def die(x):
        os.kill(os.getpid(), signal.SIGKILL)


    def leave(x):
        print("the last words", file=__import__("sys").stderr, flush=True)
        os._exit(3)


    def hang(x):
        time.sleep(3600)


    def devour(x):
        return x + torch.empty(2**50)


    def fail(x):
        raise ValueError("this plugin is broken")


    def chatter(x):
        print("a plugin may print what it likes", flush=True)
        os.write(1, b"a C library, too\\n")
        return x


    def forge(x):
        os.write(int(sys.argv[1]), b"{}\\n")
        return x


    def rethread(x):
        torch.set_num_threads(1)
        return x


    WAYS = {
        "threads": rethread,
        "dies": die,
        "leaves": leave,
        "hangs": hang,
        "devours": devour,
        "fails": fail,
        "chatters": chatter,
        "forges": forge,
        "nans": lambda x: x * float("nan"),
    }


    def refuses(site, options, dtype, device):
        return None if device.type == "meta" else "needs a device nobody has"


    @hookimpl
    def attnbench_backends():
        for name, way in WAYS.items():
            yield AttentionBackend(
                name=name, summary="-", source="-",
                build=lambda site, options, way=way: Misbehaves(way),
                macs=lambda site, options: MacCount(),
            )
        yield AttentionBackend(
            name="unsupported", summary="-", source="-", supports=refuses,
            build=lambda site, options: Misbehaves(chatter), macs=lambda site, options: MacCount(),
        )
        yield AttentionBackend(
            name="miscounts", summary="-", source="-",
            build=lambda site, options: Misbehaves(chatter),
            macs=lambda site, options: MacCount(linear=10**9),
        )
'''


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Install a third-party plugin the way pip would, for this process and its children."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "stranger_backends.py").write_text(textwrap.dedent(STRANGERS))
    info = site / "stranger_backends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attnbench]\nstranger = stranger_backends\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        registry.cache_clear()
        yield
    registry.cache_clear()


def config(attention: str = "softmax") -> ModelConfig:
    return ModelConfig(
        name=attention,
        depth=1,
        dim=16,
        num_heads=2,
        input="pixel",
        in_channels=1,
        attention=AttentionSpec(name=attention),
    )


def profile(*attentions: str, resolutions: tuple[int, ...] = (8,), **spec: object) -> dict[str, ProfileRow]:
    requests = [ProfileRequest(label=name, config=config(name), num_classes=10) for name in attentions]
    rows = profile_models(requests, ProfileSpec(resolutions=list(resolutions), **({"rounds": 2} | spec)))
    return {row.model: row for row in rows}


@pytest.fixture(scope="module")
def rows(strangers):
    """One session of well-behaved and misbehaving models together, each in a real process."""
    return profile("softmax", "dies", "leaves", "fails", "chatters", "forges", "miscounts")


@pytest.mark.parametrize("name", ["softmax", "chatters"])
def test_the_others_finish(rows, name):
    """Models beside broken ones are measured in full; a plugin that prints does not break the talk."""
    row = rows[name]
    assert (row.status, row.reason, row.tokens) == ("ok", "", 16)
    assert row.params > 0
    assert row.macs_full > 0
    assert row.macs_paper > 0
    assert len(row.rounds) >= 2
    assert all(len(r.latency_ms) >= 3 and len(r.cpu_time_ms) == len(r.latency_ms) for r in row.rounds)
    assert row.session
    assert row.conditions.threads == 1  # 16 tokens of width 16: no second thread helps
    assert row.peak_memory_mib > row.extra_memory_mib >= 0


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("dies", "failed", "killed by SIGKILL"),
        ("leaves", "failed", "exit code 3; its last words: the last words"),
        ("forges", "failed", "the measuring process sent a line that is no message of attnbench's: '{}'"),
        ("fails", "failed", "ValueError: this plugin is broken"),
        ("miscounts", "failed", "counts of multiply-adds differ"),
    ],
)
def test_a_broken_row_says_why(rows, name, status, reason):
    """A crash, an error or a wrong count is a row with its reason and no latency."""
    row = rows[name]
    assert row.status == status
    assert reason in row.reason
    assert row.latency_ms is None
    assert row.params > 0  # what was known before stays


def job(attention: str) -> Job:
    workload = Workload(config=config(attention), input_size=8, num_classes=10)
    return Job(workload=workload, device="cpu", task="latency", threads=1, warm_up_limit_s=0.1)


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("devours", "skipped", "out of memory: "),
        ("nans", "failed", "NaN or infinity"),
        ("unsupported", "skipped", "needs a device nobody has"),
    ],
)
def test_a_child_refuses(strangers, name, status, reason):
    """Too little memory and an unsupported backend are skipped, outputs that are not numbers fail."""
    with pytest.raises((RuntimeError, AttnbenchError)) as caught:
        list(serve(job(name), []))
    reply = refusal(caught.value)
    assert reply.status == status
    assert reason in reply.reason


def test_time_out(strangers):
    """A pass that never ends is cut off at the limit and skipped with that reason."""
    with Child(budget_s=1.0) as child:
        reply = child.set_up(job("hangs"))
    assert reply == Refusal(status="skipped", reason="did not finish within 1 s (timeout_s)")


def test_killed_between_rounds():
    """A child killed from outside while it waits is a failed row that names the signal."""
    with Child(budget_s=60.0) as child:
        assert child.set_up(job("softmax")).event == "ready"
        os.kill(child.pid, signal.SIGTERM)
        reply = child.take_round()
    assert reply.status == "failed"
    assert "killed by SIGTERM" in reply.reason


def test_only_what_was_asked():
    """Parameters and multiply-adds need no child, and rows come model by model, in the order given."""
    requests = [
        ProfileRequest(label=name, config=config(name), num_classes=10) for name in ("linear", "softmax")
    ]
    spec, heard = ProfileSpec(resolutions=[16, 8], measure=["macs"]), []
    rows = profile_models(requests, spec, progress=lambda done, total, note: heard.append((done, total)))
    assert [(r.model, r.resolution, r.tokens) for r in rows] == [
        ("linear", 16, 64),
        ("linear", 8, 16),
        ("softmax", 16, 64),
        ("softmax", 8, 16),
    ]
    assert all(r.macs_full and r.params is None and r.latency_ms is None for r in rows)
    assert heard[-1][0] == heard[-1][1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resolutions": (8, 9)}, "resolution 9 does not fit"),
        ({"resolutions": ()}, "at least one resolution"),
    ],
)
def test_wrong_resolution_stops_the_command(wrong, message):
    """A resolution the patch size does not divide is the user's error, before anything runs."""
    with pytest.raises(UserInputError, match=message):
        profile("softmax", measure=["macs"], **wrong)


def test_wrong_device_stops_the_command():
    """A device that is not there is the user's error."""
    request = ProfileRequest(label="m", config=config(), num_classes=10)
    absent = "cuda" if not torch.cuda.is_available() else "nonsense"
    with pytest.raises(UserInputError, match=absent):
        profile_models([request], ProfileSpec(resolutions=[8]), device=absent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    """On a GPU both cold and warm times and the allocator's peaks are there."""
    request = ProfileRequest(label="m", config=config("dydila"), num_classes=10)
    (row,) = profile_models([request], ProfileSpec(resolutions=[16], precision="bf16"), device="cuda")
    assert (row.status, row.reason) == ("ok", "")
    assert all(len(r.latency_ms) == len(r.warm_latency_ms) > 0 for r in row.rounds)
    assert row.reserved_memory_mib >= row.peak_memory_mib > row.extra_memory_mib > 0


def test_rows_that_do_not_fit_are_left_out():
    """The session's time is shared out: what a larger size would take is known from the smaller one."""
    big = config().model_copy(update={"dim": 256, "depth": 2})
    request = ProfileRequest(label="m", config=big, num_classes=10)
    spec = ProfileSpec(resolutions=[128, 16], rounds=1)
    large, small = profile_models([request], spec, within_s=6.0)
    assert (small.status, large.status) == ("ok", "skipped")
    assert "it does not fit into the session's time; --within 0 measures every row" in large.reason
    assert large.macs_full > small.macs_full  # what costs nothing is there


def test_finished_rows_are_taken_over_and_handed_on_as_they_finish():
    """A session that goes on measures only what is missing, and hands each row on at once."""
    requests = [
        ProfileRequest(label=name, config=config(name), num_classes=10) for name in ("softmax", "linear")
    ]
    spec, heard = ProfileSpec(resolutions=[8, 16], rounds=1, measure=["params"]), []
    known = ProfileRow(
        model="softmax", resolution=16, tokens=64, device="cpu", precision="fp32", batch_size=1
    )
    rows = profile_models(requests, spec, finished={("softmax", 16): known}, on_row=heard.append)
    assert rows[1] is known
    assert [(row.model, row.resolution) for row in heard] == [("softmax", 8), ("linear", 8), ("linear", 16)]


def short(name: str = "softmax") -> ProfileRequest:
    return ProfileRequest(label=name, config=config(name), num_classes=10)


@pytest.fixture
def processes(monkeypatch):
    """Every process that is set up to be timed, by the side of its inputs, in that order."""
    started: list[tuple[int, int]] = []
    set_up = Child.set_up

    def noted(child: Child, job: Job) -> object:
        started.append((job.workload.input_size, child.pid))
        return set_up(child, job)

    monkeypatch.setattr(Child, "set_up", noted)
    return started


def test_short_passes_take_their_rounds_in_five_processes(processes):
    """What a process's luck and the machine's minutes do to a row is in its rounds; sizes take turns."""
    spec = ProfileSpec(resolutions=[8, 16], rounds=3, measure=["latency"])
    rows = profile_models([short()], spec)
    assert [side for side, _ in processes] == [8, 16] * 5
    assert len({pid for _, pid in processes}) == 10
    for row in rows:
        assert [r.process for r in row.rounds] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert row.stopped in ("rounds", "narrow")  # as the machine had it


def test_long_passes_keep_their_process(processes, monkeypatch):
    """A pass that lasts is measured by one process until its interval is narrow or its rounds are out."""
    monkeypatch.setattr(turns, "RENEWED_BELOW_MS", 0.0)
    (row,) = profile_models([short()], ProfileSpec(resolutions=[8], rounds=1, measure=["latency"]))
    assert len(processes) == 1
    assert {r.process for r in row.rounds} == {0}
    assert 1 <= len(row.rounds) <= turns.MOST_ROUNDS


class Timed:
    """A row's process, as far as its group sees it: every round takes what the row's pass does."""

    budget_s = 100.0

    def __init__(self, pass_ms: float) -> None:
        self.pass_ms = pass_ms

    def take_round(self) -> Round:
        return Round(latency_ms=[self.pass_ms] * 3, cpu_time_ms=[self.pass_ms] * 3)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("slower_ms", "sittings"), [(49.0, 5), (51.0, 1)])
def test_round_i_of_two_rows_was_taken_side_by_side(slower_ms, sittings):
    """Beside one long pass no row gets new processes: its later rounds would have no partner."""
    times = {"softmax": 1.0, "linear": slower_ms}
    rows = [Draft(request=short(name), resolution=8, size=8) for name in times]

    def set_up(draft: Draft) -> tuple[Timed, Ready]:
        pass_ms = times[draft.request.label]
        return Timed(pass_ms), Ready(pass_ms=pass_ms)

    group = turns.Group(
        rows=rows,
        spec=ProfileSpec(resolutions=[8], timeout_s=100.0),
        device="cpu",
        set_up=set_up,
        note=lambda what: None,
        extra_until=float("inf"),
    )
    for _ in range(sittings):
        assert not group.is_over()
        group.sit()
    assert group.is_over()
    one, other = ([r.process for r in row.rounds] for row in rows)
    assert one == other
    assert sorted(set(one)) == list(range(sittings))
    assert {row.stopped for row in rows} == {"narrow"}


def test_a_row_that_fails_in_a_later_sitting_says_so(monkeypatch):
    """The third process of a row is killed: the row fails with that reason, the other one is finished."""
    set_up, count = Child.set_up, itertools.count(1)

    def killed(child: Child, job: Job) -> object:
        if job.workload.config.attention.name == "linear" and next(count) == 3:
            os.kill(child.pid, signal.SIGKILL)
        return set_up(child, job)

    monkeypatch.setattr(Child, "set_up", killed)
    spec = ProfileSpec(resolutions=[8], rounds=1, measure=["latency"])
    one, other = profile_models([short("linear"), short("softmax")], spec)
    assert one.status == "failed"
    assert "killed by SIGKILL" in one.reason
    assert one.latency_ms is None
    assert len(other.rounds) == 5


def test_an_interrupted_session_hands_over_what_has_an_interval(monkeypatch):
    """Rows with six rounds are rows; those with fewer are not."""
    taken = Child.take_round
    count = itertools.count(1)

    def interrupted(child: Child) -> object:
        if next(count) > 13:  # of two rows: six rounds each and one more
            raise KeyboardInterrupt
        return taken(child)

    monkeypatch.setattr(Child, "take_round", interrupted)
    requests = [
        ProfileRequest(label=name, config=config(name), num_classes=10) for name in ("softmax", "linear")
    ]
    heard: list[ProfileRow] = []
    spec = ProfileSpec(resolutions=[8], rounds=9, measure=["latency"])
    with pytest.raises(KeyboardInterrupt):
        profile_models(requests, spec, on_row=heard.append)
    assert sorted(len(row.rounds) for row in heard) == [6, 7]


@pytest.mark.skipif(sys.platform != "linux", reason="waiting for a core is read from Linux's schedstat")
def test_a_busy_machine_is_seen():
    """With every core taken twice, long passes cannot be clean: the row says so and what to do."""
    loop = [sys.executable, "-c", "while True: pass"]
    # sessions of their own: a kernel that shares cores out by session would leave the row a whole one
    busy = [subprocess.Popen(loop, start_new_session=True) for _ in range(2 * available_cores())]
    try:
        wide = config().model_copy(update={"dim": 256, "depth": 4})
        request = ProfileRequest(label="m", config=wide, num_classes=10)
        spec = ProfileSpec(resolutions=[32], rounds=3, measure=["latency"], threads=1)
        (row,) = profile_models([request], spec)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert "its threads waited for a core" in row.disturbed
    assert "end it and profile again" in row.disturbed
    assert row.latency_ms > 0
    assert row.stopped == "rounds"


def test_a_plugin_that_sets_the_threads_is_refused(strangers):
    """Times of another number of threads than the others' are no times of this row."""
    requests = iter(["round"])
    asked = job("threads").model_copy(update={"threads": 2})
    with pytest.raises(UnsupportedError, match="from 2 to 1"):
        list(serve(asked, requests))


def test_threads_that_do_not_help_are_not_taken():
    """More threads are taken while each step of them saves a tenth; the words say what was measured."""
    assert chosen_threads(Tried(pass_ms={4: 10.0, 2: 18.0, 1: 35.0}), 4) == (4, "")
    number, why = chosen_threads(Tried(pass_ms={4: 300.0, 2: 33.0, 1: 35.0}), 4)
    assert number == 1
    assert "300 ms with 4 CPU threads and 35 ms with one thread" in why
    assert chosen_threads(Tried(pass_ms={4: 9.5, 2: 10.0, 1: 35.0}), 4)[0] == 2


def test_slow_bf16_is_told_with_its_ratio():
    """By the ratio of two measured passes; where it helps, or makes no difference to speak of, not at all."""
    told = slow_bf16(TriedPrecisions(fp32_ms=10.0, bf16_ms=32.0))
    assert "32 ms in bf16 and 10 ms in fp32 on this CPU, 3.2 times as long" in told
    assert slow_bf16(TriedPrecisions(fp32_ms=10.0, bf16_ms=11.0)) == ""
    assert slow_bf16(Refusal(status="failed", reason="no")) == ""
    (tried,) = serve(job("softmax").model_copy(update={"task": "precisions"}), iter(()))
    assert min(tried.fp32_ms, tried.bf16_ms) > 0


def test_slow_bf16_is_told_once(monkeypatch):
    """Of two batch sizes on a CPU one sentence, the first row's."""
    monkeypatch.setattr(session, "slow_bf16", lambda tried: f"slow: {type(tried).__name__}")
    said: list[str] = []
    spec = ProfileSpec(resolutions=[8], rounds=1, measure=["latency"], threads=1, precision="bf16")
    requests = [ProfileRequest(label="elu", config=config("elu"), num_classes=3)]
    profile_batches(requests, spec, (1, 2), device="cpu", within_s=0, say=said.append)
    assert said == ["elu at 8 px: slow: TriedPrecisions"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs the compiler g++")
def test_compiled_passes_state_their_compile_time():
    """Compile time is a quantity of its own, and a compiled pass is timed like any other."""
    request = ProfileRequest(label="m", config=config(), num_classes=10)
    spec = ProfileSpec(resolutions=[8], rounds=1, measure=["latency"], compile=True)
    (row,) = profile_models([request], spec)
    assert (row.status, row.reason) == ("ok", "")
    assert row.compile_s > 0.1
    assert row.latency_ms > 0
