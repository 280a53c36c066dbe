"""Several processes train what one trains: same batches, same numbers but for rounding; a death is told."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from process_cases import assert_same_but_for_rounding, digits_case, trained
from torch import nn

from attnbench.commands import suites as suite_commands
from attnbench.errors import AttnbenchError, NonFiniteError, UserInputError
from attnbench.results import latest, read_results
from attnbench.running.executors.launcher import LAUNCHER_VARIABLES, Launch, take_over_launcher
from attnbench.specs import SampleSpec
from attnbench.stages import distributed, sample, train
from attnbench.stages.training import trainer
from attnbench.stages.training.batches import cut_batch
from attnbench.stages.training.global_batch_norm import use_global_batch_norm, work_alone
from attnbench.storage.store import Workspace, read_output


@pytest.mark.parametrize(
    ("attention", "settings"),
    [
        ("softmax", {}),
        pytest.param(
            "dydila", {"grad_accumulation": 2, "activation_checkpointing": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_train_what_one_trains(tmp_path, attention, settings):
    """Losses and weights of two processes are those of one; the second case has BatchNorm and routers."""
    case = digits_case(attention, **settings)
    one, two = trained(tmp_path / "one", case, 1), trained(tmp_path / "two", case, 2)
    assert_same_but_for_rounding(one, two)


def test_one_example_more_or_less_would_be_seen(tmp_path):
    """The comparison above can fail: with other batches losses differ by far more than its tolerance."""
    _, losses = trained(tmp_path, digits_case(), 1)
    _, others = trained(tmp_path, digits_case().model_copy(update={"seed": 1}), 1)
    assert others != pytest.approx(losses, rel=1e-3)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_processes_cut_a_batch_into_the_same_micro_batches(accumulation, processes, size):
    """Over all processes every example occurs once, and micro-batch m is the same piece for any number."""
    total = accumulation * processes * size
    cuts = [cut_batch(total, accumulation, rank, processes) for rank in range(processes)]
    examples = [i for rank in cuts for cut in rank for i in range(total)[cut]]
    assert sorted(examples) == list(range(total))
    for number, whole in enumerate(cut_batch(total, accumulation)):
        pieces = [i for rank in cuts for i in range(total)[rank[number]]]
        assert pieces == list(range(total)[whole])


def test_processes_that_do_not_divide_the_batch_are_refused(tmp_path):
    """Eight images over three processes is an error with the numbers, before any process starts."""
    workspace = Workspace(root=tmp_path, device=torch.device("cpu"), processes=3)
    with pytest.raises(UserInputError, match=r"batch_size 8 is no multiple of 3 processes x 1 micro-batches"):
        train.run(digits_case(), workspace)


def test_two_processes_draw_the_bytes_of_one(tmp_path):
    """Two shards of samples, drawn by one process and by two, are the same files."""
    case = digits_case().model_copy(
        update={"sample": SampleSpec(sampler="euler", num_steps=1, per_class=101)}
    )
    found = {}
    for processes in (1, 2):
        root = tmp_path / str(processes)
        trained(root, case, 1)
        workspace = Workspace(root=root, device=torch.device("cpu"), processes=processes)
        output = sample.run(case, workspace)
        shards = sorted(workspace.folder("sample", case).glob("samples-*.npz"))
        found[processes] = [path.read_bytes() for path in shards]
        assert {m.n for m in output.measurements if m.name == "sample_time_s"} == {1010}
    assert len(found[1]) == 2
    assert found[1] == found[2]


def launched(monkeypatch, **variables):
    """Let this process be a launcher's copy."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "taken"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0"}, 1),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}, 2),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1"}, None),
    ],
)
def test_the_first_copy_of_a_launcher_does_the_work(monkeypatch, variables, taken):
    """Under torchrun one copy starts as many processes as there are copies; the others have nothing to do."""
    launched(monkeypatch, **variables)
    launch = take_over_launcher(1)
    assert launch == (None if taken is None else Launch(processes=taken, here=taken))
    if len(variables) and variables["WORLD_SIZE"] != "1":
        assert "WORLD_SIZE" not in os.environ


TWO_MACHINES = {
    "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def test_the_first_copy_of_each_machine_has_something_to_do(monkeypatch):
    """Over two machines: the second one's first copy knows its number and where the others are."""
    launched(monkeypatch, **TWO_MACHINES, RANK="2", LOCAL_RANK="0")
    assert take_over_launcher(1) == Launch(
        processes=4, here=2, machine=1, machines=2, address="10.0.0.1", port=29500, serves=True
    )
    launched(monkeypatch, **TWO_MACHINES, RANK="3", LOCAL_RANK="1")
    assert take_over_launcher(1) is None
    launched(monkeypatch, **TWO_MACHINES, RANK="2", LOCAL_RANK="0", TORCHELASTIC_USE_AGENT_STORE="True")
    assert not take_over_launcher(1).serves  # torchrun's agents do


@pytest.mark.parametrize(
    ("here", "processes", "message"),
    [
        (
            "1",
            1,
            r"on several machines, 1 of them here, .* not say LOCAL_RANK, .*start them with torchrun",
        ),
        ("2", 3, "--processes is 3"),
    ],
)
def test_launchers_that_cannot_be_followed_are_refused(monkeypatch, here, processes, message):
    """Machines that do not know of each other, or another number of processes: what to type instead."""
    launched(monkeypatch, WORLD_SIZE="2", LOCAL_WORLD_SIZE=here)
    with pytest.raises(UserInputError, match=message):
        take_over_launcher(processes)


def test_machines_of_a_launch_work_on_one_case_at_a_time(monkeypatch):
    """Several cases at a time would need the other machines' processes twice."""
    launched(monkeypatch, **TWO_MACHINES, RANK="0", LOCAL_RANK="0")
    with pytest.raises(UserInputError, match=r"on 2 machines, for one case at a time .* leave --jobs and"):
        suite_commands.launch(1, "jobs", 1)


@pytest.mark.slow
def test_torchrun_runs_a_suite(tmp_path):
    """`torchrun --nproc-per-node 2` of the command line runs every case once, with two processes."""
    words = ["run", "quick", "-o", "train.steps=4", "-o", "sample.per_class=2", "-o", "sample.num_steps=2"]
    words += ["-o", "evaluate.kd_subset_size=10", "-o", "matrix.model.attention=[softmax]"]
    words += ["-o", "profile.measure=[params]", "-q", "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "attnbench.cli", *words],
        capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    (result,) = latest(read_results(tmp_path / "quick" / "results.jsonl"))
    assert result.status == "ok"


def test_death_of_a_process_is_told_and_leaves_none_behind(monkeypatch, tmp_path):
    """When a process is killed in the middle, the first says which; the checkpoint stays."""
    case = digits_case(steps=4000, checkpoint_every=5)
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def remember(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    killed = threading.Event()

    def kill(stage, done, total, note):
        if done >= 10 and not killed.is_set():
            killed.set()
            os.kill(started[0].pid, signal.SIGKILL)

    workspace = Workspace(root=tmp_path, device=torch.device("cpu"), processes=2, progress=kill)
    with pytest.raises(AttnbenchError, match="train process 1 of 2 was killed by SIGKILL"):
        train.run(case, workspace)
    assert [child.poll() for child in started] == [-signal.SIGKILL]
    assert not dist.is_initialized()
    assert (workspace.folder("train", case) / "checkpoint.safetensors").exists()


def test_the_first_process_has_time_to_name_the_guilty_layer(monkeypatch, tmp_path):
    """Where all meet NaN, the others leave it to the first, which may take longer than after a death."""
    explain = trainer.explain_nonfinite

    def slowly(*words):
        time.sleep(2 * distributed.DYING_S)
        return explain(*words)

    monkeypatch.setattr(trainer, "explain_nonfinite", slowly)
    with pytest.raises(NonFiniteError, match="layer"):
        trained(tmp_path, digits_case(lr=1e30), 2)


def _normalise_a_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm, x = _norm_and_input()
    use_global_batch_norm(norm)
    half = x[4 * rank : 4 * rank + 4].clone().requires_grad_()
    y = norm(half)
    (y**3).sum().backward()
    tensors = {"y": y.detach(), "dx": half.grad, "dw": norm.weight.grad, **dict(norm.named_buffers())}
    torch.save(tensors, f"{folder}/{rank}.pt")
    work_alone(norm)
    assert type(norm) is nn.BatchNorm2d
    dist.destroy_process_group()


def _norm_and_input() -> tuple[nn.BatchNorm2d, torch.Tensor]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    return norm, torch.randn(8, 3, 4, 4, dtype=torch.float64) * 5 + 100


@pytest.mark.slow
def test_batch_norm_over_processes_is_that_of_the_whole_batch(tmp_path):
    """Outputs, all gradients and running statistics of two halves are torch's on the whole, in fp64."""
    mp.spawn(_normalise_a_half, args=(str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm, x = _norm_and_input()
    x.requires_grad_()
    y = norm(x)
    (y**3).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-10}  # fp64 rounding over 128 values around 100
    torch.testing.assert_close(torch.cat([half["y"] for half in halves]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([half["dx"] for half in halves]), x.grad, **close)
    torch.testing.assert_close(halves[0]["dw"] + halves[1]["dw"], norm.weight.grad, **close)
    for name, value in norm.named_buffers():
        torch.testing.assert_close(halves[1][name], value, **close)


@pytest.mark.slow
def test_finished_training_of_two_is_that_of_one(tmp_path):
    """The number of processes is no part of the key: what two have finished, one reads."""
    case = digits_case()
    trained(tmp_path, case, 2)
    one = Workspace(root=tmp_path, device=torch.device("cpu"))
    assert train.run(case, one) == read_output(one.folder("train", case))
