"""What the tests of feature extractors share: inputs, loading, images, and caches that are empty."""

from __future__ import annotations

from pathlib import Path

import torch

from attnbench.contract import ExtractorInputs


def inputs(**settings):
    """What an extractor is loaded with; a keyword replaces a setting."""
    usual = {"device": torch.device("cpu"), "seed": 0, "cache_dir": Path("unused")}
    return ExtractorInputs(**(usual | settings))


def record(plugin):
    """The one extractor of a built-in plugin."""
    (extractor,) = plugin.attnbench_extractors()
    return extractor


def load(plugin, **settings):
    """Load that extractor."""
    return record(plugin).load(inputs(**settings))


def noise(count, side, channels=3):
    """Random images uint8 [B, H, W, C]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, channels), dtype=torch.uint8, generator=generator)


def empty_caches(tmp_path, monkeypatch):
    """Let no test see the weights or the settings of the machine it runs on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("TORCH_HOME", "ATTNBENCH_INCEPTION_WEIGHTS", "ATTNBENCH_DINOV2_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
