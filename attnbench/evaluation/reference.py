"""What samples are compared with: statistics and features of real images, as a file that is checked on load.

A reference file is an npz. `mu`, `sigma`, `mu_s`, `sigma_s` are named as in ADM's reference batches (and read
by pytorch-fid); beside them `pool`, `spatial`, `digests`, `labels` of every image and `meta`, JSON with the
extractor, the image size and the SHA-256 of each array.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from attnbench.errors import DataError, UserInputError, cannot_read
from attnbench.evaluation.collection import DIGEST_BYTES
from attnbench.evaluation.features import ExtractedFeatures
from attnbench.evaluation.statistics_files import read_statistics
from attnbench.metrics.gaussian import CHUNK, RunningStatistics, Statistics
from attnbench.results import Record, environment
from attnbench.storage.arrays import DAMAGED_NPZ
from attnbench.storage.atomic import atomic_path

FORMAT = 1
ADM_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s")


class Provenance(Record):
    """Which network saw which images; two sets of features compare only where both are equal."""

    extractor: str
    protocol: str
    identity: str
    """What the extractor depends on beside its code, such as the hash of its weights."""
    height: int
    width: int
    channels: int

    def check(self, other: Provenance, what: str) -> None:
        """Raise DataError where `other` (of `what`) was made otherwise."""
        cut = "bring both to one size before scoring: --image-size {} cuts real image files"
        remedies = {
            "extractor": f"score with --extractor {other.extractor}, or build the reference again",
            "protocol": f"score with --protocol {other.protocol}, or build the reference again",
            "identity": "its weights are another file; build the reference again",
            "height": cut.format(self.height),
            "width": cut.format(self.width),
            "channels": "bring both to grey, or both to RGB, before scoring",
        }
        for name, remedy in remedies.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise DataError(f"{what} has {name} {theirs!r}, the samples have {mine!r}; {remedy}")


class Meta(Record):
    """The record inside a reference file."""

    format: int
    name: str
    num_images: int
    """Whose features it holds."""
    gaussian_images: int
    """Whom the statistics are of; 0 where that is not known."""
    gaussian_note: str
    provenance: Provenance
    class_names: list[str] | None = None
    attnbench: str
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real images as the metrics see them, in the canonical order of their pixels' hashes.

    `pooled` and `spatial` are the Gaussians of the Frechet distances: of `features`, or of a larger set in
    ADM's batches, whose 10,000 images are in `features`. Of statistics alone `features` has no row, and
    `provenance` is None: such files do not say what network saw what.
    """

    name: str
    provenance: Provenance | None
    features: ExtractedFeatures
    pooled: Statistics
    spatial: Statistics | None
    labels: torch.Tensor | None = None
    class_names: tuple[str, ...] | None = None
    gaussian_note: str = ""
    """Of what images the Gaussians are, where not of `features`."""

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.features)


def reference_of(
    name: str,
    features: ExtractedFeatures,
    provenance: Provenance,
    *,
    labels: torch.Tensor | None = None,
    class_names: tuple[str, ...] | None = None,
    most: int | None = None,
) -> Reference:
    """Return the reference made of a set of images; raises UserInputError for fewer than two.

    At most `most` images are kept, the first by hash of their pixels, which is a random draw that any
    order of files repeats; the Gaussians are of all.
    """
    if len(features) < 2:
        raise UserInputError(f"a reference needs two images or more, {name} has {len(features)}")
    order = features.canonical_order()
    kept = order[:most]
    return Reference(
        name=name,
        provenance=provenance,
        features=features.select(kept),
        pooled=_statistics(features.pooled, order),
        spatial=None if features.spatial is None else _statistics(features.spatial, order),
        labels=None if labels is None else labels[kept],
        class_names=class_names,
        gaussian_note="" if len(kept) == len(features) else f"the Gaussian of all {len(features):,} images",
    )


def reference_of_statistics(path: Path) -> Reference:
    """Return the reference that a file of statistics alone makes; raises DataError."""
    found = read_statistics(path)
    mean, covariance = found.names
    return Reference(
        name=str(path),
        provenance=None,
        features=ExtractedFeatures(
            pooled=torch.empty(0, len(found.pooled.mean)),
            digests=torch.empty(0, DIGEST_BYTES, dtype=torch.uint8),
        ),
        pooled=found.pooled,
        spatial=found.spatial,
        gaussian_note=f"the {mean} and {covariance} of {path.name} (N not stated)",
    )


def _statistics(features: torch.Tensor, order: torch.Tensor) -> Statistics:
    """Return the statistics of features [N, F] in an order [N], without a second copy of them."""
    running = RunningStatistics(features.shape[1], features.device)
    for rows in order.split(CHUNK):
        running.update(features[rows])
    return running.statistics()


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference file, whole or not at all; raises StorageError."""
    assert reference.provenance is not None  # it is made of images
    arrays = _arrays(reference)
    meta = Meta(
        format=FORMAT,
        name=reference.name,
        num_images=len(reference),
        gaussian_images=reference.pooled.n,
        gaussian_note=reference.gaussian_note,
        provenance=reference.provenance,
        class_names=None if reference.class_names is None else list(reference.class_names),
        attnbench=environment().packages.get("attnbench", ""),
        sha256={name: _sha256(array) for name, array in arrays.items()},
    )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, meta=np.array(meta.model_dump_json()), **arrays)


def _arrays(reference: Reference) -> dict[str, np.ndarray[Any, Any]]:
    features = reference.features
    found: dict[str, torch.Tensor | None] = {
        "mu": reference.pooled.mean,
        "sigma": reference.pooled.covariance,
        "mu_s": reference.spatial.mean if reference.spatial else None,
        "sigma_s": reference.spatial.covariance if reference.spatial else None,
        "pool": features.pooled,
        "spatial": features.spatial,
        "digests": features.digests,
        "labels": reference.labels,
    }
    return {name: tensor.cpu().numpy() for name, tensor in found.items() if tensor is not None}


def holds(path: Path) -> set[str]:
    """Return the names of the arrays in an npz file; empty where it is none."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return set()
    try:
        with zipfile.ZipFile(path) as archive:  # numpy would take a renamed .npy, too
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except OSError as error:
        raise DataError(cannot_read(path, error, "copy or build it again")) from error
    except DAMAGED_NPZ as error:
        raise DataError(f"{path} is no whole npz file ({error}); copy or build it again") from error


def load_reference(path: Path) -> Reference:
    """Read a reference file; raises DataError where it is damaged or of another format."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            meta = Meta.model_validate_json(str(stored["meta"]))
            arrays = {name: stored[name] for name in meta.sha256}
    except OSError as error:
        raise DataError(cannot_read(path, error, "build it again")) from error
    except (*DAMAGED_NPZ, ValidationError) as error:
        raise DataError(f"{path} is no reference file of this attnbench ({error}); build it again") from error
    if meta.format != FORMAT:
        raise DataError(f"{path} has format {meta.format}, this attnbench reads {FORMAT}; build it again")
    for name, expected in meta.sha256.items():
        if _sha256(arrays[name]) != expected:
            raise DataError(f"{path}: the array {name!r} has changed since it was written; build it again")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    features = ExtractedFeatures(
        pooled=tensors["pool"], spatial=tensors.get("spatial"), logits=None, digests=tensors["digests"]
    )
    return Reference(
        name=meta.name,
        provenance=meta.provenance,
        features=features,
        pooled=_gaussian(tensors, "", meta.gaussian_images),
        spatial=_gaussian(tensors, "_s", meta.gaussian_images) if "mu_s" in tensors else None,
        gaussian_note=meta.gaussian_note,
        labels=tensors.get("labels"),
        class_names=None if meta.class_names is None else tuple(meta.class_names),
    )


def with_adm_statistics(reference: Reference, path: Path) -> Reference:
    """Put the Gaussians of one of ADM's reference batches in place of those of its images.

    They describe the whole training set, of which the batch holds 10,000 images for precision and recall;
    the file does not say how many images that is. Raises DataError where the arrays do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            tensors = {name: torch.from_numpy(stored[name]).double() for name in ADM_ARRAYS}
    except OSError as error:
        raise DataError(cannot_read(path, error, "fetch the file again")) from error
    except DAMAGED_NPZ as error:
        raise DataError(f"{path}: its statistics cannot be read ({error}); fetch the file again") from error
    for suffix, ours in (("", reference.pooled), ("_s", reference.spatial)):
        found = [list(tensors[name + suffix].shape) for name in ("mu", "sigma")]
        if ours is None or found != [list(ours.mean.shape), list(ours.covariance.shape)]:
            raise DataError(
                f"{path}: mu{suffix} and sigma{suffix} are {found[0]} and {found[1]}, the network gives "
                f"{None if ours is None else list(ours.mean.shape)}; ADM's statistics are of inception-tf"
            )
    return replace(
        reference,
        pooled=_gaussian(tensors, "", 0),
        spatial=_gaussian(tensors, "_s", 0),
        gaussian_note="the mu and sigma of the file, of its whole training set (N not stated)",
    )


def _gaussian(tensors: dict[str, torch.Tensor], suffix: str, n: int) -> Statistics:
    return Statistics(mean=tensors["mu" + suffix], covariance=tensors["sigma" + suffix], n=n)


def _sha256(array: np.ndarray[Any, Any]) -> str:
    header = json.dumps([str(array.dtype), list(array.shape)]).encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()
