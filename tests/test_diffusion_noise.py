"""Keyed noise: a function of (seed, index, step) and of nothing else."""

import hashlib
import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnbench.diffusion.noise import KeyedNoise, derive_seed, keyed_labels

CPU = torch.device("cpu")


def noise(indices: list[int], *, seed: int = 0, step: int = 0, purpose: str = "sample") -> torch.Tensor:
    return KeyedNoise(seed=seed, indices=indices, shape=(2, 3, 3), device=CPU, purpose=purpose).at(step)


@given(
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    seed=st.integers(-(2**70), 2**70),
    step=st.integers(0, 1000),
)
def test_any_split_into_batches_gives_the_same_bits(indices, cuts, seed, step):
    """Batch size, order and repeats change no bit of a sample's noise."""
    whole = noise(indices, seed=seed, step=step)
    edges = sorted({0, len(indices), *(min(cut, len(indices)) for cut in cuts)})
    parts = [noise(indices[a:b], seed=seed, step=step) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(noise(indices[::-1], seed=seed, step=step), whole.flip(0))


def fresh_stream(seed: int, purpose: str, index: int, step: int) -> np.random.Generator:
    """A generator of its own at the position that the definition names."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = int.from_bytes(digest, "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, index, step, 0]))


@given(
    indices=st.lists(st.integers(0, 2**63 - 1), max_size=6),
    shape=st.sampled_from([(1,), (3,), (2, 3, 3), (5, 7)]),
    seed=st.integers(-(2**70), 2**70),
    step=st.integers(0, 2**40),
)
def test_moving_one_generator_draws_what_a_fresh_one_at_each_position_draws(indices, shape, seed, step):
    """No number left over from one sample (odd counts leave half a word) reaches the next; labels neither."""
    found = KeyedNoise(seed=seed, indices=indices, shape=shape, device=CPU, purpose="x").at(step)
    streams = [fresh_stream(seed, "x", index, step) for index in indices]
    expected = [stream.standard_normal(shape, dtype=np.float32) for stream in streams]
    assert np.array_equal(found.numpy(), np.array(expected, dtype=np.float32).reshape(-1, *shape))
    labels = [int(fresh_stream(seed, "labels", index, 0).integers(7)) for index in indices]
    assert keyed_labels(seed, indices, 7).tolist() == labels


def test_every_part_of_the_key_matters():
    """Another seed, index, step or purpose is other noise, also where 32 bits would collide."""
    first = noise([1])
    others = [
        noise([1], seed=2**32),
        noise([1 + 2**32]),
        noise([1], step=1),
        noise([1], purpose="x"),
        noise([0]),
    ]
    for other in others:
        assert not torch.isclose(first, other).any()


def test_noise_is_standard_normal():
    """Mean, spread and correlation of neighbouring samples are those of independent normals."""
    drawn = noise(list(range(5000))).flatten(1)
    error = drawn.numel() ** -0.5
    assert abs(drawn.mean()) < 4 * error
    assert abs(drawn.std() - 1) < 4 * error
    assert abs((drawn[1:] * drawn[:-1]).mean()) < 4 * error


def test_drawing_leaves_the_global_generators_alone():
    """Keyed noise neither reads nor moves torch's global stream."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    noise([1, 2, 3])
    assert torch.rand(1) == expected


def test_derived_seeds_are_distinct_and_fit():
    """Seeds of positions differ from each other and fit what torch accepts."""
    seeds = {derive_seed(seed, purpose, i) for seed in (0, 1) for purpose in "ab" for i in range(500)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "a", 12) != derive_seed(1, "a", 1, 2)


@given(
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    num_classes=st.integers(1, 1000),
)
def test_a_random_label_belongs_to_its_index(indices, cut, num_classes):
    """Batches and order change no label, and every label is a class."""
    whole = keyed_labels(3, indices, num_classes)
    parts = [keyed_labels(3, part, num_classes) for part in (indices[:cut], indices[cut:])]
    assert torch.equal(torch.cat(parts).long(), whole)
    assert torch.equal(keyed_labels(3, indices[::-1], num_classes), whole.flip(0))
    assert (whole.dtype, whole.min() >= 0, whole.max() < num_classes) == (torch.int64, True, True)


def test_random_labels_are_uniform():
    """Of 10,000 labels each of ten classes gets a tenth within four standard errors; seeds differ."""
    labels = keyed_labels(0, range(10_000), 10)
    counts = labels.bincount(minlength=10)
    assert (counts - 1000).abs().max() < 4 * (10_000 * 0.1 * 0.9) ** 0.5
    assert not torch.equal(labels, keyed_labels(1, range(10_000), 10))
