"""Features of a set of images, extracted shard by shard and kept by content."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.errors import NonFiniteError, PluginError, UserInputError
from attnbench.evaluation.collection import (
    PIECE_SIZE,
    ImageCollection,
    ImageShard,
    pixel_digests,
    single_colour,
)
from attnbench.metrics.threads import in_advance
from attnbench.plugins import Provided
from attnbench.specs import content_hash
from attnbench.storage.arrays import Arrays, DamagedFileError, read_arrays, write_arrays
from attnbench.storage.atomic import storage_errors

FORMAT = 1  # of cached shards; raised when their meaning changes
PIECES_AHEAD = 2
KINDS = ("pooled", "spatial", "logits")
Network = Callable[[torch.Tensor], Features]
CountImages = Callable[[int], None]  # number of images just finished


@dataclass(frozen=True, kw_only=True)
class ExtractedFeatures:
    """Features of N images: float32 pooled [N, F] and, where the network has them, spatial and logits.

    `digests`, uint8 [N, 16], starts the SHA-256 of each image's shape and pixels.
    """

    pooled: torch.Tensor
    digests: torch.Tensor
    spatial: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.pooled)

    def select(self, indices: torch.Tensor) -> ExtractedFeatures:
        """Return the rows at `indices` (int64 [M]), or where a bool [N] is true."""
        return ExtractedFeatures(
            pooled=self.pooled[indices],
            digests=self.digests[indices],
            spatial=None if self.spatial is None else self.spatial[indices],
            logits=None if self.logits is None else self.logits[indices],
        )

    def canonical_order(self) -> torch.Tensor:
        """Return int64 [N], the rows sorted by digest: no seeded result depends on the images' order.

        Equal digests are equal images.
        """
        high, low = np.ascontiguousarray(self.digests.numpy()).view(">u8").T
        return torch.from_numpy(np.lexsort((low, high)))


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Images of a shard that must be extracted, uint8 [n, H, W, C], and what is known from the pixels."""

    images: torch.Tensor
    arrays: Arrays


@dataclass(kw_only=True)
class FeatureCache:
    """Runs one feature network over collections of images and keeps what comes out by content.

    Layout: `<folder>/<key>/<shard key>.safetensors`. `warnings` names files that were damaged and
    extracted again.
    """

    folder: Path
    extractor: Provided
    inputs: ExtractorInputs
    batch_size: int = 64
    warnings: list[str] = field(default_factory=list)

    @functools.cached_property
    def record(self) -> FeatureExtractor:
        """The extractor; raises UserInputError where it has not the protocol asked for."""
        record: FeatureExtractor = self.extractor.record
        if self.inputs.protocol not in record.protocols:
            raise UserInputError(
                f"extractor {record.name} has no protocol {self.inputs.protocol!r}; "
                f"choose one of: {', '.join(record.protocols)}"
            )
        return record

    @functools.cached_property
    def identity(self) -> str:
        """What the extractor says its features depend on, such as the hash of its weights file."""
        return self.record.identity(self.inputs)

    @functools.cached_property
    def key(self) -> str:
        """Content address of the network: 16 hexadecimal digits."""
        provided, inputs = self.extractor, self.inputs
        what = [FORMAT, self.record.name, inputs.protocol, self.identity, provided.origin, provided.code]
        # CUDA convolves in TF32: its features differ from those of a CPU by more than rounding
        return content_hash([*what, inputs.device.type])

    @functools.cached_property
    def network(self) -> Network:
        """The feature network, loaded when the first unknown shard comes; raises what its plugin raises."""
        return self.record.load(self.inputs)

    def path(self, shard: ImageShard) -> Path:
        """Return where the features of a shard lie."""
        return self.folder / self.key / f"{shard.key}.safetensors"

    def features(
        self, collection: ImageCollection, progress: CountImages = lambda images: None
    ) -> ExtractedFeatures:
        """Return the features of all images in their order, extracting the shards that are not known yet.

        A killed run, started again, continues with the first unfinished shard. Raises DataError (an
        image that cannot be decoded), PluginError (features of a wrong shape), NonFiniteError (naming the
        image), StorageError and UserInputError.
        """
        with storage_errors(self.folder):
            (self.folder / self.key).mkdir(parents=True, exist_ok=True)
        rows = _Rows(collection)
        pieces: list[Arrays] = []  # of the shard that is being extracted
        # closed at once on an error or Ctrl-C, not when the traceback is let go
        with closing(in_advance(self._read(collection), self._pieces_ahead)) as items:
            for shard, found in items:
                if not isinstance(found, _Piece):
                    progress(shard.count)
                    rows.append(found)
                    continue
                first = rows.done + sum(len(piece["digests"]) for piece in pieces)
                pieces.append(found.arrays | self._extract(found.images, collection.name, first, progress))
                if first + len(found.images) == rows.done + shard.count:
                    arrays = self._joined(pieces)
                    write_arrays(self.path(shard), arrays)
                    rows.append(arrays)
                    pieces.clear()
        return rows.features()

    @property
    def _pieces_ahead(self) -> int:
        """How many pieces are read while the network computes.

        None on a CPU: reading and the network take all of torch's threads each, so they take turns.
        """
        return 0 if self.inputs.device.type == "cpu" else PIECES_AHEAD

    def _read(self, collection: ImageCollection) -> Iterator[tuple[ImageShard, Arrays | _Piece]]:
        """Yield the features of each shard, or its images piece by piece where they are not known."""
        # whole batches, so that an image meets the same others whatever a piece is
        size = self.batch_size * max(1, PIECE_SIZE // self.batch_size)
        for shard in collection.shards:
            known = self._known(shard)
            if known is not None:
                yield shard, known
                continue
            done = 0
            for images in shard.pieces(size):
                if shard.digests is None:
                    digests = pixel_digests(images)
                else:
                    digests = shard.digests[done : done + len(images)]
                plain = torch.tensor([single_colour(image) for image in images])
                yield shard, _Piece(images=images, arrays={"digests": digests, "single_colour": plain})
                done += len(images)

    def _known(self, shard: ImageShard) -> Arrays | None:
        path = self.path(shard)
        try:
            return read_arrays(path, shard.count)
        except DamagedFileError as error:
            self.warnings.append(f"{path} is damaged ({error}): its features are extracted again")
            return None

    def _joined(self, pieces: list[Arrays]) -> Arrays:
        """Return the arrays of a shard; raises PluginError where pieces have other kinds of features."""
        if any(piece.keys() != pieces[0].keys() for piece in pieces):
            raise self._other_kinds()
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _other_kinds(self) -> PluginError:
        return PluginError(f"extractor {self.record.name} gives other kinds of features from batch to batch")

    def _extract(self, images: torch.Tensor, name: str, first: int, progress: CountImages) -> Arrays:
        """Run the network over images, the first of which is number `first` of the collection."""
        found: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
        network = self.network  # outside no_grad: some are trained when they are loaded
        for batch in images.split(self.batch_size):
            with torch.no_grad():
                features = network(batch)
            for kind, rows in _checked(features, self.record.name, len(batch)).items():
                found[kind].append(rows)
                bad = torch.nonzero(~torch.isfinite(rows).all(dim=1)).flatten()
                if len(bad):
                    raise NonFiniteError(
                        f"extractor {self.record.name} gives NaN or infinity in the {kind} features of image "
                        f"{first + int(bad[0])} of {name} (counted from 0); nothing of its shard was kept: "
                        "check the extractor's weights, and that image"
                    )
            first += len(batch)
            progress(len(batch))
        if any(rows and len(rows) != len(found["pooled"]) for rows in found.values()):
            raise self._other_kinds()
        return {kind: torch.cat(rows) for kind, rows in found.items() if rows}


def _checked(features: Features, name: str, num_images: int) -> Arrays:
    """Return what a network gave as float32 [B, ...] on the CPU; raises PluginError for other shapes."""
    if not isinstance(features, Features):
        raise PluginError(f"extractor {name} returned a {type(features).__name__}; it must return Features")
    found = {kind: getattr(features, kind) for kind in KINDS if getattr(features, kind) is not None}
    for kind, rows in found.items():
        if rows.ndim != 2 or len(rows) != num_images or not rows.is_floating_point():
            raise PluginError(
                f"extractor {name} returned {kind} of shape {list(rows.shape)} and {rows.dtype} for "
                f"{num_images} images; it must be floating point of shape [{num_images}, features]"
            )
    return {kind: rows.detach().float().cpu() for kind, rows in found.items()}


class _Rows:
    """The features of a collection as they arrive, in matrices made once for all N images."""

    def __init__(self, collection: ImageCollection) -> None:
        self.collection, self.done = collection, 0
        self.matrices: Arrays = {}

    def append(self, arrays: Arrays) -> None:
        """Copy the features of the next shard; raises PluginError where shards do not fit together."""
        if not self.matrices:
            total = len(self.collection)
            self.matrices = {name: rows.new_empty(total, *rows.shape[1:]) for name, rows in arrays.items()}
        shapes = [{name: rows.shape[1:] for name, rows in part.items()} for part in (self.matrices, arrays)]
        if shapes[0] != shapes[1]:
            raise PluginError(f"features of one network differ in shape: {shapes[0]} and {shapes[1]}")
        count = len(arrays["pooled"])
        for name, rows in arrays.items():
            self.matrices[name][self.done : self.done + count] = rows
        self.done += count

    def features(self) -> ExtractedFeatures:
        """Return all rows; warns of images that are one single colour."""
        plain = torch.nonzero(self.matrices.pop("single_colour")).flatten().tolist()
        if plain:
            self.collection.warn(
                f"{len(plain):,} of {len(self.collection):,} images are one single colour, "
                f"first number {plain[0]} (counted from 0): did the sampler fail on them?"
            )
        return ExtractedFeatures(**self.matrices)
