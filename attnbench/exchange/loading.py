"""From an exported folder or a run to a module in eval mode, exactly as the sampler builds it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.exchange.config import ExportedConfig
from attnbench.exchange.exported import Exported, read_exported
from attnbench.exchange.trained import find_case, trained_model
from attnbench.models.skeleton import DiffusionTransformer, build_model, fuse_for_inference
from attnbench.plugins import registry
from attnbench.stages.training.initial_weights import CONFIG
from attnbench.storage.names import RESULTS
from attnbench.storage.run_folders import store_of


def open_model(source: Path, case: str | None = None) -> Exported:
    """Read a model from an exported folder, or from a run folder (its case with that label or id).

    Raises UserInputError (DataError for damaged or foreign files).
    """
    if (source / CONFIG).is_file():
        if case is not None:
            raise UserInputError(
                f"{source} is one exported model, it has no cases; leave out the case {case!r}"
            )
        return read_exported(source)
    if (source / RESULTS).is_file():
        return trained_model(find_case(source, case), store_of(source))
    raise UserInputError(
        f"{source} is neither an exported model ({CONFIG}) nor the folder of a run ({RESULTS}); "
        "`attnbench export` writes the first, `attnbench run` the second"
    )


def instantiate(exported: Exported, device: torch.device | str = "cpu") -> DiffusionTransformer:
    """Build the model in eval mode, re-parameterised parts fused as for sampling.

    Raises DataError naming a missing plugin, or weights that do not fit the backend's present code.
    """
    config = exported.config
    check_backends(config)
    model = build_unfused(config)
    load_strictly(model, exported)
    fused = fuse_for_inference(model.to(torch.device(device)).eval())
    assert isinstance(fused, DiffusionTransformer)
    fused.__dict__["attnbench_config"] = config  # beside parameters and modules, which nn.Module keeps
    return fused


def build_unfused(config: ExportedConfig, seed: int = 0) -> DiffusionTransformer:
    """Build the module that a description names, with initial weights."""
    return build_model(config.model, config.input.shape[1], config.input.num_classes, seed=seed)


def load_strictly(model: DiffusionTransformer, exported: Exported) -> None:
    """Copy weights name by name; raises DataError listing what does not fit."""
    try:
        model.load_state_dict(dict(exported.weights), strict=True)
    except RuntimeError as error:
        mismatch = " ".join(str(error).split())
        raise DataError(
            f"the weights do not fit {exported.config.model.name} with "
            f"{', '.join(exported.config.attention)}: {mismatch}; the backend's code has changed "
            "since, or the folder was put together by hand"
        ) from error


def check_backends(config: ExportedConfig) -> None:
    """Raise DataError for a backend nobody provides; warn when its source has changed since."""
    for name, origin in config.backends.items():
        provided = registry().backends.get(name)
        if provided is None:
            raise DataError(f"the model needs the attention backend {name!r}, {_remedy(origin.provider)}")
        if origin.code and provided.code and provided.code != origin.code:
            warnings.warn(
                f"the source of backend {name!r} has changed since the model was trained ({origin.provider} "
                f"then, {provided.origin} now): its outputs may differ",
                stacklevel=3,
            )


def _remedy(provider: str) -> str:
    broken = [f"{row.name} ({row.reason})" for row in registry().rows if row.status == "broken"]
    told = f"; plugins that failed to load: {', '.join(broken)}" if broken else ""
    if provider in ("built-in", "unknown"):
        return (
            f"which this attnbench does not have (it was {provider}); install the attnbench that has it{told}"
        )
    name, _, version = provider.partition(" ")
    wanted = f"{name}=={version}" if version else name
    return f"which the plugin {provider} provided; install it: pip install '{wanted}'{told}"
