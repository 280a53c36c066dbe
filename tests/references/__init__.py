"""Slow float64 attentions that read like the papers, one file per backend, found by their file name.

A file `references/<backend>.py` (`_` for `-`) holds `CASES` (label -> options; the label starts with the
backend's name) and `reference(module, x, context)`: it takes the backend's own module for its parameters,
x [B, N, C] in float64 and the AttentionContext, and returns [B, N, C] without calling the package's maths.
Optional: `continuous(options)`, a case's options changed so that no discrete choice depends on rounding.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

FILES: dict[str, ModuleType] = {
    found.name.replace("_", "-"): importlib.import_module(f"references.{found.name}")
    for found in pkgutil.iter_modules(__path__)
    if found.name != "pieces"
}
CASES: dict[str, tuple[str, dict]] = {
    label: (backend, options) for backend, file in FILES.items() for label, options in file.CASES.items()
}
