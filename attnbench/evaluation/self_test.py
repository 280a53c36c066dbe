"""Proof of the metrics where they run: the maths, the network, ADM's published numbers, level by level."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from attnbench.errors import AttnbenchError, UserInputError
from attnbench.evaluation import adm_formulas
from attnbench.evaluation.images import open_images
from attnbench.evaluation.scorer import Scorer
from attnbench.metrics.gaussian import frechet_distance, statistics
from attnbench.metrics.inception_score import inception_score
from attnbench.metrics.pairwise import kernel_distance, precision, recall
from attnbench.specs import EvaluateSpec, Metric

MakeScorer = Callable[[EvaluateSpec], Scorer]
Level = Literal["maths", "network", "golden"]
TOLERANCE = 1e-6  # relative: what the definitions must agree to
# A network's float32 sums are ordered differently by every processor; 30 layers of roundings of 6e-8
# leave 1e-5 of a feature's size, and a wrong scaling or resize changes features by more than 0.1.
NETWORK_TOLERANCE = 1e-3
ADM_REFERENCE, ADM_SAMPLES = "VIRTUAL_imagenet256_labeled.npz", "admnet_guided_upsampled_imagenet256.npz"
GOLDEN = {"IS": (215.84, 0.005), "FID": (3.94, 0.005), "sFID": (6.14, 0.005),
          "Precision": (0.8265, 0.002), "Recall": (0.5309, 0.002)}  # fmt: skip
"""ADM's README prints them; half of the last digit, and what its float16 distances may move the manifolds."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One comparison of ours with another source."""

    level: Level
    what: str
    ours: float | None = None
    theirs: float | None = None
    tolerance: float = 0.0
    """Largest difference allowed, in the value's unit."""
    reason: str = ""
    """Why it did not run."""

    @property
    def status(self) -> Literal["ok", "failed", "not run"]:
        """Whether ours and theirs agree; a value that is not a number agrees with nothing."""
        if self.difference is None:
            return "not run"
        return "ok" if self.difference <= self.tolerance else "failed"

    @property
    def difference(self) -> float | None:
        """What ours and theirs differ by, in the value's unit; None where it did not run."""
        return None if self.ours is None or self.theirs is None else abs(self.ours - self.theirs)


def prove_maths() -> Iterator[Proof]:
    """Yield each metric against numpy's transcription, torch-fidelity and prdc, on easy and hard features."""
    for name, (x, y) in _fixtures().items():
        yield from _against_formulas(name, x, y)
    x, y = _fixtures()["random"]
    yield from _against_torch_fidelity(x, y)
    yield from _against_prdc(x, y)


def _fixtures() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return pairs of float64 feature sets; the degenerate ones are where implementations part."""
    generator = torch.Generator().manual_seed(0)

    def normal(n: int, width: int) -> torch.Tensor:
        return torch.randn(n, width, generator=generator, dtype=torch.float64)

    x, y = normal(60, 8), 1.2 * normal(60, 8) + 0.3
    constant = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)
    return {
        "random": (x, y),
        "fewer images than features": (normal(12, 40), normal(12, 40) + 0.2),
        "every image twice": (x[:30].repeat(2, 1), y[:30].repeat(2, 1)),
        "constant features": (x * constant + 5, y * constant + 5),
        "one direction": (x[:, :1] * torch.ones(8), y[:, :1] * torch.ones(8) + 0.1),
    }


def _against_formulas(name: str, x: torch.Tensor, y: torch.Tensor) -> Iterator[Proof]:
    a, b = x.numpy(), y.numpy()
    # what cancels in a distance is of the size of the covariances: so is the error that is allowed
    spread = float(x.var(dim=0).sum() + y.var(dim=0).sum())
    theirs = adm_formulas.frechet_distance(a, b)
    ours = frechet_distance(statistics(x), statistics(y))
    yield _proof(f"Frechet distance, {name}", ours, theirs, size=spread)
    found = kernel_distance(x, y, subsets=2, subset_size=len(x))
    yield _proof(f"kernel distance, {name}", found.mean, adm_formulas.kernel_distance(a, b))
    score = inception_score(x, split_size=25, shuffle_seed=None).mean
    yield _proof(f"inception score, {name}", score, adm_formulas.inception_score(a, 25))
    for metric, function, value in zip(
        ("precision", "recall"), (precision, recall), adm_formulas.precision_and_recall(a, b, 3), strict=True
    ):
        yield _proof(f"{metric}, {name}", function(x, y, neighbours=3), value, exact=True)


def _against_torch_fidelity(x: torch.Tensor, y: torch.Tensor) -> Iterator[Proof]:
    names = [
        f"{metric} of torch-fidelity" for metric in ("Frechet distance", "kernel distance", "inception score")
    ]
    if importlib.util.find_spec("torch_fidelity") is None:
        yield from (_not_run("maths", name, "torch-fidelity is not installed") for name in names)
        return
    from attnbench.torchvision_ops import define_missing_ops

    define_missing_ops()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False
    )["frechet_inception_distance"]
    yield _proof(names[0], frechet_distance(statistics(x), statistics(y)), theirs)
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None,
                "kid_kernel_poly_coef0": 1}  # fmt: skip
    mmd = float(kernel_mmd(x.numpy(), y.numpy(), **settings))
    yield _proof(names[1], kernel_distance(x, y, subsets=1, subset_size=len(x)).mean, mmd)
    score = isc_features_to_metric(x, splits=2, shuffle=False)["inception_score_mean"]
    yield _proof(names[2], inception_score(x, split_size=len(x) // 2, shuffle_seed=None).mean, score)


def _against_prdc(x: torch.Tensor, y: torch.Tensor) -> Iterator[Proof]:
    if importlib.util.find_spec("prdc") is None:
        yield from (
            _not_run("maths", f"{m} of prdc", "prdc is not installed") for m in ("precision", "recall")
        )
        return
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        theirs = compute_prdc(x.numpy(), y.numpy(), nearest_k=3)
    for metric, function in (("precision", precision), ("recall", recall)):
        ours = function(x, y, neighbours=3)
        yield _proof(f"{metric} of prdc", ours, float(theirs[metric]), exact=True)


def prove_network(make: MakeScorer, settings: EvaluateSpec) -> Iterator[Proof]:
    """Yield the features of scikit-image's cup of coffee against those stored when this was written."""
    name = settings.extractor
    stored = files("attnbench.evaluation") / "activations" / f"{name}.npz"
    what = f"{name}: features of a cup of coffee"
    if not stored.is_file() or settings.protocol != "adm":
        yield _not_run("network", what, "no activations are stored for this network and protocol")
        return
    try:
        network = make(settings).cache.network
    except AttnbenchError as error:
        yield _not_run("network", what, str(error))
        return
    with stored.open("rb") as file, np.load(file) as arrays:
        expected = {kind: torch.from_numpy(arrays[kind]).double() for kind in arrays.files}
    found = network(coffee())
    for kind, theirs in expected.items():
        ours = getattr(found, kind)[0].double().cpu()
        yield Proof(
            level="network",
            what=f"{what}, {kind}: relative distance",
            ours=float((ours - theirs).norm() / theirs.norm()),
            theirs=0.0,
            tolerance=NETWORK_TOLERANCE,
        )


def coffee() -> torch.Tensor:
    """Return scikit-image's photograph of a cup of coffee, its middle 256 pixels, uint8 [1, 256, 256, 3]."""
    from skimage import data

    image = torch.from_numpy(data.coffee().copy())
    top, left = (image.shape[0] - 256) // 2, (image.shape[1] - 256) // 2
    return image[None, top : top + 256, left : left + 256]


def prove_golden(make: MakeScorer, settings: EvaluateSpec, folder: Path | None) -> Iterator[Proof]:
    """Yield the metrics of ADM's published samples against the numbers ADM's README prints.

    Raises UserInputError where `folder` is given and lacks one of the two files.
    """
    if folder is None:
        yield _not_run(
            "golden", "ADM's samples of ImageNet 256", "give --golden FOLDER with its two npz files"
        )
        return
    for name in (ADM_REFERENCE, ADM_SAMPLES):
        if not (folder / name).is_file():
            raise UserInputError(f"--golden: {folder} has no {name}; fetch it from guided-diffusion's README")
    # of the user's settings only the weights file: all others are part of what the README's numbers mean
    adm: list[Metric] = ["is", "fd", "sfd", "precision", "recall"]
    scorer = make(
        EvaluateSpec(extractor="inception-tf", metrics=adm, is_order="given", weights=settings.weights)
    )
    reference = scorer.open_reference(folder / ADM_REFERENCE)
    found = {m.name: m.value for m in scorer.measure(reference, open_images(folder / ADM_SAMPLES))}
    for name, (value, tolerance) in GOLDEN.items():
        yield Proof(level="golden", what=name, ours=found[name], theirs=value, tolerance=tolerance)


def _proof(what: str, ours: float, theirs: float, *, size: float = 0.0, exact: bool = False) -> Proof:
    tolerance = 0.0 if exact else TOLERANCE * max(abs(theirs), size)
    return Proof(level="maths", what=what, ours=ours, theirs=theirs, tolerance=tolerance)


def _not_run(level: Level, what: str, reason: str) -> Proof:
    return Proof(level=level, what=what, reason=reason)
