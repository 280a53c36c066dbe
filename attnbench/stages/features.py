"""Features of real and generated images for the stage `evaluate`, the real ones computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from attnbench.contract import ExtractorInputs, Features
from attnbench.data import Dataset, ImageSet
from attnbench.errors import DataError, UserInputError
from attnbench.metrics.classifier import LabelledImages
from attnbench.plugins import registry
from attnbench.specs import FORMAT, Case, content_hash
from attnbench.stages.store import Workspace, atomic_path, storage_errors

Part = Literal["train", "held-out"]
Network = Callable[[torch.Tensor], Features]
OnProgress = Callable[[int], None]  # number of images just finished

EVALUATION_SEED = 0
"""Every cell of every seed is judged by the same networks and the same random subsets."""
BATCH_SIZE = 64
MAX_TRAINING_IMAGES = 20_000
MAX_TRAINING_SIDE = 32


def part_of(dataset: Dataset, part: Part) -> ImageSet:
    """Return the training or the held-out images."""
    return dataset.train if part == "train" else dataset.held_out


def cache_folder(case: Case, dataset: Dataset, workspace: Workspace, *what: object) -> Path:
    """Return (and create) the folder of something computed from real images alone.

    Its name is a hash of the data's settings, all labels (so that added or removed images change it),
    the extractor with its provider's version, and `what`.
    """
    labels = hashlib.sha256()
    for part in (dataset.train, dataset.held_out):
        labels.update(f"{len(part)}".encode() + part.labels.numpy().tobytes())
    provided = registry().extractors.get(case.evaluate.extractor)
    content = [FORMAT, case.data.model_dump(mode="json"), labels.hexdigest(), case.evaluate.extractor]
    content += [provided.origin if provided else "", str(case.evaluate.weights), *what]
    path = workspace.root / "features" / content_hash(content)
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def load_network(case: Case, workspace: Workspace, training: LabelledImages) -> Network:
    """Load the extractor that the case names; raises UnknownNameError for a name nobody provides."""
    extractor = registry().extractor(case.evaluate.extractor)
    return extractor.load(
        ExtractorInputs(
            device=workspace.device,
            seed=EVALUATION_SEED,
            cache_dir=workspace.root / "features",
            weights=case.evaluate.weights,
            train_images=training.images,
            train_labels=training.labels,
            num_classes=training.num_classes,
        )
    )


def training_images(case: Case, dataset: Dataset, workspace: Workspace) -> LabelledImages:
    """Return what evaluation networks train on: 20,000 images at most, 32 pixels at most.

    Evenly spaced images of the training part, averaged down; kept on disk, since decoding them again
    for every cell would take longer than training.
    """
    path = cache_folder(case, dataset, workspace, "training images") / "images.safetensors"
    if path.exists():
        tensors = load_file(path)
    else:
        count = len(dataset.train)
        step = max(1, -(-count // MAX_TRAINING_IMAGES))
        chosen = torch.arange(0, count, step)
        batches = [_shrunk(dataset.train.get(indices)) for indices in chosen.split(512)]
        tensors = {"images": torch.cat(batches), "labels": dataset.train.labels[chosen]}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
    return LabelledImages(images=tensors["images"], labels=tensors["labels"], num_classes=dataset.num_classes)


def _shrunk(images: torch.Tensor) -> torch.Tensor:
    """Average uint8 [B, H, W, C] down to 32 pixels where it is larger."""
    if images.shape[1] <= MAX_TRAINING_SIDE:
        return images
    small = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), MAX_TRAINING_SIDE)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def batches_of(images: ImageSet) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield all images uint8 [B, H, W, C] with labels int64 [B], in order."""
    for indices in torch.arange(len(images)).split(BATCH_SIZE):
        yield images.get(indices), images.labels[indices]


def extract(network: Network, batches: Iterable[torch.Tensor], progress: OnProgress) -> Features:
    """Return the features of all batches of uint8 [B, H, W, C], on the CPU in float32."""
    pooled, logits = [], []
    for images in batches:
        features = network(images)
        pooled.append(features.pooled.float().cpu())
        if features.logits is not None:
            logits.append(features.logits.float().cpu())
        progress(len(images))
    return Features(pooled=torch.cat(pooled), logits=torch.cat(logits) if logits else None)


def real_features(
    case: Case,
    dataset: Dataset,
    part: Part,
    workspace: Workspace,
    network: Callable[[], Network],
    progress: OnProgress,
) -> Features:
    """Return the features of one part of the dataset, from the cache where they are already known."""
    path = cache_folder(case, dataset, workspace, "features", part) / "features.safetensors"
    images = part_of(dataset, part)
    if path.exists():
        progress(len(images))
        tensors = load_file(path)
        return Features(pooled=tensors["pooled"], logits=tensors.get("logits"))
    features = extract(network(), (batch for batch, _ in batches_of(images)), progress)
    tensors = {"pooled": features.pooled}
    if features.logits is not None:
        tensors["logits"] = features.logits
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return features


@dataclass(frozen=True)
class Samples:
    """The generated images of a case, shard by shard in the order of their indices."""

    paths: tuple[Path, ...]
    labels: torch.Tensor

    @classmethod
    def open(cls, folder: Path) -> Samples:
        """Find the shards of a finished sample stage; raises UserInputError where there are none."""
        paths = tuple(sorted(folder.glob("samples-*.npz")))
        if not paths:
            raise UserInputError(f"no samples in {folder}; run the stage `sample` of this case first")
        return cls(paths, torch.cat([_read(path, "labels") for path in paths]))

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images uint8 [B, H, W, C] and labels int64 [B]; one shard is in memory at a time."""
        for path in self.paths:
            yield from zip(
                _read(path, "arr_0").split(BATCH_SIZE), _read(path, "labels").split(BATCH_SIZE), strict=True
            )


def _read(path: Path, name: str) -> torch.Tensor:
    try:
        with np.load(path) as shard:
            return torch.from_numpy(shard[name])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(
            f"cannot read {name!r} of the samples in {path}: {error}; remove the folder {path.parent} "
            "and run the same command again"
        ) from error
