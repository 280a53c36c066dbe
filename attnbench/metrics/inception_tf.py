"""Extractor `inception-tf`: the network behind FID, from the user's weights file."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from attnbench.contract import ExtractorInputs, FeatureExtractor, Features
from attnbench.errors import DataError, UnsupportedError, UserInputError
from attnbench.hookspecs import hookimpl
from attnbench.torchvision_ops import define_missing_ops

WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256_PREFIX = "6726825d"


def _load(inputs: ExtractorInputs) -> Callable[[torch.Tensor], Features]:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UnsupportedError(
            "extractor inception-tf needs torch-fidelity, which is not installed; "
            "run `pip install attnbench[inception]`"
        )
    weights = checked_weights(inputs.weights)
    define_missing_ops()  # torch-fidelity imports torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    network.to(inputs.device)

    @torch.no_grad()
    def extract(images: torch.Tensor) -> Features:
        x = images.to(inputs.device).permute(0, 3, 1, 2)
        # the network resizes and scales by itself, as the TensorFlow graph does
        pooled, logits = network(x.expand(-1, 3, -1, -1).contiguous())
        return Features(pooled=pooled, logits=logits)

    return extract


def checked_weights(path: Path | None) -> Path:
    """Return the weights file if it is the right one.

    Raises UserInputError when none is named, DataError when it is missing or another file.
    """
    if path is None:
        raise UserInputError(
            f"extractor inception-tf needs `evaluate.weights`: the path of {WEIGHTS_NAME}, which pytorch-fid "
            "and (as weights-inception-...) torch-fidelity offer with their releases; nothing is fetched"
        )
    if not path.is_file():
        raise DataError(f"no weights file at {path}; `evaluate.weights` names the file {WEIGHTS_NAME}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(WEIGHTS_SHA256_PREFIX):
        raise DataError(
            f"{path} is not {WEIGHTS_NAME}: its SHA-256 begins with {digest[:8]}, "
            f"expected {WEIGHTS_SHA256_PREFIX}; fetch the file again"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run any pickle
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} is no plain file of tensors: {error}; fetch the file again") from error
    return path


@hookimpl
def attnbench_extractors() -> Iterable[FeatureExtractor]:
    """Yield `inception-tf`."""
    yield FeatureExtractor(
        name="inception-tf",
        suffix="",
        summary="TensorFlow's 2015-12-05 Inception, port of torch-fidelity; needs your weights file",
        source=f"torch-fidelity inception-v3-compat, {WEIGHTS_NAME}",
        load=_load,
        notes={"input": "RGB 0 ... 255, TF1 bilinear resize to 299 px without antialias"},
    )
