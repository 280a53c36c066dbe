"""Files of arrays: safetensors with a checksum, so that a damaged one is noticed and not trusted."""

from __future__ import annotations

import hashlib
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError

from attnbench.errors import StorageError, cannot_read
from attnbench.storage.atomic import atomic_path
from attnbench.storage.tensor_files import open_tensors, write_tensors

Arrays = dict[str, torch.Tensor]

DAMAGED_NPZ = (
    ValueError, KeyError, IndexError, TypeError, EOFError, MemoryError, SyntaxError, RuntimeError,
    tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What numpy and zipfile raise, beside OSError, for an npz file of which some bytes are others."""


class DamagedFileError(Exception):
    """A file of arrays that cannot be used; the message says why."""


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays with their checksum, whole or not at all; raises StorageError."""
    with atomic_path(path) as temporary:
        write_tensors(temporary, arrays, {"sha256": _checksum(arrays)})


def read_arrays(path: Path, num_rows: int | None = None, *, unchecked: bool = False) -> Arrays | None:
    """Return the arrays of a file, None where there is none; raises DamagedFileError and StorageError.

    `num_rows` is what each of them must have. `unchecked` takes a file without a checksum as it is, where
    earlier versions wrote none.
    """
    try:
        with open_tensors(path) as file:
            stated = (file.metadata() or {}).get("sha256")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(cannot_read(path, error, "choose another place")) from error
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(str(error)) from error
    if stated != _checksum(arrays) and not (stated is None and unchecked):
        raise DamagedFileError("its content does not have the checksum stored in it")
    if num_rows is not None and {len(array) for array in arrays.values()} != {num_rows}:
        raise DamagedFileError(f"it does not hold {num_rows} rows")
    return arrays


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].contiguous()
        digest.update(f"{name} {array.dtype} {list(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)  # also of types numpy does not know
    return digest.hexdigest()
