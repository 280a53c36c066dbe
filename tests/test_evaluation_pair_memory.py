"""The reference's part of the pairs is computed once for all samples, and changes no bit."""

from __future__ import annotations

import pytest
import torch

from attnbench.evaluation import pair_memory
from attnbench.evaluation.pair_memory import PairMemory
from attnbench.metrics import pairwise as module
from attnbench.metrics.pairwise import pairwise


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def passes(monkeypatch):
    """Count passes over pairs within one set and between two."""
    counted = []
    feed = module._feed
    monkeypatch.setattr(module, "_feed", lambda a, b, *takers: counted.append(a is b) or feed(a, b, *takers))
    return counted


SETTINGS = [
    {"neighbours": 3, "subsets": 4, "subset_size": 20},
    {"neighbours": None, "subsets": 4, "subset_size": 20},
    {"neighbours": 2, "subsets": None, "subset_size": 20},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_other_samples_cost_two_passes_instead_of_three(tmp_path, passes, settings):
    """Every number of the second set is that of a pass without memory, bit for bit."""
    reference, memory = normal(50, 0), PairMemory(folder=tmp_path)
    memory.pairwise(reference, normal(40, 1), **settings)
    assert passes == [True, True, False]
    passes.clear()
    found = memory.pairwise(reference, normal(40, 2), **settings)
    assert passes == [True, False]
    expected = pairwise(reference, normal(40, 2), **settings)
    if settings["subsets"]:
        assert found.kernel_values == expected.kernel_values
        assert torch.equal(found.kernel_influence, expected.kernel_influence)
    if settings["neighbours"]:
        assert torch.equal(found.sample_inside, expected.sample_inside)
        assert torch.equal(found.reference_inside, expected.reference_inside)
        assert found.recall_error == expected.recall_error


def test_another_reference_setting_or_number_of_samples_is_another_part(tmp_path, passes):
    """What is kept depends on all that it was computed from."""
    memory, usual = PairMemory(folder=tmp_path), SETTINGS[0]
    memory.pairwise(normal(50, 0), normal(40, 1), **usual)
    changed = [(normal(50, 9), 40, usual), (normal(50, 0).double(), 40, usual), (normal(50, 0), 41, usual)]
    changed += [(normal(50, 0), 40, usual | {key: value}) for key, value in
                (("neighbours", 2), ("subsets", 5), ("subset_size", 21))]  # fmt: skip
    for reference, count, settings in changed:
        passes.clear()
        memory.pairwise(reference, normal(count, 1), **settings)
        assert passes == [True, True, False]


def test_a_damaged_part_is_computed_again_and_told(tmp_path):
    """As a damaged file of features."""
    memory = PairMemory(folder=tmp_path)
    first = memory.pairwise(normal(50, 0), normal(40, 1), **SETTINGS[0])
    (path,) = tmp_path.glob("pairs-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = memory.pairwise(normal(50, 0), normal(40, 1), **SETTINGS[0])
    assert again.kernel_values == first.kernel_values
    assert "is damaged" in memory.warnings[0]
    assert pair_memory.read_arrays(path) is not None
