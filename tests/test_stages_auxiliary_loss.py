"""Auxiliary losses over several processes: means over all their images, the gradient of the whole batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from process_cases import assert_same_but_for_rounding, digits_case, trained
from torch import nn

from attnbench.contract import AttentionContext
from attnbench.errors import NonFiniteError
from attnbench.models import build_model
from attnbench.specs import AttentionSpec, TrainSpec
from attnbench.stages.training.batches import MicroBatch
from attnbench.stages.training.global_batch_norm import use_global_batch_norm, work_alone
from attnbench.stages.training.loss import TrainingLoss
from attnbench.stages.training.over_processes import MeanOverProcesses

CPU, IMAGES = torch.device("cpu"), 8
BALANCED = {
    "moh": {"balance_weight": 0.5, "num_shared_heads": 0, "top_k": 1},
    "dydila": {"balance_weight": 0.5},  # with BatchNorm, which shares means in a group of its own
}
# per gradient: fp64 sums of fewer than 2^10 terms, through two blocks of fewer than ten layers
SUMMED = 2**14 * torch.finfo(torch.float64).eps


def training_loss(attention: str, processes: int, **settings) -> TrainingLoss:
    """Return the loss of a two-block model in fp64, none of whose weights is zero."""
    spec = AttentionSpec(name=attention, options=BALANCED[attention])
    config = digits_case().model.model_copy(update={"attention": spec, "class_dropout": 0.0})
    model = build_model(config=config, input_size=8, num_classes=10, seed=0, device=CPU).double().train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    objective = SimpleNamespace(
        losses=lambda denoiser, x0, times, noise: (denoiser(x0, times) - noise).square().mean((1, 2, 3))
    )
    given = TrainSpec(objective="flow", steps=1, batch_size=IMAGES, lr=1e-3, **settings)
    return TrainingLoss(model, objective, given, CPU, processes)


def part(first: int, images: int) -> MicroBatch:
    """Return some of the batch's images."""
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, IMAGES, 1, 8, 8, generator=generator, dtype=torch.float64)
    some = slice(first, first + images)
    times = torch.linspace(10.0, 990.0, IMAGES, dtype=torch.float64)
    return MicroBatch(
        first=first, x0=x0[some], noise=noise[some], times=times[some], labels=torch.arange(IMAGES)[some]
    )


def gradients(loss: TrainingLoss, images: MicroBatch) -> dict[str, torch.Tensor]:
    """Return the loss of a part and the gradient of every weight it reaches, by name."""
    value = loss(images)
    value.backward()
    found = {name: p.grad for name, p in loss.model.named_parameters() if p.grad is not None}
    return {"loss": value.detach()} | found


def halves_in_one_process(rank: int, folder: str, settings: list[dict]) -> None:
    """Compute a half's gradients together with another process, average them, save them; several times."""
    torch.set_num_threads(1)
    torch.compile = partial(
        torch.compile, backend="aot_eager"
    )  # the graphs are traced, no compiler is needed
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for number, given in enumerate(settings):
        loss = training_loss(processes=2, **given)
        use_global_batch_norm(loss.model)
        found = gradients(loss, part(rank * IMAGES // 2, IMAGES // 2))
        for tensor in found.values():
            dist.all_reduce(tensor)
            tensor /= 2
        torch.save(found, f"{folder}/{number}-{rank}.pt")
    dist.destroy_process_group()


def assert_close(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    """Compare loss and gradients to fp64 rounding, each gradient against the largest of all entries."""
    scale = max(tensor.abs().max().item() for tensor in whole.values())
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert (found[name] - tensor).abs().max().item() <= SUMMED * scale, name


@pytest.mark.parametrize(
    "settings",
    [[{}, {"activation_checkpointing": True}], pytest.param([{"compile": True}], marks=pytest.mark.slow)],
    ids=["eager", "compiled"],
)
def test_gradients_of_two_processes_are_those_of_the_batch(tmp_path, settings):
    """Loss and gradients, averaged over two processes, are the whole batch's, to fp64 rounding."""
    settings = [{"attention": name} | given for name in BALANCED for given in settings]
    mp.spawn(halves_in_one_process, args=(str(tmp_path), settings), nprocs=2)
    for number, given in enumerate(settings):
        whole = gradients(training_loss(given["attention"], 1), part(0, IMAGES))
        for rank in range(2):
            assert_close(torch.load(tmp_path / f"{number}-{rank}.pt"), whole)


def test_without_shared_means_it_would_be_another_loss():
    """The comparison above can fail: halves that know nothing of each other train routers another way."""
    halves = [gradients(training_loss("moh", 1), part(first, IMAGES // 2)) for first in (0, IMAGES // 2)]
    found = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    whole = gradients(training_loss("moh", 1), part(0, IMAGES))
    for name in (name for name in whole if "routed_router" in name):
        assert (found[name] - whole[name]).abs().max() > 1e-2 * whole[name].abs().max()
    with pytest.raises(AssertionError):
        assert_close(found, whole)


@pytest.mark.parametrize(
    ("attention", "settings"),
    [
        ("moh", {}),
        pytest.param(
            "dydila", {"grad_accumulation": 2, "activation_checkpointing": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_train_routers_as_one_does(tmp_path, attention, settings):
    """Trainings with a balancing loss over two processes end in the losses and weights of one."""
    case = digits_case(attention, options=BALANCED[attention], **settings)
    one, two = trained(tmp_path / "one", case, 1), trained(tmp_path / "two", case, 2)
    assert_same_but_for_rounding(one, two)


@pytest.mark.slow
def test_the_first_process_explains_a_nan_alone(tmp_path):
    """Where the others have left, no mean waits for them: the layer is named."""
    case = digits_case("moh", options=BALANCED["moh"], lr=1e20)
    with pytest.raises(NonFiniteError, match=r"comes out of layer blocks\.0"):
        trained(tmp_path, case, 2)


def test_a_model_that_works_alone_takes_its_own_means(tmp_path: Path):
    """`work_alone` ends the waiting; the mean is the value that was given."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Module()
        model.mean_over_processes = MeanOverProcesses()
        work_alone(model)
    finally:
        dist.destroy_process_group()
    given = torch.randn(3)
    assert model.mean_over_processes(given) is given  # a collective would fail: its group is gone


def test_the_mean_of_a_batch_goes_through_the_bench():
    """`batch_mean` is the plain mean over images, then what the bench makes of it over processes."""
    values = torch.randn(4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(AttentionContext(grid=(1, 3)).batch_mean(values), values.mean(0))
    context = AttentionContext(grid=(1, 3), mean_over_processes=lambda mean: (mean + 1) / 2)
    torch.testing.assert_close(context.batch_mean(values), (values.mean(0) + 1) / 2)
