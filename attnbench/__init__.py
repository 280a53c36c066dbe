"""attnbench: what does an attention cost, and what quality does it buy, in one diffusion transformer?

The public names below load on first use, so that `import attnbench` needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # locks, signals and process groups are POSIX's
    raise ImportError("attnbench runs on Linux and macOS; on Windows run it inside WSL2")

if TYPE_CHECKING:
    from attnbench.api import build_attention, build_model, list_backends, load_model, profile, run_suite
    from attnbench.contract import (
        AttentionBackend,
        AttentionContext,
        AttentionSite,
        BackendOptions,
        FeatureExtractor,
        MacCount,
    )
    from attnbench.hookspecs import hookimpl

__version__ = "0.1.0"

_HOME = {
    "build_attention": "attnbench.api",
    "build_model": "attnbench.api",
    "list_backends": "attnbench.api",
    "load_model": "attnbench.api",
    "profile": "attnbench.api",
    "run_suite": "attnbench.api",
    "sample": "attnbench.api",
    "AttentionBackend": "attnbench.contract",
    "AttentionContext": "attnbench.contract",
    "AttentionSite": "attnbench.contract",
    "BackendOptions": "attnbench.contract",
    "FeatureExtractor": "attnbench.contract",
    "MacCount": "attnbench.contract",
    "hookimpl": "attnbench.hookspecs",
}

__all__ = [
    "AttentionBackend",
    "AttentionContext",
    "AttentionSite",
    "BackendOptions",
    "FeatureExtractor",
    "MacCount",
    "__version__",
    "build_attention",
    "build_model",
    "hookimpl",
    "list_backends",
    "load_model",
    "profile",
    "run_suite",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attnbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
