"""Numbers of attention maps and of tokens, one an image: how even, how low in rank, how alike.

A map is [B, H, Q, N]: the weights of Q output tokens over N input tokens in each head, non-negative, each row
with sum 1, or NaN where an output token takes nothing from anywhere; such rows are left out of means.
"""

from __future__ import annotations

import math

import torch


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy of a row over ln N: 1 where all inputs weigh alike, 0 for one alone; [B]."""
    rows = -torch.special.xlogy(weights, weights).sum(-1)  # NaN stays NaN
    return _over_rows(rows / math.log(max(2, weights.shape[-1])))


def row_variance(weights: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of Var_j(N a_j): 0 where all inputs weigh alike, N - 1 for one alone; [B]."""
    return _over_rows((weights * weights.shape[-1]).var(-1, correction=0))


def effective_rank(weights: torch.Tensor) -> torch.Tensor:
    """Return the mean over heads of exp(H(s / sum s)), s the singular values of a head's map; [B].

    1 where all rows are multiples of one, at most min(Q, N). A row without weights counts as zeros.
    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    s = torch.linalg.svdvals(weights.nan_to_num(0.0).double())
    shares = s / s.sum(-1, keepdim=True)
    ranks = (-torch.special.xlogy(shares, shares).sum(-1)).exp()  # NaN where a head has no weights
    return ranks.nanmean(-1)


def token_similarity(tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine of two different tokens: [B, N, C] -> [B]; 1 where all point the same way.

    sum_(i != j) cos(h_i, h_j) / (N (N - 1)); all pairs are in |sum_i h_i / |h_i||^2, N of them a token
    with itself. Source: Shi et al. 2022, arXiv:2202.08625, sec. 3.
    """
    count = tokens.shape[1]
    if count < 2:
        return tokens.new_full((len(tokens),), math.nan, dtype=torch.float64)
    directions = torch.nn.functional.normalize(tokens.double(), dim=-1)
    return (directions.sum(1).square().sum(-1) - count) / (count * (count - 1))


def _over_rows(rows: torch.Tensor) -> torch.Tensor:
    """Average [B, H, Q] over heads and rows, those without weights left out."""
    return rows.double().flatten(1).nanmean(-1)
