"""Weights files that come from outside: where they are looked for, and whether they are the right ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from attnbench.errors import DataError, UserInputError, cannot_read
from attnbench.storage.hashing import file_sha256
from attnbench.storage.tensor_files import tensors_in


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file that an extractor needs and that no package contains."""

    extractor: str
    names: tuple[str, ...]
    """What its publishers call it."""
    variable: str
    """The environment variable that may name it."""
    source: str
    """How to get it, as the end of a sentence: an address or a command."""
    sha256: str = ""
    """In hexadecimal; empty where none is published."""
    url: str = ""
    """Where `attnbench weights fetch` gets it; empty where it does not."""
    size_bytes: int = 0
    hub_repo: str = ""
    """Its repository on the Hugging Face hub, whose local cache is a place to look at."""


def cache_folder() -> Path:
    """Return this package's folder for fetched weights: `attnbench/weights` in the user's cache.

    It begins with `~`, as torch's does, where nobody says where the user's home is.
    """
    root = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(root) / "attnbench" / "weights"


def places(file: WeightsFile, chosen: Path | None = None) -> list[Path]:
    """Return where a weights file may lie, in the order of looking.

    A file that the user names, in the settings or else in the environment, is the only place.
    """
    if chosen is not None:
        return [chosen]
    if named := os.environ.get(file.variable):
        return [Path(os.path.expanduser(named))]
    folders = (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints")
    found = [folder / name for folder in folders for name in file.names]
    return found + _hub_files(file)


def _hub_files(file: WeightsFile) -> list[Path]:
    """Return where the Hugging Face hub's cache holds it, or would; looks at this machine's disk only."""
    if not file.hub_repo:
        return []
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    cached = try_to_load_from_cache(file.hub_repo, "model.safetensors")
    if isinstance(cached, str):
        return [Path(cached)]
    return [Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.hub_repo, repo_type="model")]


def find(file: WeightsFile, chosen: Path | None = None) -> Path:
    """Return the path of a weights file whose hash is right.

    Raises UserInputError when no place has it, DataError when the one that is named does not exist or the
    one that is found is another file.
    """
    looked_at = places(file, chosen)
    for path in looked_at:
        if path.is_file():
            _check(file, path)
            return path
    raise _missing(file, chosen, looked_at)


def _missing(file: WeightsFile, chosen: Path | None, looked_at: list[Path]) -> UserInputError:
    name = file.names[0]
    if chosen is not None:
        return DataError(
            f"no weights file at {chosen}; extractor {file.extractor} needs {name}: correct the path, or "
            "name none and have the usual places searched (`attnbench weights list` shows them)"
        )
    if os.environ.get(file.variable):
        return DataError(
            f"no weights file at {looked_at[0]}, which the environment variable {file.variable} names; "
            f"extractor {file.extractor} needs {name}: correct the variable or unset it"
        )
    return UserInputError(
        f"extractor {file.extractor} needs the weights file {name}, which is in none of: "
        f"{', '.join(map(str, looked_at))}; {file.source}, or name the file with --weights (in a suite: "
        f"`evaluate.weights`) or in the environment variable {file.variable}"
    )


def _check(file: WeightsFile, path: Path) -> None:
    if file.sha256 and file_sha256(path) != file.sha256:
        raise DataError(
            f"{path} is not {file.names[0]}: its SHA-256 is {file_sha256(path)}, expected {file.sha256}; "
            f"{file.source}"
        )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or torch file, without running code it may hold.

    Raises DataError when it is damaged or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return tensors_in(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except Exception as error:  # a damaged file raises anything
        raise DataError(
            f"{path} is no file of tensors ({type(error).__name__}); fetch the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path} holds more than named tensors; name a file that maps names to tensors alone")
    return state
