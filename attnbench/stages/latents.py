"""Images as latents of the user's autoencoder: encoded once, kept on disk, decoded after sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnbench.data import ImageSet
from attnbench.data.pixels import to_images, to_model_space
from attnbench.diffusion.noise import KeyedNoise
from attnbench.errors import DataError, NonFiniteError
from attnbench.specs import CodecSpec
from attnbench.stages.store import Workspace, atomic_path, atomic_write

SHARD_SIZE = 512  # images; a killed run loses at most this many
BATCH_SIZE = 8  # images per call of the autoencoder: its activations at 256 px are large
INDEX = "latents.json"


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


def load_codec(spec: CodecSpec, device: torch.device) -> Codec:
    """Load an autoencoder from the user's folder, never from the network; raises DataError."""
    import diffusers

    kinds = {"autoencoder-kl": diffusers.AutoencoderKL, "autoencoder-tiny": diffusers.AutoencoderTiny}
    if not (spec.path / "config.json").is_file():
        raise DataError(
            f"no autoencoder in {spec.path}: config.json is missing; `codec.path` names a folder written by "
            f"diffusers' {kinds[spec.kind].__name__}.save_pretrained"
        )
    written_by = json.loads((spec.path / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if written_by != kinds[spec.kind].__name__:
        raise DataError(
            f"{spec.path} holds an {written_by}, but codec.kind is {spec.kind!r}; "
            f"kinds are {', '.join(kinds)}: choose the one that fits"
        )
    try:
        network = kinds[spec.kind].from_pretrained(spec.path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot load the autoencoder in {spec.path}: {error}") from error
    return Codec(network.eval().requires_grad_(False).to(device), spec.kind)


def encode_all(images: ImageSet, spec: CodecSpec, side: int, folder: Path, workspace: Workspace) -> None:
    """Encode every image and its mirror image into shards of float16 [n, 2, k, h, w].

    Index 1 of the second axis is the mirrored image: a latent cannot be mirrored itself. Shards that
    are already there are kept. Raises DataError when the side is no multiple of the codec's factor,
    NonFiniteError when a latent does not fit float16.
    """
    codec = load_codec(spec, workspace.device)
    if side % codec.factor:
        raise DataError(
            f"image_size {side} is no multiple of {codec.factor}, the autoencoder's downscaling; "
            f"choose {side // codec.factor * codec.factor or codec.factor}"
        )
    for number, indices in enumerate(torch.arange(len(images)).split(SHARD_SIZE)):
        path = folder / _shard_name(number)
        if not path.exists():
            parts = [_encode_both(codec, images.get(part)) for part in indices.split(BATCH_SIZE)]
            shard = torch.cat(parts).numpy()
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, shard)
        workspace.report("prepare", int(indices[-1]) + 1, len(images), "encoding images")
    index = {"scale": codec.scale, "shift": codec.shift, "count": len(images), "codec": fingerprint(spec)}
    atomic_write(folder / INDEX, json.dumps(index | {"kind": spec.kind}).encode())


def _encode_both(codec: Codec, images: torch.Tensor) -> torch.Tensor:
    both = torch.stack([codec.encode(images), codec.encode(images.flip(2))], dim=1).half()
    if not both.isfinite().all():
        raise NonFiniteError(
            "the autoencoder gave latents that are NaN or do not fit float16 (beyond 65504); "
            "check its weights and that codec.kind fits them"
        )
    return both


@dataclass(frozen=True)
class LatentSource:
    """Training latents of a folder that `encode_all` filled, memory-mapped."""

    shards: tuple[np.ndarray, ...]
    labels: torch.Tensor
    scale: float
    shift: float
    has_posterior: bool
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        _, _, kept, height, width = self.shards[0].shape
        return (kept // 2 if self.has_posterior else kept), height, width

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    def batch(self, indices: torch.Tensor, flips: torch.Tensor, noise_keys: torch.Tensor) -> torch.Tensor:
        """Return float32 [B, C, h, w] latents, scaled.

        A KL autoencoder's are drawn from the posterior, mean + std x noise of (seed, noise key).
        """
        rows = [
            self.shards[index // SHARD_SIZE][index % SHARD_SIZE, flip]
            for index, flip in zip(indices.tolist(), flips.long().tolist(), strict=True)
        ]
        kept = torch.from_numpy(np.stack(rows)).float()
        if self.has_posterior:
            mean, log_variance = kept.chunk(2, dim=1)
            noise = KeyedNoise(
                seed=self.seed,
                indices=noise_keys.tolist(),
                shape=self.shape,
                device=torch.device("cpu"),
                purpose="posterior",
            )
            kept = mean + (0.5 * log_variance).exp() * noise.at(0)
        return self.scale * (kept - self.shift)


def open_latents(folder: Path, spec: CodecSpec, labels: torch.Tensor, seed: int) -> LatentSource:
    """Open a folder of latents.

    Raises DataError when they were made by another autoencoder, with other scale and shift, or of
    another number of images than `labels` [N].
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"no finished latents in {folder}; run the stage `prepare` first") from error
    expected = {"count": len(labels), "kind": spec.kind, "codec": fingerprint(spec), **_scaling(spec)}
    for name, wanted in expected.items():
        if index.get(name) != wanted:
            raise DataError(
                f"the latents in {folder} have {name} {index.get(name)!r}, the data and codec of this case "
                f"{wanted!r}: they changed since; remove that folder and run the same command again"
            )
    shards = tuple(np.load(path, mmap_mode="r") for path in _shard_paths(folder, len(labels)))
    return LatentSource(shards, labels, index["scale"], index["shift"], spec.kind == "autoencoder-kl", seed)


def fingerprint(spec: CodecSpec) -> str:
    """Return 16 hex digits over the config and weights files of an autoencoder's folder."""
    digest = hashlib.sha256()
    for path in sorted(spec.path.glob("*")):
        if path.suffix in (".json", ".safetensors", ".bin"):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _scaling(spec: CodecSpec) -> dict[str, float]:
    """Return scale and shift of an autoencoder's config.json."""
    config = json.loads((spec.path / "config.json").read_text(encoding="utf-8"))
    return {"scale": float(config["scaling_factor"]), "shift": float(config.get("shift_factor") or 0.0)}


def _shard_name(number: int) -> str:
    return f"latents-{number:05d}.npy"


def _shard_paths(folder: Path, count: int) -> Iterator[Path]:
    for number in range(-(-count // SHARD_SIZE)):
        yield folder / _shard_name(number)
