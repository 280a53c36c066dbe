"""An autoencoder's latents as its config.json describes them: their grid, channels, scale and shift.

Nothing here reads weights: a suite is checked, planned and prepared against this before an image is decoded.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from attnbench.errors import DataError
from attnbench.specs import CodecSpec
from attnbench.stages.latents.taesd import TAESD_FILES, is_taesd
from attnbench.storage import hub
from attnbench.torchvision_ops import define_missing_ops

Factor = float | tuple[float, ...]  # one number for all channels of a latent, or one for each
Kind = Literal["autoencoder-kl", "autoencoder-tiny", "autoencoder-dc"]
KINDS: dict[str, str] = {
    "autoencoder-kl": "AutoencoderKL",
    "autoencoder-tiny": "AutoencoderTiny",
    "autoencoder-dc": "AutoencoderDC",
}
"""Classes of diffusers by the kind that a suite names."""
TRIAL_SIDE = 256  # pixels of the image whose latents are measured; every power of two up to it divides it


@dataclass(frozen=True)
class LatentSpace:
    """What a model sees of an image: latents `scale * (z - shift)`, so that their spread is about 1.

    Source: diffusers' pipelines, which undo it before they decode: DiTPipeline with `scaling_factor` alone,
    StableDiffusion3Pipeline with `shift_factor`, StableDiffusionXLPipeline with `latents_mean` and
    `latents_std`.
    """

    factor: int
    """Side of an image over side of its latents."""
    channels: int
    scale: Factor
    shift: Factor


def on_hub(spec: CodecSpec) -> hub.HubModel | None:
    """Return where on the hub an autoencoder lies; None for one in a folder."""
    if spec.hub is None:
        return None
    return hub.HubModel(name=spec.hub, subfolder=spec.subfolder, revision=spec.revision)


def folder_of(spec: CodecSpec) -> Path:
    """Return the folder of an autoencoder's files on this machine, without the network.

    That of one on the hub is in the hub's cache; raises DataError where `prepare` has not fetched it.
    """
    model = on_hub(spec)
    if model is not None:
        return hub.open_cached(model).folder
    assert spec.path is not None  # one of the two: CodecSpec sees to it
    return spec.path


def kind_of(folder: Path) -> Kind:
    """Return the kind of the autoencoder in a folder, by its config.json; TAESD's own files have none.

    What is neither counts as Stable Diffusion's kind, whose reader says what is wrong.
    """
    if is_taesd("autoencoder-tiny", folder):
        return "autoencoder-tiny"
    try:
        config = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "autoencoder-kl"
    written_by = config.get("_class_name") if isinstance(config, dict) else None
    return cast("Kind", next((kind for kind, name in KINDS.items() if name == written_by), "autoencoder-kl"))


def known_latent_space(spec: CodecSpec) -> LatentSpace | None:
    """Return an autoencoder's latent space, or None while its config.json is not on this machine.

    Raises DataError for a config.json that is there and cannot be used.
    """
    model = on_hub(spec)
    if model is not None:
        config = hub.cached_config(model)
        return None if config is None else _latent_space_in(config.parent, spec)
    folder = folder_of(spec)
    if not (is_taesd(spec.kind, folder) or (folder / hub.CONFIG).exists()):
        return None
    return _latent_space_in(folder, spec)


def latent_space(spec: CodecSpec) -> LatentSpace:
    """Return an autoencoder's latent space; raises DataError for what is not there or cannot be used."""
    return _latent_space_in(folder_of(spec), spec)


def _latent_space_in(folder: Path, spec: CodecSpec) -> LatentSpace:
    config = {} if is_taesd(spec.kind, folder) else read_config(spec, folder)
    return _described(spec.kind, json.dumps(config), f"the config.json of {spec.hub or folder}")


def read_config(spec: CodecSpec, folder: Path) -> dict[str, Any]:
    """Read an autoencoder's config.json; raises DataError where it is of another class than the kind says."""
    wanted, named = KINDS[spec.kind], spec.hub or folder
    try:
        config = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        taesd = f", or with TAESD's {' and '.join(TAESD_FILES)}" if spec.kind == "autoencoder-tiny" else ""
        raise DataError(
            f"no autoencoder in {folder}: config.json cannot be read ({error}); `codec.path` "
            f"names a folder written by diffusers' {wanted}.save_pretrained{taesd}"
        ) from error
    if not isinstance(config, dict):
        raise DataError(
            f"the config.json of {named} is no JSON object; name a folder written by diffusers' "
            f"{wanted}.save_pretrained"
        )
    written_by = config.get("_class_name", wanted)
    if written_by != wanted:
        kinds = ", ".join(f"{kind} ({class_name})" for kind, class_name in KINDS.items())
        advice = "choose the one that fits" if written_by in KINDS.values() else "name one of these"
        raise DataError(
            f"{named} holds an {written_by}, but codec.kind is {spec.kind!r}; kinds are {kinds}: {advice}"
        )
    if config.get("quantization_config") is not None:
        raise DataError(
            f"the config.json of {named} has a quantization_config: quantized weights give other latents and "
            "are not loaded here; name the autoencoder they were made from"
        )
    return config


@functools.lru_cache(maxsize=16)
def _described(kind: str, config_json: str, named: str) -> LatentSpace:
    """Build the network without memory and send an image through: what its latents are, it says itself."""
    config = json.loads(config_json)
    try:
        with torch.device("meta"), torch.no_grad():
            network = network_class(kind).from_config(config).eval()
            if network.config.in_channels != 3:
                raise ValueError(f"in_channels is {network.config.in_channels}, images have 3")
            image = torch.empty(1, 3, TRIAL_SIDE, TRIAL_SIDE)
            kept = encode(network, kind, image)
            latent = kept.chunk(2, dim=1)[0] if has_posterior(kind) else kept
            decoded = network.decode(latent).sample
    except Exception as error:  # diffusers raises whatever comes of settings it cannot build from
        raise DataError(
            f"{named} makes no {KINDS[kind]} ({type(error).__name__}: {error}); correct it, or name another "
            "autoencoder"
        ) from error
    _, channels, height, width = latent.shape
    if height != width or TRIAL_SIDE % width or decoded.shape != image.shape:
        raise DataError(
            f"{named} describes an autoencoder that makes {channels} x {height} x {width} of an image of 3 x "
            f"{TRIAL_SIDE} x {TRIAL_SIDE} and {' x '.join(map(str, decoded.shape[1:]))} of that; encoder and "
            "decoder must scale by the same whole number: name another autoencoder"
        )
    scale, shift = _scaling(network.config, channels, named)
    return LatentSpace(factor=TRIAL_SIDE // width, channels=channels, scale=scale, shift=shift)


def network_class(kind: str) -> Any:
    """Return diffusers' class of a kind of autoencoder."""
    define_missing_ops()  # diffusers' autoencoders import torchvision
    import diffusers

    return getattr(diffusers, KINDS[kind])


def has_posterior(kind: str) -> bool:
    """Say whether what is kept of an image is a distribution to draw from."""
    return kind == "autoencoder-kl"


def encode(network: Any, kind: str, images: torch.Tensor) -> torch.Tensor:
    """Return what is kept of images [B, 3, H, W]; unscaled.

    [B, 2c, h, w] mean and log variance of the posterior where there is one, else [B, c, h, w] latents.
    """
    encoded = network.encode(images)
    if has_posterior(kind):
        return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.logvar], dim=1)
    latents: torch.Tensor = encoded.latents if kind == "autoencoder-tiny" else encoded.latent
    return latents


def _scaling(config: Any, channels: int, named: str) -> tuple[Factor, Factor]:
    """Return scale and shift of a network's config, in which diffusers has filled in its own defaults."""
    scale = _number(config.get("scaling_factor"), "scaling_factor", named)
    shift = (
        0.0 if config.get("shift_factor") is None else _number(config["shift_factor"], "shift_factor", named)
    )
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if scale == 0:
        raise DataError(f"{named}: scaling_factor is 0, which no decoder can undo; correct it")
    if mean is None and deviation is None:
        return scale, shift
    if mean is None or deviation is None:
        got, lacking = ("latents_std", "latents_mean") if mean is None else ("latents_mean", "latents_std")
        raise DataError(
            f"{named}: {got} is set and {lacking} is not, and diffusers' pipelines take both or neither; add "
            f"{lacking}, or remove {got}"
        )
    if shift:
        raise DataError(
            f"{named}: shift_factor is {shift}, beside latents_mean and latents_std; no pipeline of "
            "diffusers takes both: remove those that the autoencoder was not made with"
        )
    means = _per_channel(mean, "latents_mean", channels, named)
    deviations = _per_channel(deviation, "latents_std", channels, named)
    if 0 in deviations:
        raise DataError(f"{named}: latents_std has a 0, by which nothing can be divided; correct it")
    return tuple(scale / value for value in deviations), means


def _per_channel(values: Any, name: str, channels: int, named: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != channels:
        raise DataError(
            f"{named}: {name} must be a list of {channels} numbers, one for each channel of a latent, got "
            f"{values!r}; correct it"
        )
    return tuple(_number(value, name, named) for value in values)


def _number(value: Any, name: str, named: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"{named}: {name} must be a number, got {value!r}; correct it, or remove it for diffusers' "
            "default"
        )
    return float(value)
