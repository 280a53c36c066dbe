"""Distances against independent float64 oracles, and the properties they must have."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from sklearn.metrics.pairwise import polynomial_kernel

from attnbench.errors import NonFiniteError, UserInputError
from attnbench.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision,
    recall,
    statistics,
)
from attnbench.torchvision_ops import define_missing_ops

define_missing_ops()
from torch_fidelity.metric_fid import fid_statistics_to_metric  # noqa: E402 - needs the ops first
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kernel_mmd  # noqa: E402

EPS = 2.2e-16


def normal(n, width, seed, shift=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return spread * torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing + shift


def frechet(x, y):
    return frechet_distance(statistics(x), statistics(y))


def rounding(x, y):
    """Bound of the error of the trace of a root: an eigenvalue off by eps shows as its root, F times."""
    largest = max(float(torch.linalg.matrix_norm(statistics(z).covariance, 2)) for z in (x, y))
    return 4 * x.shape[1] * EPS**0.5 * max(largest, 1e-30)


SHAPES = [(200, 150, 8), (40, 60, 33), (20, 9, 33), (2, 3, 5)]


@pytest.mark.parametrize(("n", "m", "width"), SHAPES)
def test_frechet_equals_the_sample_space_form(n, m, width):
    """tr (S1 S2)^1/2 is the nuclear norm of X Y^T / sqrt((n-1)(m-1)), which needs no eigenvalues of S."""
    x, y = normal(n, width, 0), normal(m, width, 1, shift=0.3, spread=1.5)
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / ((n - 1) * (m - 1)) ** 0.5
    expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum()
    expected -= 2 * torch.linalg.svdvals(cross).sum()
    assert frechet(x, y) == pytest.approx(float(expected), abs=rounding(x, y))


def test_frechet_equals_sqrtm_and_torch_fidelity():
    """On full-rank covariances scipy's matrix root and torch-fidelity's eigenvalues agree with ours."""
    x, y = normal(300, 12, 0).numpy(), normal(200, 12, 1, shift=0.2).numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    by_root = shift @ shift + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    theirs = fid_statistics_to_metric(
        {"mu": x.mean(0), "sigma": s1}, {"mu": y.mean(0), "sigma": s2}, verbose=False
    )["frechet_inception_distance"]
    ours = frechet(torch.from_numpy(x), torch.from_numpy(y))
    assert ours == pytest.approx(by_root, rel=1e-9)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_frechet_in_one_dimension_is_the_closed_form():
    """For scalars it is (m1 - m2)^2 + (s1 - s2)^2."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [11.0]])
    expected = (1 - 7) ** 2 + (2**0.5 - 12**0.5) ** 2
    assert frechet(x, y) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 1000))
def test_frechet_properties(n, width, seed):
    """Zero between equal sets, symmetric, blind to order, never negative, also where N < F."""
    x, y = normal(n, width, seed), normal(n + 3, width, seed + 1, shift=0.1)
    tolerance = rounding(x, y)
    assert frechet(x, x) <= tolerance
    assert frechet(x, y) == pytest.approx(frechet(y, x), abs=tolerance)
    assert frechet(x.flip(0), y) == pytest.approx(frechet(x, y), abs=tolerance)


def test_frechet_of_constant_features_is_the_squared_shift():
    """Without any spread only the means count."""
    x, y = torch.full((5, 4), 2.0), torch.full((6, 4), 5.0)
    assert frechet(x, y) == pytest.approx(4 * 9, abs=1e-12)


def test_statistics_equal_numpys():
    """Mean and covariance with divisor N - 1, in float64 even for float32 features far from zero."""
    x = (normal(50, 6, 3) + 1000).float()
    found = statistics(x)
    assert found.covariance.dtype == torch.float64
    # 1000^2 eps is the rounding of one product around the mean
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False), atol=1e6 * EPS)


def test_one_subset_of_everything_is_the_unbiased_estimator():
    """With subsets of the whole sets the value is scikit-learn's kernel put into the U-statistic."""
    x, y = normal(30, 7, 0), normal(30, 7, 1, shift=0.5)
    kernel = {"degree": 3, "gamma": 1 / 7, "coef0": 1}
    xx, yy, xy = (polynomial_kernel(a, b, **kernel) for a, b in ((x, x), (y, y), (x, y)))
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    expected = (xx.sum() + yy.sum()) / (30 * 29) - 2 * xy.mean()
    found = kernel_distance(x, y, subsets=3, subset_size=30)
    assert found.mean == pytest.approx(expected, rel=1e-10)
    assert found.std == pytest.approx(0.0, abs=1e-12)  # three orders of the same images


def test_kernel_distance_equals_torch_fidelitys():
    """torch-fidelity's MMD of the same two subsets is the same number."""
    x, y = normal(25, 9, 4), normal(25, 9, 5, shift=0.2)
    theirs = kernel_mmd(
        x.numpy(), y.numpy(), kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
    )  # fmt: skip
    assert kernel_distance(x, y, subsets=1, subset_size=25).mean == pytest.approx(theirs, rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Between two samples of one distribution it averages to zero, within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 40, 3, generator=generator) for _ in range(60)]
    values = [kernel_distance(x, y, subsets=1, subset_size=40).mean for x, y in pairs]
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5


def test_kernel_distance_is_seeded():
    """The same seed gives the same subsets, another seed others."""
    x, y = normal(60, 4, 0), normal(60, 4, 1)
    draw = [kernel_distance(x, y, subsets=5, subset_size=10, seed=seed) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]


@pytest.mark.parametrize("size", [1, 31])
def test_kernel_subset_must_fit(size):
    """A subset larger than a set, or of one image, is refused with what is allowed."""
    with pytest.raises(UserInputError, match=r"choose 2 \.\.\. 30"):
        kernel_distance(normal(30, 4, 0), normal(50, 4, 1), subsets=1, subset_size=size)


@pytest.mark.parametrize("splits", [1, 4])
def test_inception_score_equals_torch_fidelitys(splits):
    """Contiguous splits of equal size score as torch-fidelity's do."""
    logits = 3 * normal(80, 6, 0)
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)
    ours = inception_score(logits, split_size=80 // splits, shuffle_seed=None)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours.std == pytest.approx(theirs["inception_score_std"], abs=1e-12)


def test_inception_score_of_sorted_samples_needs_the_permutation():
    """Sorted certain samples score 1 per contiguous split of one class; shuffled, nearly the 5 classes."""
    logits = 100.0 * torch.eye(5).repeat_interleave(200, dim=0)
    assert inception_score(logits, split_size=200, shuffle_seed=None).mean == pytest.approx(1.0)
    assert inception_score(logits, split_size=200).mean > 4.8
    assert inception_score(logits, split_size=1000).mean == pytest.approx(5.0)


def test_inception_score_with_impossible_classes():
    """Probabilities that underflow to zero add nothing instead of NaN."""
    logits = torch.tensor([[0.0, -2000.0], [0.0, -2000.0]])
    assert inception_score(logits).mean == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "m", "k"), [(40, 70, 3), (70, 40, 5), (10, 10, 1)])
def test_precision_and_recall_equal_prdc(n, m, k):
    """Naver's prdc counts the same images, whatever the chunk size."""
    x, y = normal(n, 6, 0), normal(m, 6, 1, shift=0.5, spread=1.2)
    theirs = compute_prdc(x.numpy(), y.numpy(), nearest_k=k)
    for chunk in (7, 2048):
        assert precision(x, y, neighbours=k, chunk=chunk) == pytest.approx(theirs["precision"])
        assert recall(x, y, neighbours=k, chunk=chunk) == pytest.approx(theirs["recall"])


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 25), st.integers(1, 8), st.integers(0, 1000))
def test_precision_and_recall_properties(n, width, seed):
    """Equal sets score 1 and 1; exchanging the sets exchanges the two; order does not matter."""
    x, y = normal(n, width, seed), normal(n, width, seed + 1, shift=0.5)
    assert precision(x, x, neighbours=3) == recall(x, x, neighbours=3) == 1.0
    assert precision(x, y, neighbours=3) == recall(y, x, neighbours=3)
    assert precision(x.flip(0), y.flip(0), neighbours=3) == precision(x, y, neighbours=3)


@pytest.mark.parametrize("value", [0.1, 3.0, 1e4])
def test_constant_features_lie_on_their_own_manifold(value):
    """All radii are zero, and an equal vector at distance zero is inside: the rim counts."""
    x = torch.full((9, 50), value)
    assert precision(x, x[:6], neighbours=3) == 1.0
    assert precision(x, x[:6] * 1.01, neighbours=3) == 0.0


def test_a_sample_on_the_rim_is_inside():
    """A sample exactly at the k-th neighbour's distance counts."""
    line = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert precision(line, torch.tensor([[2.0], [5.0]]), neighbours=1) == 0.5


def test_more_neighbours_than_images_are_refused():
    """k must be smaller than the set."""
    with pytest.raises(UserInputError, match=r"choose 1 \.\.\. 4"):
        precision(normal(5, 2, 0), normal(9, 2, 1), neighbours=5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(bad):
    """NaN or infinity is an error that names the first image, in every metric."""
    x = normal(10, 4, 0)
    x[3, 2] = bad
    for metric in (
        lambda: statistics(x),
        lambda: kernel_distance(x, x, subsets=1, subset_size=5),
        lambda: inception_score(x),
        lambda: precision(x, x, neighbours=3),
    ):
        with pytest.raises(NonFiniteError, match="image 3"):
            metric()


def test_too_few_images_are_refused():
    """A covariance needs two images."""
    with pytest.raises(UserInputError, match=r"\[1, 4\]"):
        statistics(torch.zeros(1, 4))
