"""What an author tests of a backend; run with `pytest` once the package is installed."""

import pytest
import torch

import attnbench
import attnbench_hello


def build(loudness: float = 1.0) -> torch.nn.Module:
    site = attnbench.AttentionSite(dim=8, num_heads=2, grid=(3, 5))
    return attnbench_hello.HelloAttention(site, attnbench_hello.HelloOptions(loudness=loudness))


def test_every_token_hears_the_average() -> None:
    """The output is W (v + mean v), token by token."""
    module = build()
    x = torch.randn(2, 15, 8)
    y = module(x, attnbench.AttentionContext(grid=(3, 5)))
    v = module.value(x[1])
    torch.testing.assert_close(y[1, 7], module.out(v[7] + v.mean(0)))


def test_without_loudness_no_token_hears_another() -> None:
    """With loudness 0, changing one token changes no other output."""
    module = build(loudness=0.0)
    x = torch.randn(1, 15, 8)
    changed = x.clone()
    changed[0, 3] += 1
    context = attnbench.AttentionContext(grid=(3, 5))
    moved = (module(x, context) - module(changed, context)).abs().sum(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [3]


def test_options_refuse_what_they_do_not_know() -> None:
    """A misspelt option is an error."""
    with pytest.raises(ValueError, match="lowdness"):
        attnbench_hello.HelloOptions(lowdness=2.0)
