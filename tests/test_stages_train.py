"""The train stage: one gradient however it is cut, the output it leaves, and clear words about NaN."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from stage_cases import StubModel, StubSource, install, make_case, make_workspace, trained_bits

from attnbench.diffusion.noise import fork_rng
from attnbench.diffusion.objective import build_objective
from attnbench.errors import DataError, NonFiniteError, UserInputError
from attnbench.models import build_model
from attnbench.models.recipes import recipe
from attnbench.specs import AttentionSpec, TrainSpec
from attnbench.stages import train
from attnbench.stages.training import trainer as engine
from attnbench.stages.training.batches import BatchSchedule, MicroBatch, cut_batch
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.ema import WeightAverage
from attnbench.stages.training.loss import TrainingLoss


@pytest.fixture
def stubs(monkeypatch):
    install(monkeypatch.setattr)


def test_micro_batches_sum_to_the_gradient_of_the_batch(monkeypatch, tmp_path):
    """Accumulating over 1, 2 and 4 micro-batches gives one gradient, one loss, one norm, but for rounding."""
    install(monkeypatch.setattr)
    found = []
    for accumulation in (1, 2, 4):
        case = make_case(train={"grad_accumulation": accumulation})
        with fork_rng(torch.device("cpu")):
            model = train.initial_model(case, ModelInput(shape=(1, 4, 4), num_classes=3), torch.device("cpu"))
            model.double()
            model.norm = torch.nn.Identity()  # statistics of a batch are not those of its parts
            model.forward = lambda x, t, y, m=model, **_: StubModel.forward(m.eval(), x.double(), t, y)
            made = engine.Trainer(case, make_workspace(tmp_path), model, StubSource(), flip=True)
            made.optimizer.zero_grad = lambda: None
            loss, norm, _ = made._step(0, made.parts.make(0, cut_batch(4, accumulation)))
            found.append((loss, norm, [p.grad.clone() for p in made.parameters]))
    for loss, norm, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)  # kept in fp32
        assert norm == pytest.approx(found[0][1], rel=1e-6)
        for a, b in zip(gradients, found[0][2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("attention", ["softmax", "dydila"])
def test_activation_checkpointing_changes_no_bit(attention):
    """Loss, gradients, what is recorded, auxiliary losses and BatchNorm's statistics are the same bits."""
    options = {"balance_weight": 0.01} if attention == "dydila" else {}
    sizes = {
        "depth": 2,
        "dim": 16,
        "num_heads": 2,
        "attention": AttentionSpec(name=attention, options=options),
    }
    config = recipe("tiny-dit").model_copy(update=sizes)
    x, times = torch.randn(4, 1, 8, 8), torch.rand(4)
    part = MicroBatch(first=0, x0=x, noise=torch.randn_like(x), times=times, labels=torch.arange(4))
    found = []
    for again in (False, True):
        model = build_model(config, 8, 10).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # AdaLN-Zero starts with attention switched off
                parameter.add_(0.1) if "modulation" in name else None
        model.label_embed.dropout = 0.0
        settings, recorded = TrainSpec(objective="flow", activation_checkpointing=again), []
        objective = build_objective(settings, learned_variance=False, device=torch.device("cpu"))
        module = TrainingLoss(model, objective, settings, torch.device("cpu"), 1)
        loss = module(part, lambda name, tensor, told=recorded: told.append((name, tensor.double().sum())))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss, recorded, gradients, dict(model.named_buffers())))
    (loss, recorded, gradients, buffers), (loss2, recorded2, gradients2, buffers2) = found
    assert loss == loss2
    assert recorded == recorded2
    assert gradients.keys() == gradients2.keys()
    assert all(torch.equal(gradients[name], gradients2[name]) for name in gradients)
    assert all(torch.equal(buffers[name], buffers2[name]) for name in buffers)


def test_extra_averages_are_kept_beside(stubs, tmp_path):
    """Another decay gets a file of its own, equal to that of a training that samples from it."""
    both = make_case(train={"ema_decay": 0.9, "extra_ema_decays": [0.1]})
    other = make_case(train={"ema_decay": 0.1})
    for case in (both, other):
        train.run(case, make_workspace(tmp_path))
    folder = make_workspace(tmp_path).folder("train", both)
    extra, main = load_file(folder / "ema-0.1.safetensors"), load_file(folder / train.AVERAGED)
    expected = load_file(make_workspace(tmp_path).folder("train", other) / train.AVERAGED)
    assert all(torch.equal(extra[name], expected[name]) for name in expected)
    assert not all(torch.equal(extra[name], main[name]) for name in main)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4, "grad_accumulation": 3}, "no multiple of grad_accumulation 3"),
        ({"ema_decay": 0.5, "extra_ema_decays": [0.5]}, "must differ"),
        ({"compile": True, "activation_checkpointing": True}, "do not go together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    """Wrong combinations are told when a suite is read."""
    with pytest.raises(ValidationError, match=message):
        TrainSpec(**settings)


def test_failing_batch_ends_the_training_with_its_own_error(monkeypatch, tmp_path):
    """What goes wrong in the thread that prepares batches is raised in the training."""

    def broken():
        raise DataError("cannot decode cat.png")

    install(monkeypatch.setattr, StubSource(before_batch=broken))
    with pytest.raises(DataError, match=r"cat\.png"):
        train.run(make_case(), make_workspace(tmp_path))


def test_finished_training_is_not_repeated(stubs, tmp_path):
    """Running a finished case again returns the same output without reading a batch."""
    case, workspace = make_case(), make_workspace(tmp_path)
    first = train.run(case, workspace)
    (workspace.folder("train", case) / engine.CHECKPOINT).unlink()
    assert train.run(case, workspace) == first


def test_output_describes_the_training(stubs, tmp_path):
    """Loss points are interval means, the last interval may be short, and the final loss is weighted."""
    output = train.run(make_case(), make_workspace(tmp_path))
    found = {m.name: m for m in output.measurements}
    assert [step for step, _ in output.curves["loss"]] == [4, 8, 10]
    assert found["steps"].value == 10
    assert len(found["step_time_ms"].values) == 3
    assert found["final_loss"].value == output.curves["loss"][-1][1]  # the last tenth is step 10
    assert found["train_time_s"].value > 0


def test_training_lowers_the_loss(stubs, tmp_path):
    """Learning happens: the mean loss falls (to 0.67 to 0.79 of its start over four seeds)."""
    case = make_case(train={"steps": 150, "lr": 1e-2, "log_every": 30, "batch_size": 16})
    curve = train.run(case, make_workspace(tmp_path)).curves["loss"]
    assert curve[-1][1] < 0.9 * curve[0][1]


def test_global_generator_is_left_alone(stubs, tmp_path):
    """Training does not move torch's global generator."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train.run(make_case(), make_workspace(tmp_path))
    assert torch.rand(1) == expected


def test_seed_changes_the_training(stubs, tmp_path):
    """Another seed gives another loss curve."""
    curves = [train.run(make_case(seed=s), make_workspace(tmp_path)).curves["loss"] for s in (0, 1)]
    assert curves[0] != curves[1]


def test_bf16_keeps_weights_in_fp32(stubs, tmp_path):
    """Autocast touches the forward pass only: weights, averages and optimizer stay fp32."""
    case = make_case(train={"precision": "bf16"})
    train.run(case, make_workspace(tmp_path))
    weights, _ = trained_bits(tmp_path, case)
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}


@pytest.fixture
def trainer(stubs, tmp_path):
    """Return a trainer of the default case (with some settings replaced), before its first step."""

    def build(**settings) -> engine.Trainer:
        case, source = make_case(train=settings), StubSource()
        model = train.initial_model(case, ModelInput(shape=source.shape, num_classes=3), torch.device("cpu"))
        return engine.Trainer(case, make_workspace(tmp_path), model, source, flip=True)

    return build


def test_auxiliary_losses_are_added(trainer):
    """What a layer hands to the loss sink is part of the loss, weighted as the layer did."""
    made = trainer()
    part = made.parts.make(0, [slice(0, 4)])[0]
    whole = made._loss(0, part, made.loss).item()
    added = []
    forward = made.model.forward

    def without_sink(x, t, y, *, loss_sink):
        return forward(x, t, y, loss_sink=lambda name, value: added.append(value.item()))

    made.model.forward = without_sink
    assert whole == pytest.approx(made._loss(0, part, made.loss).item() + added[0], rel=1e-6)
    assert added[0] > 0


def test_warmup_is_linear_then_constant(trainer):
    """Step s of a warm-up of four uses (s + 1) / 4 of the rate, later steps all of it."""
    made = trainer(lr=0.5, warmup_steps=4)
    rates = []
    for step in range(6):
        made._step(step, made.parts.make(step, [slice(0, 4)]))
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_gradient_clipping_bounds_the_step(stubs, tmp_path):
    """Clipping to almost nothing makes another training than none (Adam hides the scale, not the eps)."""
    free = train.run(make_case(), make_workspace(tmp_path)).curves["loss"]
    clipped = train.run(make_case(train={"grad_clip": 1e-9}), make_workspace(tmp_path)).curves["loss"]
    assert free[0][0] == clipped[0][0]
    assert free != clipped


@pytest.mark.parametrize(("poison", "layer"), [("enter", "layer enter"), ("norm", "layer norm")])
def test_nan_in_the_forward_pass_names_the_layer(monkeypatch, tmp_path, poison, layer):
    """A layer that starts to return NaN is named with the step; the last checkpoint survives."""
    calls = []

    def turn_bad(module, args, output):
        calls.append(1)
        return output * float("nan") if len(calls) > 5 else output

    def build(config, input_size, num_classes, **_):
        model = StubModel(config, num_classes)
        getattr(model, poison).register_forward_hook(turn_bad)
        return model

    install(monkeypatch.setattr)
    monkeypatch.setattr(train, "build_model", build)
    case = make_case(train={"checkpoint_every": 2})
    with pytest.raises(NonFiniteError, match=rf"step 5: .*{layer}.*lower train.lr"):
        train.run(case, make_workspace(tmp_path))
    saved = load_file(make_workspace(tmp_path).folder("train", case) / engine.CHECKPOINT)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_nan_in_the_backward_pass_names_the_layer(monkeypatch, tmp_path):
    """A clean forward with a NaN gradient names the layer the gradient reached first."""
    install(monkeypatch.setattr, poison="backward")
    with pytest.raises(NonFiniteError, match=r"step 0: the forward pass is finite.*layer (norm|labels)"):
        train.run(make_case(), make_workspace(tmp_path))


def test_nan_in_the_data_is_not_blamed_on_a_weight(monkeypatch, tmp_path):
    """NaN in an image is seen in the first layer it passes."""
    source = StubSource()
    source.batch = lambda *_: torch.full((4, 1, 4, 4), float("nan"))  # type: ignore[method-assign]
    install(monkeypatch.setattr, source)
    with pytest.raises(NonFiniteError, match="layer enter"):
        train.run(make_case(), make_workspace(tmp_path))


def test_channels_that_do_not_fit_are_told(monkeypatch, tmp_path):
    """A model for another number of channels than the data has is one error with both numbers."""
    install(monkeypatch.setattr, StubSource(shape=(3, 4, 4)))
    with pytest.raises(UserInputError, match="square of 1 channels, the data gives 3 channels of 4 x 4"):
        train.run(make_case(), make_workspace(tmp_path))


def test_flow_refuses_learned_variance(stubs, tmp_path):
    """Flow matching with a variance-predicting model is refused before any work."""
    with pytest.raises(UserInputError, match="learned_variance: false"):
        train.run(make_case(model={"learned_variance": True}), make_workspace(tmp_path))


def test_every_epoch_shows_every_example_once():
    """Batches that do not divide the data go through it in whole, differently shuffled epochs."""
    schedule = BatchSchedule(num_examples=13, batch_size=4, seed=0, flip=False)
    seen = torch.cat([schedule.at(step).indices for step in range(13)])
    epochs = seen.view(4, 13)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(13).expand(4, 13))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_batches_do_not_depend_on_what_was_asked_before():
    """A batch is a function of seed and step, also one larger than the data."""
    ordered = BatchSchedule(num_examples=5, batch_size=12, seed=3, flip=True)
    batches = [ordered.at(step) for step in range(6)]
    jumping = BatchSchedule(num_examples=5, batch_size=12, seed=3, flip=True)
    for step in (5, 0, 3):
        assert torch.equal(jumping.at(step).indices, batches[step].indices)
        assert torch.equal(jumping.at(step).flips, batches[step].flips)
    assert any(batch.flips.any() for batch in batches)
    assert not BatchSchedule(num_examples=5, batch_size=12, seed=3, flip=False).at(0).flips.any()


@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_the_formula_and_buffers(warmup):
    """Averages equal a loop in fp64 (DiT's constant decay, or warmed up); BatchNorm statistics do, too."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    average = WeightAverage(model, decay=0.4, warmup=warmup)
    expected = {n: t.double().clone() for n, t in model.state_dict().items()}
    for step in range(12):
        model(torch.randn(4, 1, 3, 3))
        torch.nn.init.normal_(model[0].weight)
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step)) if warmup else 0.4
        for name, live in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * live.double()
    state = average.state_dict()
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(state[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert state["1.num_batches_tracked"] == 12


def test_average_sees_buffers_that_a_module_replaces():
    """A module that assigns a new tensor to its buffer is averaged like one that writes in place."""
    model = torch.nn.Module()
    model.register_buffer("statistic", torch.zeros(1))
    average = WeightAverage(model, decay=0.0, warmup=False)
    model.statistic = torch.ones(1)
    average.update(1000)
    assert average.state_dict()["statistic"] == 1
