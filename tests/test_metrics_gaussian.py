"""Statistics and Frechet distance against independent oracles, influence against a real bootstrap."""

import adm_reference
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import NonFiniteError, UserInputError
from attnbench.metrics.gaussian import (
    RunningStatistics,
    Statistics,
    frechet,
    frechet_distance,
    statistics,
)
from attnbench.metrics.uncertainty import standard_error
from attnbench.torchvision_ops import define_missing_ops

define_missing_ops()
from torch_fidelity.metric_fid import fid_statistics_to_metric  # noqa: E402 - needs the ops first

EPS = 2.2e-16


def normal(n, width, seed, shift=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return spread * torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing + shift


def distance(x, y):
    return frechet_distance(statistics(x), statistics(y))


def rounding(x, y):
    """Bound of the error of the trace of a root: an eigenvalue off by eps shows as its root, F times."""
    largest = max(float(torch.linalg.matrix_norm(statistics(z).covariance, 2)) for z in (x, y))
    return 4 * x.shape[1] * EPS**0.5 * max(largest, 1e-30)


def degenerate(kind):
    """Two sets that make covariances singular, each in its own way."""
    x, y = normal(60, 12, 0), normal(80, 12, 1, shift=0.5, spread=1.5)
    if kind == "fewer than features":
        x, y = normal(9, 12, 0), normal(7, 12, 1, shift=0.5)
    if kind == "duplicated rows":
        x, y = x[:5].repeat(4, 1), y[:6].repeat_interleave(3, dim=0)
    if kind == "constant columns":
        x[:, 3:6], y[:, 3:6] = 2.0, 2.5
    if kind == "constant columns of one set":
        y[:, 3:6] = 2.5
    if kind == "rank 1":
        x, y = x[:, :1] * torch.arange(1.0, 13.0), y[:, :1] * torch.arange(12.0, 0.0, -1.0) + 1
    return x, y


KINDS = [
    "random",
    "fewer than features",
    "duplicated rows",
    "constant columns",
    "constant columns of one set",
    "rank 1",
]


@pytest.mark.parametrize("kind", KINDS)
def test_frechet_equals_the_evaluators_formula(kind):
    """The eigenvalues of S1 S2 give the same number, to 1e-6, also where covariances are singular."""
    x, y = degenerate(kind)
    expected = adm_reference.frechet_distance(x.numpy(), y.numpy())
    assert distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet(statistics(x), statistics(y), y)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "width"), [(200, 150, 8), (40, 60, 33), (20, 9, 33), (9, 20, 33), (2, 3, 5)]
)
def test_frechet_equals_the_sample_space_form(n, m, width):
    """tr (S1 S2)^1/2 is the nuclear norm of X Y^T / sqrt((n-1)(m-1)), which needs no eigenvalues of S."""
    x, y = normal(n, width, 0), normal(m, width, 1, shift=0.3, spread=1.5)
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / ((n - 1) * (m - 1)) ** 0.5
    expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum()
    expected -= 2 * torch.linalg.svdvals(cross).sum()
    assert distance(x, y) == pytest.approx(float(expected), abs=rounding(x, y))
    assert frechet(statistics(x), statistics(y), y)[0] == pytest.approx(float(expected), abs=rounding(x, y))


def test_zero_eigenvalues_of_few_images_add_nothing():
    """Of 100 eigenvalues 9 are not zero; the root of 91 roundings would show in the eighth digit."""
    x, y = normal(10, 100, 0), normal(300, 100, 1)
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / (9 * 299) ** 0.5
    expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum()
    expected -= 2 * torch.linalg.svdvals(cross).sum()
    # an eigenvalue that is not zero is off by F eps of the largest, and its root by no more than that
    assert distance(x, y) == pytest.approx(float(expected), rel=100 * 10 * EPS)
    assert distance(y, x) == pytest.approx(float(expected), rel=100 * 10 * EPS)


def test_frechet_equals_sqrtm_and_torch_fidelity():
    """On full-rank covariances scipy's matrix root and torch-fidelity's eigenvalues agree with ours."""
    x, y = normal(300, 12, 0).numpy(), normal(200, 12, 1, shift=0.2).numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    by_root = shift @ shift + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    theirs = fid_statistics_to_metric(
        {"mu": x.mean(0), "sigma": s1}, {"mu": y.mean(0), "sigma": s2}, verbose=False
    )["frechet_inception_distance"]
    ours = distance(torch.from_numpy(x), torch.from_numpy(y))
    assert ours == pytest.approx(by_root, rel=1e-9)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_frechet_in_one_dimension_is_the_closed_form():
    """For scalars it is (m1 - m2)^2 + (s1 - s2)^2."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [11.0]])
    expected = (1 - 7) ** 2 + (2**0.5 - 12**0.5) ** 2
    assert distance(x, y) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 1000))
def test_frechet_properties(n, width, seed):
    """Zero between equal sets, symmetric, blind to order, never negative, also where N < F."""
    x, y = normal(n, width, seed), normal(n + 3, width, seed + 1, shift=0.1)
    tolerance = rounding(x, y)
    assert 0 <= distance(x, x) <= tolerance
    assert distance(x, y) == pytest.approx(distance(y, x), abs=tolerance)
    assert distance(x.flip(0), y) == pytest.approx(distance(x, y), abs=tolerance)


def test_frechet_of_constant_features_is_the_squared_shift():
    """Without any spread only the means count, and no image has influence but by its mean: none."""
    x, y = torch.full((5, 4), 2.0), torch.full((6, 4), 5.0)
    value, influence = frechet(statistics(x), statistics(y), y)
    assert distance(x, y) == pytest.approx(4 * 9, abs=1e-12)
    assert value == pytest.approx(4 * 9, abs=1e-12)
    assert influence.abs().max() == pytest.approx(0.0, abs=1e-12)


def test_unknown_count_of_given_statistics():
    """Statistics of a file that does not say its N (n = 0) give the same distance as with N."""
    x, y = normal(50, 6, 0), normal(40, 6, 1, shift=1.0)
    known = statistics(x)
    unknown = Statistics(mean=known.mean, covariance=known.covariance, n=0)
    assert frechet_distance(unknown, statistics(y)) == frechet_distance(known, statistics(y))


def test_statistics_equal_numpys():
    """Mean and covariance with divisor N - 1, in float64 even for float32 features far from zero."""
    x = (normal(50, 6, 3) + 1000).float()
    found = statistics(x)
    assert found.covariance.dtype == torch.float64
    # numpy's own mean is off by 1000 eps, which it subtracts: spread 1 times 1000 eps, with a margin of 10
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, atol=1e4 * EPS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 1000), st.sampled_from([0.0, 1e6]))
def test_batches_do_not_matter(sizes, seed, offset):
    """Any split into batches, empty and single ones too, and any merge give the statistics of the whole."""
    x = normal(2 + sum(sizes), 4, seed) + offset
    whole, updated, merged = statistics(x), RunningStatistics(4), RunningStatistics(4)
    for batch in x.split([2, *sizes]):
        updated.update(batch)
        part = RunningStatistics(4)
        part.update(batch)
        merged.merge(part)
    for running in (updated, merged):
        found = running.statistics()
        assert found.n == len(x)
        # a mean is off by eps of its size a few times, and the covariance by spread times that
        tolerance = 100 * EPS * (1 + offset)
        torch.testing.assert_close(found.mean, whole.mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=0, atol=10 * tolerance)


def test_running_statistics_continue_from_their_three_attributes(tmp_path):
    """Count, mean and scatter written to a file and read back go on as if nothing had happened."""
    x = normal(30, 5, 0)
    first = RunningStatistics(5)
    first.update(x[:11])
    torch.save({"n": first.n, "mean": first.mean, "scatter": first.scatter}, tmp_path / "state.pt")
    again = RunningStatistics(5)
    vars(again).update(torch.load(tmp_path / "state.pt"))
    for running in (first, again):
        running.update(x[11:])
    assert again.n == 30
    assert torch.equal(again.mean, first.mean)
    assert torch.equal(again.scatter, first.scatter)


def test_statistics_leave_the_features_alone():
    """Float64 features are not centred in place."""
    x = normal(10, 3, 0)
    before = x.clone()
    frechet(statistics(x), statistics(x), x)
    assert torch.equal(x, before)


def weighted_distance(x, y, weights):
    """The distance when the samples have weights that sum to one; its trace of a root is a nuclear norm."""
    n, m = len(x), len(y)
    mean = weights @ y
    spread = (y - mean) * (weights * m / (m - 1)).sqrt()[:, None]
    cross = (x - x.mean(0)) @ spread.T / (n - 1) ** 0.5
    shift = (x.mean(0) - mean).square().sum()
    return shift + x.var(0).sum() + spread.square().sum() - 2 * torch.linalg.svdvals(cross).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_influence_is_the_derivative_with_the_weights(kind):
    """Central differences of an explicitly weighted distance, image by image, also where N < F."""
    x, y = degenerate(kind)
    value, influence = frechet(statistics(x), statistics(y), y)
    uniform, step = torch.full((len(y),), 1 / len(y), dtype=torch.float64), 1e-5
    assert value == pytest.approx(float(weighted_distance(x, y, uniform)), rel=1e-6)
    for i in range(0, len(y), 5):
        direction = -uniform.clone()
        direction[i] += 1
        up, down = (weighted_distance(x, y, uniform + sign * step * direction) for sign in (1, -1))
        # the difference is off by (N step)^2 ~ 1e-6 of the third derivative, rounding by eps / step ~ 1e-11
        difference = float(up - down) / (2 * step)
        assert float(influence[i]) == pytest.approx(difference, abs=2e-6 * float(influence.abs().max()))
    assert torch.equal(influence, frechet(statistics(x), statistics(y), y)[1])
    assert float(influence.mean()) == pytest.approx(0.0, abs=rounding(x, y))


def test_directions_that_only_one_set_has_leave_the_influence_finite():
    """Sets without a common direction: all eigenvalues are rounding, more of them than the rank allows."""
    for seed in range(60):  # rounding decides: about every twentieth has one too many
        turn = torch.linalg.qr(normal(12, 12, seed)).Q
        x, y = normal(8, 6, seed + 100) @ turn[:6], normal(40, 6, seed + 200) @ turn[6:]
        influence = frechet(statistics(x), statistics(y), y)[1]
        centred, shift = y - y.mean(0), y.mean(0) - x.mean(0)
        expected = 2 * centred @ shift + centred.square().sum(1) * 40 / 39 - y.var(0).sum()
        # the root of rounding is all that the common part can be, and one image has at most n times its mean
        torch.testing.assert_close(influence, expected, rtol=0, atol=40 * rounding(x, y))


@pytest.mark.parametrize(("n", "width"), [(600, 5), (25, 40)])
def test_standard_error_is_that_of_a_bootstrap(n, width):
    """The spread over 300 resamples of the images, with more and with fewer images than features."""
    x, y = normal(1000, width, 0), normal(n, width, 1, shift=0.5, spread=1.3)
    reference, generator = statistics(x), torch.Generator().manual_seed(0)
    _, influence = frechet(reference, statistics(y), y)
    drawn = [y[torch.randint(n, (n,), generator=generator)] for _ in range(300)]
    spread = torch.tensor([frechet_distance(reference, statistics(z)) for z in drawn]).std()
    # four standard errors of a standard deviation of 300 values: 4 / sqrt(600)
    assert standard_error(influence) == pytest.approx(float(spread), rel=0.16)


def test_standard_error_is_that_of_independent_draws():
    """With many images the spread of the distance over fresh samples is what one sample's interval says."""
    reference = statistics(normal(1000, 5, 0))
    mixing = normal(5, 5, 1)
    draws = [
        torch.randn(600, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) @ mixing + 0.5
        for s in range(300)
    ]
    found = [frechet(reference, statistics(y), y) for y in draws]
    spread = torch.tensor([value for value, _ in found]).std()
    errors = torch.tensor([standard_error(influence) for _, influence in found])
    assert float(errors.mean()) == pytest.approx(float(spread), rel=0.16)  # 4 / sqrt(600), as above


def test_standard_error_of_fewer_images_than_features():
    """Then the first order overstates the spread over fresh samples, by less than the bootstrap does."""
    n, width = 24, 48
    mixing = normal(width, width, 0)
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing

    reference = statistics(draw(2000))
    samples = [draw(n) for _ in range(200)]
    found = [frechet(reference, statistics(y), y) for y in samples]
    first_order = np.mean([standard_error(influence) for _, influence in found])
    spread = np.std([value for value, _ in found])
    resampled = []
    for y in samples[:10]:
        drawn = [y[torch.randint(n, (n,), generator=generator)] for _ in range(20)]
        resampled.append(np.std([frechet_distance(reference, statistics(z)) for z in drawn], ddof=1))
    assert spread < first_order < np.mean(resampled)


@pytest.mark.parametrize("width", [700, 1024])
def test_panels_of_wide_features_make_one_covariance(width):
    """Features wider than one panel of products, also by a part of one, have numpy's covariance."""
    x = normal(40, 3, 0).repeat(1, width)[:, :width] + torch.arange(width)
    found = statistics(x).covariance
    # eps of the largest value, squared: what numpy's centring and ours may leave; and symmetry is exact
    np.testing.assert_allclose(found, np.cov(x.numpy(), rowvar=False), atol=10 * EPS * width)
    assert torch.equal(found, found.T)


def test_features_must_be_those_of_the_statistics():
    """Influence for other images than the statistics' is refused."""
    x = normal(10, 3, 0)
    with pytest.raises(UserInputError, match="10 images do not describe 9"):
        frechet(statistics(x), statistics(x), x[:9])


def test_widths_must_agree():
    """A batch of another width is refused."""
    with pytest.raises(UserInputError, match="width 4 do not join those of 3"):
        RunningStatistics(3).update(torch.zeros(2, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(bad):
    """NaN or infinity is an error that names the first image."""
    x = normal(10, 4, 0)
    x[3, 2] = bad
    with pytest.raises(NonFiniteError, match="image 3"):
        statistics(x)


def test_too_few_images_are_refused():
    """A covariance needs two images."""
    with pytest.raises(UserInputError, match=r"\[1, 4\]"):
        statistics(torch.zeros(1, 4))
    with pytest.raises(UserInputError, match="needs two images, got 0"):
        RunningStatistics(4).statistics()
