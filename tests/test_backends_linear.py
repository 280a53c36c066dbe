"""Sana's linear attention: its query-key norm, and that results without one keep their address."""

from __future__ import annotations

import pytest
import torch

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.errors import UserInputError
from attnbench.models.options import options_of, with_all_options
from attnbench.plugins import registry
from attnbench.specs import AttentionSpec, ModelConfig

BACKEND = registry().backend("linear")


def content(options):
    """The options as they stand in the key of a training."""
    attention = AttentionSpec(name="linear", options=options)
    config = ModelConfig(name="m", depth=1, dim=8, num_heads=1, attention=attention)
    return with_all_options(config, registry()).content()["attention"]["options"]


def test_the_norm_of_queries_and_keys_has_sanas_eps():
    """Released: LiteLA(qk_norm=True) builds its RMSNorms with norm_eps=1e-5."""
    site = AttentionSite(dim=8, num_heads=2, grid=(2, 2))
    module = BACKEND.build(site, options_of(BACKEND, {"qk_norm": True}))
    assert (module.q_norm.eps, module.k_norm.eps) == (1e-5, 1e-5)
    other = BACKEND.build(site, options_of(BACKEND, {"qk_norm": True, "qk_norm_eps": 0.1}))
    other.load_state_dict(module.state_dict())
    x, context = torch.randn(1, 4, 8), AttentionContext(grid=(2, 2))
    assert not torch.equal(module(x, context), other(x, context))


def test_the_eps_stands_in_the_key_where_there_is_a_norm_and_only_there():
    """Results of the default options stay valid; those with a norm were computed with another eps."""
    assert content({}) == {"qk_norm": False, "eps": 1e-8, "association": "auto"}
    assert content({"qk_norm": True})["qk_norm_eps"] == 1e-5
    assert content({"qk_norm": True, "qk_norm_eps": 1e-6})["qk_norm_eps"] == 1e-6


def test_options_written_out_are_read_again():
    """As a folder's config.json has them."""
    for options in ({}, {"qk_norm": True, "qk_norm_eps": 1e-6}):
        once = content(options)
        assert content(once) == once


def test_an_eps_without_a_norm_is_refused():
    """It would do nothing."""
    with pytest.raises(UserInputError, match=r"qk_norm_eps: 0\.1 does nothing with qk_norm: false"):
        options_of(BACKEND, {"qk_norm_eps": 0.1})
