"""Weights in diffusers' layout: the same functions, the same bits, clear refusals."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
from exchange_cases import call, inputs, latent_case, model_config, random_export, train_case
from hub_server import serving, use_here
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_ins import write_autoencoder, write_autoencoder_of_diffusers_0_4_2

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


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("class_name", ["DiTTransformer2DModel", "Transformer2DModel"])
def test_absent_fields_are_diffusers_defaults(foreign, class_name):
    """A config.json that says no more than it must is the model that diffusers makes of it."""
    folder, model = foreign
    path = folder / "transformer" / "config.json"
    needed = ("num_attention_heads", "attention_head_dim", "num_layers", "out_channels", "sample_size")
    written = json.loads(path.read_text())
    assert "patch_size" in written
    kept = {name: written[name] for name in needed} | {"_class_name": class_name}
    path.write_text(json.dumps(kept | {"norm_type": "ada_norm_zero"}))
    exported = from_diffusers(folder)
    assert (exported.config.model.patch_size, exported.config.model.in_channels) == (
        model.config.patch_size,
        model.config.in_channels,
    )
    assert exported.config.input.shape == (4, 8, 8)
    assert torch.equal(
        exported.weights["patch_embed.proj.weight"], model.state_dict()["pos_embed.proj.weight"]
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_vector_embeds": 1024}, r"num_vector_embeds is 1024, a DiT has None"),
        ({"cross_attention_dim": 768}, "cross_attention_dim is 768"),
        ({"norm_type": "ada_norm_single"}, r"norm_type is 'ada_norm_single', a DiT has 'ada_norm_zero'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine is True"),
        ({"upcast_attention": True}, "upcast_attention is True"),
        ({"attention_type": "gated"}, "attention_type is 'gated'"),
        ({"interpolation_scale": 2}, "interpolation_scale is 2"),
        ({"num_layers": None}, "the sizes in the file make no DiT"),
    ],
)
def test_fields_that_make_another_model_are_refused(foreign, fields, told):
    """Of the old class, which had many models in it, only a DiT is read."""
    folder, _ = foreign
    change(folder / "transformer" / "config.json", _class_name="Transformer2DModel", **fields)
    with pytest.raises(DataError, match=told):
        from_diffusers(folder)


def test_dropout_is_said_not_to_be_taken_over(foreign):
    """It changes no sample, but a training that goes on from these weights; without one nothing is said."""
    folder, _ = foreign
    assert from_diffusers(folder).config.imported_from == "a folder of diffusers"
    change(folder / "transformer" / "config.json", dropout=0.1)
    assert "without its dropout of 0.1" in from_diffusers(folder).config.imported_from


def test_the_old_class_without_a_norm_is_no_dit(foreign):
    """Its default is another norm than a DiT's, whatever the new class has."""
    folder, _ = foreign
    path = folder / "transformer" / "config.json"
    written = json.loads(path.read_text())
    del written["norm_type"]
    path.write_text(json.dumps(written | {"_class_name": "Transformer2DModel"}))
    with pytest.raises(DataError, match="norm_type is 'layer_norm'"):
        from_diffusers(folder)
    path.write_text(json.dumps(written))
    assert from_diffusers(folder).config.model.depth == 2


@pytest.mark.parametrize(
    ("scheduler", "settings", "told"),
    [
        ("DDIMScheduler", {}, ""),
        ("DDPMScheduler", {"variance_type": "learned_range", "clip_sample": False}, ""),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, ""),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}, "prediction_type of DDIMScheduler is 'v_pred"),
        ("DDIMScheduler", {"beta_schedule": "scaled_linear"}, "beta_schedule .* was trained with 'linear'"),
        ("DDIMScheduler", {"beta_end": 0.012}, r"beta_end of DDIMScheduler is 0\.012"),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("DDPMScheduler", {"num_train_timesteps": 500}, "num_train_timesteps of DDPMScheduler is 500"),
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            "beta_schedule of FlowMatchEulerDiscreteScheduler is 'absent'",
        ),
        ("NoSuchScheduler", {}, "names no scheduler of diffusers: _class_name is 'NoSuchScheduler'"),
    ],
)
def test_a_pipelines_noise_schedule_is_looked_at(foreign, scheduler, settings, told):
    """Weights of another target or schedule are refused; what is for sampling alone does not matter."""
    folder, _ = foreign
    (folder / "scheduler").mkdir()
    written = {"_class_name": scheduler, **settings}  # every other field is absent
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))
    if not told:
        assert from_diffusers(folder).config.objective == "ddpm"
        return
    for place in (folder, folder / "transformer"):
        with pytest.raises(DataError, match=told):
            from_diffusers(place)


def test_a_scheduler_on_the_hub_is_looked_at(foreign, tmp_path, monkeypatch, capsys):
    """`import hub:` fetches the schedule of a pipeline, too, and refuses v-prediction."""
    folder, _ = foreign
    (folder / "scheduler").mkdir()
    written = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))
    with serving() as server:
        use_here(server, tmp_path / "home", monkeypatch)
        server.add("some/dit", folder)
        assert call(monkeypatch, "import", "hub:some/dit", "--to", tmp_path / "out") == 2
    assert "prediction_type of DDIMScheduler is 'v_prediction'" in " ".join(capsys.readouterr().err.split())


def test_an_autoencoder_of_diffusers_0_4_2_makes_a_pipeline(tmp_path):
    """Its scale is the library's default, for the pipeline as for us; a per-channel scale is left undone."""
    write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    spec = CodecSpec(kind="autoencoder-kl", path=tmp_path / "vae")
    codec = CodecInfo(kind="autoencoder-kl", scale=0.18215, shift=0.0, fingerprint=fingerprint(spec))
    exported = random_export(model_config(), codec=codec)
    assert write_diffusers(exported, tmp_path / "out", vae=tmp_path / "vae").no_pipeline == ""
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.vae.config.scaling_factor == 0.18215
    change(tmp_path / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=[2.0] * 4)
    plain = random_export(model_config())
    told = write_diffusers(plain, tmp_path / "plain", vae=tmp_path / "vae").no_pipeline
    assert "does not undo a scale for each channel" in told
    several = CodecInfo(kind="autoencoder-kl", scale=(0.5, 1.0, 1.0, 1.0), shift=(0.0,) * 4, fingerprint="0")
    assert CodecInfo.model_validate_json(several.model_dump_json()) == several
    exported = random_export(model_config(), codec=several)
    assert (
        "for each channel" in write_diffusers(exported, tmp_path / "more", vae=tmp_path / "vae").no_pipeline
    )


def test_an_autoencoder_of_other_channels_is_refused(tmp_path):
    """A VAE whose latents the model cannot take is named, also for a model that names none."""
    write_autoencoder(tmp_path / "vae", latent_channels=16)
    with pytest.raises(DataError, match="makes latents of 16 channels, the model takes 4"):
        write_diffusers(random_export(model_config()), tmp_path / "out", vae=tmp_path / "vae")
