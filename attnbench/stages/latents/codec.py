"""The user's latent autoencoder: images to what is kept of them, latents back to images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnbench.data.pixels import to_images, to_model_space
from attnbench.errors import DataError
from attnbench.specs import CodecSpec
from attnbench.stages.latents.taesd import TAESD_FILES, is_taesd, load_taesd
from attnbench.storage import hub
from attnbench.storage.hashing import file_sha256
from attnbench.torchvision_ops import define_missing_ops

BATCH_SIZE = 8  # images per call of the autoencoder: its activations at 256 px are large


@dataclass(frozen=True)
class Codec:
    """A diffusers autoencoder. Latents are `scale * (z - shift)`, so that their spread is about 1.

    Source: diffusers' pipelines (`scaling_factor`, `shift_factor` of the autoencoder's config.json).
    """

    network: Any
    kind: str

    @property
    def scale(self) -> float:
        """The factor that latents are multiplied by."""
        return float(self.network.config.scaling_factor)

    @property
    def shift(self) -> float:
        """What is taken from latents before scaling."""
        return float(self.network.config.get("shift_factor") or 0.0)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.network.config.latent_channels)

    @property
    def factor(self) -> int:
        """Side of the image over side of the latent."""
        widths = "block_out_channels" if self.kind == "autoencoder-kl" else "encoder_block_out_channels"
        return int(2 ** (len(self.network.config[widths]) - 1))

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return what is kept of uint8 [B, H, W, C], float32 on the CPU.

        [B, 2c, h, w] mean and log variance of the posterior of a KL autoencoder; [B, c, h, w] latents of
        a tiny one, which has no posterior. Neither is scaled.
        """
        x = to_model_space(images).to(self.network.device)
        encoded = self.network.encode(x)
        if self.kind == "autoencoder-kl":
            posterior = encoded.latent_dist
            kept = torch.cat([posterior.mean, posterior.logvar], dim=1)
        else:
            kept = encoded.latents
        return kept.float().cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return scaled latents, float [B, c, h, w], as uint8 [B, H, W, C] on the CPU."""
        z = latents.float().to(self.network.device) / self.scale + self.shift
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


def on_hub(spec: CodecSpec) -> hub.HubModel | None:
    """Return where on the hub an autoencoder lies; None for one in a folder."""
    if spec.hub is None:
        return None
    return hub.HubModel(name=spec.hub, subfolder=spec.subfolder, revision=spec.revision)


def folder_of(spec: CodecSpec) -> Path:
    """Return the folder of an autoencoder's files on this machine, without the network.

    That of one on the hub is in the hub's cache; raises DataError where `prepare` has not fetched it.
    """
    model = on_hub(spec)
    if model is not None:
        return hub.open_cached(model).folder
    assert spec.path is not None  # one of the two: CodecSpec sees to it
    return spec.path


def load_codec(spec: CodecSpec, device: torch.device) -> Codec:
    """Load an autoencoder from its folder or the hub's cache, never from the network; raises DataError."""
    folder = folder_of(spec)
    network = load_taesd(folder) if is_taesd(spec.kind, folder) else _load_diffusers(spec, folder)
    return Codec(network.eval().requires_grad_(False).to(device), spec.kind)


def _load_diffusers(spec: CodecSpec, folder: Path) -> Any:
    define_missing_ops()  # diffusers' autoencoders import torchvision
    import diffusers

    kinds = {"autoencoder-kl": diffusers.AutoencoderKL, "autoencoder-tiny": diffusers.AutoencoderTiny}
    wanted = kinds[spec.kind].__name__
    written_by = _config(spec, folder).get("_class_name")
    if written_by != wanted:
        raise DataError(
            f"{spec.hub or folder} holds an {written_by}, but codec.kind is {spec.kind!r}; "
            f"kinds are {', '.join(kinds)}: choose the one that fits"
        )
    try:
        return kinds[spec.kind].from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot load the autoencoder in {folder}: {error}") from error


def _config(spec: CodecSpec, folder: Path) -> dict[str, Any]:
    """Read an autoencoder's config.json."""
    try:
        config: dict[str, Any] = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        kind = "KL" if spec.kind == "autoencoder-kl" else "Tiny"
        taesd = "" if kind == "KL" else f", or with TAESD's {' and '.join(TAESD_FILES)}"
        raise DataError(
            f"no autoencoder in {folder}: config.json cannot be read ({error}); `codec.path` "
            f"names a folder written by diffusers' Autoencoder{kind}.save_pretrained{taesd}"
        ) from error
    return config


def scaling(spec: CodecSpec) -> tuple[float, float]:
    """Return scale and shift of an autoencoder's latents, without loading it; raises DataError."""
    folder = folder_of(spec)
    config = {"scaling_factor": 1.0} if is_taesd(spec.kind, folder) else _config(spec, folder)
    return float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)


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
