"""Mixture-of-experts feed-forward networks: DiffMoE's, whose experts choose tokens, and token choice.

Read: DiffMoE's released code (a public copy of KlingTeam/DiffMoE: models_DiffMoE.py, models_TCDiT.py, its
loss and configurations), the project's page and abstract of arXiv:2503.14487, not the paper's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.contract import AttentionContext, MacCount
from attnbench.layers.precision import without_autocast
from attnbench.models.expert_rows import Experts
from attnbench.specs import FfnSpec, MoeSpec

ROUTER_STD = 0.006  # of DiffMoE's router; that of token choice starts as a linear layer of torch's


class MixtureOfExperts(nn.Module):
    """sum_e g_e MLP_e(x) over the experts that take a token, g the softmax over all experts' logits.

    Called as ffn(x [B, N, C], context); each expert is DiT's MLP. Logits, gates and choices in fp32 (fp64
    for fp64), the sum in x's dtype. The router has no bias, and a kept gate is not renormalised. Records
    `experts`, who takes whom [B, N, E], and `expert_capacity`, experts a token of each image, [B].
    """

    def __init__(self, dim: int, hidden: int, spec: MoeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = nn.Parameter(torch.empty(spec.num_experts, dim))
        self.experts = Experts(spec.num_experts, dim, hidden)

    def reset_parameters(self) -> None:
        """Start every expert as the skeleton's linear layers do, and the router as released."""
        self.experts.reset_parameters()
        if self.spec.routing == "diffmoe":
            nn.init.normal_(self.router, std=ROUTER_STD)
        else:
            nn.init.kaiming_uniform_(self.router, a=math.sqrt(5))

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., E], their sum 1, in at least fp32: rounding can flip a choice."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            return F.linear(x.to(dtype), self.router.to(dtype)).softmax(-1)

    def tell(self, chosen: torch.Tensor, context: AttentionContext) -> None:
        """Record who takes whom, chosen [B, N, E]."""
        if context.recorder is not None:
            context.record("experts", chosen)
            context.record("expert_capacity", chosen.double().sum(-1).mean(-1))


class TokenChoice(MixtureOfExperts):
    """Every token takes its `capacity` experts of largest gate, in training and afterwards.

    Adds the loss `expert_balance`: E sum_e (mean gate of e) (share of choices of e) over the tokens of all
    processes, 1 when balanced, times `balance_weight`.
    Source: Switch Transformer arXiv:2101.03961, eqs. 4-6, as DiffMoE's released code has it for its baseline.
    """

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """[B, N, C] -> [B, N, C]."""
        gates = self.gates(x)
        kept, expert = gates.topk(int(self.spec.capacity), dim=-1)  # [B, N, k]
        if context.recorder is not None:
            self.tell(torch.zeros_like(gates, dtype=torch.bool).scatter(-1, expert, True), context)
        if self.training and self.spec.balance_weight:
            context.add_loss(
                "expert_balance", self.spec.balance_weight * self._balance(gates, expert, context)
            )
        rows = self.experts.by_choice(x.flatten(0, 1), expert.flatten(0, 1))  # [B N, k, C]
        return (kept.flatten(0, 1).unsqueeze(-1) * rows).sum(1).view_as(x).to(x.dtype)

    def _balance(self, gates: torch.Tensor, expert: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        share = F.one_hot(expert, self.spec.num_experts).to(gates.dtype).mean(2)  # [B, N, E]
        means = context.batch_mean(torch.stack([gates.mean(1), share.mean(1)], dim=1))  # [2, E]
        return self.spec.num_experts * (means[0] * means[1]).sum()


class DiffMoe(MixtureOfExperts):
    """Every expert takes the tokens that want it most, of all images; later a predictor says how many.

    In training the pool is the micro-batch over all processes, S tokens, of which each expert takes the
    floor(S capacity / E) of largest gate. A predictor (Linear, SiLU, Linear on the tokens, to which it passes
    no gradient back) learns by the loss `expert_capacity` (binary cross entropy, mean over tokens and
    experts, times `predictor_weight`) who is taken, and `threshold` [E] follows the value of its sigmoid that
    so many tokens exceed, by a moving average that begins with 0.

    Afterwards expert e takes as many tokens of an image as have a sigmoid above threshold[e], those of
    largest gate. The released code counts and takes over its whole batch; over each image it is the same for
    one image at a time, and no picture depends on another. A model that has never been trained has no
    threshold yet: there each expert takes floor(N capacity / E) tokens of each image, which is the cost that
    is stated.
    """

    threshold: torch.Tensor

    def __init__(self, dim: int, hidden: int, spec: MoeSpec) -> None:
        super().__init__(dim, hidden, spec)
        self.predictor = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, spec.num_experts))
        self.register_buffer("threshold", torch.zeros(spec.num_experts))
        self.has_threshold = False
        self.moves_statistics = True  # false while a pass is computed again for its gradients

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """[B, N, C] -> [B, N, C]."""
        gates = self.gates(x)
        wanted = self.predictor(x.detach()).to(gates.dtype)  # [B, N, E]
        if self.training:
            return self._train(x, gates, wanted, context)
        if self.has_threshold:
            counts = (wanted.sigmoid() > self.threshold).sum(1, keepdim=True)  # [B, 1, E]
            chosen = ranks(gates) < counts
            self.tell(chosen, context)
            return self._by_mask(x, gates, chosen)
        gates = gates + 0 * wanted  # decides nothing yet, but costs what it will: no compiler may drop it
        images, tokens = x.shape[:2]
        index = gates.topk(share(tokens, self.spec), dim=1).indices  # [B, k, E], of each image
        if context.recorder is not None:
            self.tell(torch.zeros_like(gates, dtype=torch.bool).scatter(1, index, True), context)
        first = tokens * torch.arange(images, device=x.device)[:, None, None]
        return self._by_index(x, gates, (index + first).flatten(0, 1).T)

    def _train(
        self, x: torch.Tensor, gates: torch.Tensor, wanted: torch.Tensor, context: AttentionContext
    ) -> torch.Tensor:
        pool, seen, place = gates.detach().flatten(0, 1), wanted.detach().flatten(0, 1), 0  # [S, E]
        gather = context.gather_over_processes
        if gather is not None:
            everyone, place = gather(torch.stack([pool, seen]))  # [P, 2, S, E]
            pool, seen = everyone.transpose(0, 1).flatten(1, 2)
        count = share(len(pool), self.spec)
        index = pool.topk(count, dim=0).indices  # [k, E]
        chosen = torch.zeros_like(pool, dtype=torch.bool).scatter(0, index, True)
        self._follow(seen, count)
        own = chosen.view(-1, *gates.shape)[place]
        loss = F.binary_cross_entropy_with_logits(wanted, own.to(wanted.dtype))
        context.add_loss("expert_capacity", self.spec.predictor_weight * loss)
        self.tell(own, context)
        if gather is not None:  # how many of its own an expert takes differs from process to process
            return self._by_mask(x, gates, own)
        return self._by_index(x, gates, index.T)

    def _by_index(self, x: torch.Tensor, gates: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """index [E, R]: as many rows for every expert, of the tokens of all images."""
        return self.experts.by_index(x.flatten(0, 1), gates.flatten(0, 1), index).view_as(x).to(x.dtype)

    def _by_mask(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """chosen [B, N, E]."""
        rows, weights, taken = (z.flatten(0, 1) for z in (x, gates, chosen))
        return self.experts.by_mask(rows, weights, taken).view_as(x).to(x.dtype)

    @torch.no_grad()
    def _follow(self, wanted: torch.Tensor, count: int) -> None:
        """Move the thresholds towards the smallest sigmoid among the `count` largest of each expert."""
        if not self.moves_statistics:
            return
        smallest = wanted.topk(count, dim=0).values[-1].sigmoid()  # [E]
        self.threshold.lerp_(smallest.to(self.threshold.dtype), 1 - self.spec.threshold_decay)

    def train(self, mode: bool = True) -> DiffMoe:
        """Set the mode; outside training, look whether there are thresholds, once and not at every pass."""
        super().train(mode)
        if not mode:
            self._look()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, *args, **kwargs)
        self._look()

    def _look(self) -> None:
        self.has_threshold = not self.threshold.is_meta and bool(self.threshold.any())


def share(tokens: int, spec: MoeSpec) -> int:
    """Return how many of so many tokens an expert takes: floor(tokens capacity / E), at least one."""
    # a capacity of 0.3 of ten experts is 3 of 100 tokens, not 2.9999
    return max(1, min(tokens, math.floor(tokens * spec.capacity / spec.num_experts + 1e-9)))


def ranks(gates: torch.Tensor) -> torch.Tensor:
    """Return each token's place among its image's, by gate, the largest 0: [B, N, E] -> [B, N, E]."""
    order = gates.detach().argsort(dim=1, descending=True, stable=True)
    places = torch.arange(gates.shape[1], device=gates.device)[:, None].expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def build_experts(spec: FfnSpec, dim: int) -> MixtureOfExperts:
    """Build the mixture of experts that a recipe names; its weights are set by `initialise`."""
    moe = cast("MoeSpec", spec.moe)
    return (DiffMoe if moe.routing == "diffmoe" else TokenChoice)(dim, spec.hidden_width(dim), moe)


def expert_macs(spec: FfnSpec, dim: int, num_tokens: int) -> MacCount:
    """Multiply-adds at batch 1 of the experts that are meant to take each token: N capacity of their rows.

    Exact for token choice and for DiffMoE without thresholds; with them it is what its training aims at, and
    what an image takes is recorded as `expert_capacity`. The router is a raw parameter, as released.
    """
    moe, hidden = cast("MoeSpec", spec.moe), spec.hidden_width(dim)
    router = num_tokens * dim * moe.num_experts
    if moe.routing == "token-choice":
        return MacCount(linear=2 * num_tokens * int(moe.capacity) * dim * hidden, unhooked=router)
    rows = moe.num_experts * share(num_tokens, moe)
    predictor = num_tokens * (dim * dim + dim * moe.num_experts)
    return MacCount(linear=2 * rows * dim * hidden + predictor, unhooked=router)
