"""The content of an exported folder's config.json: what a stranger needs to use the weights beside it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from attnbench.results import Record, environment
from attnbench.specs import GrowthSpec, ModelConfig
from attnbench.stages.latents.latent_space import Factor
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.initial_weights import EXPORT_FORMAT

FORMAT: Literal["attnbench-export-1"] = EXPORT_FORMAT


class BackendOrigin(Record):
    """Who provided an attention when the model was trained."""

    provider: str
    """`built-in`, or the distribution and its version."""
    code: str
    """Fingerprint of the source file that builds it."""


class CodecInfo(Record):
    """The autoencoder whose latents a model was trained on: x = scale (z - shift)."""

    kind: Literal["autoencoder-kl", "autoencoder-tiny", "autoencoder-dc"]
    scale: Factor
    """One number, or one for each channel."""
    shift: Factor
    fingerprint: str
    hub: str = ""
    """Repository on the Hugging Face hub, folder in it and commit, where it is from there."""


class TransferOrigin(Record):
    """Where the copied part of a model's weights comes from; the rest is as initialised."""

    weights_sha256: str
    recipe: str
    attention: list[str]
    copied: int
    left: int
    missing: int
    growth: GrowthSpec | None = None
    """How a deeper model's blocks came from the source's fewer."""


class ExportedConfig(Record):
    """Everything a stranger needs to use the weights beside them: the content of config.json."""

    format: Literal["attnbench-export-1"] = FORMAT
    attnbench: str = Field(default_factory=lambda: environment().packages.get("attnbench", "(not installed)"))
    """Version that wrote this."""
    model: ModelConfig
    input: ModelInput
    """(C, H, W) of the model's input, and the number of classes; class `num_classes` is the null class."""
    class_names: list[str] | None = None
    objective: Literal["ddpm", "flow"]
    codec: CodecInfo | None = None
    backends: dict[str, BackendOrigin]
    seed: int | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """The training settings; empty for weights that were not trained here."""
    data: str = ""
    suite: str = ""
    label: str = ""
    imported_from: str = ""
    transferred_from: TransferOrigin | None = None
    weights_sha256: str = ""

    @property
    def attention(self) -> list[str]:
        """Names of the attention backends, in alphabetical order."""
        return sorted(self.model.attention_names())
