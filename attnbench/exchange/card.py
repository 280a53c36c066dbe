"""The README.md of an exported model: what it is, how it was trained, how to load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.exchange.config import ExportedConfig

SHOWN = ("steps", "batch_size", "lr", "weight_decay", "ema_decay", "precision")


def model_card(config: ExportedConfig) -> str:
    """Return the model card of an exported folder as Markdown."""
    paragraphs = [
        f"# {config.model.name} with {', '.join(config.attention)} attention",
        "\n".join(_facts(config)),
        _history(config),
        "## Load it",
        _how_to_load(config),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _facts(config: ExportedConfig) -> list[str]:
    model, (channels, height, width) = config.model, config.input.shape
    facts = [
        f"- a diffusion transformer of {model.depth} blocks, width {model.dim}, {model.num_heads} heads, "
        f"patches of {model.patch_size} x {model.patch_size}",
        f"- input: {model.input}, {channels} channels of {height} x {width}",
        f"- {config.input.num_classes} classes; label {config.input.num_classes} is the null class",
        f"- objective: {config.objective}" + (", learned range variance" if model.learned_variance else ""),
    ]
    if config.codec is not None:
        codec = config.codec
        facts.append(
            f"- latents of an {codec.kind} (fingerprint {codec.fingerprint}"
            f"{', on the hub: ' + codec.hub if codec.hub else ''}): scale {codec.scale}, shift {codec.shift}"
        )
    if config.class_names is not None:
        facts.append(f"- class names: {', '.join(config.class_names)}")
    for name, backend in config.backends.items():
        facts.append(f"- attention `{name}`: {backend.provider}, source fingerprint {backend.code or 'none'}")
    return facts


def _history(config: ExportedConfig) -> str:
    if config.transferred_from is not None:
        origin = config.transferred_from
        return (
            f"**Not trained as it stands.** {origin.copied} tensors were copied from a {origin.recipe} with "
            f"{', '.join(origin.attention)} attention, {origin.missing} are as initialised: train it "
            f"(`train.init_from`).{_growth(config)}"
        )
    if config.imported_from:
        return f"Imported from {config.imported_from}; not trained by attnbench."
    if not config.training:
        return "How it was trained is not recorded."
    told = ", ".join(f"{name} {config.training[name]}" for name in SHOWN if name in config.training)
    return (
        f"Trained by attnbench {config.attnbench} on {config.data}, seed {config.seed}: {told}. These are "
        f"the averaged weights (case `{config.label}` of suite `{config.suite}`; all settings: config.json)."
    )


def _growth(config: ExportedConfig) -> str:
    origin = config.transferred_from
    if origin is None or origin.growth is None:
        return ""
    return f" Its {config.model.depth} blocks grew out of fewer there (strategy {origin.growth.strategy})."


def _how_to_load(config: ExportedConfig) -> str:
    channels, height, width = config.input.shape
    strangers = sorted({b.provider for b in config.backends.values() if b.provider != "built-in"})
    needs = "".join(f"Needs `{provider}` installed. " for provider in strangers)
    autoencoder = ', autoencoder="path/to/the/autoencoder"' if config.model.input == "latent" else ""
    return f"""{needs}In Python, with attnbench {config.attnbench}:

```python
import torch
import attnbench

model = attnbench.load_model("path/to/this/folder")
x = torch.randn(2, {channels}, {height}, {width})
output = model(x, t=torch.tensor([500.0, 500.0]), y=torch.tensor([0, 1]))
samples = attnbench.sample("path/to/this/folder", labels=[0, 1]{autoencoder})
samples.image(0).save("first.png")
```"""
