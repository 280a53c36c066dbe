"""Autoencoders as the hub has them: absent and extra fields, other grids, a scale for each channel."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from command_line import attnbench_here
from hub_server import serving, use_here
from stage_cases import make_case, make_workspace
from stand_ins import (
    random_autoencoder,
    write_autoencoder,
    write_autoencoder_of_diffusers_0_4_2,
    write_photo_folder,
)
from test_stages_prepare import ALL, COUNT, KEPT, images, latent_case

from attnbench.data import load_dataset
from attnbench.data.pixels import to_images, to_model_space
from attnbench.errors import DataError, SuiteError
from attnbench.models.macs import closed_form_macs
from attnbench.results import latest, read_results
from attnbench.running.estimates import closed_form, disk_needed_bytes, num_params
from attnbench.running.plan import plan
from attnbench.specs import CodecSpec
from attnbench.stages import prepare
from attnbench.stages.latents import model_space
from attnbench.stages.latents.codec import load_codec
from attnbench.stages.latents.latent_space import latent_space
from attnbench.suite.loading import load_suite

__all__ = ["images"]  # a fixture

CPU = torch.device("cpu")


def photos(count=2, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def change_config(folder, **fields):
    """Write fields into a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def remove_fields(folder, *names):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in names}))


def test_a_folder_of_diffusers_0_4_2_is_read_as_diffusers_reads_it(tmp_path):
    """No scaling_factor, old names of the attention, a pickle: diffusers' default scale, the same network."""
    network = write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    codec = load_codec(CodecSpec(path=tmp_path / "vae"), CPU)
    assert (codec.factor, codec.channels, codec.scale, codec.shift) == (
        8,
        4,
        network.config.scaling_factor,
        0,
    )
    assert codec.scale == 0.18215
    pixels = photos()
    with torch.no_grad():
        posterior = network.encode(to_model_space(pixels)).latent_dist
    torch.testing.assert_close(codec.encode(pixels)[:, :4], posterior.mean)


def test_latents_of_a_folder_of_diffusers_0_4_2(images, tmp_path):
    """`prepare`, batches and the decoder have DiT's usual scale."""
    network = write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    case, workspace = latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    dataset = load_dataset(case.data)
    found = model_space.training_source(case, dataset, workspace).batch(ALL, KEPT)
    with torch.no_grad():
        mean = network.encode(to_model_space(dataset.train.get(ALL))).latent_dist.mean
        expected = to_images(network.decode(found / 0.18215).sample)
    torch.testing.assert_close(found, 0.18215 * mean, rtol=2**-10, atol=2**-10)  # kept as float16
    assert (model_space.decoder(case, workspace)(found).int() - expected.int()).abs().max() <= 1


class Touch:
    """What a pickle may do to whoever opens it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """Weights are read without running anything in them."""
    write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    torch.save(
        {"encoder.conv_in.weight": Touch(tmp_path / "ran")}, tmp_path / "vae/diffusion_pytorch_model.bin"
    )
    with pytest.raises(DataError, match="cannot load the autoencoder"):
        load_codec(CodecSpec(path=tmp_path / "vae"), CPU)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "vae/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(DataError, match="cannot load the autoencoder"):
        load_codec(CodecSpec(path=tmp_path / "vae"), CPU)
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    """diffusers would leave it at random numbers, with a warning."""
    network = write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    weights = network.state_dict()
    del weights["quant_conv.weight"]
    torch.save(weights, tmp_path / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"lack 1 tensors .*first: quant_conv\.weight"):
        load_codec(CodecSpec(path=tmp_path / "vae"), CPU)


def test_half_precision_weights_are_computed_in_fp32(tmp_path):
    """Weights that were stored as float16 are widened, which changes none of them."""
    network = random_autoencoder().half()
    network.save_pretrained(tmp_path / "vae")
    codec = load_codec(CodecSpec(path=tmp_path / "vae"), CPU)
    assert {parameter.dtype for parameter in codec.network.parameters()} == {torch.float32}
    assert codec.encode(photos()).dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        {"force_upcast": False, "sample_size": [64, 64]},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"shift_factor": 0.0609, "scaling_factor": 1.5305, "latent_channels": 16},  # as of Stable Diffusion 3
    ],
)
def test_fields_of_later_versions(tmp_path, settings):
    """What diffusers' class makes of them is what is loaded; scale and shift are the file's."""
    network = random_autoencoder(**settings)
    network.save_pretrained(tmp_path / "vae")
    codec = load_codec(CodecSpec(path=tmp_path / "vae"), CPU)
    assert codec.scale == settings.get("scaling_factor", 0.18215)
    assert codec.shift == settings.get("shift_factor", 0.0)
    assert codec.channels == settings.get("latent_channels", 4)
    pixels = photos()
    with torch.no_grad():
        mean = network.encode(to_model_space(pixels)).latent_dist.mean
    torch.testing.assert_close(codec.encode(pixels)[:, : codec.channels], mean)


def test_fields_that_diffusers_ignores(tmp_path):
    """A field of no class, no `_class_name`, a shift of null: as diffusers' class has it."""
    write_autoencoder(tmp_path / "vae")
    change_config(
        tmp_path / "vae", something_new=[1, 2], shift_factor=None, latents_mean=None, latents_std=None
    )
    remove_fields(tmp_path / "vae", "_class_name", "act_fn", "force_upcast")
    codec = load_codec(CodecSpec(path=tmp_path / "vae"), CPU)
    assert (codec.scale, codec.shift) == (0.18215, 0.0)


MEAN, DEVIATION = [-1.6, 2.3, 0.5, -0.75], [8.4, 5.5, 6.5, 5.75]


@pytest.mark.parametrize("kind", ["autoencoder-kl", "autoencoder-tiny"])
def test_a_mean_and_a_deviation_for_each_channel(images, tmp_path, kind):
    """Latents are undone as StableDiffusionXLPipeline does: x std / scale + mean; encoding is the inverse."""
    import diffusers

    per_channel = {"latents_mean": MEAN, "latents_std": DEVIATION, "scaling_factor": 0.5}
    if kind == "autoencoder-kl":
        write_autoencoder(tmp_path / "vae")
    else:
        torch.manual_seed(0)
        diffusers.AutoencoderTiny().save_pretrained(tmp_path / "vae")
    change_config(tmp_path / "vae", **per_channel)
    case, workspace = latent_case(images, tmp_path / "vae", kind), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    dataset = load_dataset(case.data)
    found = model_space.training_source(case, dataset, workspace).batch(ALL, KEPT)
    codec = load_codec(case.data.codec, CPU)
    z = codec.encode(dataset.train.get(ALL))[:, :4]
    mean, deviation = (torch.tensor(values).view(1, 4, 1, 1) for values in (MEAN, DEVIATION))
    torch.testing.assert_close(codec.scale * (z - codec.shift), found, rtol=2**-9, atol=2**-9)
    undone = found * deviation / 0.5 + mean
    # z is kept as float16, then scaled there and back in fp32
    torch.testing.assert_close(undone, z, rtol=2**-9, atol=2**-9)
    with torch.no_grad():
        expected = to_images(codec.network.decode(undone).sample)
    decoded = model_space.decoder(case, workspace)(found)
    assert (decoded.int() - expected.int()).abs().max() <= 1
    assert (codec.reconstruct(dataset.train.get(ALL)).int() - expected.int()).abs().max() <= 1
    index = json.loads((workspace.folder("prepare", case) / "latents.json").read_text())
    assert index["shift"] == MEAN
    assert index["scale"] == pytest.approx([0.5 / value for value in DEVIATION])


WRONG = [
    (
        {"scaling_factor": None},
        r"scaling_factor must be a number, got None.*remove it for diffusers' default",
    ),
    ({"scaling_factor": "0.18215"}, r"scaling_factor must be a number, got '0\.18215'"),
    ({"scaling_factor": 0}, r"scaling_factor is 0"),
    ({"scaling_factor": float("nan")}, r"scaling_factor must be a number, got nan"),
    ({"latents_mean": MEAN}, r"latents_mean is set and latents_std is not"),
    ({"latents_std": DEVIATION}, r"latents_std is set and latents_mean is not"),
    ({"latents_mean": MEAN, "latents_std": DEVIATION[:3]}, r"latents_std must be a list of 4 numbers"),
    ({"latents_mean": MEAN, "latents_std": [1, 1, 1, 0]}, r"latents_std has a 0"),
    ({"latents_mean": MEAN, "latents_std": DEVIATION, "shift_factor": 0.1}, r"shift_factor is 0\.1, beside"),
    ({"in_channels": 1}, r"in_channels is 1, images have 3"),
    ({"out_channels": 1}, r"and 1 x 256 x 256 of that"),
    ({"down_block_types": ["NoSuchBlock"] * 4}, r"makes no AutoencoderKL .*NoSuchBlock"),
    ({"quantization_config": {"load_in_8bit": True}}, r"has a quantization_config"),
    (
        {"_class_name": "VQModel"},
        r"holds an VQModel.*kinds are autoencoder-kl .*autoencoder-dc .*one of these",
    ),
    ({"_class_name": "AutoencoderDC"}, r"holds an AutoencoderDC.*choose the one that fits"),
]
SUITE = """\
name: a
question: b
model: {model}
data:
  name: image-folder
  path: images
  image_size: {side}
  codec: {codec}
evaluate: {{extractor: digits-cnn, metrics: [fd]}}
"""


@pytest.mark.parametrize(("fields", "told"), WRONG)
def test_what_changes_the_numbers_and_is_not_used_is_refused(images, tmp_path, monkeypatch, fields, told):
    """By the suite's check, and by `prepare` before one image is looked at."""
    write_autoencoder(tmp_path / "vae")
    change_config(tmp_path / "vae", **fields)
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(model="dit-s", side=32, codec="{path: vae}"))
    with pytest.raises(SuiteError, match=rf"s\.yaml:8:3: data\.codec: .*{told}"):
        load_suite(path)
    monkeypatch.setattr(prepare, "load_dataset", lambda spec: pytest.fail("images were read"))
    with pytest.raises(DataError, match=told):
        prepare.run(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))


def test_a_config_that_is_no_object(images, tmp_path):
    """A list, or half a file, names the folder."""
    write_autoencoder(tmp_path / "vae")
    for text, told in (("[1]", "is no JSON object"), ('{"_class', r"config\.json cannot be read")):
        (tmp_path / "vae/config.json").write_text(text)
        with pytest.raises(DataError, match=told):
            latent_space(CodecSpec(path=tmp_path / "vae"))


def test_weights_that_do_not_load_are_found_before_the_images(images, tmp_path, monkeypatch):
    """A folder with a config and no weights stops `prepare` at once."""
    write_autoencoder(tmp_path / "vae")
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(prepare, "load_dataset", lambda spec: pytest.fail("images were read"))
    with pytest.raises(DataError, match="cannot load the autoencoder"):
        prepare.run(latent_case(images, tmp_path / "vae"), make_workspace(tmp_path / "runs"))


def write_deep_autoencoder(path, stages=6):
    """Write an AutoencoderDC (Sana's) of random weights that divides the side by 32."""
    import diffusers

    torch.manual_seed(0)
    parts = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8,) * stages,
            "layers_per_block": (1,) * stages,
            "qkv_multiscales": ((),) * stages,
        }.items()
    }
    network = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **parts
    )
    network.save_pretrained(path)
    return network.eval()


def test_sanas_autoencoder(images, tmp_path):
    """AutoencoderDC has no posterior; its latents are a thirty-second of the side, scaled by its factor."""
    network = write_deep_autoencoder(tmp_path / "vae")
    case = latent_case(images, tmp_path / "vae", "autoencoder-dc", side=32, patch_size=1)
    workspace = make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    dataset = load_dataset(case.data)
    source = model_space.training_source(case, dataset, workspace)
    assert (source.shape, source.has_posterior, len(source)) == ((4, 1, 1), False, COUNT)
    with torch.no_grad():
        expected = network.encode(to_model_space(dataset.train.get(ALL))).latent
    found = source.batch(ALL, KEPT)
    torch.testing.assert_close(found, 0.41407 * expected, rtol=2**-10, atol=2**-10)  # float16
    with torch.no_grad():
        pictures = to_images(network.decode(found / 0.41407).sample)
    assert (model_space.decoder(case, workspace)(found).int() - pictures.int()).abs().max() <= 1


def test_other_kinds_have_defaults_of_their_own(tmp_path):
    """A tiny and a deep autoencoder without scale and shift have 1 and 0, as their classes in diffusers."""
    import diffusers

    torch.manual_seed(0)
    diffusers.AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    write_deep_autoencoder(tmp_path / "dc")
    for name in ("tiny", "dc"):
        remove_fields(tmp_path / name, "scaling_factor", "shift_factor")
        codec = load_codec(CodecSpec(kind=f"autoencoder-{name}", path=tmp_path / name), CPU)
        assert (codec.scale, codec.shift) == (1.0, 0.0)


@pytest.mark.parametrize("stages", [3, 4, 5, 6])
def test_sides_and_costs_are_of_the_autoencoders_own_grid(tmp_path, stages):
    """A suite's sides, its plan's multiply-adds, parameters and disk follow 1/4, 1/8, 1/16 and 1/32."""
    factor = 2 ** (stages - 1)
    write_autoencoder(tmp_path / "vae", stages=stages)
    write_photo_folder(tmp_path / "images", classes=2, per_class=2)
    path = tmp_path / "s.yaml"
    model = "{recipe: dit-s, depth: 1, position_embedding: learned}"
    path.write_text(SUITE.format(model=model, side=6 * factor, codec="{path: vae}"))
    (case,) = load_suite(path).cases
    assert model_space.latent_factor(case) == factor
    assert closed_form(case) == closed_form_macs(case.model, 6)
    latents = 4 * 2 * 2 * 4 * 36  # images, mirrored too, moments of 4 channels on a grid of 6 x 6 ...
    weights = 9 * 4 * num_params(case.model, 6, 2)
    assert disk_needed_bytes(case, ["prepare", "train"]) == latents * 2 + weights  # ... as float16
    (planned,) = plan([case], tmp_path / "store")
    assert (planned.problem, planned.assumed) == ("", ())
    with pytest.raises(SuiteError, match=rf"data\.image_size: .*needs a multiple of {2 * factor} px"):
        load_suite(path, [f"data.image_size={7 * factor}"])
    with pytest.raises(SuiteError, match=r"profile\.resolutions\[1\]: resolution"):
        load_suite(path, [f"profile.resolutions=[{4 * factor}, {5 * factor}]"])
    with pytest.raises(SuiteError, match=r"model\.in_channels: must be 4, .* autoencoder's latents, got 16"):
        load_suite(path, ["model.in_channels=16"])


def test_an_autoencoder_that_is_not_here_yet_is_said_to_be_assumed(tmp_path, monkeypatch):
    """`validate` and `plan` go by an eighth of the side and say so; an error of the side says it, too."""
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(model="dit-s", side=32, codec="{hub: some/vae}"))
    with serving() as server:
        use_here(server, tmp_path / "home", monkeypatch)
        for command in ("validate", "plan"):
            done = attnbench_here(command, path, cwd=tmp_path)
            said = " ".join(done.stdout.split())
            assert done.returncode == 0, done.stderr
            assert "not on this machine yet (`hf download some/vae` fetches it)" in said
            assert "divide the side by 8 and to make 4 channels; the stage `prepare` checks that" in said
        done = attnbench_here("validate", path, "-o", "data.image_size=24", cwd=tmp_path)
        assert done.returncode == 2
        assert "needs a multiple of 16 px" in done.stderr
        assert "`hf download some/vae` fetches it" in done.stderr
        assert server.asked == []


def test_prepare_checks_what_was_assumed(images, tmp_path, monkeypatch):
    """An autoencoder of another grid, fetched at last, stops `prepare` before any image is read."""
    write_autoencoder(tmp_path / "f16", stages=5)
    write_autoencoder(tmp_path / "wide", latent_channels=16)
    monkeypatch.setattr(prepare, "load_dataset", lambda spec: pytest.fail("images were read"))
    case = latent_case(images, "unused")
    with serving() as server:
        use_here(server, tmp_path / "home", monkeypatch)
        for name, told in (
            ("f16", r"data\.image_size: resolution 16 .*needs a multiple of 32 px"),
            ("wide", r"model\.in_channels: must be 16, .*got 4"),
        ):
            server.add(f"some/{name}", tmp_path / name)
            data = case.data.model_copy(update={"codec": CodecSpec(hub=f"some/{name}")})
            with pytest.raises(DataError, match=told):
                prepare.run(case.model_copy(update={"data": data}), make_workspace(tmp_path / "runs"))


def test_a_config_in_the_hubs_cache_is_enough(tmp_path, monkeypatch):
    """Once config.json is in the cache, without its weights, a suite is checked against it."""
    from huggingface_hub import hf_hub_download

    write_autoencoder(tmp_path / "f16", stages=5)
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(model="dit-s", side=48, codec="{hub: some/vae}"))
    with serving() as server:
        use_here(server, tmp_path / "home", monkeypatch)
        server.add("some/vae", tmp_path / "f16")
        (case,) = load_suite(path).cases
        assert model_space.latent_factor(case) == 8
        hf_hub_download("some/vae", "config.json")
        with pytest.raises(SuiteError, match=r"data\.image_size: .*16 times smaller .* multiple of 32 px"):
            load_suite(path)
        (case,) = load_suite(path, ["data.image_size=64"]).cases
        assert (model_space.latent_factor(case), model_space.assumption(case)) == (16, "")


def test_pixels_have_no_factor(tmp_path):
    """A model on pixels needs no autoencoder, and nothing is assumed of one."""
    case = make_case()
    assert model_space.assumption(case) == ""
    assert list(model_space.latent_problems(case)) == []


QUICK = {
    "train.steps": 2,
    "train.batch_size": 2,
    "train.held_out_images": 0,
    "sample.num_steps": 2,
    "sample.per_class": 4,
    "evaluate.extractor": "efficientnet-lite0",
    "evaluate.metrics": "[fd, kd]",
    "evaluate.kd_subset_size": 10,
    "evaluate.kd_subsets": 2,
    "evaluate.class_accuracy": "false",
    "profile.measure": "[macs, params]",
    "profile.resolutions": "[32, 64]",
    "model.depth": 1,
}


@pytest.mark.slow
def test_costs_in_a_report_are_of_the_model_that_was_trained(tmp_path):
    """With an autoencoder of a quarter of the side, cost and quality columns are of one model."""
    write_autoencoder(tmp_path / "vae", stages=3)
    write_photo_folder(tmp_path / "images")
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(model="dit-s", side=32, codec="{path: vae}"))
    overrides = [word for key, value in QUICK.items() for word in ("-o", f"{key}={value}")]
    done = attnbench_here("run", "--inline", path, "--quiet", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = latest(read_results(tmp_path / "runs/a/results.jsonl"))
    (case,) = load_suite(path, [f"{key}={value}" for key, value in QUICK.items()]).cases
    found = {m.name: m.values for m in result.measurements}
    assert found["macs_full@32"] == [closed_form_macs(case.model, 8).full]
    assert found["macs_full@64"] == [closed_form_macs(case.model, 16).full]
