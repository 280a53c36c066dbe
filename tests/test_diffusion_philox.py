"""Philox4x64-10 by torch and by NumPy: the published vectors, a slow reference, and each other to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.diffusion.philox import PhiloxStream, philox4x64, signed

MASK = 2**64 - 1
WORD = st.one_of(st.integers(0, MASK), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, MASK]))
# Random123, tests/kat_vectors: philox4x64 10, counter, key, expected
PUBLISHED = [
    ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ([MASK] * 4, [MASK] * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]


def slow(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as section 3.1 of the paper reads, in Python's integers."""
    a, b, c, d = counter
    for number in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        keys = key[0] + number * 0x9E3779B97F4A7C15 & MASK, key[1] + number * 0xBB67AE8584CAA73B & MASK
        a, b, c, d = second >> 64 ^ b ^ keys[0], second & MASK, first >> 64 ^ d ^ keys[1], first & MASK
    return [a, b, c, d]


def by_torch(counter: list[int], key: list[int]) -> list[int]:
    return [int(word) & MASK for word in philox4x64(counter, (key[0], key[1]))]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_the_published_vectors(counter, key, expected):
    """Counter and key of zeros, of ones, and of the digits of pi; NumPy starts one after what it is given."""
    words = [int(word, 16) for word in expected.split()]
    assert by_torch(counter, key) == words
    assert slow(counter, key) == words
    if counter[0]:
        assert PhiloxStream((key[0], key[1])).words(counter, 1).tolist() == words


@settings(max_examples=60)
@given(counter=st.lists(WORD, min_size=4, max_size=4), key=st.lists(WORD, min_size=2, max_size=2))
def test_both_are_the_reference_at_every_counter(counter, key):
    """Also where a half of a word, or a carry between halves, is at its limit."""
    assert by_torch(counter, key) == slow(counter, key)
    counter[0] = max(1, counter[0])
    assert PhiloxStream((key[0], key[1])).words(counter, 1).tolist() == slow(counter, key)


def test_a_stream_is_the_words_of_consecutive_counters():
    """Positions are set anew each time; torch gives the same words for a tensor of counters."""
    stream, key = PhiloxStream((5, MASK)), (5, MASK)
    stream.words([9, 9, 9, 9], 3)
    found = stream.words([2**63 - 2, 7, 1, 4], 6)
    counters = torch.tensor([signed(2**63 - 2 + k) for k in range(6)])
    expected = philox4x64((counters, 7, torch.ones(1, dtype=torch.int64), 4), key)
    assert np.array_equal(found, expected.T.contiguous().numpy().view(np.uint64).ravel())


def test_counters_end_at_64_bits():
    """What would run into the next word, and so into another step, is refused."""
    stream = PhiloxStream((0, 0))
    assert len(stream.words([MASK - 1, 0, 0, 0], 2)) == 8
    with pytest.raises(OverflowError, match="64 bits"):
        stream.words([MASK - 1, 0, 0, 0], 3)


def test_every_bit_and_byte_is_equally_frequent():
    """Ones of each bit within 5 standard errors, and chi-square of bytes: by chance 4e-5 and 2e-5."""
    words = PhiloxStream((1, 2)).words([1, 0, 0, 1], 2**17)  # 2^19 words
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=0)
    assert np.abs(bits - len(words) / 2).max() < 5 * (len(words) / 4) ** 0.5
    counts = np.stack(
        [np.bincount(column, minlength=256) for column in words.view(np.uint8).reshape(-1, 8).T]
    )
    expected = len(words) / 256
    squares = ((counts - expected) ** 2 / expected).sum(axis=1)  # 8 of 255 degrees of freedom
    assert squares.min() > 161.6  # scipy.stats.chi2.ppf(1e-6, 255)
    assert squares.max() < 377.1  # ppf(1 - 1e-6, 255)
