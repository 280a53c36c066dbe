"""Images as latents of the user's autoencoder: encoded once, kept on disk, checked when they are opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from attnbench.data import ImageSet
from attnbench.data.mapped import map_array
from attnbench.errors import DataError, NonFiniteError
from attnbench.results import Record
from attnbench.specs import CodecSpec
from attnbench.stages.latents.codec import BATCH_SIZE, Codec, beside_latents, fingerprint, load_codec
from attnbench.stages.latents.latent_space import Factor, has_posterior, latent_space
from attnbench.storage.atomic import atomic_path, storage_errors
from attnbench.storage.hashing import file_sha256
from attnbench.storage.names import CHECKED_SHARDS, DONE, LATENT_INDEX, latent_shard
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import Workspace

SHARD_SIZE = 512  # images; a killed run loses at most this many


class LatentIndex(Record):
    """What a folder of latents holds so far, and what made it; written anew after every shard."""

    kind: str
    codec: str
    """Fingerprint of the autoencoder's files."""
    scale: Factor
    shift: Factor
    count: int
    """Images, when complete."""
    sha256: list[str] = Field(default_factory=list)
    """Checksum of each finished shard."""

    def made_like(self, other: LatentIndex) -> bool:
        """Say whether both are of the same autoencoder and number of images, whatever is finished."""
        return self.model_copy(update={"sha256": []}) == other.model_copy(update={"sha256": []})


class CheckedShards(Record):
    """Size in bytes and time of change in ns of shards whose checksums are known to be right, by name."""

    seen: dict[str, tuple[int, int]] = Field(default_factory=dict)


def encode_all(images: ImageSet, spec: CodecSpec, folder: Path, workspace: Workspace) -> None:
    """Encode every image and its mirror image into shards of float16 [n, 2, k, h, w].

    Index 1 of the second axis is the mirrored image: a latent cannot be mirrored itself. Whole shards of
    the same autoencoder that are already there are kept. `folder` is made where it is missing, so that
    several sets (training, held-out) can lie in folders of their own. Raises NonFiniteError when a latent
    does not fit float16.
    """
    codec = load_codec(spec, workspace.device)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index = _resumed(folder, _index_of(spec, len(images)))
    for number, indices in enumerate(torch.arange(len(images)).split(SHARD_SIZE) if len(images) else ()):
        if number >= len(index.sha256):
            parts = [_encode_both(codec, images.get(part)) for part in indices.split(BATCH_SIZE)]
            path = folder / latent_shard(number)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, torch.cat(parts).numpy())
            index = index.model_copy(update={"sha256": [*index.sha256, file_sha256(path)]})
            _write_index(folder, index)
        workspace.report("prepare", int(indices[-1]) + 1, len(images), "encoding images")
    _write_index(folder, index)
    names = [latent_shard(number) for number in range(len(index.sha256))]
    checked = CheckedShards(seen={name: _seen(folder / name) for name in names})
    write_record(folder / CHECKED_SHARDS, checked)


def _resumed(folder: Path, fresh: LatentIndex) -> LatentIndex:
    """Return the index with the shards that an earlier, killed run of the same settings left whole."""
    found = read_record(folder / LATENT_INDEX, LatentIndex)
    if found is None or not found.made_like(fresh):
        return fresh
    whole = 0
    for number, wanted in enumerate(found.sha256):
        path = folder / latent_shard(number)
        if not path.exists() or file_sha256(path) != wanted:
            break
        whole = number + 1
    return fresh.model_copy(update={"sha256": found.sha256[:whole]})


def _write_index(folder: Path, index: LatentIndex) -> None:
    write_record(folder / LATENT_INDEX, index)


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
    scale: float | torch.Tensor
    shift: float | torch.Tensor
    has_posterior: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        _, _, kept, height, width = self.shards[0].shape
        return (kept // 2 if self.has_posterior else kept), height, width

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    def batch(
        self, indices: torch.Tensor, flips: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return float32 [B, C, h, w] latents, scaled.

        A KL autoencoder's are mean + std x draws of their posterior, where there are draws, else its mean.
        """
        rows = [
            self.shards[index // SHARD_SIZE][index % SHARD_SIZE, flip]
            for index, flip in zip(indices.tolist(), flips.long().tolist(), strict=True)
        ]
        kept = torch.from_numpy(np.stack(rows)).float()
        if self.has_posterior:
            mean, log_variance = kept.chunk(2, dim=1)
            kept = mean
            if draws is not None:
                # in place, here and below: fresh memory for every intermediate costs as much as the sums
                kept = (0.5 * log_variance).exp_().mul_(draws).add_(mean)
        return kept.sub_(self.shift).mul_(self.scale)


def open_latents(folder: Path, spec: CodecSpec, labels: torch.Tensor) -> LatentSource:
    """Open a folder of latents, after checking that every shard is as it was written.

    A shard is read for that only where its size or time of change is not that of then: the 39 GiB of
    ImageNet take most of a minute. Raises DataError when they were made by another autoencoder, with
    other scale and shift, or of another number of images than `labels` [N], and when a shard is
    missing, cut short or altered.
    """
    index = read_record(folder / LATENT_INDEX, LatentIndex)
    if index is None:
        raise DataError(
            f"{folder / LATENT_INDEX} is missing or damaged; remove {folder / DONE} and run the same command "
            "again to encode the images"
        )
    expected = _index_of(spec, len(labels)).model_dump(exclude={"sha256"})
    for name, wanted in expected.items():
        if getattr(index, name) != wanted:
            raise DataError(
                f"the latents in {folder} have {name} {getattr(index, name)!r}, the data and codec of this "
                f"case {wanted!r}: they changed since; remove that folder and run the same command again"
            )
    num_shards = -(-len(labels) // SHARD_SIZE)
    if len(index.sha256) != num_shards:
        raise DataError(
            f"{folder} holds {len(index.sha256)} of {num_shards} shards of latents; remove its {DONE} and "
            "run the same command again to make the rest"
        )
    checked = read_record(folder / CHECKED_SHARDS, CheckedShards) or CheckedShards()
    shards = tuple(
        _open_shard(folder / latent_shard(number), wanted, checked)
        for number, wanted in enumerate(index.sha256)
    )
    scale, shift = beside_latents(index.scale), beside_latents(index.shift)
    return LatentSource(shards, labels, scale, shift, has_posterior(spec.kind))


def _open_shard(path: Path, wanted: str, checked: CheckedShards) -> np.ndarray:
    if not path.exists():
        problem = "is missing"
    elif checked.seen.get(path.name) == _seen(path) or file_sha256(path) == wanted:
        return map_array(path)
    else:
        problem = "was cut short or altered since it was written"
    raise DataError(
        f"the latents {path} {problem}; remove {path.parent / DONE} and run the same command again: the "
        "shards from this one on are encoded again, those before it are kept"
    )


def _seen(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _index_of(spec: CodecSpec, count: int) -> LatentIndex:
    """Return the index, yet without shards, that encoding `count` images today would write."""
    space = latent_space(spec)
    return LatentIndex(
        kind=spec.kind, codec=fingerprint(spec), scale=space.scale, shift=space.shift, count=count
    )
