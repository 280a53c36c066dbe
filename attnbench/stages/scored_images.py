"""Real and generated images as the stage `evaluate` scores them, and what its networks are trained on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from attnbench.contract import ExtractorInputs
from attnbench.data import Dataset, ImageSet
from attnbench.data.dataset import PartName
from attnbench.errors import UserInputError
from attnbench.evaluation.collection import PIECE_SIZE, ImageCollection, ImageShard
from attnbench.evaluation.features import FeatureCache
from attnbench.evaluation.images import open_images
from attnbench.evaluation.scorer import SEED, Scorer
from attnbench.metrics.classifier import Classifier, LabelledImages
from attnbench.plugins import registry
from attnbench.progress import Progress
from attnbench.specs import FORMAT, Case, content_hash
from attnbench.stages.latents.model_space import MadeFrom
from attnbench.storage.arrays import DamagedFileError, read_arrays, write_arrays
from attnbench.storage.atomic import storage_errors
from attnbench.storage.names import MADE_FROM, SAMPLE_SHARDS, TRAINING_IMAGES
from attnbench.storage.records import read_record, write_record
from attnbench.storage.store import Workspace, features_folder

BATCH_SIZE = 64
MAX_TRAINING_IMAGES = 20_000
MAX_TRAINING_SIDE = 32


def part_of(dataset: Dataset, part: PartName) -> ImageSet:
    """Return the training or the held-out images."""
    return dataset.train if part == "train" else dataset.held_out


def dataset_key(case: Case, dataset: Dataset) -> str:
    """Return a hash of the data's settings and all labels: added or removed images change it."""
    labels = hashlib.sha256()
    for part in (dataset.train, dataset.held_out):
        labels.update(f"{len(part)}".encode() + part.labels.numpy().tobytes())
    return content_hash([FORMAT, case.data.model_dump(mode="json"), labels.hexdigest()])


def cache_folder(case: Case, dataset: Dataset, workspace: Workspace, *what: object) -> Path:
    """Return (and create) the folder of something computed from real images alone, named by `what`.

    Where the folder of that name holds something of other image files in the same place, it is another one.
    What an earlier attnbench computed does not say of which: it is taken to be of those that are there now.
    """
    prepared = read_record(workspace.folder("prepare", case) / MADE_FROM, MadeFrom)
    now = MadeFrom(data=dataset.fingerprint, codec="").with_images(dataset, prepared)
    path = features_folder(workspace.root) / content_hash([dataset_key(case, dataset), *what])
    before = read_record(path / MADE_FROM, MadeFrom)
    if before is not None and not before.of_same_files(now):
        path = path.with_name(content_hash([path.name, now.data, now.content]))
        before = read_record(path / MADE_FROM, MadeFrom)
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    if before is None:
        write_record(path / MADE_FROM, now)
    return path


def sampled_images(case: Case, workspace: Workspace) -> ImageCollection:
    """Return what the sample stage has drawn; raises UserInputError where there is nothing."""
    folder = workspace.folder("sample", case)
    if not any(folder.glob(SAMPLE_SHARDS)):
        raise UserInputError(f"no samples in {folder}; run the stage `sample` of this case first")
    return open_images(folder)


def load_scorer(case: Case, workspace: Workspace, training: LabelledImages, progress: Progress) -> Scorer:
    """Return the scorer that the case names; raises UnknownNameError for an extractor nobody provides."""
    settings, known = case.evaluate, registry()
    known.extractor(settings.extractor)
    warnings: list[str] = []
    inputs = ExtractorInputs(
        device=workspace.device,
        seed=SEED,
        cache_dir=features_folder(workspace.root),
        weights=settings.weights,
        protocol=settings.protocol,
        train_images=training.images,
        train_labels=training.labels,
        num_classes=training.num_classes,
        warn=warnings.append,
    )
    cache = FeatureCache(
        folder=features_folder(workspace.root),
        extractor=known.extractors[settings.extractor],
        inputs=inputs,
        warnings=warnings,
    )
    return Scorer(settings=settings, cache=cache, progress=progress)


def training_images(
    case: Case, dataset: Dataset, workspace: Workspace, warn: Callable[[str], None] = lambda text: None
) -> LabelledImages:
    """Return what evaluation networks train on: 20,000 images at most, 32 pixels at most.

    Evenly spaced images of the training part, averaged down; kept on disk, since decoding them again
    for every case would take longer than training. `warn` hears of a damaged file, which is written again.
    """
    path = cache_folder(case, dataset, workspace, "training images") / TRAINING_IMAGES
    try:
        tensors = read_arrays(path, unchecked=True)
    except DamagedFileError as error:
        warn(f"{path} is damaged ({error}): the evaluation networks' training images are read again")
        tensors = None
    if tensors is None:
        count = len(dataset.train)
        step = max(1, -(-count // MAX_TRAINING_IMAGES))
        chosen = torch.arange(0, count, step)
        batches = [_shrunk(dataset.train.get(indices)) for indices in chosen.split(512)]
        tensors = {"images": torch.cat(batches), "labels": dataset.train.labels[chosen]}
        write_arrays(path, tensors)
    return LabelledImages(images=tensors["images"], labels=tensors["labels"], num_classes=dataset.num_classes)


def _shrunk(images: torch.Tensor) -> torch.Tensor:
    """Average uint8 [B, H, W, C] down to 32 pixels where it is larger."""
    if images.shape[1] <= MAX_TRAINING_SIDE:
        return images
    small = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), MAX_TRAINING_SIDE)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class JudgedImages:
    """Images that a classifier judges while they are read for their features: no shard is decoded twice.

    `collection` is what to read. It may be read in another thread than the caller's, a shard at a time.
    """

    def __init__(self, images: ImageCollection, classifier: Classifier) -> None:
        assert images.labels is not None  # our samples and datasets have them
        self._classifier = classifier
        self._labels = images.labels.split([shard.count for shard in images.shards])
        self._seen = [0] * len(images.shards)
        self._correct = 0
        shards = []
        for number, shard in enumerate(images.shards):
            rows = None if shard.load_rows is None else functools.partial(self._load_rows, number, shard)
            shards.append(replace(shard, load=functools.partial(self._load, number, shard), load_rows=rows))
        self.collection = replace(images, shards=tuple(shards))

    def _load(self, number: int, shard: ImageShard) -> torch.Tensor:
        images = shard.load()
        self._judge(number, 0, images)
        return images

    def _load_rows(self, number: int, shard: ImageShard, first: int, count: int) -> torch.Tensor:
        assert shard.load_rows is not None  # or nobody would call this
        images = shard.load_rows(first, count)
        self._judge(number, first, images)
        return images

    def _judge(self, number: int, first: int, images: torch.Tensor) -> None:
        """Count what is right among the images of a shard that come next, each image once."""
        seen = self._seen[number]
        if not first <= seen < first + len(images):
            return
        images, labels = images[seen - first :], self._labels[number][seen : first + len(images)]
        batches = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
        self._correct += sum(self._classifier.correct(*batch) for batch in batches)
        self._seen[number] += len(images)

    @property
    def accuracy(self) -> float:
        """Part of the images that are given their label; what nobody has read yet is read here."""
        for shard, seen in zip(self.collection.shards, self._seen, strict=True):
            if seen < shard.count:  # its features were known
                for _ in shard.pieces(PIECE_SIZE):
                    pass
        return self._correct / len(self.collection)
