"""Weights in diffusers' layout: the same functions, the same bits, clear refusals."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
from exchange_cases import call, inputs, latent_case, model_config, random_export, train_case
from PIL import Image
from safetensors.torch import load_file, save_file

from attnbench.diffusion.ddpm import GaussianDiffusion
from attnbench.diffusion.guidance import guided_denoiser
from attnbench.diffusion.samplers import ddim_steps
from attnbench.errors import DataError, UnsupportedError, UserInputError
from attnbench.exchange import from_diffusers, instantiate, use_dit_timesteps, write_diffusers
from attnbench.exchange.config import CodecInfo, ExportedConfig
from attnbench.specs import CodecSpec
from attnbench.stages.latents.codec import fingerprint

# fp32 rounding: eleven matrix products in a row (embedders, five in each of two blocks), sums of up to 256
# terms in another order (error sqrt(256) x 2^-24 each), four times over for the gains of norms and gates.
ROUNDING = 4 * 11 * 256**0.5 * 2**-24


def close(found, wanted):
    """Compare up to fp32 rounding relative to the largest value."""
    return (found - wanted).abs().max() <= ROUNDING * wanted.abs().max()


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The folder of a tiny AutoencoderKL with random weights, downscaling by 8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.5,
    )
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("learned_variance", [True, False])
@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_diffusers_computes_the_same(tmp_path, learned_variance, options, patch_size):
    """Loaded by diffusers' class with DiT's timesteps, the outputs agree to fp32 rounding, null class too."""
    config = model_config(
        learned_variance=learned_variance,
        patch_size=patch_size,
        attention={"name": "softmax", "options": options},
    )
    exported = random_export(config)
    write_diffusers(exported, tmp_path / "out")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")
    x, t, y = inputs(exported)
    with torch.inference_mode():
        wanted = instantiate(exported)(x, t, y)
        assert wanted.std() > 0.1
        assert close(use_dit_timesteps(theirs)(x, timestep=t, class_labels=y).sample, wanted)


def test_correction_of_timesteps_is_needed(tmp_path):
    """As it is, diffusers' class is off by far more than rounding at every timestep but 0."""
    exported = random_export(model_config())
    write_diffusers(exported, tmp_path / "out")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")
    x, t, y = inputs(exported)
    with torch.inference_mode():
        wanted, found = instantiate(exported)(x, t, y), theirs(x, timestep=t, class_labels=y).sample
    errors = (found - wanted).flatten(1).abs().amax(1) / wanted.abs().max()
    assert errors[0] <= ROUNDING
    assert (errors[2:] > 100 * ROUNDING).all()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pipeline_samples_what_we_sample(tmp_path, vae, scale):
    """`DiTPipeline.from_pretrained` opens the folder; its images are those of our DDIM, with guidance too."""
    codec = CodecInfo(
        kind="autoencoder-kl",
        scale=0.5,
        shift=0.0,
        fingerprint=fingerprint(CodecSpec(kind="autoencoder-kl", path=vae)),
    )
    exported = random_export(model_config(), codec=codec, class_names=["cat, tabby", "dog", "c", "d", "e"])
    assert write_diffusers(exported, tmp_path / "out", vae=vae).no_pipeline == ""
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.get_label_ids(["dog", "cat  tabby"]) == [1, 0]
    pipeline.set_progress_bar_config(disable=True)
    use_dit_timesteps(pipeline.transformer)
    found = pipeline(
        class_labels=[0, 3],
        guidance_scale=scale,
        num_inference_steps=5,
        output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    process = GaussianDiffusion(learned_variance=True, timesteps=[199, 399, 599, 799, 999])
    denoiser = guided_denoiser(instantiate(exported), torch.tensor([0, 3]), null_label=5, scale=scale)
    with torch.inference_mode():
        *_, last = ddim_steps(denoiser, process, x, clip=False)
        wanted = (pipeline.vae.decode(last.x / 0.5).sample / 2 + 0.5).clamp(0, 1)
    assert found.shape == (2, 3, 64, 64)
    assert wanted.std() > 0.01
    # DDIM divides by sqrt(alpha) at t = 999 (157), and five steps of guidance enlarge rounding further
    assert (found - wanted).abs().max() < 157 * 5 * ROUNDING


def test_trained_latent_model_becomes_a_pipeline(tmp_path, vae, monkeypatch, capsys):
    """From a run on an image folder, `--diffusers` takes codec and class names along, and it samples."""
    pixels = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            image = pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "images" / name / f"{number}.png")
    train_case(tmp_path / "runs" / "small", latent_case("only", tmp_path / "images", vae))
    command = ("export", tmp_path / "runs" / "small", "--diffusers", "--to", tmp_path / "out")
    assert call(monkeypatch, *command) == 0
    assert "a whole pipeline" in capsys.readouterr().out
    codec = json.loads((tmp_path / "out" / "attnbench.json").read_text())["codec"]
    assert (codec["kind"], codec["scale"], codec["shift"]) == ("autoencoder-kl", 0.5, 0.0)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    use_dit_timesteps(pipeline.transformer)
    labels = pipeline.get_label_ids(["dog", "cat"])
    images = pipeline(class_labels=labels, guidance_scale=2.0, num_inference_steps=2).images
    assert (labels, [image.size for image in images]) == ([1, 0], [(16, 16)] * 2)


def test_without_a_vae(tmp_path, vae):
    """Pixels, no autoencoder, another kind or a shift: transformer and scheduler alone, with the reason."""
    pixels = random_export(model_config(input="pixel", in_channels=3))
    result = write_diffusers(pixels, tmp_path / "pixels")
    assert "makes pixels" in result.no_pipeline
    assert not (tmp_path / "pixels" / "model_index.json").exists()
    assert result.no_pipeline in (tmp_path / "pixels" / "README.md").read_text()
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "pixels" / "scheduler")
    assert scheduler.config.clip_sample
    assert torch.allclose(
        scheduler.alphas_cumprod,
        GaussianDiffusion(learned_variance=True).alphas_cumprod,
        rtol=1e-4,  # theirs is a product of 1000 factors in fp32: 1000 x 2^-24
        atol=0,
    )
    assert "needs a VAE" in write_diffusers(random_export(model_config()), tmp_path / "none").no_pipeline
    shifted = CodecInfo(kind="autoencoder-kl", scale=1.0, shift=0.1, fingerprint="0")
    told = write_diffusers(random_export(model_config(), codec=shifted), tmp_path / "shift", vae=vae)
    assert "shift of 0.1" in told.no_pipeline
    other = CodecInfo(kind="autoencoder-kl", scale=1.0, shift=0.0, fingerprint="0")
    with pytest.raises(DataError, match="not the autoencoder the model was trained with"):
        write_diffusers(random_export(model_config(), codec=other), tmp_path / "wrong", vae=vae)


@pytest.mark.parametrize(
    ("settings", "described", "told"),
    [
        ({"attention": {"name": "elu"}}, {}, "its attention is elu, not softmax"),
        ({"ffn": {"kind": "swiglu"}}, {}, "swiglu, not mlp"),
        ({"ffn": {"ratio": 2.0}}, {}, "64 wide, not 4 x 32"),
        ({"position_embedding": "learned"}, {}, "learned, not sincos"),
        ({"stream_conv": True}, {}, "convolutions on the stream"),
        ({}, {"objective": "flow"}, "trained on flow"),
    ],
)
def test_models_diffusers_has_no_class_for(tmp_path, settings, described, told):
    """What is no DiT of diffusers is refused with every reason, and nothing is written."""
    with pytest.raises(UnsupportedError, match=told):
        write_diffusers(random_export(model_config(**settings), **described), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_classes_for_the_pipeline(tmp_path):
    """With more than 1000 classes DiTPipeline would guide with a real class: refused."""
    with pytest.raises(UnsupportedError, match="1001 classes"):
        write_diffusers(random_export(model_config(), num_classes=1001), tmp_path / "out")


def test_round_trip_through_diffusers(tmp_path):
    """Ours to diffusers and back, and diffusers to ours and back, change no bit."""
    exported = random_export(model_config())
    write_diffusers(exported, tmp_path / "there")
    back = from_diffusers(tmp_path / "there")
    assert back.config.input == exported.config.input
    assert back.weights.keys() == exported.weights.keys()
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in exported.weights.items())
    write_diffusers(back, tmp_path / "again")
    name = "transformer/diffusion_pytorch_model.safetensors"
    first, second = load_file(tmp_path / "there" / name), load_file(tmp_path / "again" / name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def foreign(tmp_path):
    """A transformer that diffusers made itself, as in a pretrained pipeline's folder, with 1000 classes."""
    torch.manual_seed(4)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, out_channels=8, sample_size=8
    )
    state = model.state_dict()
    for name in state:  # as in every converted DiT, one embedder for all blocks
        state[name].copy_(state[name.replace("blocks.1.norm1.emb", "blocks.0.norm1.emb")])
    model.save_pretrained(tmp_path / "dit" / "transformer")
    return tmp_path / "dit", model


@pytest.mark.parametrize("stored", ["safetensors", "bin", "old class name"])
def test_a_pretrained_folder_is_read(foreign, stored):
    """A folder of diffusers alone gives sizes, classes and, with DiT's timesteps and norms, its function."""
    folder, model = foreign
    home = folder / "transformer"
    if stored == "bin":
        torch.save(model.state_dict(), home / "diffusion_pytorch_model.bin")
        (home / "diffusion_pytorch_model.safetensors").unlink()
    if stored == "old class name":
        raw = json.loads((home / "config.json").read_text())
        (home / "config.json").write_text(json.dumps(raw | {"_class_name": "Transformer2DModel"}))
    exported = from_diffusers(folder)
    found = exported.config
    assert (found.model.depth, found.model.dim, found.model.num_heads) == (2, 16, 2)
    assert (found.model.learned_variance, found.input.num_classes) == (True, 1000)
    for block in use_dit_timesteps(model).eval().transformer_blocks:
        block.norm3.eps = 1e-6  # diffusers gives DiT 1e-5 here, DiT itself has 1e-6
    x, t, y = inputs(exported)
    with torch.inference_mode():
        assert close(instantiate(exported)(x, t, y), model(x, timestep=t, class_labels=y).sample)


def test_wrong_sizes_and_classes_are_refused(foreign):
    """Another depth, number of classes or attention than the file's is named, not adapted in silence."""
    folder, _ = foreign
    fitting = model_config(dim=16, num_heads=2)
    assert from_diffusers(folder, fitting).config.model == fitting
    with pytest.raises(UserInputError, match=r"depth 2 \(model small: 3\)"):
        from_diffusers(folder, model_config(dim=16, num_heads=2, depth=3))
    with pytest.raises(UserInputError, match="1000 classes, 10 are wanted"):
        from_diffusers(folder, fitting, num_classes=10)
    with pytest.raises(UserInputError, match="attention is elu"):
        from_diffusers(folder, model_config(dim=16, num_heads=2, attention="elu"))


def _retie(state):
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1


def _rename(state):
    state["transformer_blocks.1.attn1.to_v.lora"] = state.pop("transformer_blocks.1.attn1.to_v.weight")


@pytest.mark.parametrize(
    ("damage", "told"),
    [(_retie, "fine-tuned with embedders"), (_rename, r"missing: .*to_v\.weight; without.*lora")],
)
def test_foreign_weights_are_refused(foreign, damage, told):
    """Embedders that differ between blocks and unknown or missing tensors are errors with their names."""
    folder, _ = foreign
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    damage(state)
    save_file(state, path)
    with pytest.raises(DataError, match=told):
        from_diffusers(folder)


def test_other_models_of_diffusers_are_refused(vae, foreign, tmp_path):
    """An autoencoder, a cut file, weights in parts and an empty folder are told apart."""
    with pytest.raises(UserInputError, match="_class_name 'AutoencoderKL'"):
        from_diffusers(vae)
    folder, _ = foreign
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cut short or damaged"):
        from_diffusers(folder)
    path.rename(path.with_name("diffusion_pytorch_model.safetensors.index.json"))
    with pytest.raises(DataError, match="in several parts"):
        from_diffusers(folder)
    with pytest.raises(DataError, match=r"config\.json is missing"):
        from_diffusers(tmp_path)


def test_description_survives_beside_diffusers_files(tmp_path):
    """What diffusers has no place for (classes, history) is read back from attnbench.json."""
    exported = random_export(model_config(), class_names=list("abcde"), seed=11)
    write_diffusers(exported, tmp_path / "out")
    assert isinstance(from_diffusers(tmp_path / "out").config, ExportedConfig)
    assert from_diffusers(tmp_path / "out").config == exported.config


def test_a_damaged_description_beside_diffusers_files(tmp_path):
    """What stands beside the weights is read strictly: damage is named, not guessed around."""
    write_diffusers(random_export(model_config()), tmp_path / "out")
    (tmp_path / "out/attnbench.json").write_text("{}")
    with pytest.raises(DataError, match=r"attnbench\.json is damaged .*remove the file"):
        from_diffusers(tmp_path / "out")
