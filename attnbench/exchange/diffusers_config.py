"""What diffusers' config files say of a DiT and of its noise schedule, with diffusers' own defaults."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

from attnbench.diffusion.ddpm import NUM_TIMESTEPS, linear_betas
from attnbench.errors import DataError, UserInputError
from attnbench.exchange.dit_config import dit_config
from attnbench.exchange.folders import read_bytes
from attnbench.specs import ModelConfig
from attnbench.torchvision_ops import define_missing_ops

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second before diffusers 0.29
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
BLOCK = {
    "norm_type": ("ada_norm_zero",),
    "activation_fn": ("gelu-approximate",),
    "norm_elementwise_affine": (False,),
    "upcast_attention": (False,),
    # 1e-5 is what diffusers gives DiT's weights, 1e-6 what they were trained with
    "norm_eps": (1e-5, 1e-6),
}
"""Settings of a DiT's block in diffusers."""
WITHOUT = {
    "num_vector_embeds": (None,),
    "cross_attention_dim": (None,),
    "caption_channels": (None,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "attention_type": ("default",),
    "interpolation_scale": (None, 1),
    "quantization_config": (None,),
}
"""Settings of other models of diffusers' old class, and of changed weights, as a DiT has them if at all."""


def read_dit_config(home: Path) -> tuple[ModelConfig, int]:
    """Return the sizes in a transformer's config.json and the side of its input.

    In a pipeline the scheduler beside it is looked at, too. Raises DataError for a model or a noise schedule
    that computes something else than a DiT here, UserInputError for a folder of another model.
    """
    path = home / "config.json"
    if not path.is_file():
        raise DataError(
            f"no DiT of diffusers in {home}: config.json is missing; name a folder written by save_pretrained"
        )
    try:
        raw = _with_defaults(_json_object(path), home)
        _check_block(raw, home)
        channels, outputs = raw["in_channels"], raw["out_channels"] or raw["in_channels"]
        if outputs not in (channels, 2 * channels):
            raise DataError(
                f"{home}: out_channels {outputs} is neither in_channels {channels} nor twice that"
            )
        found = dit_config(
            depth=raw["num_layers"],
            dim=raw["num_attention_heads"] * raw["attention_head_dim"],
            num_heads=raw["num_attention_heads"],
            patch_size=raw["patch_size"],
            in_channels=channels,
            learned_variance=outputs == 2 * channels,
            qkv_bias=raw["attention_bias"],
        )
        side = int(raw["sample_size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged or of another model: {error!r}") from error
    if home.name == "transformer":
        _check_schedule(home.parent / SCHEDULER_CONFIG)
    return found, side


def dropout_left_out(home: Path) -> str:
    """Say that a transformer's dropout is not taken over, where its config.json names one."""
    dropout = _json_object(home / "config.json").get("dropout") or 0
    if not dropout:
        return ""
    return f" without its dropout of {dropout}, which changes no sample: training it further here has none"


def _json_object(path: Path) -> dict[str, Any]:
    content = json.loads(read_bytes(path))
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object was expected, got {content!r:.40}")
    return content


def _defaults(of_class: Any) -> dict[str, Any]:
    """Return what diffusers takes for the settings that a config file leaves out."""
    parameters = inspect.signature(of_class.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _with_defaults(raw: dict[str, Any], home: Path) -> dict[str, Any]:
    """Return a transformer's settings as diffusers completes them; raises UserInputError for another class.

    Of a Transformer2DModel with a DiT's `norm_type` diffusers makes a DiTTransformer2DModel.
    """
    define_missing_ops()  # diffusers' models import torchvision
    import diffusers

    if raw.get("_class_name") not in CLASSES:
        raise UserInputError(
            f"{home} holds no DiT of diffusers: its config.json says _class_name {raw.get('_class_name')!r}, "
            f"a DiT's is {' or '.join(CLASSES)}"
        )
    own = _defaults(getattr(diffusers, raw["_class_name"]))
    return {**_defaults(diffusers.DiTTransformer2DModel), "norm_type": own["norm_type"], **raw}


def _check_block(raw: dict[str, Any], home: Path) -> None:
    """Raise DataError unless a config describes a class-conditional DiT block for block."""
    for name, allowed in (BLOCK | WITHOUT).items():
        if name in raw and raw[name] not in allowed:
            raise DataError(
                f"{home}: {name} is {raw[name]!r}, a DiT has {' or '.join(map(repr, allowed))}; only a DiT "
                "can be read: name the folder of one"
            )


def _check_schedule(path: Path) -> None:
    """Raise DataError unless a pipeline's scheduler has the noise and the target that DDPM has here.

    What it says of sampling alone (its steps, clipping) does not matter: samplers are this package's own.
    """
    if not path.is_file():
        return
    define_missing_ops()  # whatever class the file names may be one of those that import torchvision
    import diffusers

    try:
        raw = _json_object(path)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
    scheduler = getattr(diffusers, str(raw.get("_class_name")), None)
    if not inspect.isclass(scheduler):
        raise DataError(
            f"{path} names no scheduler of diffusers: _class_name is {raw.get('_class_name')!r}; correct it"
        )
    settings = {"rescale_betas_zero_snr": False, **_defaults(scheduler), **raw}
    betas = linear_betas()
    expected: dict[str, Any] = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "beta_schedule": "linear",
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "trained_betas": None,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
    }
    for name, wanted in expected.items():
        got = settings.get(name, "absent")
        if got != wanted and not (isinstance(wanted, float) and _close(got, wanted)):
            raise DataError(
                f"{path}: {name} of {raw['_class_name']} is {got!r}, and a DiT that can be read here was "
                f"trained with {wanted!r}; correct that file if its weights were, else they cannot be used"
            )


def _close(got: Any, wanted: float) -> bool:
    return isinstance(got, int | float) and math.isclose(got, wanted, rel_tol=1e-6)
