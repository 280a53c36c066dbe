"""FAVOR+: its features, its estimate of softmax attention, its stabiliser, and what it costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.backends.performer import orthogonal_features
from attnbench.contract import AttentionContext
from attnbench.models import build_model
from attnbench.models.recipes import load_recipes
from attnbench.specs import AttentionSpec

SITE = {"dim": 12, "num_heads": 3, "grid": (7, 9)}
CONTEXT = AttentionContext(grid=(7, 9))


def test_features_are_orthogonal_in_blocks():
    """Within a block of D features the directions are orthogonal; an incomplete last block too."""
    torch.manual_seed(0)
    features = orthogonal_features(20, 8)
    for block in features.split(8):
        gram = torch.nn.functional.normalize(block) @ torch.nn.functional.normalize(block).T
        # QR of an 8 x 8 matrix and sums of 8 products in fp32
        torch.testing.assert_close(gram, torch.eye(len(block)), rtol=0, atol=64 * torch.finfo().eps)
    assert features.shape == (20, 8)


def test_features_are_isotropic():
    """Every entry has mean 0 and variance 1, each within 5 standard errors of 4000 blocks."""
    torch.manual_seed(0)
    features = orthogonal_features(16_000, 4)
    # entries of one block are not independent: count blocks, which are
    assert features.mean(0).abs().max() <= 5 / 4000**0.5
    assert (features.square().mean(0) - 1).abs().max() <= 5 * (2 / 4000) ** 0.5


def error_of_one_block(q, k, v, num_blocks=4000):
    """Softmax attention o of one head, and the variance of the error of its estimate from D features, [N, D].

    The estimate is sum_j a^_j v_j / sum_j a^_j with a^_j the mean over w of f_w(q) f_w(k_j), f_w(z) =
    exp(w . z - |z|^2 / 2). To first order its error is the mean over w of
    f_w(q) sum_j f_w(k_j) (v_j - o) / sum_j exp(q . k_j), and blocks of D features are independent.
    """
    a = (q @ k.T).exp()  # [N, N]
    o = a @ v / a.sum(-1, keepdim=True)
    w = orthogonal_features(num_blocks * 4, 4).to(q.dtype).unflatten(0, (num_blocks, 4))
    f_q, f_k = (
        torch.exp(torch.einsum("nd,bmd->nbm", z, w) - z.square().sum(-1)[:, None, None] / 2) for z in (q, k)
    )
    mixed = torch.einsum("jbm,jc->bmc", f_k, v)
    mass = f_k.sum(0)  # [blocks, m]
    drawn = (
        torch.einsum("nbm,bmc->nbc", f_q, mixed)
        - torch.einsum("nbm,bm->nb", f_q, mass)[..., None] * o[:, None]
    )
    return o, (drawn / 4 / a.sum(-1)[:, None, None]).var(1)


@pytest.mark.parametrize("num_features", [64, 512, 4096])
def test_expectation_is_softmax_attention(num_features):
    """The squared error against softmax attention is the variance of one block over the number of blocks.

    Its mean over 32 draws, 63 tokens and 12 channels is within a factor of 2 (outputs of one draw are
    correlated: if they were one number, the relative deviation would be sqrt(2 / 32) = 1/4, and the
    neglected second order is at most 1 / 16 blocks). Biased features would not follow 1 / M.
    """
    softmax = built("softmax", **SITE)
    # small tokens: the error of large ones comes from rare large features, which no quick test meets
    x = torch.randn(1, 63, 12, dtype=torch.float64) / 2
    q, k, v = (z[0].detach().chunk(3, -1) for z in softmax.qkv(x))
    scale = 4**-0.25
    heads = [error_of_one_block(a * scale, b * scale, c) for a, b, c in zip(q, k, v, strict=True)]
    o = torch.cat([first for first, _ in heads], -1)
    expected = torch.cat([second for _, second in heads], -1).mean() * 4 / num_features
    errors = []
    for seed in range(32):
        module = built("performer", {"num_features": num_features}, seed=seed, **SITE)
        module.load_state_dict(softmax.state_dict(), strict=False)
        with torch.no_grad():
            module.out.weight.copy_(torch.eye(12))
            module.out.bias.zero_()
            errors.append((module(x, CONTEXT)[0] - o).square().mean())
    assert 0.5 <= torch.stack(errors).mean() / expected <= 2


def test_stabiliser_belongs_to_one_head():
    """Huge keys in one head leave the other heads' outputs as they are, and everything finite."""
    module = built("performer", {"num_features": 16}, **SITE, dtype=torch.float32)
    with torch.no_grad():
        module.out.weight.copy_(torch.eye(12))
    x = torch.randn(1, 63, 12)
    before = module(x, CONTEXT)
    with torch.no_grad():
        module.qkv.qkv.weight[12:16] *= 1000
    after = module(x, CONTEXT)
    assert after.isfinite().all()
    assert not torch.equal(before[..., :4], after[..., :4])
    assert torch.equal(before[..., 4:], after[..., 4:])


def test_features_come_from_the_seed_and_are_saved():
    """In a model each layer draws its own features from the seed, and a checkpoint brings them back."""
    spec = AttentionSpec(name="performer", options={"num_features": 8})
    config = load_recipes()["tiny-dit"].model_copy(update={"attention": spec, "depth": 2})
    first, again, other = (build_model(config, 8, 10, seed=s).state_dict() for s in (0, 0, 1))
    names = [f"blocks.{i}.attn.features" for i in (0, 1)]
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)
    assert not torch.equal(first[names[0]], first[names[1]])


@pytest.mark.parametrize("num_features", [5, 64])
def test_macs(num_features):
    """The closed form is what executes, more or fewer features than channels."""
    assert len(set(module_counts("performer", {"num_features": num_features}))) == 1
