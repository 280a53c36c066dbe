"""Cases in real processes, alone and together, with a plugin that misbehaves in each way a plugin can."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest
from process_cases import digits_case

from attnbench.plugins import registry
from attnbench.profiling.rows import ProfileRequest
from attnbench.profiling.session import profile_models
from attnbench.running.executors import conversation
from attnbench.running.executors.inline import run_inline
from attnbench.running.executors.process import run_in_process
from attnbench.running.plan import plan
from attnbench.specs import ProfileSpec
from attnbench.stages.interrupts import GO_ON, Stopped

PLUGIN = '''
    """Attention backends that misbehave in training."""

    import atexit
    import ctypes
    import os
    import signal
    import sys
    import threading
    import time
    from pathlib import Path

    import torch.distributed as dist
    from torch import nn

    from attnbench.contract import AttentionBackend, MacCount
    from attnbench.hookspecs import hookimpl
    from attnbench.stages.distributed import DYING_S, WRITING

    HERE = Path(__file__).parent


    def rank():
        return dist.get_rank() if dist.is_initialized() else 0


    def prints():
        atexit.register(os.write, 1, b"at exit\\n")
        os.write(1, b"not JSON\\n")
        ctypes.CDLL(None).printf(b"[1]\\n")
        ctypes.CDLL(None).fflush(None)
        raise ValueError("that was all")


    def forges():
        os.write(int(sys.argv[1]), b"{}\\n")
        time.sleep(3600)


    def floods(times=[]):
        print("x" * 2**16, flush=True)
        times.append(1)
        if len(times) == 8:  # in the fourth step: each block once
            raise ValueError("enough")


    def hangs():
        (HERE / "hangs").touch()
        time.sleep(3600)


    def lingers():
        threading.Thread(target=time.sleep, args=(3600,)).start()
        raise ValueError("the end")


    def dies_and_leaves_the_first_waiting():
        if rank() == 0:
            time.sleep(3600)  # as in a collective on GPUs
        if rank() == 1:
            time.sleep(3600)
        print("rank 2 says goodbye", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


    def raises_and_leaves_the_first_waiting():
        if rank() == 0:
            time.sleep(3600)
        raise ValueError("only here")


    def dies_while_the_first_writes():
        if rank() == 0:
            with WRITING:
                time.sleep(2 * DYING_S)
                (HERE / "written").touch()
            time.sleep(3600)
        os._exit(9)


    def dies():
        if rank() == 2:
            os._exit(9)


    def exits():
        sys.exit(0)


    def names_a_file_that_is_no_text():
        raise ValueError("cannot open caf\\udce9.png")


    def fails_everywhere():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


    def exits_when_built(site, options):
        sys.exit(0)


    class Misbehaves(nn.Module):
        def __init__(self, dim, way):
            super().__init__()
            self.way, self.mix = way, nn.Linear(dim, dim)

        def forward(self, x, context):
            if x.device.type != "meta" and self.training:
                self.way()
            return self.mix(x)


    @hookimpl
    def attnbench_backends():
        ways = (
            prints, forges, floods, hangs, lingers, dies, dies_while_the_first_writes,
            dies_and_leaves_the_first_waiting, raises_and_leaves_the_first_waiting, exits,
            names_a_file_that_is_no_text, fails_everywhere,
        )
        for way in ways:
            yield AttentionBackend(
                name=way.__name__, summary="-", source="-",
                build=lambda site, options, way=way: Misbehaves(site.dim, way),
                macs=lambda site, options: MacCount(linear=site.num_tokens * site.dim**2),
            )
        yield AttentionBackend(
            name="exits_when_built", summary="-", source="-", build=exits_when_built,
            macs=lambda site, options: MacCount(),
        )
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install the plugin the way pip would, on a path that only this process has added."""
    site = tmp_path / "site-packages"
    info = site / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "misbehaving.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attnbench]\nmisbehaving = misbehaving\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    registry.cache_clear()
    yield site
    registry.cache_clear()


def unheard(stage: str, done: int, total: int, note: str) -> None:
    """Progress nobody listens to."""


def train(tmp_path: Path, attention: str, processes: int = 1):
    """Return the result of a case whose training misbehaves."""
    case = digits_case(attention, batch_size=6, held_out_images=0)
    return run_in_process(case, tmp_path / "store", "cpu", unheard, processes=processes)


def test_what_a_plugin_writes_is_not_taken_for_a_result(plugin, tmp_path):
    """Descriptor 1, printf and a line at exit: the case's own result arrives, and it names the error."""
    result = train(tmp_path, "prints")
    assert result.status == "failed"
    assert result.reason.startswith("train: ValueError: that was all; raised in the plugin misbehaving")


def test_a_line_that_cannot_be_read_is_a_failed_case(plugin, tmp_path):
    """Nonsense in the talk itself is this case's failure, with what was sent; the process is gone."""
    result = train(tmp_path, "forges")
    assert result.status == "failed"
    assert "the case's process sent a line that is no message of attnbench's: '{}'" in result.reason


def test_a_process_that_never_exits_is_ended_after_its_result(plugin, tmp_path, monkeypatch):
    """A plugin's thread that never ends keeps neither the result nor the run."""
    monkeypatch.setattr(conversation, "EXIT_LIMIT_S", 1.0)
    assert train(tmp_path, "lingers").reason.startswith("train: ValueError: the end; ")


def test_processes_that_print_without_end_go_on(plugin, tmp_path):
    """64 KiB per forward pass from each process, which no pipe holds: the training is not kept waiting."""
    assert "ValueError: enough" in train(tmp_path, "floods", processes=2).reason


def test_the_first_process_is_freed_from_waiting_for_a_dead_one(plugin, tmp_path):
    """The first hangs as in a collective on GPUs: the result names the dead process and its last words."""
    began = time.monotonic()
    result = train(tmp_path, "dies_and_leaves_the_first_waiting", processes=3)
    assert time.monotonic() - began < 200  # not the half hour of a collective
    assert result.status == "failed"
    assert "train process 2 of 3 was killed by SIGKILL" in result.reason
    assert "its last words: rank 2 says goodbye" in result.reason


def test_the_first_process_is_freed_from_waiting_for_one_that_failed(plugin, tmp_path):
    """An error in one process alone is the case's reason, though the first waits for it."""
    result = train(tmp_path, "raises_and_leaves_the_first_waiting", processes=2)
    assert "train process 1 of 2 failed: ValueError: only here; traceback: " in result.reason
    kept = Path(result.reason.rpartition("traceback: ")[2])
    assert "misbehaving.py" in kept.read_text()


def test_what_the_first_process_is_writing_gets_written(plugin, tmp_path):
    """A death while a checkpoint is written ends the case behind it: the last thing saved is not lost."""
    result = train(tmp_path, "dies_while_the_first_writes", processes=2)
    assert "train process 1 of 2 ended with exit code 9" in result.reason
    assert (plugin / "written").exists()


def test_the_process_that_died_is_named_before_those_that_noticed(plugin, tmp_path):
    """Of three, the last ends: the second fails for want of it, and is not the one that is blamed."""
    result = train(tmp_path, "dies", processes=3)
    assert "train process 2 of 3 ended with exit code 9" in result.reason


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("exits", "train: SystemExit: 0"),
        ("exits_when_built", "train: SystemExit: 0"),
        ("names_a_file_that_is_no_text", "train: ValueError: cannot open caf?.png"),
    ],
)
def test_what_ends_or_garbles_a_case_is_its_reason(plugin, tmp_path, attention, said):
    """sys.exit in a plugin, and an error that is no text, fail the case with their words."""
    result = train(tmp_path, attention)
    assert result.status == "failed"
    assert result.reason.startswith(f"{said}; ")


def test_a_plugin_that_exits_does_not_end_what_is_done_in_this_process(plugin, tmp_path):
    """Plans, profiles and cases without a process of their own call plugins here."""
    case = digits_case("exits_when_built")
    (planned,) = plan([case], tmp_path / "store")
    assert planned.problem == "its model cannot be built: SystemExit: 0"
    request = ProfileRequest(label="it", config=case.model, num_classes=10)
    (row,) = profile_models([request], ProfileSpec(resolutions=[8], measure=["params"]))
    assert (row.status, row.reason) == ("failed", "SystemExit: 0")
    reason = run_inline(case, tmp_path / "store", "cpu", unheard).reason
    assert reason.startswith("train: SystemExit: 0; raised in the plugin misbehaving (misbehaving 1.0)")


def test_an_error_of_every_process_is_nobodys_fault(plugin, tmp_path):
    """The same error in all ranks reads as it does in one process."""
    result = train(tmp_path, "fails_everywhere", processes=2)
    assert result.reason.startswith("train: RuntimeError: mat1 and mat2 shapes cannot be multiplied; ")


@pytest.mark.parametrize("signals", [1, 2])
def test_a_process_that_does_not_stop_is_killed(plugin, tmp_path, monkeypatch, signals):
    """SIGTERM to a training that hangs: it is killed after the limit, or at the second signal."""
    monkeypatch.setattr(conversation, "STOP_LIMIT_S", 1.0 if signals == 1 else 1000.0)

    def signal_when_it_hangs():
        while not (plugin / "hangs").exists():
            time.sleep(0.05)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    threading.Thread(target=signal_when_it_hangs, daemon=True).start()
    with pytest.raises(Stopped) as raised:
        train(tmp_path, "hangs")
    limit = "it did not stop within 1 s of its last sign of progress"
    reason = limit if signals == 1 else "a second signal asked it to stop"
    assert f"killed by attnbench: {reason}; its last words" in raised.value.message
    assert raised.value.message.endswith(GO_ON)
    assert raised.value.code == 128 + signal.SIGTERM
