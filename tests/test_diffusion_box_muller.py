"""Noise of many samples at once: a function of (seed, purpose, index, step), and normal in every way tested.

The statistics have fixed seeds. Each bound is a number of standard errors that independent normals exceed
with a chance of at most 1e-5; all of them together, less than once in a thousand seeds.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from test_diffusion_philox import slow
from torch.overrides import TorchFunctionMode

from attnbench.diffusion import box_muller
from attnbench.diffusion.box_muller import BoxMullerNoise, draw
from attnbench.diffusion.noise import stream_key

CPU = torch.device("cpu")
ERRORS = 4.5  # standard errors: two-sided 7e-6
# Of a pair's radius: NumPy and torch promise 4 units in the last place (2^-23) for log, sin and cos at the
# most, the root halves the logarithm's, and root and product round once each: (4 / 2 + 4 + 1) 2^-23 = 8.4e-7.
ROUNDING = 1e-6
LARGEST = 6.8  # no radius is larger: (2 * 33 ln 2)^(1/2) = 6.76
SHAPES = [(1,), (3,), (2, 3, 3), (1, 8, 8), (4, 9, 31)]


def noise(indices, *, seed=0, step=0, purpose="sample", shape=(2, 3, 3)) -> torch.Tensor:
    return BoxMullerNoise(seed=seed, indices=indices, shape=shape, device=CPU, purpose=purpose).at(step)


def reference(seed: int, purpose: str, index: int, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample's noise and its pairs' radii by the definition, in Python's integers and fp64."""
    pairs = (count + 1) // 2
    blocks, key = -(-pairs // 8), list(stream_key(seed, purpose))
    halves = np.array(
        [
            [word >> shift & 0xFFFFFFFF for word in slow([1 + index * blocks + b, step, use, blocks], key)
             for shift in (0, 32)]
            for use in (0, 1)
            for b in range(blocks)
        ]
    ).reshape(2, -1)[:, :pairs]  # fmt: skip
    # the two roundings to fp32 that every device makes alike
    uniform = (halves[0].astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-32
    angle = halves[1].astype(np.int32).astype(np.float32) * np.float32(math.pi * 2.0**-31)
    radius, angle = np.sqrt(-2 * np.log(uniform)), angle.astype(np.float64)
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normals[:count], np.concatenate([radius, radius])[:count]


@settings(max_examples=40, deadline=None)
@given(
    index=st.one_of(st.integers(0, 2**40), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53])),
    step=st.one_of(st.integers(0, 1000), st.sampled_from([2**16 - 1, 2**16, 2**32, 2**40])),
    seed=st.integers(-(2**70), 2**70),
    shape=st.sampled_from(SHAPES[:4]),
)
def test_noise_is_its_definition(index, step, seed, shape):
    """By NumPy and by torch, for large indices and steps too, within the stated rounding."""
    count = math.prod(shape)
    expected, radius = reference(seed, "x", index, step, count)
    found = noise([index], seed=seed, step=step, purpose="x", shape=shape)
    other = draw(stream_key(seed, "x"), torch.tensor([index]), range(step, step + 1), count)
    assert found.shape == (1, *shape)
    for drawn in (found.flatten(), other.flatten()):
        assert (np.abs(drawn.double().numpy() - expected) <= ROUNDING * radius).all()


@settings(max_examples=60, deadline=None)
@given(
    indices=st.lists(st.integers(0, 2**40) | st.integers(0, 20), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    step=st.integers(0, 1000),
    shape=st.sampled_from(SHAPES),
)
def test_any_split_into_batches_gives_the_same_bits(indices, cuts, step, shape):
    """Batch size, order, gaps and repeats change no bit of a sample's noise."""
    whole = noise(indices, step=step, shape=shape)
    edges = sorted({0, len(indices), *(min(cut, len(indices)) for cut in cuts)})
    parts = [noise(indices[a:b], step=step, shape=shape) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(noise(indices[::-1], step=step, shape=shape), whole.flip(0))


@pytest.mark.parametrize("shape", [(4, 32, 32), (1, 8, 8), (3, 5)])
def test_runs_of_indices_are_what_each_of_them_is_alone(shape):
    """Where a batch is cut for the cache, and ranges as the sampler has them, with steps between them."""
    indices = range(2**32 - 40, 2**32 + 30)
    whole = noise(indices, step=3, shape=shape)
    assert torch.equal(torch.cat([noise([i], step=3, shape=shape) for i in indices]), whole)
    assert torch.equal(noise(indices[::3], step=3, shape=shape), whole[::3])


def test_every_part_of_the_key_matters():
    """Another seed, index, step, purpose or shape is other noise, also where 32 bits would collide."""
    first = noise([1])
    others = [
        noise([1], seed=2**32),
        noise([1 + 2**32]),
        noise([0]),
        noise([1], step=1),
        noise([1], step=2**32),
        noise([1], purpose="x"),
        noise([1], shape=(2, 3, 9))[..., :3],
    ]
    for other in others:
        assert not torch.isclose(first, other).any()


@pytest.mark.parametrize("by_numpy", [True, False])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_steps_drawn_together_are_what_each_is_alone(monkeypatch, num_steps, by_numpy):
    """In any order, with a step that nobody announced; by torch as on a GPU, within the rounding of both."""
    expected = [noise([5, 6, 8, 9], step=step) for step in range(9)]
    monkeypatch.setattr(BoxMullerNoise, "_by_numpy", by_numpy)
    monkeypatch.setattr(box_muller, "DRAWN_TOGETHER", 3 * 4 * 18)  # three steps of four samples
    monkeypatch.setattr(box_muller, "_PAIRS_AT_ONCE", 3 * 2 * 18)  # likewise, in pieces of six samples
    ahead = BoxMullerNoise(seed=0, indices=[5, 6, 8, 9], shape=(2, 3, 3), device=CPU, num_steps=num_steps)
    for step in (0, 1, 2, 3, 4, 5, 6, 8, 2, 0):
        if by_numpy:
            assert torch.equal(ahead.at(step), expected[step])
        assert torch.allclose(ahead.at(step), expected[step], rtol=0, atol=2 * ROUNDING * LARGEST)
    one = BoxMullerNoise(seed=0, indices=range(5, 7), shape=(2, 3, 3), device=CPU, num_steps=num_steps)
    assert torch.allclose(one.at(0), expected[0][:2], rtol=0, atol=2 * ROUNDING * LARGEST)


class Launches(TorchFunctionMode):
    """Counts calls of torch that do more than look at a tensor another way: on a GPU, kernels."""

    VIEWS = ("__getitem__", "dim", "view", "movedim", "flatten", "broadcast_tensors")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        self.count += function.__name__ not in self.VIEWS
        return function(*arguments, **(keywords or {}))


def test_a_draw_is_a_fixed_number_of_operations():
    """As many for ten steps of a hundred samples as for one of one: 24 in each of 10 rounds, few beside."""
    counts = []
    for size, steps in ((1, 1), (100, 10)):
        with Launches() as launches:
            draw((1, 2), torch.arange(size), range(steps), 64)
        counts.append(launches.count)
    assert counts[0] == counts[1] < 24 * 10 + 50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_noise_and_waits_for_nothing():
    """Within the rounding of both, for a range and a list; a copy or a read that waits is an error."""
    expected = noise(range(100), step=249, shape=(4, 32, 32))
    cuda = torch.device("cuda")
    torch.zeros(1, device=cuda)
    for indices in (range(100), list(range(100))):
        there = BoxMullerNoise(seed=0, indices=indices, shape=(4, 32, 32), device=cuda, num_steps=250)
        torch.cuda.set_sync_debug_mode("error")
        try:
            drawn = there.at(249)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.allclose(drawn.cpu(), expected, rtol=0, atol=2 * ROUNDING * LARGEST)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """Noise of 500 latents at two steps, fp64 [2, 500, 4096]: 4.1 million numbers."""
    steps = [noise(range(500), step=step, shape=(4, 32, 32)).flatten(1) for step in (0, 1)]
    return torch.stack(steps).double().numpy()


def test_moments_are_those_of_a_normal(drawn):
    """Mean, square, cube and fourth power, whose variances are 1, 2, 15 and 96."""
    values = drawn.ravel()
    for power, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((values**power).mean() - expected) < ERRORS * (variance / len(values)) ** 0.5


def test_the_distribution_is_normal_and_so_are_its_tails(drawn):
    """Kolmogorov and Smirnov over the whole and beyond 3; how many lie beyond 3, 4 and 4.7."""
    values = drawn[0].ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-5
    for sign in (1, -1):
        beyond = sign * values[sign * values > 3]
        assert stats.kstest(special.ndtr(-beyond) / special.ndtr(-3), "uniform").pvalue > 1e-5
    for limit in (3, 4, 4.7):
        expected = 2 * special.ndtr(-limit) * len(values)
        count = (np.abs(values) > limit).sum()
        assert min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected)) > 1e-5


def test_the_largest_and_the_smallest_words_are_finite():
    """A word of zeros is the largest radius, 6.76, one of ones is radius 0; no logarithm of 0."""
    found = box_muller._radius(np.array([0, 1, 2**32 - 1, 2**31], dtype=np.uint32))
    expected = np.sqrt(-2 * np.log([2.0**-33, 1.5 * 2.0**-32, 1.0, 0.5]))
    assert np.allclose(found, expected, rtol=ROUNDING, atol=0)
    assert found.max() < LARGEST


def test_neighbours_are_independent(drawn):
    """Of indices, steps, positions, rows, both of a pair, purposes and seeds: products of values (variance 1)
    and of their squares (4) are on average what those of independent normals are."""
    first, second = drawn
    others = {
        name: noise(range(500), shape=(4, 32, 32), **key).flatten(1).double().numpy()
        for name, key in {"seed": {"seed": 1}, "purpose": {"purpose": "sampling"}}.items()
    }
    pairs = {
        "index": (first[1:], first[:-1]),
        "index, by 32": (first[32:], first[:-32]),
        "step": (first, second),
        "position": (first[:, 1:], first[:, :-1]),
        "row": (first[:, 32:], first[:, :-32]),
        "radius": (first[:, :2048], first[:, 2048:]),
        **{name: (first, other) for name, other in others.items()},
    }
    for name, (ours, theirs) in pairs.items():
        error = ERRORS * ours.size**-0.5
        assert abs((ours * theirs).mean()) < error, name
        assert abs(((ours**2 - 1) * (theirs**2 - 1)).mean()) < 2 * error, name
    # each pair of a batch: of 500 * 499 / 2 correlations one exceeds 6.5 errors with a chance of 1e-5
    matrix = np.corrcoef(first) - np.eye(500)
    assert np.abs(matrix).max() < 6.5 * 4096**-0.5


def test_drawing_leaves_the_global_generators_alone():
    """Noise neither reads nor moves torch's and NumPy's global streams."""
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    noise([1, 2, 3])
    draw((1, 2), torch.arange(3), range(2), 18)
    assert (torch.rand(1), np.random.rand()) == expected
