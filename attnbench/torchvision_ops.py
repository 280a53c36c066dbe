"""Let torchvision import beside a torch build it was not compiled for.

PyPI's torchvision is compiled against a CUDA torch. Beside a CPU-only torch its binary ops do not
load and `import torchvision` fails while it registers fake kernels for `torchvision::nms` and
`torchvision::qnms`. Nothing here calls either op, so it is enough that their schemas exist.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _own_ops_load() -> bool:
    """Try to load torchvision's own binary ops, the way torchvision itself does."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return False
    for library in sorted(Path(found.origin).parent.glob("_C.*")):
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):
            return False
    return hasattr(torch.ops.torchvision, "nms")


@functools.cache
def define_missing_ops() -> tuple[str, ...]:
    """Define the missing op schemas once per process; returns the names defined.

    Call before the first import of torchvision, timm, clean-fid or torch-fidelity. Does nothing
    where torchvision's own ops load. Calling a defined op still fails, as it should: it has no kernel.
    """
    if _own_ops_load():
        return ()
    missing = tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if missing:
        _LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in missing:
            _LIBRARY[0].define(SCHEMAS[name])
    return missing


_LIBRARY: list[torch.library.Library] = []  # a Library's definitions live only as long as the object
