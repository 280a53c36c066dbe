"""The held-out loss: the same images and noise for all, of the averaged weights, at bounded cost."""

from types import SimpleNamespace

import pytest
import torch
from stage_cases import StubModel, install, make_case, make_workspace

from attnbench.data.arrays import ArrayImages
from attnbench.diffusion.noise import KeyedNoise
from attnbench.diffusion.objective import build_objective
from attnbench.stages import train
from attnbench.stages.training.ema import WeightAverage
from attnbench.stages.training.held_out_loss import (
    COST_SHARE,
    NUM_TIMES,
    STEP_PER_FORWARD,
    HeldOutImages,
    HeldOutLoss,
    affordable_images,
    held_out_images,
)

CPU = torch.device("cpu")
EXACT = torch.autocast("cpu", enabled=False)


def dataset(count: int = 40) -> SimpleNamespace:
    """Return held-out images whose grey value is their number."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 1)
    return SimpleNamespace(held_out=ArrayImages(images, torch.arange(count) % 3), num_classes=3)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_loss_is_that_of_its_definition(tmp_path, objective):
    """A loop over images and times, one at a time, gives the same eight means; batches change nothing."""
    case = make_case(train={"objective": objective, "steps": 1000})
    images = held_out_images(case, dataset(5), make_workspace(tmp_path))
    objective = build_objective(case.train, learned_variance=case.model.learned_variance, device=CPU)
    model = StubModel(case.model, 3).eval()
    found = HeldOutLoss(images, objective, device=CPU, batch_size=2).of(model, EXACT)
    for number, time in enumerate(objective.spread_times(NUM_TIMES)):
        losses = []
        for i in range(5):
            noise = KeyedNoise(seed=0, indices=[i], shape=(1, 4, 4), device=CPU, purpose="held-out").at(
                number
            )
            x0, label = images.x0[i : i + 1], images.labels[i : i + 1]
            with torch.no_grad():
                loss = objective.losses(lambda x, t, label=label: model(x, t, label), x0, time.view(1), noise)
            losses.append(loss.item())
        # fp32 losses of 16 pixels, a few roundings apart
        assert found[number] == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_weights_are_the_averaged_ones_and_the_model_stays(tmp_path):
    """Averaged weights in its place give another loss; the model keeps its own, its statistics and mode."""
    case = make_case(train={"steps": 1000})
    images = held_out_images(case, dataset(), make_workspace(tmp_path))
    objective = build_objective(case.train, learned_variance=False, device=CPU)
    model = StubModel(case.model, 3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held_out = HeldOutLoss(images, objective, device=CPU, batch_size=8)
    own = held_out.of(model, EXACT)
    average = WeightAverage(model, 0.5, warmup=False)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    average.load_state_dict(zeros)
    with average.in_place():
        assert held_out.of(model, EXACT) != own
    assert held_out.of(model, EXACT) == own
    assert model.training
    assert all(not tensor.any() for tensor in average.state_dict().values() if tensor.is_floating_point())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_images_do_not_depend_on_the_seed(tmp_path):
    """Cases of other seeds are measured on the same images."""
    chosen = [held_out_images(make_case(seed=s), dataset(), make_workspace(tmp_path)) for s in (0, 1)]
    assert torch.equal(chosen[0].x0, chosen[1].x0)
    assert len(set(chosen[0].x0[:, 0, 0, 0].tolist())) == len(chosen[0].x0)


@pytest.mark.parametrize(
    ("settings", "available", "expected"),
    [
        ({"steps": 100_000, "batch_size": 256}, 5000, 256),  # what is asked for
        ({"steps": 100_000, "batch_size": 256}, 100, 100),  # what there is
        ({"steps": 100_000, "batch_size": 256, "held_out_images": 512}, 5000, 512),
        ({"steps": 600, "batch_size": 64}, 5000, 144),  # 0.01 x 3 x 600 x 64 / 8
        ({"steps": 10, "batch_size": 4}, 5000, 16),  # never fewer, where there are
    ],
)
def test_number_of_images_is_bounded_by_their_cost(settings, available, expected):
    """One forward pass per image and time, at every measurement, costs at most 1 % of the training."""
    case = make_case(train=settings)
    count = affordable_images(case, available)
    assert count == expected
    measurements = -(-case.train.steps // case.train.held_out_every)
    cost = count * NUM_TIMES * measurements / STEP_PER_FORWARD
    assert cost <= COST_SHARE * case.train.steps * case.train.batch_size or count == 16


@pytest.mark.parametrize(
    ("settings", "images", "note"),
    [({"held_out_images": 0}, 40, "held_out_images is 0"), ({}, 0, "no held-out images")],
)
def test_without_images_it_is_skipped_with_the_reason(tmp_path, settings, images, note):
    """No held-out part is no error: the measurement is empty and says why."""
    made = held_out_images(make_case(train=settings), dataset(images), make_workspace(tmp_path))
    measurement = HeldOutLoss(made, _flow(), device=CPU, batch_size=4).measurement([])
    assert (made.x0, measurement.values, measurement.n) == (None, [], 0)
    assert note in measurement.note


def _flow():
    return build_objective(make_case().train, learned_variance=False, device=CPU)


def test_training_reports_it_at_its_steps_and_at_the_end(monkeypatch, tmp_path):
    """The stage's output has the curve, the last point as a measurement with n, and the log has all times."""
    install(monkeypatch.setattr)
    case, workspace = make_case(train={"held_out_every": 4}), make_workspace(tmp_path)
    output = train.run(case, workspace)
    curve = output.curves["held_out_loss"]
    measurement = next(m for m in output.measurements if m.name == "held_out_loss")
    assert [step for step, _ in curve] == [4, 8, 10]
    assert (measurement.values, measurement.n) == ([curve[-1][1]], 5)
    log = (workspace.folder("train", case) / "train.jsonl").read_text()
    assert log.count("held_out_loss") == 3


def test_it_changes_nothing_in_the_training(monkeypatch, tmp_path):
    """A training that is measured often has the losses of one that is not measured."""
    install(monkeypatch.setattr)
    often = train.run(make_case(train={"held_out_every": 1}), make_workspace(tmp_path))
    never = train.run(make_case(train={"held_out_images": 0}), make_workspace(tmp_path))
    assert often.curves["loss"] == never.curves["loss"]


def test_latents_are_the_scaled_means_of_their_posteriors(monkeypatch, tmp_path):
    """A latent model's held-out examples are scale (mean - shift), without the log variance behind it."""
    from attnbench.stages.training import held_out_loss

    codec = SimpleNamespace(
        channels=1,
        scale=0.5,
        shift=3.0,
        encode=lambda images: torch.cat(
            [images[:, :1, :1].float(), torch.full((len(images), 1, 1, 1), 99.0)], 1
        ),
    )
    monkeypatch.setattr(held_out_loss, "codec_of", lambda case: "codec")
    monkeypatch.setattr(held_out_loss, "load_codec", lambda spec, device: codec)
    made = held_out_images(make_case(model={"input": "latent"}), dataset(), make_workspace(tmp_path))
    pixels = held_out_images(make_case(), dataset(), make_workspace(tmp_path))
    grey = (pixels.x0[:, 0, 0, 0] + 1) * 127.5
    torch.testing.assert_close(made.x0.flatten(), 0.5 * (grey - 3))


def test_images_without_x0_are_not_measured():
    """A process that is not the first measures nothing."""
    assert not HeldOutLoss(HeldOutImages(), _flow(), device=CPU, batch_size=1).is_measured
