"""The prepare stage: pixels as they are, and latents of a small random autoencoder."""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from stage_cases import make_case, make_workspace

from attnbench.data import load_dataset
from attnbench.data.pixels import to_images, to_model_space
from attnbench.errors import DataError, NonFiniteError, UserInputError
from attnbench.metrics import classifier
from attnbench.specs import CodecSpec, EvaluateSpec, ImageFolderData
from attnbench.stages import prepare
from attnbench.stages.case import run_case
from attnbench.stages.latents import encoding as latents
from attnbench.stages.latents import model_space
from attnbench.stages.scored_images import training_images
from attnbench.storage.names import MADE_FROM
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import NOTICE, read_output

SIDE, CHANNELS, COUNT = 16, 4, 10


def save_codec(path, kind="autoencoder-kl", seed=0, **settings):
    """Save a random autoencoder that halves the side; returns it."""
    import diffusers

    torch.manual_seed(seed)
    if kind == "autoencoder-kl":
        sizes = {
            "block_out_channels": (4, 4),
            "norm_num_groups": 2,
            "scaling_factor": 0.5,
            "shift_factor": 0.25,
        }
        network = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=CHANNELS,
            **sizes | settings,
        )
    else:
        sizes = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
        network = diffusers.AutoencoderTiny(
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=CHANNELS, **sizes | settings
        )
    network.save_pretrained(path)
    return network.eval()


@pytest.fixture
def images(tmp_path):
    """A folder of ten noise images of two classes."""
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        folder = tmp_path / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def latent_case(images, codec, kind="autoencoder-kl", seed=0, side=SIDE, **model):
    data = ImageFolderData(
        path=images, image_size=side, held_out_fraction=0.0, codec=CodecSpec(kind=kind, path=codec)
    )
    sizes = {"input": "latent", "in_channels": CHANNELS} | model
    return make_case(model=sizes, seed=seed).model_copy(update={"data": data})


def prepared(case, workspace):
    prepare.run(case, workspace)
    dataset = load_dataset(case.data)
    return dataset, model_space.training_source(case, dataset, workspace)


ALL = torch.arange(COUNT)
KEPT, MIRRORED = torch.zeros(COUNT, dtype=torch.bool), torch.ones(COUNT, dtype=torch.bool)


def test_pixels_need_no_preparation(tmp_path):
    """Digits leave an empty, finished stage, and batches are the images in [-1, 1]."""
    case, workspace = make_case(), make_workspace(tmp_path)
    dataset, source = prepared(case, workspace)
    assert read_output(workspace.folder("prepare", case)) is not None
    assert (len(source), source.shape) == (len(dataset.train), (1, 8, 8))
    flips = torch.tensor([False, True])
    batch = source.batch(torch.tensor([5, 5]), flips)
    assert (batch.dtype, batch.shape) == (torch.float32, torch.Size([2, 1, 8, 8]))
    assert torch.equal(batch[:1], to_model_space(dataset.train.images[5:6]))
    assert torch.equal(batch[1], batch[0].flip(-1))  # left to right, not upside down
    assert torch.equal(source.labels, dataset.train.labels)
    assert torch.equal(model_space.decoder(case, workspace)(batch[:1]), dataset.train.images[5:6])


def test_kl_latents_are_draws_from_the_posterior(images, tmp_path):
    """scale x (mean + std x noise - shift) of each image or its mirror image, to float16's precision."""
    network = save_codec(tmp_path / "vae")
    dataset, source = prepared(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))
    assert (len(source), source.shape) == (COUNT, (CHANNELS, SIDE // 2, SIDE // 2))
    noise = torch.randn(COUNT, *source.shape, generator=torch.Generator().manual_seed(0))
    pixels = to_model_space(dataset.train.get(ALL))
    for flips, x in ((KEPT, pixels), (MIRRORED, pixels.flip(-1))):
        with torch.no_grad():
            posterior = network.encode(x).latent_dist
        expected = 0.5 * (posterior.mean + posterior.std * noise - 0.25)
        found = source.batch(ALL, flips, noise)
        # float16 keeps 11 bits of mean and log variance; noise reaches about 4
        torch.testing.assert_close(found, expected, rtol=2**-9, atol=2**-9)


def test_without_draws_a_latent_is_the_mean_of_its_posterior(images, tmp_path):
    """As the held-out loss has it; a draw of zeros is the mean, too."""
    save_codec(tmp_path / "vae")
    _, source = prepared(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))
    assert source.has_posterior
    assert torch.equal(source.batch(ALL, KEPT), source.batch(ALL, KEPT, torch.zeros(COUNT, *source.shape)))


def test_a_tiny_autoencoder_has_no_posterior(images, tmp_path):
    """Its latents are kept as they are, and draws change nothing."""
    network = save_codec(tmp_path / "vae", "autoencoder-tiny")
    case = latent_case(images, tmp_path / "vae", "autoencoder-tiny")
    dataset, source = prepared(case, make_workspace(tmp_path / "runs"))
    with torch.no_grad():
        expected = network.encode(to_model_space(dataset.train.get(ALL))).latents
    assert not source.has_posterior
    found = source.batch(ALL, KEPT)
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=2**-10)  # float16
    assert torch.equal(found, source.batch(ALL, KEPT, torch.ones(COUNT, *source.shape)))


@pytest.mark.parametrize("kind", ["autoencoder-kl", "autoencoder-tiny"])
def test_the_decoder_undoes_scale_and_shift(images, tmp_path, kind):
    """Decoding equals the autoencoder's own decoding of unscaled latents, rounded to uint8 once."""
    network = save_codec(tmp_path / "vae", kind)
    case = latent_case(images, tmp_path / "vae", kind)
    scale, shift = (0.5, 0.25) if kind == "autoencoder-kl" else (1.0, 0.0)
    z = torch.randn(11, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))  # more than one call
    decode = model_space.decoder(case, make_workspace(tmp_path))
    with torch.no_grad():
        expected = to_images(network.decode(z).sample)
    found = decode(scale * (z - shift))
    assert (found.shape, found.dtype) == (torch.Size([11, SIDE, SIDE, 3]), torch.uint8)
    # other batch sizes and the rescaling round differently in float32: one grey level at most
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_killed_run_goes_on_where_it_was(images, monkeypatch, tmp_path):
    """Shards that are there are kept, and the finished latents equal those of an undisturbed run."""
    save_codec(tmp_path / "vae")
    case = latent_case(images, tmp_path / "vae")
    monkeypatch.setattr(latents, "SHARD_SIZE", 4)
    _, undisturbed = prepared(case, make_workspace(tmp_path / "whole"))
    encoded = []
    encode_both = latents._encode_both

    def killed_at_the_second_shard(codec, batch):
        encoded.append(len(batch))
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return encode_both(codec, batch)

    workspace = make_workspace(tmp_path / "killed")
    monkeypatch.setattr(latents, "_encode_both", killed_at_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(case, workspace)
    monkeypatch.setattr(latents, "_encode_both", encode_both)
    first = workspace.folder("prepare", case) / "latents-00000.npy"
    written = first.stat().st_mtime_ns
    _, resumed = prepared(case, workspace)
    assert first.stat().st_mtime_ns == written
    assert len(resumed.shards) == 3
    assert torch.equal(resumed.batch(ALL, MIRRORED), undisturbed.batch(ALL, MIRRORED))


@pytest.mark.parametrize("damaged", ["latents-00000.npy", "latents.json"])
def test_damaged_latents_come_back_as_the_error_says(images, tmp_path, damaged):
    """The advice followed to the letter: the same bytes again."""
    save_codec(tmp_path / "vae")
    case = latent_case(images, tmp_path / "vae")
    workspace = make_workspace(tmp_path / "runs")
    dataset, _ = prepared(case, workspace)
    path = workspace.folder("prepare", case) / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError) as told:
        model_space.training_source(case, dataset, workspace)
    removed = re.search(r"; remove (\S+) and run the same command again", str(told.value))
    assert removed
    Path(removed[1]).unlink()
    prepared(case, workspace)  # opens them, too
    assert path.read_bytes() == whole


def test_another_autoencoder_in_the_same_folder_is_noticed(images, tmp_path):
    """Weights, scale or shift that changed after encoding are an error, never mixed latents."""
    save_codec(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    dataset, _ = prepared(case, workspace)
    save_codec(tmp_path / "vae", seed=1)
    with pytest.raises(DataError, match=r"have codec .* changed since"):
        model_space.training_source(case, dataset, workspace)


def test_other_images_in_the_same_folder_are_noticed(images, tmp_path):
    """One more file, or one of another size, since the first results is an error; the old files go on."""
    save_codec(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    prepare.run(case, workspace)
    moved = images / "class0/0.png"
    (images / "class0/one-more.png").write_bytes(moved.read_bytes())
    with pytest.raises(DataError, match=r"images in data\.path changed since.*another --runs folder"):
        prepare.run(case, workspace)
    (images / "class0/one-more.png").unlink()
    old = moved.read_bytes()
    moved.write_bytes(old + b"trailing")
    with pytest.raises(DataError, match=r"images in data\.path changed since"):
        prepare.run(case, workspace)
    moved.write_bytes(old)
    prepare.run(case, workspace)


def test_another_autoencoder_is_noticed_before_anything_is_decoded_with_it(images, tmp_path):
    """Weights that changed after `prepare` has finished stop the next case on the same data."""
    save_codec(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    save_codec(tmp_path / "vae", seed=1)
    with pytest.raises(DataError, match=r"autoencoder in data\.codec\.path changed since"):
        prepare.run(case, workspace)


def test_what_failed_before_it_began_binds_nobody(images, tmp_path):
    """An autoencoder that could not be loaded may be replaced by one that can."""
    save_codec(tmp_path / "vae", "autoencoder-tiny")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    with pytest.raises(DataError, match="but codec"):
        prepare.run(case, workspace)
    save_codec(tmp_path / "vae")
    prepare.run(case, workspace)


@pytest.mark.parametrize(("name", "value"), [("scale", 0.6), ("shift", 0.0), ("count", 9)])
def test_stored_factors_are_checked(images, tmp_path, name, value):
    """Scale, shift and number of images stored with the latents must be those of today."""
    save_codec(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    dataset, _ = prepared(case, workspace)
    path = workspace.folder("prepare", case) / latents.LATENT_INDEX
    index = read_record(path, latents.LatentIndex)
    write_record(path, index.model_copy(update={name: value}))
    with pytest.raises(DataError, match=f"have {name} {value}"):
        model_space.training_source(case, dataset, workspace)


def test_latents_that_are_not_finite_stop_the_stage(images, monkeypatch, tmp_path):
    """A latent beyond float16 is an error instead of an infinity in training."""
    save_codec(tmp_path / "vae")
    monkeypatch.setattr(latents.Codec, "encode", lambda self, x: torch.full((len(x), 8, 8, 8), 1e6))
    with pytest.raises(NonFiniteError, match="float16"):
        prepare.run(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))


def test_a_folder_without_an_autoencoder(images, tmp_path):
    """A missing config.json names the folder and how it is written."""
    with pytest.raises(DataError, match=r"AutoencoderKL\.save_pretrained"):
        prepare.run(latent_case(images, tmp_path / "nothing"), make_workspace(tmp_path / "runs"))


def test_an_autoencoder_of_the_other_kind(images, tmp_path):
    """A tiny autoencoder in the place of a KL one is refused with both names."""
    save_codec(tmp_path / "vae", "autoencoder-tiny")
    with pytest.raises(DataError, match=r"AutoencoderTiny, but codec\.kind is 'autoencoder-kl'"):
        prepare.run(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))


def test_a_cut_weights_file(images, tmp_path):
    """Weights that cannot be read are an error that names the folder."""
    save_codec(tmp_path / "vae")
    (path,) = (tmp_path / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot load the autoencoder"):
        prepare.run(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))


def test_a_side_the_autoencoder_does_not_divide(images, tmp_path):
    """An odd side for an autoencoder that halves it names the nearest that fit it and the patches."""
    save_codec(tmp_path / "vae")
    with pytest.raises(DataError, match=r"data\.image_size: resolution 15 .* nearest are 12 and 16"):
        prepare.run(latent_case(images, tmp_path / "vae", side=15), make_workspace(tmp_path / "runs"))


def test_latent_models_need_a_codec(tmp_path):
    """A recipe on latents with digits says what to choose instead."""
    case, workspace = make_case(model={"input": "latent", "in_channels": 4}), make_workspace(tmp_path)
    dataset = load_dataset(case.data)
    with pytest.raises(UserInputError, match="digits has no codec"):
        model_space.training_source(case, dataset, workspace)
    with pytest.raises(UserInputError, match="digits has no codec"):
        model_space.decoder(case, workspace)


def test_channels_of_model_and_data_must_agree(tmp_path):
    """Three input channels on grey digits name the number to set."""
    case, workspace = make_case(model={"in_channels": 3}), make_workspace(tmp_path)
    with pytest.raises(UserInputError, match=r"set model\.in_channels to 1"):
        model_space.training_source(case, load_dataset(case.data), workspace)


def test_files_are_hashed_once_by_all_stages_of_a_case(images, monkeypatch, tmp_path):
    """An autoencoder of hundreds of megabytes is asked for by every stage, and read for its hash by one."""
    save_codec(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    quick = EvaluateSpec(extractor="digits-cnn", metrics=["fd"], neighbours=1)
    read, file_digest = Counter(), hashlib.file_digest

    def counting(file, algorithm):
        read[Path(file.name)] += 1
        return file_digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    monkeypatch.setattr(classifier, "_train", lambda *args: None)
    result = run_case(case.model_copy(update={"evaluate": quick}), workspace)
    assert result.status == "ok", result.reason
    assert "floor-codec:FD-digits-cnn" in {m.name for m in result.measurements}
    assert {path for path in read if path.parent == tmp_path / "vae"} == set((tmp_path / "vae").iterdir())
    assert set(read.values()) == {1}


def overwrite_one(images):
    """Write another image over one of the files, with as many bytes and a later time."""
    path = images / "class0" / "0.png"
    content = bytearray(path.read_bytes())
    pixels = PIL.Image.fromarray(np.full((SIDE, SIDE, 3), 9, dtype=np.uint8))
    pixels.save(path)
    assert path.stat().st_size < len(content)
    path.write_bytes(path.read_bytes() + bytes(len(content) - path.stat().st_size))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def test_images_overwritten_at_equal_size_are_noticed(images, tmp_path):
    """Another suite of the folder shares the references of the store, but not those of overwritten images."""
    save_codec(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    for path in images.rglob("*.png"):
        os.utime(path, ns=(1, 10**18))
    workspace.datasets.clear()
    prepare.run(case, workspace)  # read once more, and the new times are remembered
    note = workspace.folder("prepare", case) / MADE_FROM
    before = note.read_bytes()
    prepare.run(case, workspace)
    assert note.read_bytes() == before
    overwrite_one(images)
    with pytest.raises(DataError, match=r"images in data\.path changed since results were made"):
        prepare.run(case, workspace)


def test_a_note_of_an_earlier_version_still_counts(images, tmp_path):
    """It knows names and sizes alone; what it does not know is noted now, and noticed from here on."""
    case, workspace = (
        make_case().model_copy(update={"data": folder_data(images)}),
        make_workspace(tmp_path / "runs"),
    )
    prepare.run(case, workspace)
    note = workspace.folder("prepare", case) / MADE_FROM
    old = {name: json.loads(note.read_text())[name] for name in ("data", "codec", "commit")}
    note.write_text(json.dumps(old))
    prepare.run(case, workspace)
    overwrite_one(images)
    with pytest.raises(DataError, match=r"images in data\.path changed"):
        prepare.run(case, workspace)


def folder_data(images):
    return ImageFolderData(path=images, image_size=SIDE, held_out_fraction=0.0)


def test_what_was_computed_of_other_images_is_not_used_on(images, tmp_path):
    """Another suite of the same folder shares the store's references, but not those of overwritten images."""
    case, workspace = (
        make_case().model_copy(update={"data": folder_data(images)}),
        make_workspace(tmp_path / "runs"),
    )
    prepare.run(case, workspace)
    first = training_images(case, load_dataset(case.data), workspace)
    again = training_images(case, load_dataset(case.data), workspace)
    assert torch.equal(first.images, again.images)
    overwrite_one(images)
    shutil.rmtree(workspace.folder("prepare", case))
    prepare.run(case, workspace)
    dataset = load_dataset(case.data)
    found = training_images(case, dataset, workspace)
    assert torch.equal(found.images, dataset.train.get(ALL))
    assert not torch.equal(found.images, first.images)


def test_what_is_left_out_of_a_folder_is_said_before_anything_is_made(images, tmp_path):
    """In numbers, once, as a notice."""
    (images / "class0" / "notes.txt").write_text("mine")
    (images / "class1" / "cut.png").write_bytes(b"\x89PNG")
    said = []
    workspace = make_workspace(tmp_path / "runs")
    workspace = replace(workspace, progress=lambda stage, done, total, note: said.append((stage, note)))
    case = make_case().model_copy(update={"data": folder_data(images)})
    for _ in range(2):
        prepare.run(case, workspace)
    notices = [note for stage, note in said if stage == NOTICE]
    assert notices == [
        f"left out of {images}: 1 files and folders in class folders that are no images (class0/notes.txt)",
        "1 images cannot be read and are left out, such as class1/cut.png: not an image that pillow knows",
    ]
    assert read_output(workspace.folder("prepare", case)).class_names == ["class0", "class1"]
