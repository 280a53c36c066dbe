"""TAESD, the tiny autoencoder for Stable Diffusion's latents, from its released weights files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attnbench.errors import DataError, cannot_read
from attnbench.torchvision_ops import define_missing_ops

TAESD_FILES = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")


def is_taesd(kind: str, folder: Path) -> bool:
    """Say whether the folder of a codec of that kind holds TAESD's own files and nothing of diffusers."""
    if kind != "autoencoder-tiny" or (folder / "config.json").exists():
        return False
    return all((folder / name).is_file() for name in TAESD_FILES)


def load_taesd(folder: Path) -> Any:
    """Load TAESD's two files into diffusers' AutoencoderTiny, fp32; raises DataError.

    TAESD numbers the modules of two nn.Sequential. AutoencoderTiny keeps them as `encoder.layers` and
    `decoder.layers`; its decoder clamps outside of the sequence, where TAESD's begins with the clamp,
    so that the decoder's numbers fall by one. Source: madebyollin/taesd, taesd.py.
    """
    define_missing_ops()  # diffusers' autoencoders import torchvision
    import diffusers

    weights = {
        f"{part}.layers.{number - shift}.{rest}": tensor
        for part, name, shift in (("encoder", TAESD_FILES[0], 0), ("decoder", TAESD_FILES[1], 1))
        for number, rest, tensor in _numbered(folder / name)
    }
    network = diffusers.AutoencoderTiny()
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    wrong = sorted(
        name for name, shape in expected.items() if name not in weights or weights[name].shape != shape
    )
    if wrong or len(weights) != len(expected):
        first = wrong[0] if wrong else "none"
        raise DataError(
            f"{folder} does not hold TAESD's weights for Stable Diffusion's 4 channels: {len(wrong)} of "
            f"{len(expected)} tensors are missing or of another shape (first: {first}), "
            f"{len(set(weights) - set(expected))} are too many; use the released {' and '.join(TAESD_FILES)}"
        )
    network.load_state_dict(weights)
    return network


def _numbered(path: Path) -> list[tuple[int, str, torch.Tensor]]:
    """Read a file's tensors as (number of the module, rest of the name, fp32 tensor)."""
    from safetensors import SafetensorError

    from attnbench.storage.tensor_files import tensors_in

    try:
        tensors = tensors_in(path)
        split = {key: key.split(".", 1) for key in tensors}
        return [(int(number), rest, tensors[key].float()) for key, (number, rest) in split.items()]
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except (ValueError, SafetensorError) as error:
        raise DataError(f"{path} is not a file of TAESD's weights: {error}; download it again") from error
