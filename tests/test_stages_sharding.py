"""FSDP2: processes that hold pieces of the weights train what one trains, and go on from each other."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from process_cases import STEPS, assert_same_but_for_rounding, digits_case, trained
from torch import nn

from attnbench.data import load_dataset
from attnbench.diffusion.noise import fork_rng
from attnbench.errors import AttnbenchError, NonFiniteError, UnsupportedError
from attnbench.specs import Case
from attnbench.stages import train
from attnbench.stages.distributed import World, joined
from attnbench.stages.latents.model_space import training_source
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.sharding import own_part, shard_model
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.store import Workspace

CPU = torch.device("cpu")
FROZEN = {"projection_router": "frozen", "factor_router": "frozen"}  # routers that no gradient reaches


def sharded(case):
    """Return the same case with weights in shards."""
    return case.model_copy(update={"train": case.train.model_copy(update={"sharding": "fsdp2"})})


@pytest.mark.parametrize(
    ("attention", "settings"),
    [
        ("softmax", {"extra_ema_decays": [0.9], "held_out_every": 3}),
        pytest.param(
            "dydila",
            {"grad_accumulation": 2, "activation_checkpointing": True, "grad_clip": 0.1},
            marks=pytest.mark.slow,
        ),
        pytest.param("moh", {"options": {"num_shared_heads": 0}}, marks=pytest.mark.slow),
        pytest.param("linear", {"compile": True}, marks=pytest.mark.slow),
    ],
)
def test_shards_train_what_one_process_trains(tmp_path, attention, settings):
    """Losses, weights, averages; dydila has BatchNorm, routers and clipping, moh a balancing loss."""
    plain = digits_case(attention, **(settings | {"compile": False}))
    case = sharded(digits_case(attention, **settings))
    assert sharded(plain).key("train") == plain.key("train")  # how it is computed is no part of what it is
    one, two = trained(tmp_path / "one", plain, 1), trained(tmp_path / "two", case, 2)
    assert_same_but_for_rounding(one, two)
    outputs = [
        train.run(each, Workspace(root=tmp_path / name, device=CPU))
        for name, each in (("one", plain), ("two", case))
    ]
    curves = [[loss for _, loss in output.curves["held_out_loss"]] for output in outputs]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)  # fp32 losses of 64 pixels, six steps apart


@pytest.mark.parametrize(
    ("attention", "options", "settings"),
    [
        ("dydila", FROZEN, {}),
        # of three sets of biases a step, a process or a micro-batch uses some, by the timesteps it drew
        pytest.param(
            "mediators",
            {"schedule": [[100.0, 16], [850.0, 4], [1000.0, 1]]},
            {"grad_accumulation": 2, "steps": 12},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_parameter_without_a_gradient_stays_as_it_is(tmp_path, attention, options, settings):
    """Neither weight decay nor momentum moves what no process has used in a step, however many there are."""
    case = digits_case(attention, options=options, weight_decay=10.0, **settings)
    one = trained(tmp_path / "one", case, 1)
    counts = [tensor.item() for name, tensor in one[0].items() if name.endswith("/step")]
    num_parameters = sum(1 for _ in initial(case).parameters())
    assert len(counts) < num_parameters or min(counts) < case.train.steps  # or nothing would be shown
    for name, other in (("ddp", case), ("fsdp2", sharded(case))):
        two = trained(tmp_path / name, other, 2)
        assert_same_but_for_rounding(one, two, steps=case.train.steps)
        for parameter, start in initial(case).named_parameters():
            if torch.equal(one[0][f"model/{parameter}"], start.detach()):
                assert torch.equal(two[0][f"model/{parameter}"], start.detach()), parameter


def initial(case):
    """Return the model that a training on the digits starts from."""
    with fork_rng(CPU):
        return train.initial_model(case, ModelInput(shape=(1, 8, 8), num_classes=10), CPU)


def _measure_share(rank: int, folder: str) -> None:
    """Make one step as one of two processes and note how many numbers this one holds."""
    torch.set_num_threads(1)
    case, workspace = sharded(digits_case()), Workspace(root=Path(folder), device=CPU, processes=2)
    with joined(World(rank=rank, size=2), (Path(folder) / "meeting").as_uri(), CPU) as world:
        dataset = load_dataset(case.data)
        source = training_source(case, dataset, workspace)
        model = train.initial_model(case, ModelInput(shape=source.shape, num_classes=10), CPU)
        total = sum(parameter.numel() for parameter in model.parameters())
        trainer = Trainer(case, workspace, model, source, False, world=world)
        first_block = set()  # what its weights are while the second block computes

        def look(*_):
            first_block.update(type(parameter).__name__ for parameter in model.blocks[0].parameters())

        model.blocks[1].register_forward_pre_hook(look)
        trainer.train_until(1)
        (average,) = trainer.averages.values()
        state = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
        held = {
            "weights": sum(own_part(p).untyped_storage().nbytes() // 4 for p in trainer.parameters),
            "average": sum(tensor.numel() for tensor in average._average_floats),
            "moments": sum(own_part(tensor).numel() for tensor in state if tensor.ndim),
        }
    assert first_block == {"DTensor"}, first_block
    torch.save((total, held), f"{folder}/{rank}.pt")


def test_each_process_holds_its_share(tmp_path):
    """Of weights, average and moments a process keeps half, up to one row of each parameter, at all times."""
    mp.spawn(_measure_share, args=(str(tmp_path),), nprocs=2)
    (total, first), (_, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["average"] + second["average"] == total
    assert first["moments"] + second["moments"] == 2 * total
    for held in (first, second):
        assert held["weights"] < 0.55 * total  # FSDP2 pads a piece to that of the first process
        assert held["average"] < 0.55 * total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "attention", "options"),
    [(2, 1, "softmax", {}), (1, 2, "softmax", {}), (2, 1, "dydila", FROZEN), (1, 2, "dydila", FROZEN)],
)
def test_a_checkpoint_is_continued_by_another_number_of_processes(
    monkeypatch, tmp_path, first, then, attention, options
):
    """A training of two that is killed goes on as one, and the other way round, to the same weights."""
    settings = {"steps": 12, "checkpoint_every": STEPS, "held_out_images": 0, "weight_decay": 0.1}
    case = sharded(digits_case(attention, options=options, **settings))
    whole = trained(tmp_path / "whole", case, 1)
    popen, started = subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    class EnoughError(Exception):
        """Stands for a kill where there is one process only."""

    struck = threading.Event()

    def strike(stage, done, total, note):
        if done > STEPS and not struck.is_set():
            struck.set()
            if not started:
                raise EnoughError
            os.kill(started[0].pid, signal.SIGKILL)

    monkeypatch.setattr("attnbench.stages.training.journal.REPORT_EVERY_S", 0.0)
    root = tmp_path / "parts"
    with pytest.raises((AttnbenchError, EnoughError)):
        train.run(case, Workspace(root=root, device=CPU, processes=first, progress=strike))
    assert_same_but_for_rounding(whole, trained(root, case, then), steps=12)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_signal_to_all_processes_saves_first(tmp_path, sharding):
    """A scheduler signals a whole job: the first process saves before the others end, and says so."""
    case = digits_case(steps=4000, sharding=sharding, held_out_images=0)
    job = mp.get_context("spawn").Process(
        target=_train_in_a_job, args=(str(tmp_path), case.model_dump_json())
    )
    job.start()
    folder = Workspace(root=tmp_path, device=CPU).folder("train", case)
    for _ in range(600):
        if (folder / "train.jsonl").exists() and (folder / "train.jsonl").stat().st_size:
            break
        time.sleep(0.1)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    workers = [pid for pid in children if b"stages.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 1
    for pid in (*map(int, workers), job.pid):
        os.kill(pid, signal.SIGTERM)
    job.join(60)
    assert job.exitcode == 128 + signal.SIGTERM
    assert (folder / "checkpoint.safetensors").exists()


def _train_in_a_job(root: str, case: str) -> None:
    torch.set_num_threads(1)
    train.run(Case.model_validate_json(case), Workspace(root=Path(root), device=CPU, processes=2))


@pytest.mark.slow
def test_the_guilty_layer_is_named_by_shards_as_by_one(tmp_path):
    """A training that leaves the finite numbers ends in the error of one process, in every process."""
    said = []
    for processes in (1, 2):
        workspace = Workspace(root=tmp_path / str(processes), device=CPU, processes=processes)
        with pytest.raises(NonFiniteError) as raised:
            train.run(sharded(digits_case(lr=1e30)), workspace)
        said.append(str(raised.value))
    assert "layer" in said[0]
    assert said[0] == said[1]


def test_a_parameter_without_dimensions_is_refused():
    """FSDP2 cuts the first dimension: a scalar is named, with what to do."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2)])
    model.blocks[0].gate = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UnsupportedError, match=r"blocks.0.gate has none; give it the shape \[1\]"):
        shard_model(model, CPU, 2)
