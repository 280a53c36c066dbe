"""Arrays of .npy files as memory maps that keep no file open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def map_array(path: Path) -> np.ndarray[Any, Any]:
    """Map a .npy file's array; writing to it changes a private copy of the page, never the file.

    numpy's own map keeps a file descriptor for as long as it lives: ImageNet's 2,503 shards are more
    than the 1,024 that a process may usually have. Raises OSError, or ValueError for a file that is no
    whole array.
    """
    import torch

    with path.open("rb") as file:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"{path} is of version {version} of numpy's format, expected 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), file.seek(0, 2)
    if fortran_order or dtype.hasobject or size - start != dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"{path} has {size - start} bytes of {dtype} for the shape {list(shape)}")
    whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    array: np.ndarray[Any, Any] = whole[start:].view(dtype).reshape(shape)
    return array
