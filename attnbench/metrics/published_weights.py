"""The weights files of all built-in extractors that need one from outside."""

from __future__ import annotations

from attnbench.metrics import dinov2, inception_tf
from attnbench.metrics.weights_files import WeightsFile


def published() -> dict[str, WeightsFile]:
    """Return the weights files of the built-in extractors that need one, by extractor."""
    return {file.extractor: file for file in (inception_tf.WEIGHTS, dinov2.WEIGHTS)}
