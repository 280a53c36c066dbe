"""Nearest training images: exact distances, planted copies, what chance explains, and the picture."""

import math
import resource
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import betabinom

from attnbench.errors import DataError, NonFiniteError, StorageError, UserInputError
from attnbench.evaluation.memorisation import memorisation
from attnbench.evaluation.nearest import identical_images, most_suspicious, nearest, nearest_figure
from attnbench.evaluation.pictures import ALARM


def normal(n, width=16, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 9), n=st.integers(1, 30), width=st.integers(1, 5), chunk=st.integers(1, 40),
    k=st.integers(1, 30), seed=st.integers(0, 99), offset=st.sampled_from([0.0, 1e3]),
)  # fmt: skip
def test_nearest_is_the_full_sorted_distance_matrix(m, n, width, chunk, k, seed, offset):
    """Whatever the blocks: the k smallest of all distances, on integer grids where ties abound, too."""
    k = min(k, n)
    x, y = ((4 * normal(size, width, seed + i)).round() + offset for i, size in enumerate((m, n)))
    distances, indices = nearest(x, y, k, chunk=chunk)
    every = (x[:, None].double() - y.double()).square().sum(dim=2).sqrt()  # [m, n]; integers: exact sums
    assert torch.equal(distances, every.sort(dim=1).values[:, :k])
    assert torch.equal(every.gather(1, indices), distances)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_a_copy_lies_at_zero_however_long_its_features():
    """Distances come from differences: no cancellation of 1e12 against 1e12, which would leave about 0.01."""
    y = normal(50, 64) + 1e5
    distances, indices = nearest(y[[7, 31]], y, chunk=8)
    assert distances.flatten().tolist() == [0.0, 0.0]
    assert indices.flatten().tolist() == [7, 31]


def test_equal_distances_go_to_the_lower_row():
    """Three equal training images are named in their order, across blocks."""
    y = torch.tensor([[5.0], [1.0], [1.0], [9.0], [1.0]])
    assert nearest(torch.tensor([[1.5]]), y, 3, chunk=2)[1].tolist() == [[1, 2, 4]]


def test_leave_one_out_skips_the_image_itself_but_not_its_copy():
    """Row i is no neighbour of row i; an equal image elsewhere is, at 0."""
    x = torch.tensor([[0.0], [3.0], [3.0], [10.0]])
    distances, indices = nearest(x, x, chunk=3, leave_one_out=True)
    assert distances.flatten().tolist() == [3.0, 0.0, 0.0, 7.0]
    assert indices.flatten().tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize(("k", "leave", "most"), [(0, False, 5), (6, False, 5), (5, True, 4)])
def test_more_neighbours_than_there_are_is_refused(k, leave, most):
    """k must lie in 1 ... N, or N - 1 leaving one out."""
    with pytest.raises(UserInputError, match=rf"choose 1 \.\.\. {most}"):
        nearest(normal(5), normal(5), k, leave_one_out=leave)


def test_features_that_cannot_be_compared_are_refused():
    """Another width, another shape, no image at all, NaN."""
    with pytest.raises(UserInputError, match=r"different widths \[16, 8\]"):
        nearest(normal(3), normal(5, width=8))
    with pytest.raises(UserInputError, match=r"\[N, F\] with N >= 1, got \[0, 16\]"):
        nearest(normal(3), normal(0))
    with pytest.raises(UserInputError, match="needs one set, got 3 and 5"):
        nearest(normal(3), normal(5), leave_one_out=True)
    with pytest.raises(NonFiniteError, match="1 of 5 images have NaN or infinite features of the held-out"):
        memorisation(normal(3), normal(9), normal(5).index_fill(0, torch.tensor(1), torch.nan))
    with pytest.raises(NonFiniteError, match="1 of 3 images have NaN or infinite features of the samples"):
        nearest(normal(3).index_fill(0, torch.tensor(1), torch.nan), normal(5))


def test_planted_copies_are_found():
    """40 of 400 samples a hundredth away from training images: all found, the share far above chance."""
    training, held_out, samples = normal(500), normal(300, seed=1), normal(400, seed=2)
    samples[:40] = training[100:140] + 0.01 * normal(40, seed=3)
    found = memorisation(samples, training, held_out)
    first = found.closeness[0]
    assert set(most_suspicious(found.distances, 40).tolist()) == set(range(40))
    assert found.indices[:40].tolist() == list(range(100, 140))
    assert 40 <= first.count <= 40 + first.chance_limit
    assert first.suspicious
    assert first.interval[0] > first.expected
    assert (found.n, found.yardstick_n, found.yardstick) == (400, 300, "held-out")


def test_without_copies_the_share_is_the_expected_one():
    """100 fresh draws: the mean share is rank / (H + 1), and about one in twenty is called suspicious."""
    shares, alarms = [], 0
    for seed in range(100):
        x = normal(600, width=4, seed=seed)
        [found] = memorisation(x[:200], x[200:400], x[400:], levels=[0.05]).closeness
        assert found.expected == 10 / 201
        shares.append(found.share)
        alarms += found.suspicious
    # one share has variance of at most that of Beta(10, 191) plus a binomial of 200: 0.0154^2 + 0.0154^2
    assert abs(np.mean(shares) - 10 / 201) < 4 * 0.0218 / 10
    assert alarms <= betabinom.ppf(0.999, 100, 50, 950)  # of 100 with probability near 0.05


def test_without_held_out_images_the_training_set_is_the_yardstick():
    """Leave-one-out distances of the training images take the place, and the result says so."""
    training = normal(300)
    found = memorisation(normal(200, seed=1), training, levels=[0.05])
    usual = nearest(training, training, leave_one_out=True)[0].flatten().sort().values
    assert found.yardstick == "training, leave-one-out"
    assert found.closeness[0].threshold == float(usual[14])  # rank floor(0.05 * 301) = 15
    assert found.closeness[0].count == int((found.distances < usual[14]).sum())


@pytest.mark.parametrize(("n", "real"), [(10, 99), (400, 300), (1, 20), (5000, 20), (60, 19)])
def test_intervals_and_limits_follow_the_formulas(n, real):
    """Wilson's interval as he wrote it, and the 95 % point of a beta-binomial added up in fractions."""
    training = normal(50, width=3)
    held_out, samples = normal(real, 3, seed=1), normal(n, 3, seed=2)
    [found] = memorisation(samples, training, held_out, levels=[0.05]).closeness
    p, z = found.count / n, 1.959963984540054  # 97.5 % point of the normal
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(p + z * z / (2 * n) + side * half) / (1 + z * z / n) for side in (-1, 1)]
    assert found.interval == pytest.approx(expected, rel=1e-12, abs=1e-15)
    first = int(0.05 * (real + 1))
    second, below = real + 1 - first, Fraction()
    for limit in range(n + 1):  # P(c) = C(c + first - 1, c) C(n - c + second - 1, n - c) / C(n + real, n)
        ways = math.comb(limit + first - 1, limit) * math.comb(n - limit + second - 1, n - limit)
        below += Fraction(ways, math.comb(n + real, n))
        if below >= Fraction(95, 100):
            break
    assert found.chance_limit == limit


def test_too_few_real_images_for_a_level_are_refused():
    """98 images have no closest hundredth, 99 have: the first of them."""
    samples, training = normal(5), normal(50)
    with pytest.raises(UserInputError, match="at least 99 held-out images"):
        memorisation(samples, training, normal(98, seed=1), levels=[0.01])
    assert memorisation(samples, training, normal(99, seed=1), levels=[0.01]).closeness[0].expected == 0.01
    with pytest.raises(UserInputError, match="between 0 and 1"):
        memorisation(samples, training, levels=[0.0])


def test_a_yardstick_of_copies_is_refused():
    """Where real images lie at 0 no sample can be closer, and a count of 0 would sound like an all-clear."""
    training = normal(100)
    copies = torch.cat([training[:3], normal(97, seed=1)])
    with pytest.raises(DataError, match="1% of the 100 real images themselves have a copy"):
        memorisation(training[:20], training, copies, levels=[0.01])
    assert memorisation(training[:20], training, copies, levels=[0.05]).closeness[0].count == 20


def test_identical_pixels_are_counted_by_digest():
    """The first training image with the same digest, -1 where there is none."""
    training = torch.tensor([[1, 2], [3, 4], [1, 2]], dtype=torch.uint8)
    samples = torch.tensor([[3, 4], [9, 9], [1, 2]], dtype=torch.uint8)
    assert identical_images(samples, training).tolist() == [1, -1, 0]
    assert identical_images(samples[:0], training).tolist() == []
    with pytest.raises(UserInputError, match="uint8"):
        identical_images(samples.long(), training)


def colours(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def test_the_picture_starts_with_the_most_suspicious(tmp_path):
    """Two rows of five: those of the smallest distances; only their images are opened."""
    opened = {"sample": [], "training": []}

    def image(kind, value):
        def load(row):
            opened[kind].append(row)
            return torch.full((6, 6, 3), value, dtype=torch.uint8)

        return load

    distances = torch.tensor([[5.0, 6.0], [0.5, 7.0], [4.0, 4.5], [1.5, 2.0], [9.0, 9.5]])
    indices = torch.arange(10).view(5, 2)
    nearest_figure(
        image("sample", 77), image("training", 199), distances, indices, tmp_path / "n.png",
        extractor="net", threshold=1.0, rows=2,
    )  # fmt: skip
    assert opened == {"sample": [1, 3], "training": [2, 3, 6, 7]}
    pixels = colours(tmp_path / "n.png")
    alarm = np.array([int(ALARM[i : i + 2], 16) for i in (1, 3, 5)])
    counts = [int((pixels == colour).all(axis=1).sum()) for colour in ([77] * 3, [199] * 3, alarm)]
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.1)  # two neighbours beside each sample
    assert counts[2] > 0


def test_nothing_is_marked_when_nothing_is_close(tmp_path):
    """Without distances below the threshold the colour of alarm does not occur; grey images are drawn."""
    grey = np.full((4, 5, 1), 120, dtype=np.uint8)
    nearest_figure(
        lambda row: grey, lambda row: grey, torch.tensor([[2.0]]), torch.tensor([[0]]), tmp_path / "n.png",
        extractor="net", threshold=2.0,
    )  # fmt: skip
    pixels = colours(tmp_path / "n.png")
    assert (pixels == 120).all(axis=1).sum() > 1000
    assert not (pixels == [int(ALARM[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=1).any()


@pytest.mark.parametrize(
    ("image", "shape", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), (1, 1), "sample 0: images must be uint8"),
        (np.zeros((4, 4, 4), np.uint8), (1, 1), "1 or 3 channels"),
        (np.zeros((4, 4, 3), np.uint8), (0, 1), "1 row or more"),
        (np.zeros((4, 4, 3), np.uint8), (3,), r"\[M, k\]"),
    ],
)
def test_what_is_no_image_leaves_no_picture(tmp_path, image, shape, message):
    """Floats, four channels, no samples, distances of another shape."""
    with pytest.raises(UserInputError, match=message):
        nearest_figure(
            lambda row: image, lambda row: image, torch.ones(shape), torch.zeros(shape).long(),
            tmp_path / "n.png", extractor="net",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_picture_that_was_there(tmp_path):
    """A file may have 1000 bytes: the write fails half-way, the old picture stays, nothing is left over."""
    noise = (255 * torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0))).byte()
    (tmp_path / "n.png").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"File too large; allow larger files"):
            nearest_figure(
                lambda row: noise, lambda row: noise, torch.ones(1, 1), torch.zeros(1, 1).long(),
                tmp_path / "n.png", extractor="net",
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["n.png"]
    assert (tmp_path / "n.png").read_bytes() == b"old"


def test_a_picture_that_cannot_be_written_says_where(tmp_path):
    """A missing folder is a StorageError."""
    grey = np.zeros((4, 4, 1), np.uint8)
    with pytest.raises(StorageError, match="absent"):
        nearest_figure(
            lambda row: grey, lambda row: grey, torch.ones(1, 1), torch.zeros(1, 1).long(),
            tmp_path / "absent" / "n.png", extractor="net",
        )  # fmt: skip
