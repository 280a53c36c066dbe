"""The questions attnbench asks its plugins; each hook yields typed records."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from attnbench.contract import AttentionBackend, FeatureExtractor

PROJECT = "attnbench"
ENTRY_POINT_GROUP = "attnbench"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def attnbench_backends() -> Iterable[AttentionBackend]:  # type: ignore[empty-body]
    """Yield the attention backends this plugin provides."""


@hookspec
def attnbench_extractors() -> Iterable[FeatureExtractor]:  # type: ignore[empty-body]
    """Yield the feature extractors (for distances between image sets) this plugin provides."""
