"""The user's latent autoencoder: images to what is kept of them, latents back to images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnbench.data.pixels import to_images, to_model_space
from attnbench.errors import DataError
from attnbench.specs import CodecSpec
from attnbench.stages.latents.latent_space import (
    Factor,
    LatentSpace,
    encode,
    folder_of,
    latent_space,
    network_class,
    read_config,
)
from attnbench.stages.latents.taesd import is_taesd, load_taesd
from attnbench.storage import hub
from attnbench.storage.hashing import file_sha256

BATCH_SIZE = 8  # images per call of the autoencoder: its activations at 256 px are large


def beside_latents(factor: Factor) -> float | torch.Tensor:
    """Return a number as it is, one for each channel as [C, 1, 1]: both go with latents [B, C, h, w]."""
    return factor if isinstance(factor, float) else torch.tensor(factor)[:, None, None]


@dataclass(frozen=True)
class Codec:
    """An autoencoder of diffusers and the space of its latents."""

    network: Any
    kind: str
    space: LatentSpace

    @property
    def scale(self) -> float | torch.Tensor:
        """The factor that latents are multiplied by, one for all channels or [C, 1, 1]."""
        return beside_latents(self.space.scale)

    @property
    def shift(self) -> float | torch.Tensor:
        """What is taken from latents before scaling, one for all channels or [C, 1, 1]."""
        return beside_latents(self.space.shift)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.space.channels

    @property
    def factor(self) -> int:
        """Side of the image over side of the latent."""
        return self.space.factor

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return what is kept of uint8 [B, H, W, C], float32 on the CPU.

        [B, 2c, h, w] mean and log variance of the posterior of a KL autoencoder; [B, c, h, w] latents of
        the other kinds, which have no posterior. Neither is scaled.
        """
        x = to_model_space(images).to(self.network.device)
        return encode(self.network, self.kind, x).float().cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return scaled latents, float [B, c, h, w], as uint8 [B, H, W, C] on the CPU."""
        scaled, scale, shift = latents.float().to(self.network.device), self.scale, self.shift
        if isinstance(scale, torch.Tensor) and isinstance(shift, torch.Tensor):
            scale, shift = scale.to(scaled.device), shift.to(scaled.device)
        z = scaled / scale + shift
        return torch.cat([to_images(self.network.decode(part).sample).cpu() for part in z.split(BATCH_SIZE)])

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, H, W, 3] images encoded (to the posterior's mean) and decoded, uint8 on the CPU.

        What is lost here no diffusion model on these latents can give back.
        """
        parts = []
        for part in images.split(BATCH_SIZE):
            mean = self.encode(part)[:, : self.channels]  # a KL autoencoder's log variance follows its mean
            parts.append(self.decode(self.scale * (mean - self.shift)))
        return torch.cat(parts)


def load_codec(spec: CodecSpec, device: torch.device) -> Codec:
    """Load an autoencoder from its folder or the hub's cache, never from the network; raises DataError."""
    space, folder = latent_space(spec), folder_of(spec)
    network = load_taesd(folder) if is_taesd(spec.kind, folder) else _load_diffusers(spec, folder)
    return Codec(network.float().eval().requires_grad_(False).to(device), spec.kind, space)


def _load_diffusers(spec: CodecSpec, folder: Path) -> Any:
    read_config(spec, folder)  # that it is of the kind: diffusers would make a KL autoencoder of any config
    safetensors, pickled = ((folder / name).is_file() for name in hub.WEIGHTS)
    try:
        network, info = network_class(spec.kind).from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # the same way whether the package accelerate is there or not
            # else diffusers looks for the other file first, and calls reading a pickle without code unsafe
            use_safetensors=False if pickled and not safetensors else None,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot load the autoencoder in {folder}: {error}") from error
    if info["missing_keys"]:  # diffusers leaves these at random numbers
        missing = sorted(info["missing_keys"])
        raise DataError(
            f"cannot load the autoencoder in {folder}: its weights lack {len(missing)} tensors of the "
            f"network in its config.json (first: {missing[0]}); fetch both files again, from one place"
        )
    return network


def fingerprint(spec: CodecSpec) -> str:
    """Return 16 hex digits over the config and weights files of an autoencoder.

    Of one in the hub's cache, over the two that are loaded: other programs put files beside them.
    """
    folder = folder_of(spec)
    if spec.hub is not None:
        return digest_of(hub.model_files(folder))
    return digest_of(path for path in folder.glob("*") if path.suffix in (".json", ".safetensors", ".bin"))


def digest_of(files: Iterable[Path]) -> str:
    """Return 16 hex digits over the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()[:16]
