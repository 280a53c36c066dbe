"""The sample stage: pictures depend on (seed, index) alone, shards resume, mismatches are told."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_cases import NUM_CLASSES, SIDE, StubModel, install, make_case, make_workspace

from attnbench.diffusion.noise import KeyedNoise
from attnbench.diffusion.samplers import euler_steps
from attnbench.errors import CheckpointError, NonFiniteError, UserInputError
from attnbench.stages import sample, shards, train
from attnbench.stages.compatibility import check_sampler
from attnbench.stages.store import DONE

DDPM = {"objective": "ddpm"}


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    install(monkeypatch.setattr)


def draw(root, case) -> tuple[np.ndarray, np.ndarray]:
    """Train and sample a case; return all images and labels in index order."""
    workspace = make_workspace(root)
    train.run(case, workspace)
    sample.run(case, workspace)
    folder = workspace.folder("sample", case)
    parts = [np.load(file) for file in sorted(folder.glob("samples-*.npz"))]
    return np.concatenate([p["arr_0"] for p in parts]), np.concatenate([p["labels"] for p in parts])


@pytest.mark.parametrize(("objective", "sampler"), [("flow", "euler"), ("ddpm", "ddpm"), ("ddpm", "ddim")])
def test_batch_size_changes_no_picture(tmp_path, objective, sampler):
    """Batches of 1, 4 and all give the same pictures within one level (matmuls round differently)."""
    pictures = []
    for batch_size in (1, 4, 100):
        settings = {"sampler": sampler, "per_class": 3, "batch_size": batch_size, "guidance_scale": 2.0}
        case = make_case(train={"objective": objective}, sample=settings)
        pictures.append(draw(tmp_path / str(batch_size), case)[0].astype(int))
    assert pictures[0].std() > 10
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.abs(pictures[0] - pictures[2]).max() <= 1


def test_starting_noise_does_not_depend_on_the_batch(monkeypatch, tmp_path):
    """What the model first sees of a sample is the same to the bit in any batch."""
    seen: list[torch.Tensor] = []

    def spy(denoiser, process, x, *, num_steps):
        seen.append(x)
        return euler_steps(denoiser, process, x, num_steps=num_steps)

    monkeypatch.setattr(sample, "euler_steps", spy)
    draw(tmp_path / "one by one", make_case(sample={"batch_size": 1}))
    draw(tmp_path / "fours", make_case(sample={"batch_size": 4}))
    assert [len(x) for x in seen] == [1] * 6 + [4, 2]
    assert torch.equal(torch.cat(seen[:6]), torch.cat(seen[6:]))


def steps_of(root, case, model=lambda x, t, y: torch.zeros_like(x)) -> list:
    """Return every sampler step of the first two samples of a case, with a model made by hand."""
    model_input = train.ModelInput(shape=(1, SIDE, SIDE), num_classes=NUM_CLASSES)
    drawer = sample.Sampler(case, make_workspace(root), model, model_input, lambda x: x)
    noise = KeyedNoise(seed=0, indices=[0, 1], shape=(1, SIDE, SIDE), device=torch.device("cpu"))
    return list(drawer.steps(noise, torch.tensor([0, 1])))


def test_ancestral_noise_is_new_at_every_step(tmp_path):
    """The noise of each ancestral step is independent of the start and of every other step's."""
    asked = []
    case = make_case(
        train=DDPM, model={"learned_variance": False}, sample={"sampler": "ddpm", "num_steps": 4}
    )
    at = KeyedNoise.at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyedNoise, "at", lambda self, step: asked.append(step) or at(self, step))
        steps_of(tmp_path, case)
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize(("space", "clipped"), [("pixel", True), ("latent", False)])
def test_only_pixels_are_clipped(tmp_path, space, clipped):
    """The guess of the data is kept in [-1, 1] for pixels and left alone for latents."""
    case = make_case(
        train=DDPM, model={"learned_variance": False, "input": space}, sample={"sampler": "ddim"}
    )
    largest = max(step.x0.abs().max().item() for step in steps_of(tmp_path, case))
    assert (largest <= 1) == clipped


def test_classes_take_turns(tmp_path):
    """Sample i has class i mod K, so the first images cover all classes, `per_class` of each."""
    images, labels = draw(tmp_path, make_case(sample={"per_class": 5}))
    assert images.shape == (15, SIDE, SIDE, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [i % NUM_CLASSES for i in range(15)]


def test_sampling_goes_on_shard_by_shard(monkeypatch, tmp_path):
    """Finished shards are kept, missing and damaged ones are drawn again to the same pictures."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    case = make_case(sample={"per_class": 4})
    whole, _ = draw(tmp_path, case)
    workspace = make_workspace(tmp_path)
    folder = workspace.folder("sample", case)
    (folder / DONE).unlink()
    shards.shard_path(folder, 0).unlink()
    shards.shard_path(folder, 1).write_bytes(b"PK\x03\x04 cut short")
    kept = shards.shard_path(folder, 2).stat().st_mtime_ns
    again, _ = draw(tmp_path, case)
    assert np.array_equal(again, whole)
    assert shards.shard_path(folder, 2).stat().st_mtime_ns == kept


def test_grid_shows_a_row_per_class(tmp_path):
    """The grid holds per_class columns (at most eight) and a row per class, enlarged to be seen."""
    case = make_case(sample={"per_class": 9})
    images, _ = draw(tmp_path, case)
    grid = np.asarray(Image.open(make_workspace(tmp_path).folder("sample", case) / "grid.png"))
    cell = 48 + 2  # images of 4 pixels enlarged 12 times, and the gap
    assert grid.shape == (3 * cell + 2, 8 * cell + 2)
    second_of_last_class = grid[2 * cell + 2 : 3 * cell, cell + 2 : 2 * cell][::12, ::12]
    assert np.array_equal(second_of_last_class, images[1 * NUM_CLASSES + 2][..., 0])


def test_output_describes_the_sampling(tmp_path):
    """Time and rate count all images; a second run returns the same output without drawing."""
    case, workspace = make_case(), make_workspace(tmp_path)
    train.run(case, workspace)
    output = sample.run(case, workspace)
    assert {m.name: m.n for m in output.measurements} == {"sample_time_s": 6, "images_per_s": 6}
    assert output.artefacts == {"grid": "grid.png"}
    (workspace.folder("train", case) / train.AVERAGED).unlink()
    assert sample.run(case, workspace) == output


def test_averaged_weights_are_sampled(tmp_path):
    """The weights in use are those of ema.safetensors, in eval mode."""
    case, workspace = make_case(), make_workspace(tmp_path)
    train.run(case, workspace)
    weights, _ = sample.load_averaged(workspace.folder("train", case) / train.AVERAGED, case.key("train"))
    model = sample.load_sampler(case, workspace).model
    assert not model.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_sampling_before_training_is_told(tmp_path):
    """Without trained weights the error names the file and the stage."""
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing; run the train stage"):
        sample.run(make_case(), make_workspace(tmp_path))


def test_non_finite_samples_are_told(monkeypatch, tmp_path):
    """NaN never becomes a picture: the samples are named."""
    case, workspace = make_case(), make_workspace(tmp_path)
    train.run(case, workspace)
    monkeypatch.setattr(StubModel, "forward", lambda self, x, t, y: x * float("nan"))
    with pytest.raises(NonFiniteError, match="samples 0 to 3 hold NaN"):
        sample.run(case, workspace)


def test_three_guided_channels_leave_the_fourth(tmp_path):
    """guidance_channels: 3 on four latent channels changes the first three only, as in DiT's release."""

    def final(scale: float, channels: object) -> torch.Tensor:
        case = make_case(
            model={"in_channels": 4, "input": "latent"},
            sample={"num_steps": 1, "guidance_scale": scale, "guidance_channels": channels},
        )
        torch.manual_seed(0)
        model_input = train.ModelInput(shape=(4, SIDE, SIDE), num_classes=NUM_CLASSES)
        model = StubModel(case.model, NUM_CLASSES).eval()
        drawer = sample.Sampler(case, make_workspace(tmp_path), model, model_input, lambda x: x)
        return torch.from_numpy(drawer.draw(range(4)))

    plain, three, everything = final(1.0, "all"), final(4.0, 3), final(4.0, "all")
    torch.testing.assert_close(three[:, :3], everything[:, :3])
    torch.testing.assert_close(three[:, 3], plain[:, 3])
    assert (everything[:, 3] - plain[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": DDPM}, "sampler 'euler'.*objective 'ddpm'.*ddpm or ddim"),
        ({"sample": {"sampler": "ddim"}}, "sampler 'ddim'.*objective 'flow'.*set sample.sampler to euler"),
        ({"train": DDPM, "sample": {"sampler": "ddim", "num_steps": 1}}, "2 to 1000 steps.*num_steps=1"),
        ({"train": DDPM, "sample": {"sampler": "ddpm", "num_steps": 1001}}, "num_steps=1001"),
        ({"sample": {"guidance_channels": 3}}, "'all' or 1 to 1.*got 3"),
        ({"sample": {"guidance_scale": 2.0}, "model": {"class_dropout": 0.0}}, "class_dropout above 0"),
        ({"model": {"learned_variance": True}}, "learned_variance: false"),
    ],
)
def test_settings_that_do_not_go_together_are_told(tmp_path, settings, message):
    """Each mismatch is one error that names the setting to change, for suites and the stage alike."""
    case = make_case(**settings)
    with pytest.raises(UserInputError, match=message):
        check_sampler(case)
    with pytest.raises(UserInputError, match=message):
        sample.run(case, make_workspace(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sample": {"guidance_scale": 2.0}},
        {"train": DDPM, "sample": {"sampler": "ddim", "num_steps": 1000}},
    ],
)
def test_settings_that_go_together_pass(settings):
    """Sound combinations pass the check."""
    check_sampler(make_case(**settings))


def test_check_needs_no_torch():
    """Suites can be validated without importing torch."""
    code = "import sys, attnbench.stages.compatibility; sys.exit('torch' in sys.modules)"
    root = Path(train.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
