"""The sample stage: pictures depend on (seed, index) alone, shards resume, mismatches are told."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stage_cases import NUM_CLASSES, SIDE, StubModel, install, make_case, make_workspace

from attnbench.diffusion.box_muller import BoxMullerNoise
from attnbench.diffusion.noise import KeyedNoise, keyed_labels
from attnbench.diffusion.samplers import euler_steps
from attnbench.errors import CheckpointError, NonFiniteError
from attnbench.stages import sample
from attnbench.stages.sampling import sampler, shards
from attnbench.stages.sampling.decoding import DecodePipeline
from attnbench.stages.training.checkpoint import ModelInput, save_averaged
from attnbench.storage.names import AVERAGED, DONE

DDPM = {"objective": "ddpm"}
ALL_SAMPLERS = [
    ("flow", "euler"),
    ("flow", "heun"),
    ("ddpm", "ddpm"),
    ("ddpm", "ddim"),
    ("ddpm", "dpm-solver++"),
]


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    install(monkeypatch.setattr)


def weigh(root, case):
    """Put random weights where a finished training would leave its average; returns the workspace."""
    workspace = make_workspace(root)
    torch.manual_seed(0)
    model_input = ModelInput(shape=(case.model.in_channels, SIDE, SIDE), num_classes=NUM_CLASSES)
    weights = {
        name: value.clone() if value.dtype == torch.int64 else torch.rand_like(value) + 0.2
        for name, value in StubModel(case.model, NUM_CLASSES).state_dict().items()
    }
    save_averaged(workspace.folder("train", case) / AVERAGED, weights, model_input, case.key("train"))
    return workspace


def draw(root, case) -> tuple[np.ndarray, np.ndarray]:
    """Sample a case; return all images and labels in index order."""
    workspace = weigh(root, case)
    sample.run(case, workspace)
    folder = workspace.folder("sample", case)
    parts = [np.load(file) for file in sorted(folder.glob("samples-*.npz"))]
    return np.concatenate([p["arr_0"] for p in parts]), np.concatenate([p["labels"] for p in parts])


@pytest.mark.parametrize(("objective", "name"), ALL_SAMPLERS)
def test_batch_size_changes_no_picture(tmp_path, objective, name):
    """Batches of 1, 4 and all give the same pictures within one level (matmuls round differently)."""
    pictures = []
    for batch_size in (1, 4, 100):
        changes = {"sampler": name, "per_class": 3, "batch_size": batch_size, "guidance_scale": 2.0}
        case = make_case(train={"objective": objective}, sample=changes)
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

    monkeypatch.setattr(sampler, "euler_steps", spy)
    draw(tmp_path / "one by one", make_case(sample={"batch_size": 1}))
    draw(tmp_path / "fours", make_case(sample={"batch_size": 4}))
    assert [len(x) for x in seen] == [1] * 6 + [4, 2]
    assert torch.equal(torch.cat(seen[:6]), torch.cat(seen[6:]))


def steps_of(root, case, model=lambda x, t, y: torch.zeros_like(x)) -> list:
    """Return every sampler step of the first two samples of a case, with a model made by hand."""
    model_input = ModelInput(shape=(1, SIDE, SIDE), num_classes=NUM_CLASSES)
    drawer = sampler.Sampler(case, make_workspace(root), model, model_input, lambda x: x)
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


def test_a_shard_without_its_times_is_drawn_again(tmp_path):
    """The times of a shard belong to it: a shard alone is not finished work."""
    case = make_case()
    whole, _ = draw(tmp_path, case)
    folder = make_workspace(tmp_path).folder("sample", case)
    (folder / DONE).unlink()
    times = shards.shard_path(folder, 0).with_suffix(".json")
    times.unlink()
    again, _ = draw(tmp_path, case)
    assert times.exists()
    assert np.array_equal(again, whole)


def test_samples_of_earlier_noise_are_left_alone_and_told(monkeypatch, tmp_path):
    """An unfinished stage of that noise: others are drawn beside it; who asks for it goes on with it."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    earlier, today = (
        make_case(sample={"per_class": 4, "noise": noise}) for noise in ("ziggurat", "box-muller")
    )
    old, _ = draw(tmp_path, earlier)
    folder = make_workspace(tmp_path).folder("sample", earlier)
    (folder / DONE).unlink()
    shards.shard_path(folder, 1).unlink()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    told: list[str] = []
    workspace = replace(weigh(tmp_path, today), progress=lambda *words: told.append(words[-1]))
    sample.run(today, workspace)
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    (said,) = (text for text in told if "earlier versions" in text)
    assert folder.name in said
    assert "-o sample.noise=ziggurat" in said
    new = [images for images, _ in shards.iterate_shards(workspace.folder("sample", today))]
    assert np.abs(np.concatenate(new).astype(int) - old).mean() > 10
    other = make_case(sample={"per_class": 4, "noise": "box-muller"}, seed=5)
    sample.run(other, weigh(tmp_path, other))
    assert len(list(folder.parent.iterdir())) == 3  # no folder is made to look for earlier samples in
    told.clear()
    sample.run(earlier, workspace)
    assert np.array_equal(np.concatenate([images for images, _ in shards.iterate_shards(folder)]), old)
    assert not any("earlier versions" in text for text in told)


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 4), ("ddim", 1)])
def test_noise_of_every_step_is_announced(tmp_path, name, steps):
    """On a GPU several steps are drawn together: as many as there are, one where the start is all."""
    case = make_case(train=DDPM, model={"learned_variance": False}, sample={"sampler": name, "num_steps": 4})
    model_input = ModelInput(shape=(1, SIDE, SIDE), num_classes=NUM_CLASSES)
    drawer = sampler.Sampler(case, make_workspace(tmp_path), lambda x, t, y: x, model_input, lambda x: x)
    noise = drawer.noise(range(2))
    asked: list[int] = []
    at = noise.at
    noise.at = lambda step: asked.append(step) or at(step)
    list(drawer.steps(noise, torch.tensor([0, 1])))
    assert noise.num_steps == steps == max(asked) + 1


def test_samples_changed_after_the_stage_had_finished_are_drawn_again(monkeypatch, tmp_path):
    """One bit of a picture: the stage is gone through once more, to the same pictures, and says so."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    case = make_case(sample={"per_class": 4})
    whole, _ = draw(tmp_path, case)
    told: list[str] = []
    workspace = replace(make_workspace(tmp_path), progress=lambda *words: told.append(words[-1]))
    folder = workspace.folder("sample", case)
    path = shards.shard_path(folder, 1)
    content = bytearray(path.read_bytes())
    content[content.index(whole[4:8].tobytes())] ^= 1
    path.write_bytes(content)
    again = sample.run(case, workspace)
    assert np.array_equal(np.load(path)["arr_0"], whole[4:8])
    assert any("samples-00001.npz" in text and "drawn again" in text for text in told)
    (note,) = (m.note for m in again.measurements if m.name == "sample_warnings")
    assert note == "stored samples were damaged and drawn again: samples-00001.npz"
    assert sample.run(case, workspace) == again


def test_changed_times_of_a_shard_are_not_reported(tmp_path):
    """A digit of the record beside a shard: the shard is drawn again, with the times of that."""
    case = make_case()
    draw(tmp_path, case)
    folder = make_workspace(tmp_path).folder("sample", case)
    (folder / DONE).unlink()
    record = shards.shard_path(folder, 0).with_suffix(".json")
    record.write_text(record.read_text().replace('"total_s":0', '"total_s":7', 1))
    output = sample.run(case, make_workspace(tmp_path))
    assert [m.name for m in output.measurements if m.note.startswith("stored")] == ["sample_warnings"]
    assert next(m for m in output.measurements if m.name == "sample_time_s").value < 7


def test_guidance_scales_share_one_training():
    """A scale changes the key of the samples and not that of the training."""
    plain, guided = (make_case(sample={"guidance_scale": scale}) for scale in (1.0, 4.0))
    assert plain.key("train") == guided.key("train")
    assert plain.key("sample") != guided.key("sample")


def test_random_labels_are_keyed_by_their_index(monkeypatch, tmp_path):
    """Any shard and batch size gives the same labels, which are not those in turn; the grid still comes."""
    case = make_case(sample={"labels": "random", "per_class": 30, "batch_size": 7})
    _, labels = draw(tmp_path / "one shard", case)
    monkeypatch.setattr(shards, "SHARD_SIZE", 32)
    _, again = draw(tmp_path / "three shards", case)
    assert np.array_equal(labels, again)
    assert labels.tolist() == keyed_labels(case.seed, range(90), NUM_CLASSES).tolist()
    assert (make_workspace(tmp_path / "one shard").folder("sample", case) / "grid.png").exists()


@given(
    per_class=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    shard_size=st.integers(1, 14),
    world=st.integers(1, 5),
)
@settings(max_examples=15, deadline=None)
def test_neither_batches_nor_shards_nor_processes_change_what_a_sample_starts_from(
    per_class, batch_size, shard_size, world
):
    """Every sample's first noise is that of its index, once, whoever draws it in whatever company."""
    case = make_case(sample={"per_class": per_class, "batch_size": batch_size, "num_steps": 1})
    starts: list[torch.Tensor] = []

    def model(x, t, y):
        starts.extend(x)
        return torch.zeros_like(x)

    model_input = ModelInput(shape=(1, SIDE, SIDE), num_classes=NUM_CLASSES)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as root:
        patch.setattr(shards, "SHARD_SIZE", shard_size)
        drawer = sampler.Sampler(case, make_workspace(Path(root)), model, model_input, lambda x: x.byte())
        ranks = reversed(range(world))
        for rank in ranks:
            sample.draw_shards(drawer, Path(root), rank=rank, world=world)
    total = per_class * NUM_CLASSES
    noise = BoxMullerNoise(
        seed=case.seed, indices=range(total), shape=(1, SIDE, SIDE), device=torch.device("cpu")
    )
    found = {tuple(x.flatten().tolist()) for x in starts}
    assert len(starts) == total
    assert found == {tuple(x.flatten().tolist()) for x in noise.at(0)}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("samples-*.npz")}


def in_process(*words: object) -> subprocess.Popen[bytes]:
    """Start a process of this test file's own, on one thread."""
    return subprocess.Popen([sys.executable, __file__, *map(str, words)], cwd=Path(__file__).parent)


def test_a_killed_process_is_taken_over(monkeypatch, tmp_path):
    """After SIGKILL in the third shard, running again keeps two shards and ends in the same bytes."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    alone, killed = weigh(tmp_path / "alone", PROCESS_CASE), weigh(tmp_path / "killed", PROCESS_CASE)
    sample.run(PROCESS_CASE, alone)
    assert in_process(tmp_path / "killed", 8).wait(timeout=120) == -signal.SIGKILL
    folder = killed.folder("sample", PROCESS_CASE)
    assert len(bytes_of(folder)) == 2
    assert sample.read_output(folder) is None
    sample.run(PROCESS_CASE, killed)
    assert bytes_of(folder) == bytes_of(alone.folder("sample", PROCESS_CASE))


def test_decoding_in_the_background_keeps_the_order():
    """A pipeline with a thread gives the images of one without, in order, and times them."""
    batches = [torch.full((2, 1, 1, 1), float(i)) for i in range(5)]

    def decode(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return x.permute(0, 2, 3, 1).byte()

    for background in (False, True):
        with DecodePipeline(decode, torch.device("cpu"), background=background) as pipeline:
            for batch in batches:
                pipeline.add(batch)
            images = pipeline.images()
        assert images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert pipeline.seconds >= 0.05


def test_an_error_of_the_background_decoder_is_not_lost():
    """What the decoder raises in its thread arrives where the images are asked for."""

    def decode(x: torch.Tensor) -> torch.Tensor:
        raise NonFiniteError("no picture")

    with DecodePipeline(decode, torch.device("cpu"), background=True) as pipeline:
        pipeline.add(torch.zeros(1, 1, 1, 1))
        with pytest.raises(NonFiniteError, match="no picture"):
            pipeline.images()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs the compiler g++")
def test_a_compiled_model_draws_the_same_pictures(tmp_path):
    """sample.compile changes pictures by one level at most, and really compiles."""
    plain, _ = draw(tmp_path / "plain", make_case(sample={"guidance_scale": 2.0}))
    torch._dynamo.reset()
    compiled, _ = draw(tmp_path / "compiled", make_case(sample={"guidance_scale": 2.0, "compile": True}))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert np.abs(plain.astype(int) - compiled.astype(int)).max() <= 1


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
    case = make_case()
    workspace = weigh(tmp_path, case)
    output = sample.run(case, workspace)
    found = {m.name: m for m in output.measurements}
    assert {name: m.n for name, m in found.items()} == dict.fromkeys(
        ("sample_time_s", "images_per_s"), 6
    )  # no decoding: the model works on pixels
    assert found["images_per_s"].value > 0
    with_decoder = sample._describe(
        shards.read_records(workspace.folder("sample", case), 1), [6], decodes=True
    )
    times = {m.name: m.value for m in with_decoder.measurements}
    assert 0 < times["decode_time_s"] < times["sample_time_s"]
    assert times["denoise_images_per_s"] > times["images_per_s"]
    assert output.artefacts == {"grid": "grid.png"}
    (workspace.folder("train", case) / AVERAGED).unlink()
    assert sample.run(case, workspace) == output


def test_averaged_weights_are_sampled(tmp_path):
    """The weights in use are those of ema.safetensors, in eval mode."""
    case = make_case()
    workspace = weigh(tmp_path, case)
    weights, _ = sample.load_averaged(workspace.folder("train", case) / AVERAGED, case.key("train"))
    model = sample.load_sampler(case, workspace).model
    assert not model.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_sampling_before_training_is_told(tmp_path):
    """Without trained weights the error names the file and the next step."""
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing; .* run the suite again"):
        sample.run(make_case(), make_workspace(tmp_path))


def test_non_finite_samples_are_told(monkeypatch, tmp_path):
    """NaN never becomes a picture: the samples are named."""
    case = make_case()
    workspace = weigh(tmp_path, case)
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
        model_input = ModelInput(shape=(4, SIDE, SIDE), num_classes=NUM_CLASSES)
        model = StubModel(case.model, NUM_CLASSES).eval()
        drawer = sampler.Sampler(case, make_workspace(tmp_path), model, model_input, lambda x: x)
        return drawer.denoise(range(4))

    plain, three, everything = final(1.0, "all"), final(4.0, 3), final(4.0, "all")
    torch.testing.assert_close(three[:, :3], everything[:, :3])
    torch.testing.assert_close(three[:, 3], plain[:, 3])
    assert (everything[:, 3] - plain[:, 3]).abs().max() > 1e-3


PROCESS_CASE = make_case(sample={"per_class": 8, "batch_size": 3})  # 24 images


def main(root: str, index: str) -> None:
    """Sample and be killed before sample `index` is denoised."""
    torch.set_num_threads(1)
    install(setattr)
    shards.SHARD_SIZE = 4
    denoise = sampler.Sampler.denoise

    def dying(self, indices):
        if indices.start >= int(index):
            os.kill(os.getpid(), signal.SIGKILL)
        return denoise(self, indices)

    sampler.Sampler.denoise = dying
    sample.run(PROCESS_CASE, make_workspace(Path(root)))


if __name__ == "__main__":
    main(*sys.argv[1:])
