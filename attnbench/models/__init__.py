"""The DiT/LiT skeleton with attention handed in, its parts, and the named recipes.

The names below load on first use: recipes are data and need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnbench.models.macs import closed_form_macs
    from attnbench.models.skeleton import DiffusionTransformer, build_model, fuse_for_inference

__all__ = ["DiffusionTransformer", "build_model", "closed_form_macs", "fuse_for_inference"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'attnbench.models' has no attribute {name!r}")
    home = "macs" if name == "closed_form_macs" else "skeleton"
    return getattr(importlib.import_module(f"attnbench.models.{home}"), name)
