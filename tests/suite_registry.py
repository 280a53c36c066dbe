"""What tests of suites share: a small suite, and a registry of imagined plugins with options of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import PositiveInt

from attnbench.contract import AttentionBackend, BackendOptions, FeatureExtractor, MacCount
from attnbench.errors import SuiteError
from attnbench.plugins import PluginRow, Provided, Registry
from attnbench.specs import Case
from attnbench.suite.loading import load_suite

SMALL = """\
name: small
question: Which?
model: tiny-dit
data: digits
train: {objective: flow, lr: 2e-3}
sample: {sampler: euler, num_steps: 25, per_class: 200}
"""


def load(folder: Path, text: str, *overrides: str) -> tuple[Case, ...]:
    """Return the cases of a suite with this text in `folder/s.yaml`."""
    (folder / "s.yaml").write_text(text, encoding="utf-8")
    return load_suite(folder / "s.yaml", overrides).cases


def errors(folder: Path, text: str, *overrides: str) -> list[str]:
    """Return the lines of the SuiteError that this text gives."""
    with pytest.raises(SuiteError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).splitlines()


class DynamicOptions(BackendOptions):
    """Options with a choice, a count, a number and a pair."""

    mode: Literal["token", "map"] = "token"
    num_projectors: PositiveInt = 3
    num_kernels: PositiveInt = 9
    num_factors: PositiveInt = 9
    gamma_init: float = 3.0
    window: tuple[int, int] = (1, 1)


class CompressionOptions(BackendOptions):
    """One stride."""

    stride: PositiveInt = 2


class AgentOptions(BackendOptions):
    """One count."""

    num_agents: PositiveInt = 49


def _never(*_: Any) -> Any:
    raise NotImplementedError


def imagined_registry() -> Registry:
    """Return a registry with the names the shipped suites use, and one broken plugin."""
    registry = Registry()
    options: dict[str, type[BackendOptions]] = {
        "dydila": DynamicOptions,
        "agent": AgentOptions,
        "pixart-sigma": CompressionOptions,
    }
    for name in ("softmax", "linear", "focused", "agent", "dydila", "dig", "pixart-sigma", "edit"):
        backend = AttentionBackend(
            name=name,
            summary=name,
            source="imagined",
            build=_never,
            macs=lambda *_: MacCount(),
            options=options.get(name, BackendOptions),
        )
        registry.backends[name] = Provided(record=backend, plugin="imagined", origin="test")
    for name in ("digits-cnn", "efficientnet-lite0", "inception-tf"):
        extractor = FeatureExtractor(name=name, suffix=name, summary=name, source="imagined", load=_never)
        registry.extractors[name] = Provided(record=extractor, plugin="imagined", origin="test")
    registry.rows.append(PluginRow(name="lost", origin="lost 1.0", status="broken", reason="ImportError: no"))
    return registry
