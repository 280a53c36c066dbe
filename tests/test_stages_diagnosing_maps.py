"""Implied attention maps: exactly the weights where there are weights, something honest everywhere else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.layers import QKVProjection, merge_heads, split_heads
from attnbench.plugins import registry
from attnbench.stages.diagnosing import maps
from attnbench.stages.diagnosing.maps import NoMapError, Site, implied_map, spread_queries
from attnbench.stages.diagnosing.measures import effective_rank, entropy, row_variance, token_similarity

GRID, N, C, H = (3, 4), 12, 16, 2
EVERY = torch.arange(N)
FP32 = torch.finfo(torch.float32).eps


def site_of(module: nn.Module, images: int = 2) -> Site:
    """A module at random inputs, its weights fixed as in the stage."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, N, C, generator=generator)
    context = AttentionContext(
        grid=GRID,
        timestep=torch.full((images,), 500.0),
        conditioning=torch.randn(images, C, generator=generator),
    )
    return Site(module=module.eval().requires_grad_(False), x=x, context=context, num_heads=H)


def built(name: str, **options: object) -> nn.Module:
    """A backend's module, its weights large enough for uneven attention."""
    torch.manual_seed(1)
    backend = registry().backends[name].record
    module = backend.build(
        AttentionSite(dim=C, num_heads=H, grid=GRID, depth=2), backend.options.model_validate(options)
    )
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)
    return module


def shared_weights(site: Site) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) in fp64, [B, H, N, N]."""
    q, k, _ = (split_heads(z, H).double() for z in site.module.qkv(site.x))
    return (q @ k.transpose(-2, -1) / math.sqrt(C // H)).softmax(-1)


@pytest.mark.parametrize("implementation", ["sdpa", "math"])
def test_the_map_of_softmax_attention_is_its_softmax(implementation):
    """Every head's weights come out of derivatives; values, output matrix and probes do not show."""
    site = site_of(built("softmax", implementation=implementation))
    found = implied_map(site, EVERY)
    expected = shared_weights(site)
    assert found.path == "values"
    assert expected.max() > 0.9  # uneven enough to tell a wrong map
    # Relative errors that add up, in eps: logits are off by at most D + 2 (products, sum, scale) times their
    # largest |q| . |k| / sqrt(D), by which exp(logit) is off relatively, twice with its sum; then sums over N
    # tokens (softmax), C outputs (backward), D channels (norm) and N tokens again.
    q, k, _ = (split_heads(z, H).abs() for z in site.module.qkv(site.x))
    largest = (q @ k.transpose(-2, -1)).max().item() / math.sqrt(C // H)
    bound = FP32 * (2 * (C // H + 2) * largest + 2 * N + C + C // H)
    assert bound < 0.01
    assert ((found.weights - expected).abs() <= bound * expected + 1e-30).all()


def test_some_queries_are_the_rows_of_the_whole_map():
    """Rows do not depend on which others are asked for, nor on how many images are taken at once."""
    site = site_of(built("softmax"))
    whole = implied_map(site, EVERY).weights
    queries = spread_queries(N, 4)
    assert queries.tolist() == [1, 4, 7, 10]
    torch.testing.assert_close(implied_map(site, queries).weights, whole[:, :, queries])


def test_rows_in_turn_are_rows_at_once(monkeypatch):
    """A small machine finds one row after the other, and the same."""
    site = site_of(built("softmax"), images=3)
    whole = implied_map(site, EVERY).weights
    monkeypatch.setattr(maps, "MOST_NUMBERS", 1)
    torch.testing.assert_close(implied_map(site, EVERY).weights, whole)


def test_a_difference_of_maps_is_seen_through_the_norm_behind_it():
    """|softmax_1 - lambda softmax_2|, though an RMSNorm and the output projection come after."""
    site = site_of(built("differential"))
    q, k, _ = (split_heads(z, H).double() for z in site.module.qkv(site.x))
    first, second = (
        (a @ b.transpose(-2, -1) / math.sqrt(C // H // 2)).softmax(-1)
        for a, b in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
    )
    expected = (first - site.module._lambda().double() * second).abs()
    expected = expected / expected.sum(-1, keepdim=True)
    # the two maps cancel: errors are relative to them, not to their difference
    torch.testing.assert_close(implied_map(site, EVERY).weights.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_map_of_dynamic_projections_has_no_surrogate_gradients_in_it():
    """A rung of Table 4 makes values by a layer of their own; with a fixed kernel the weights are Eq. 4's."""
    module = built("dydila", mode="none", query_key="dynamic", kernel="fixed", dwc="none", num_projectors=2)
    site = site_of(module)
    found = implied_map(site, EVERY)
    one_hot = torch.eye(N).expand(
        len(site.x), N, N
    )  # values e_j in the first N channels of a head show weights
    assert found.path == "values"
    assert found.weights.shape == (2, H, N, N)

    class Reads(nn.Linear):
        def forward(self, x):
            return torch.cat([one_hot[:, :, : C // H], one_hot[:, :, : C // H]], -1)

    module.value, module.out = Reads(C, C), nn.Identity()
    shown = module(site.x, site.context)  # [B, N, C]: the first D weights of each head, not yet of sum 1
    shown = shown.unflatten(-1, (H, -1)).transpose(1, 2)
    # the same fp32 numerator over the same denominator, but for their sums' order; a token whose features are
    # all 0 takes nothing
    torch.testing.assert_close(found.weights[..., : C // H].nan_to_num(), shown, rtol=1e-4, atol=1e-6)


class Strange(nn.Module):
    """Attention of somebody else: no part of it has a name anybody knows."""

    def __init__(self, change=lambda y, x: y) -> None:
        super().__init__()
        self.change = change
        self.mixer = nn.Parameter(torch.rand(N, N, generator=torch.Generator().manual_seed(2)))

    def forward(self, x, context):
        return self.change(self.mixer @ x, x)


def test_a_stranger_is_seen_from_its_input_tokens():
    """y = M x: the map is M, each row over its sum, since d y_i / d x_j = M_ij 1."""
    site = site_of(Strange())
    found = implied_map(site, EVERY)
    assert (found.path, found.weights.shape) == ("tokens", (2, 1, N, N))
    expected = site.module.mixer / site.module.mixer.sum(-1, keepdim=True)
    torch.testing.assert_close(found.weights[0, 0], expected)


class Scanned(nn.Module):
    """Reads its tokens backwards, as scans do, and puts them back; values have a layer of a usual name."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(C, C)
        self.mixer = nn.Parameter(torch.rand(N, N, generator=torch.Generator().manual_seed(2)))

    def forward(self, x, context):
        return (self.mixer @ self.v(x.flip(1))).flip(1)


def test_values_in_another_order_are_put_in_their_places():
    """Columns are the module's input tokens, in whatever order it projects them."""
    site = site_of(Scanned())
    found = implied_map(site, EVERY)
    expected = (site.module.mixer / site.module.mixer.sum(-1, keepdim=True)).flip(0, 1)
    assert found.path == "values"
    torch.testing.assert_close(found.weights[1, 1], expected)


def raising(y, x):
    """Refuse autograd."""
    if x.requires_grad:
        raise RuntimeError("forward only")
    return y


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda y, x: y.detach(), NoMapError, "no way from its input tokens"),
        (lambda y, x: torch.zeros_like(y) + 1, NoMapError, "no way from its input tokens"),
        (lambda y, x: y * math.nan, NoMapError, "not finite"),
        (raising, RuntimeError, "forward only"),
    ],
)
def test_a_module_without_a_map_says_why(change, error, words):
    """Not differentiable, constant, not finite, or refusing: never a made-up map."""
    with pytest.raises(error, match=words):
        implied_map(site_of(Strange(change)), EVERY)


def test_a_token_that_takes_nothing_has_no_row():
    """Its row is NaN, and means leave it out."""
    site = site_of(Strange(lambda y, x: y * (torch.arange(N) > 0)[:, None]))
    weights = implied_map(site, EVERY).weights
    assert weights[:, :, 0].isnan().all()
    assert weights[:, :, 1:].isfinite().all()
    assert entropy(weights).isfinite().all()
    assert effective_rank(weights).isfinite().all()


def test_values_of_fewer_tokens_are_no_values_of_the_input():
    """Where keys and values are pooled before their projection, the map is of the input tokens."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = QKVProjection(C, bias=False)

        def forward(self, x, context):
            _, k, v = self.qkv(x[:, ::2])
            return (x @ k.transpose(1, 2)).softmax(-1) @ v

    assert implied_map(site_of(Pooled()), EVERY).path == "tokens"


def test_every_backend_has_a_map():
    """Rows of sum 1 for each of the built-in attentions, and values are seen in nearly all of them."""
    small = {
        "agent": {"num_agents": 4},
        "mhla": {"blocks": 2},
        "mediators": {"schedule": ((500, 4), (1000, 1))},
        "linformer": {"rank": 4},
        "window": {"kernel_size": 3},
        "moba": {"tile_size": 2, "top_k": 2},
        "vsa": {"tile_size": 2, "top_k": 2},
        "sla": {"tile_size": 2},
        "sliding-tile": {"tile_size": 1},
        "pixart-sigma": {"stride": 1},
    }
    over_tokens = set()
    for name in registry().backends:
        site = site_of(built(name, **small.get(name, {})), images=1)
        found = implied_map(site, spread_queries(N, 2))
        sums = found.weights.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        over_tokens |= {name} if found.path == "tokens" else set()
    # these project other tokens than those that come in
    pooled = {"edit", "spatial-reduction", "linfusion", "pvt-v2"}
    # and these convolve their values first, so that a value is of several tokens
    convolved = {name for name, p in registry().backends.items() if p.record.family == "sequential"}
    assert over_tokens <= pooled | convolved


def test_measures_of_maps_that_are_known():
    """Even, one-sided and repeated rows, by hand."""
    even, single = torch.full((1, 1, 4, 4), 0.25), torch.eye(4).expand(1, 1, 4, 4)
    repeated = torch.tensor([0.5, 0.5, 0.0, 0.0]).expand(1, 1, 4, 4)
    assert [f(even).item() for f in (entropy, row_variance)] == pytest.approx([1, 0])
    assert [f(single).item() for f in (entropy, row_variance)] == pytest.approx([0, 3])
    assert [f(repeated).item() for f in (entropy, row_variance)] == pytest.approx([0.5, 1])
    assert [effective_rank(z).item() for z in (even, single, repeated)] == pytest.approx([1, 4, 1])


def test_token_similarity_is_the_mean_cosine_of_pairs():
    """Against the double loop; 1 for equal tokens, 0 for orthogonal ones."""
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = [
        sum(torch.cosine_similarity(z[i], z[j], dim=0).item() for i, j in pairs) / len(pairs) for z in tokens
    ]
    assert token_similarity(tokens).tolist() == pytest.approx(expected)
    assert token_similarity(torch.ones(1, 4, 3)).item() == pytest.approx(1)
    assert token_similarity(torch.eye(3)[None]).item() == pytest.approx(0)


def test_heads_are_cut_as_layers_cut_them():
    """The map of head h belongs to the channels that `split_heads` gives it."""
    z = torch.arange(C).view(1, 1, C)
    assert split_heads(z, H)[0, :, 0].tolist() == z.unflatten(-1, (H, -1))[0, 0].tolist()
    assert merge_heads(split_heads(z, H)).tolist() == z.tolist()
