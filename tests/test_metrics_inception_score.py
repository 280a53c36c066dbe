"""Inception score against independent oracles, and the interval made of influences."""

import adm_reference
import numpy as np
import pytest
import torch

from attnbench.errors import NonFiniteError, UserInputError
from attnbench.metrics.inception_score import inception_score
from attnbench.metrics.uncertainty import interval, standard_error
from attnbench.torchvision_ops import define_missing_ops

define_missing_ops()
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402 - needs the ops first


def logits(n, classes=6, seed=0):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("splits", [1, 4])
def test_inception_score_equals_torch_fidelitys(splits):
    """Contiguous splits of equal size score as torch-fidelity's do."""
    x = logits(80)
    theirs = isc_features_to_metric(x, splits=splits, shuffle=False)
    ours = inception_score(x, split_size=80 // splits, shuffle_seed=None)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours.std == pytest.approx(theirs["inception_score_std"], abs=1e-12)


@pytest.mark.parametrize("split_size", [30, 35, 100])
@pytest.mark.parametrize("kind", ["random", "duplicated rows", "one class", "rank 1"])
def test_inception_score_equals_the_evaluators_formula(kind, split_size):
    """ADM's contiguous splits, a shorter last one included, give the same number."""
    x = logits(80)
    if kind == "duplicated rows":
        x = x[:20].repeat(4, 1)
    if kind == "one class":
        x[:, 0] += 30
    if kind == "rank 1":
        x = x[:, :1] * torch.arange(6.0)
    expected = adm_reference.inception_score(x.softmax(dim=1).numpy(), split_size)
    assert inception_score(x, split_size=split_size, shuffle_seed=None).mean == pytest.approx(
        expected, rel=1e-12
    )


def test_inception_score_of_sorted_samples_needs_the_permutation():
    """Sorted certain samples score 1 per contiguous split of one class; shuffled, nearly the 5 classes."""
    x = 100.0 * torch.eye(5).repeat_interleave(200, dim=0)
    assert inception_score(x, split_size=200, shuffle_seed=None).mean == pytest.approx(1.0)
    assert inception_score(x, split_size=200).mean > 4.8
    assert inception_score(x, split_size=1000).mean == pytest.approx(5.0)


def test_inception_score_with_impossible_classes():
    """Probabilities that underflow to zero add nothing instead of NaN."""
    x = torch.tensor([[0.0, -2000.0], [0.0, -2000.0]])
    found = inception_score(x)
    assert found.mean == pytest.approx(1.0)
    assert found.influence.tolist() == [0.0, 0.0]


def weighted_score(p, weights):
    """The score of one split whose images have weights that sum to one."""
    divergence = (p * (p.log() - (weights @ p).log())).sum(dim=1)
    return (weights @ divergence).exp()


@pytest.mark.parametrize("split_size", [30, 20])
def test_influence_is_the_derivative_with_the_weights(split_size):
    """Central differences of the mean over explicitly weighted splits, in the order of the logits."""
    n, step = 30, 1e-6
    x = logits(n)
    found = inception_score(x, split_size=split_size, shuffle_seed=7)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(7))
    splits = order.split(split_size)
    p = x.softmax(dim=1)

    def score(weights):
        parts = [weighted_score(p[s], weights[s] / weights[s].sum()) for s in splits]
        return float(torch.stack(parts).mean())

    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    assert score(uniform) == pytest.approx(found.mean, rel=1e-12)
    for i in range(n):
        direction = torch.zeros(n, dtype=torch.float64)
        direction[i] = 1
        difference = (score(uniform + step * direction) - score(uniform - step * direction)) / (2 * step)
        # off by (N step)^2 ~ 1e-9 of the third derivative, rounding by eps / step ~ 1e-9 of the score
        assert float(found.influence[i]) == pytest.approx(difference, abs=1e-7 * found.mean)
    assert float(found.influence.mean()) == pytest.approx(0.0, abs=1e-12)


def test_standard_error_is_that_of_a_bootstrap_and_of_draws():
    """The spread over 300 resamples of the images, and over 300 fresh samples, is what the interval says."""
    n, generator = 500, torch.Generator().manual_seed(0)
    found = [inception_score(logits(n, seed=seed)) for seed in range(300)]
    x = logits(n)
    resampled = [
        inception_score(x[torch.randint(n, (n,), generator=generator)], shuffle_seed=None).mean
        for _ in range(300)
    ]
    # four standard errors of a standard deviation of 300 values: 4 / sqrt(600)
    assert standard_error(found[0].influence) == pytest.approx(np.std(resampled), rel=0.16)
    errors = [standard_error(f.influence) for f in found]
    assert np.mean(errors) == pytest.approx(np.std([f.mean for f in found]), rel=0.16)


def test_interval_of_a_mean_is_the_normal_one():
    """For a mean the influence is the deviation, and the interval the textbook's."""
    values = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    low, high = interval(3.0, standard_error(values - 3))
    half = 1.959964 * (14 / 4) ** 0.5 / 4**0.5
    assert (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-12)


def test_interval_needs_two_images():
    """One image has no spread."""
    with pytest.raises(UserInputError, match="two images"):
        standard_error(torch.zeros(1))


def test_logits_that_are_not_finite_are_named():
    """NaN is an error that names the first image."""
    x = logits(10)
    x[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite logits; the first is image 3"):
        inception_score(x)
