"""Kernel distance, precision and recall against independent oracles, and the properties they must have."""

import adm_reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from scipy.stats import binomtest
from sklearn.metrics.pairwise import polynomial_kernel

from attnbench.errors import NonFiniteError, UserInputError
from attnbench.metrics.kernel import draw_subsets
from attnbench.metrics.manifold import Manifold
from attnbench.metrics.pairwise import kernel_distance, pairwise, precision, recall
from attnbench.metrics.uncertainty import share_interval, standard_error
from attnbench.torchvision_ops import define_missing_ops

define_missing_ops()
from torch_fidelity.metric_kid import kernel_mmd  # noqa: E402 - needs the ops first


def normal(n, width, seed, shift=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return spread * torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing + shift


def degenerate(kind):
    """Two sets of features that make trouble, each in its own way; some samples are reference images."""
    x, y = normal(60, 12, 0), normal(50, 12, 1, shift=0.2, spread=1.2)
    if kind == "fewer than features":
        x, y = normal(9, 12, 0), normal(7, 12, 1)
    if kind == "duplicated rows":
        x, y = x[:20].repeat(3, 1), torch.cat([y[:10].repeat_interleave(2, dim=0), x[:9]])
    if kind == "five times the same":
        x, y = x[:10].repeat(5, 1), torch.cat([y[:10].repeat(5, 1), x[:4]])
    if kind == "constant columns":
        x[:, 3:6], y[:, 3:6] = 2.0, 2.5
    if kind == "rank 1":
        direction = torch.arange(1.0, 13.0, dtype=torch.float64)
        x, y = x[:, :1] * direction, y[:, :1] * direction
    if kind == "far from zero":
        x, y = x + 1e6, y + 1e6
    return x, y


KINDS = [
    "random",
    "fewer than features",
    "duplicated rows",
    "five times the same",
    "constant columns",
    "rank 1",
    "far from zero",
]


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_precision_and_recall_equal_the_evaluators_formula(kind, chunk):
    """ADM's definition, with distances from differences, counts the same images: `<=`, exactly."""
    x, y = degenerate(kind)
    expected = adm_reference.precision_and_recall(x.numpy(), y.numpy(), 3)
    assert (precision(x, y, neighbours=3, chunk=chunk), recall(x, y, neighbours=3, chunk=chunk)) == expected
    both = pairwise(x, y, neighbours=3, subsets=None, chunk=chunk)
    inside = both.sample_inside, both.reference_inside
    assert tuple(float(i.double().mean()) for i in inside) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "width", "k"), [(40, 70, 6, 3), (70, 40, 300, 5), (10, 10, 6, 1)])
def test_precision_and_recall_equal_prdc(n, m, width, k, dtype):
    """Naver's prdc counts the same images, whatever the block size (it compares with `<`: no ties here)."""
    x, y = normal(n, width, 0).to(dtype), normal(m, width, 1, shift=0.1, spread=1.05).to(dtype)
    theirs = compute_prdc(x.numpy(), y.numpy(), nearest_k=k)
    for chunk in (7, 64, 1024):
        found = pairwise(x, y, neighbours=k, subsets=None, chunk=chunk)
        assert int(found.sample_inside.sum()) == round(theirs["precision"] * m)
        assert int(found.reference_inside.sum()) == round(theirs["recall"] * n)
    assert 0 < theirs["precision"] < 1 or width == 300  # a case that could not fail would prove nothing


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 25), st.integers(1, 8), st.integers(0, 1000), st.integers(2, 9))
def test_precision_and_recall_properties(n, width, seed, chunk):
    """Equal sets score 1 and 1; exchanging the sets exchanges the two; order does not matter."""
    x, y = normal(n, width, seed), normal(n, width, seed + 1, shift=0.5)
    assert precision(x, x, neighbours=3, chunk=chunk) == recall(x, x, neighbours=3) == 1.0
    assert precision(x, y, neighbours=3, chunk=chunk) == recall(y, x, neighbours=3)
    assert precision(x.flip(0), y.flip(0), neighbours=3) == precision(x, y, neighbours=3, chunk=chunk)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=24, max_size=24), st.integers(1, 3), st.integers(2, 9))
def test_ties_and_copies_equal_the_evaluators_formula(points, neighbours, chunk):
    """On a grid of few points, moved by an irrational vector, many distances are equal or zero."""
    offset = torch.tensor([2**0.5, -(3**0.5)], dtype=torch.float64)
    x, y = torch.tensor(points, dtype=torch.float64).view(2, 6, 2)
    expected = adm_reference.precision_and_recall(x.numpy(), y.numpy(), neighbours)
    found = pairwise(x + offset, y + offset, neighbours=neighbours, subsets=None, chunk=chunk)
    inside = found.sample_inside, found.reference_inside
    assert tuple(float(i.double().mean()) for i in inside) == expected


@pytest.mark.parametrize("value", [0.1, 3.0, 1e4])
def test_constant_features_lie_on_their_own_manifold(value):
    """All radii are zero, and an equal vector at distance zero is inside: the rim counts."""
    x = torch.full((9, 50), value)
    assert precision(x, x[:6], neighbours=3) == 1.0
    assert precision(x, x[:6] * 1.01, neighbours=3) == 0.0
    both = pairwise(x, x[:6], neighbours=3, subsets=None)
    assert bool(both.sample_inside.all())
    assert bool(both.reference_inside.all())


def test_a_sample_on_the_rim_is_inside():
    """A sample exactly at the k-th neighbour's distance counts."""
    line = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert precision(line, torch.tensor([[2.0], [5.0]]), neighbours=1) == 0.5


def test_more_neighbours_than_images_are_refused():
    """k must be smaller than either set."""
    with pytest.raises(UserInputError, match=r"choose 1 \.\.\. 4"):
        precision(normal(5, 2, 0), normal(9, 2, 1), neighbours=5)


@pytest.mark.parametrize("way", ["subset by subset", "sums of the pass"])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_kernel_distance_equals_torch_fidelitys(kind, way):
    """torch-fidelity's MMD of the same subsets has the same mean and deviation, to 1e-6 and better."""
    x, y = degenerate(kind)
    size = min(len(x), len(y)) - 2
    subsets = 2 if way == "subset by subset" else 40  # few small subsets are cheaper than all pairs
    if way == "subset by subset":
        size = size // 2
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    options["kid_kernel_poly_coef0"] = 1
    drawn = list(draw_subsets(len(x), len(y), subsets=subsets, size=size, seed=3))
    theirs = [kernel_mmd(x[i].numpy(), y[j].numpy(), **options) for i, j in drawn]
    pairs = [(i.numpy(), j.numpy()) for i, j in drawn]
    found = kernel_distance(x, y, subsets=subsets, subset_size=size, seed=3, chunk=16)
    assert found.mean == pytest.approx(np.mean(theirs), rel=1e-10)
    assert found.std == pytest.approx(np.std(theirs), rel=1e-8)
    assert (found.mean, found.std) == pytest.approx(
        adm_reference.kernel_distance(x.numpy(), y.numpy(), pairs), rel=1e-8
    )


def test_both_ways_of_the_kernel_distance_agree():
    """The sums of one pass over all pairs are those of each subset's own kernels, and seeded alike."""
    x, y = normal(90, 20, 0).relu(), normal(70, 20, 1).relu()
    by_pass = pairwise(x, y, neighbours=None, subsets=3, subset_size=10, seed=5, chunk=32).kernel_values
    by_subset = kernel_distance(x, y, subsets=3, subset_size=10, seed=5)  # 900 pairs instead of 12,800
    assert np.mean(by_pass) == pytest.approx(by_subset.mean, rel=1e-11)
    assert np.std(by_pass) == pytest.approx(by_subset.std, rel=1e-11)


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
    for measure in (kernel_distance, pairwise):
        with pytest.raises(UserInputError, match=r"choose 2 \.\.\. 30"):
            measure(normal(30, 4, 0), normal(50, 4, 1), subsets=1, subset_size=size)


def weighted_mmd2(x, y, weights):
    """The unbiased MMD^2 when the samples have weights that sum to one."""
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    pairs = weights[:, None] * weights
    pairs.fill_diagonal_(0)
    within_x = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1))
    return within_x + (pairs * yy).sum() / pairs.sum() - 2 * (xy.mean(dim=0) * weights).sum()


def test_kernel_influence_is_the_derivative_with_the_weights():
    """Central differences of an explicitly weighted MMD^2 of all images, for every image."""
    x, y = normal(30, 6, 0), normal(25, 6, 1, shift=0.4)
    influence = pairwise(x, y, neighbours=None, subsets=1, subset_size=5, chunk=8).kernel_influence
    uniform, step = torch.full((25,), 1 / 25, dtype=torch.float64), 1e-5
    for i in range(25):
        direction = -uniform.clone()
        direction[i] += 1
        up, down = (weighted_mmd2(x, y, uniform + sign * step * direction) for sign in (1, -1))
        # off by (N step)^2 ~ 1e-7 of the third derivative, rounding by eps / step ~ 1e-11
        difference = float(up - down) / (2 * step)
        assert float(influence[i]) == pytest.approx(difference, abs=1e-6 * float(influence.abs().max()))
    assert float(influence.mean()) == pytest.approx(0.0, abs=1e-12)


def test_kernel_standard_error_is_that_of_a_bootstrap_and_of_draws():
    """The spread over 300 reweighted resamples, and over 300 fresh samples, is what the interval says."""
    n, x = 200, normal(300, 5, 0)
    mixing = normal(5, 5, 1)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mixing + 0.6 for _ in range(300)]
    errors = [
        standard_error(pairwise(x, y, neighbours=None, subsets=1, subset_size=2).kernel_influence)
        for y in draws[:40]
    ]
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    # a resample is a set of weights: copies of an image are not pairs of two images
    counts = [
        torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n) / n for _ in range(300)
    ]
    resampled = torch.stack([weighted_mmd2(x, draws[0], w.double()) for w in counts]).std()
    fresh = torch.stack([weighted_mmd2(x, y, uniform) for y in draws]).std()
    # four standard errors of a standard deviation of 300 values: 4 / sqrt(600)
    assert errors[0] == pytest.approx(float(resampled), rel=0.16)
    assert np.mean(errors) == pytest.approx(float(fresh), rel=0.16)


def test_precision_standard_error_is_that_of_a_bootstrap_and_of_draws():
    """Precision is a share of independent samples once the reference is fixed."""
    x, n = normal(200, 5, 0), 150
    mixing = normal(5, 5, 0) * 1.3
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mixing for _ in range(200)]
    inside = [pairwise(x, y, neighbours=3, subsets=None).sample_inside.double() for y in draws]
    errors = [standard_error(i - i.mean()) for i in inside]
    resampled = [
        precision(x, draws[0][torch.randint(n, (n,), generator=generator)], neighbours=3) for _ in range(200)
    ]
    # four standard errors of a standard deviation of 200 values: 4 / sqrt(400)
    assert 0.1 < float(inside[0].mean()) < 0.9
    assert errors[0] == pytest.approx(float(np.std(resampled)), rel=0.2)
    assert np.mean(errors) == pytest.approx(float(torch.stack([i.mean() for i in inside]).std()), rel=0.2)


def test_the_kernel_distances_error_knows_the_draw_of_subsets():
    """Small subsets of many images: the spread over fresh samples and other subsets is what it says."""
    x, size = normal(300, 5, 0), {"subsets": 10, "subset_size": 15}
    generator = torch.Generator().manual_seed(0)
    found = []
    for seed in range(200):
        y = 0.9 * torch.randn(250, 5, generator=generator, dtype=torch.float64) + 0.2
        found.append(pairwise(x, y, neighbours=None, seed=seed, **size))
    spread = np.std([np.mean(each.kernel_values) for each in found])
    # four standard errors of a standard deviation of 200 values, 4 / sqrt(400), and as much for the estimate
    assert np.mean([each.kernel_error for each in found]) == pytest.approx(spread, rel=0.3)
    over_samples = np.mean([standard_error(each.kernel_influence) for each in found])
    assert over_samples < 0.6 * spread  # what was the whole interval


def test_the_draw_of_a_single_subset_is_not_known():
    """One subset of more images has no spread; one of everything needs none."""
    x, y = normal(30, 4, 0), normal(30, 4, 1)
    one = {"neighbours": None, "subsets": 1}
    assert pairwise(x, y, subset_size=10, **one).kernel_error is None
    whole = pairwise(x, y, subset_size=30, **one)
    assert whole.kernel_error == standard_error(whole.kernel_influence)


def test_parts_of_the_samples_have_their_own_recall():
    """Kept neighbours and holders tell the recall of halves and quarters as a pass over them would."""
    x, y = normal(150, 4, 0), normal(120, 4, 1, shift=0.3)
    y[7], y[11], x[3] = y[8], y[8], y[8]  # equal images on both sides
    quarter = torch.randperm(120, generator=torch.Generator().manual_seed(0)) * 4 // 120
    manifold = Manifold(150, 120, 3, like=x)
    distances = [(a[:, None] - b).square().sum(dim=2) for a, b in ((x, x), (y, y), (x, y))]
    for rows in (slice(0, 64), slice(64, 150)):
        manifold.add_reference(rows, slice(0, 150), distances[0][rows])
    manifold.add_samples(slice(0, 64), slice(0, 64), distances[1][:64, :64])
    manifold.add_samples(slice(0, 64), slice(64, 120), distances[1][:64, 64:])
    manifold.add_samples(slice(64, 120), slice(64, 120), distances[1][64:, 64:])
    for columns in (slice(0, 50), slice(50, 120)):
        manifold.add_cross(slice(0, 150), columns, distances[2][:, columns])
    halves, quarters = manifold.sample_balls.recalls(quarter)
    assert halves.tolist() == [recall(x, y[quarter // 2 == half], neighbours=3) for half in range(2)]
    assert quarters.tolist() == [recall(x, y[quarter == part], neighbours=3) for part in range(4)]


def test_recalls_error_is_that_of_fresh_samples():
    """The reference fixed, samples redrawn: a binomial over reference images would be too narrow."""
    x, generator = normal(500, 8, 0), torch.Generator().manual_seed(0)
    draws = [1.1 * torch.randn(100, 8, generator=generator, dtype=torch.float64) for _ in range(120)]
    found = [pairwise(x, y, neighbours=3, subsets=None) for y in draws]
    shares = [float(each.reference_inside.double().mean()) for each in found]
    spread, mean = np.std(shares), np.mean(shares)
    # four standard errors of a standard deviation of 120 values: 4 / sqrt(240)
    assert np.mean([each.recall_error for each in found]) == pytest.approx(spread, rel=0.26)
    assert (mean * (1 - mean) / 500) ** 0.5 < 0.7 * spread


def test_too_few_samples_have_no_recall_error():
    """Where a quarter of them has no k-th neighbour nothing is made up."""
    assert pairwise(normal(30, 4, 0), normal(15, 4, 1), subsets=None).recall_error is None


def test_a_shares_interval_is_wilsons():
    """Within 0 ... 1, as scipy has it for a share of independent images, and not zero wide at the ends."""
    for count in (0, 1, 30, 49, 50):
        inside = (torch.arange(50) < count).double()
        expected = binomtest(count, 50).proportion_ci(0.95, method="wilson")
        found = share_interval(count / 50, standard_error(inside), counted=50)
        assert found == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)
    # recall of everything, whose parts have less
    assert share_interval(1.0, 0.1, counted=500) == pytest.approx((1 - 0.1959964, 1.0))
    assert share_interval(0.0, 0.1, counted=500) == pytest.approx((0.0, 0.1959964))


def test_either_half_alone():
    """A half switched off is not there, and asking for it says how to get it."""
    x, y = normal(20, 4, 0), normal(15, 4, 1)
    both = pairwise(x, y, subsets=2, subset_size=5)
    kernel = pairwise(x, y, neighbours=None, subsets=2, subset_size=5)
    manifold = pairwise(x, y, subsets=None)
    assert kernel.kernel_values == both.kernel_values
    assert torch.equal(kernel.kernel_influence, both.kernel_influence)
    assert torch.equal(manifold.sample_inside, both.sample_inside)
    with pytest.raises(ValueError, match="neighbours=None"):
        _ = kernel.sample_inside
    with pytest.raises(ValueError, match="subsets=None"):
        _ = manifold.kernel_values


def test_widths_must_agree():
    """Features of two networks have no distance."""
    with pytest.raises(UserInputError, match="4 and 5"):
        pairwise(normal(20, 4, 0), normal(15, 5, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(bad):
    """NaN or infinity is an error that names the first image, on either side."""
    x, clean = normal(10, 4, 0), normal(10, 4, 1)
    x[3, 2] = bad
    for pair in ((x, clean), (clean, x)):
        with pytest.raises(NonFiniteError, match="image 3"):
            pairwise(*pair, subsets=1, subset_size=5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, runs where torch sees one")
def test_cuda_gives_the_same():
    """On a GPU the same images are inside and the kernel distances agree to rounding."""
    x, y = normal(300, 40, 0), normal(200, 40, 1)
    here, there = (pairwise(x.to(d), y.to(d), subsets=5, subset_size=50) for d in ("cpu", "cuda"))
    assert there.kernel_values == pytest.approx(here.kernel_values, rel=1e-9)
    assert torch.equal(there.sample_inside.cpu(), here.sample_inside)
    assert torch.equal(there.reference_inside.cpu(), here.reference_inside)
