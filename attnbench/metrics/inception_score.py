"""The inception score, and what each image adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.metrics.checks import check_features


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and standard deviation (dividing by the count) over splits; influence of each image, [N]."""

    mean: float
    std: float
    influence: torch.Tensor


def inception_score(
    logits: torch.Tensor, *, split_size: int = 5000, shuffle_seed: int | None = 0
) -> InceptionScore:
    """Return exp(mean KL(p(y|x) || p(y))) over splits of `split_size` images.

    `logits` is [N, K]; the maths is float64. Images are permuted with `shuffle_seed` first, because sorted
    samples make splits of few classes; None takes contiguous splits, as ADM's evaluator does. The last split
    may be smaller. `influence` is in the order of `logits`: the first-order change of the mean with the
    image's weight; its mean is zero in every split. Raises NonFiniteError for NaN or infinity.
    Source: arXiv:1606.03498, section 4; split size of guided-diffusion's evaluator.
    """
    check_features(logits, "logits", at_least=1)
    order = torch.arange(len(logits))
    if shuffle_seed is not None:
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(shuffle_seed))
    splits = order.to(logits.device).split(split_size)
    influence = logits.new_zeros(len(logits), dtype=torch.float64)
    scores = []
    for chosen in splits:
        divergence = _divergence_from_mean(logits[chosen])
        score = divergence.mean().exp()
        scores.append(score)
        # The marginal moves with the weights too, but sum_i KL_i does not change with it to first order.
        # An image in a small last split has more weight in the mean over splits.
        weight = len(logits) / (len(splits) * len(chosen))
        influence[chosen] = weight * score * (divergence - divergence.mean())
    values = torch.stack(scores)
    return InceptionScore(mean=float(values.mean()), std=float(values.std(correction=0)), influence=influence)


def _divergence_from_mean(logits: torch.Tensor) -> torch.Tensor:
    """Return KL(p(y|x) || p(y)) of each image, [n], where p(y) is the mean over the given images."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    log_marginal = p.mean(dim=0).log()
    # p log p -> 0 where no image gives a class any probability: log p(y) is -inf there
    return (p * (log_p - log_marginal).nan_to_num(0.0)).sum(dim=1)
