"""Folders of diffusers: a softmax DiT written for `DiTPipeline`, and a DiT of diffusers read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, linear_betas
from attnbench.errors import DataError, UnsupportedError
from attnbench.exchange.config import ExportedConfig
from attnbench.exchange.diffusers_card import pipeline_card
from attnbench.exchange.diffusers_config import dropout_left_out, read_dit_config
from attnbench.exchange.dit_config import check_same, class_rows, describe_import
from attnbench.exchange.exported import Exported
from attnbench.exchange.folders import new_folder, read_bytes, writing
from attnbench.exchange.layouts import diffusers_layout, not_a_dit, qkv_bias_of, rename_from, rename_to
from attnbench.exchange.weight_files import read_weights
from attnbench.specs import CodecSpec, ModelConfig
from attnbench.stages.latents.codec import digest_of, fingerprint
from attnbench.stages.latents.latent_space import Factor, latent_space
from attnbench.storage.hub import model_files
from attnbench.torchvision_ops import define_missing_ops

DESCRIPTION = "attnbench.json"
ORIGIN = "a folder of diffusers"
NULL_CLASS = 1000  # DiTPipeline's, whatever the number of classes


@dataclass(frozen=True)
class DiffusersFolder:
    """What was written, and why it is no whole pipeline if it is none."""

    folder: Path
    no_pipeline: str = ""


def write_diffusers(
    exported: Exported, folder: Path, *, vae: Path | None = None, force: bool = False
) -> DiffusersFolder:
    """Write transformer/, scheduler/ and, with the model's AutoencoderKL at hand, a whole DiTPipeline.

    The label table is filled up with the null row to the 1001 rows that `DiTPipeline` expects.
    Raises UnsupportedError with the reasons for a model that diffusers has no class for, UserInputError.
    """
    config = exported.config
    _check_expressible(config)
    reason = _why_no_vae(config, vae)
    with new_folder(folder, DESCRIPTION, force=force) as temporary, writing(folder):
        transformer_for(exported).save_pretrained(temporary / "transformer")
        scheduler_for(config).save_pretrained(temporary / "scheduler")
        if not reason and vae is not None:
            _copy_vae(vae, temporary / "vae")
            index = json.dumps(_model_index(config), indent=2)
            (temporary / "model_index.json").write_text(index + "\n", encoding="utf-8")
        (temporary / DESCRIPTION).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(pipeline_card(config, reason), encoding="utf-8")
    return DiffusersFolder(folder, reason)


def _check_expressible(config: ExportedConfig) -> None:
    reasons = not_a_dit(config.model)
    if config.objective != "ddpm":
        reasons.append(f"it was trained on {config.objective}, DiTPipeline's schedulers take ddpm")
    if config.input.num_classes > NULL_CLASS:
        reasons.append(
            f"it has {config.input.num_classes} classes, and DiTPipeline's null class is {NULL_CLASS}"
        )
    if reasons:
        raise UnsupportedError(
            f"diffusers has no class for {config.model.name}: {'; '.join(reasons)}; "
            "export it without --diffusers"
        )


def transformer_for(exported: Exported) -> Any:
    """Return the weights in a `DiTTransformer2DModel`, eval mode, its timesteps as diffusers has them."""
    define_missing_ops()  # diffusers' models import torchvision
    import diffusers

    config, qkv_bias = exported.config.model, qkv_bias_of(exported.config.model)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.dim // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.in_channels * (2 if config.learned_variance else 1),
        num_layers=config.depth,
        attention_bias=qkv_bias,
        sample_size=exported.config.input.shape[1],
        patch_size=config.patch_size,
        num_embeds_ada_norm=NULL_CLASS,
        norm_eps=1e-6,
    )
    table = exported.weights["label_embed.table.weight"]
    filled = torch.cat([table, table[-1:].expand(NULL_CLASS + 1 - len(table), -1)])
    state = {**exported.weights, "label_embed.table.weight": filled}
    model.load_state_dict(rename_to(diffusers_layout(config.depth, qkv_bias), state), strict=True)
    return model.eval()


def use_dit_timesteps(transformer: Any) -> Any:
    """Give a `DiTTransformer2DModel` DiT's own timestep frequencies, in place, and return it.

    diffusers' class has 10000^(-i/127) where DiT, and every model here, was trained with 10000^(-i/128).
    """
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return transformer


def scheduler_for(config: ExportedConfig) -> Any:
    """Return DDIM on DDPM's linear schedule: `DiTPipeline` drops a learned variance, DDIM needs none."""
    import diffusers

    betas = linear_betas()
    return diffusers.DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=float(betas[0]),
        beta_end=float(betas[-1]),
        beta_schedule="linear",
        clip_sample=config.model.input == "pixel",
        timestep_spacing="trailing",  # starts at pure noise, as sampling here does
        prediction_type="epsilon",
    )


def _why_no_vae(config: ExportedConfig, vae: Path | None) -> str:
    """Return why no DiTPipeline can be written; raises DataError for a VAE that is not the model's."""
    if config.model.input == "pixel":
        return "the model makes pixels, and a DiTPipeline needs a VAE"
    if config.codec is not None and config.codec.kind != "autoencoder-kl":
        return f"a DiTPipeline needs an AutoencoderKL, the model's latents are of an {config.codec.kind}"
    if config.codec is not None and (left := _not_undone(config.codec.scale, config.codec.shift)):
        return left
    if vae is None or not (vae / "config.json").is_file():
        where = "none was named" if vae is None else f"there is none in {vae}"
        return f"a DiTPipeline needs a VAE, and {where}; name the folder of an AutoencoderKL with --vae"
    # of all files, as of an autoencoder in a folder, and of those that are loaded, as of one from the hub
    found = fingerprint(CodecSpec(kind="autoencoder-kl", path=vae)), digest_of(model_files(vae))
    if config.codec is not None and config.codec.fingerprint not in found:
        raise DataError(
            f"{vae} is not the autoencoder the model was trained with (fingerprint {found[0]}, then "
            f"{config.codec.fingerprint}); name the right one with --vae"
        )
    space = latent_space(CodecSpec(kind="autoencoder-kl", path=vae))
    if space.channels != config.model.in_channels:
        raise DataError(
            f"{vae} makes latents of {space.channels} channels, the model takes {config.model.in_channels}; "
            "name the right one with --vae"
        )
    return _not_undone(space.scale, space.shift)


def _not_undone(scale: Factor, shift: Factor) -> str:
    """Return what of an autoencoder's scaling a DiTPipeline leaves in the latents: all but one scale."""
    if isinstance(scale, tuple):
        return f"a DiTPipeline does not undo a scale for each channel, {', '.join(map(str, scale))}"
    return f"a DiTPipeline does not undo the latents' shift of {shift}" if shift else ""


def _copy_vae(vae: Path, folder: Path) -> None:
    folder.mkdir()
    for path in sorted(vae.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin"):
            (folder / path.name).write_bytes(read_bytes(path))  # a DataError, where theirs cannot be read


def _model_index(config: ExportedConfig) -> dict[str, Any]:
    """Return model_index.json; a class name with a comma would become two labels of DiTPipeline."""
    import diffusers

    names = config.class_names or [str(label) for label in range(config.input.num_classes)]
    return {
        "_class_name": "DiTPipeline",
        "_diffusers_version": diffusers.__version__,
        "id2label": {str(label): name.replace(",", " ") for label, name in enumerate(names)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def from_diffusers(
    folder: Path, config: ModelConfig | None = None, num_classes: int | None = None
) -> Exported:
    """Read a DiT from a local folder of diffusers (a pipeline's, or its transformer's).

    With `config` its sizes must be the file's; with `num_classes`, its classes. Timestep frequencies and
    the epsilon of norms are DiT's, whatever diffusers' class computes. Weights become fp32.
    Raises DataError for foreign or damaged files, and for a DiT or a pipeline's noise schedule that computes
    something else, UserInputError for other sizes.
    """
    home = folder / "transformer" if (folder / "transformer").is_dir() else folder
    found, side = read_dit_config(home)
    if config is not None:
        check_same(found, config, str(folder))
    entries = diffusers_layout(found.depth, qkv_bias_of(found))
    state = rename_from(entries, read_weights(home), str(home))
    ours = _our_description(folder)
    if num_classes is None and ours is not None:
        num_classes = ours.input.num_classes
    state, num_classes = class_rows(state, num_classes, str(folder))
    description = describe_import(config or found, side, num_classes, f"{ORIGIN}{dropout_left_out(home)}")
    if ours is not None:  # written here: what diffusers has no place for stands beside it
        check_same(found, ours.model, str(folder))
        description = ours if config is None else ours.model_copy(update={"model": config})
    return Exported(config=description, weights=state)


def _our_description(folder: Path) -> ExportedConfig | None:
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        return ExportedConfig.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged ({error.error_count()} faults); export the model again, or remove the file "
            "to read the weights alone"
        ) from error
