"""Mixture-of-Head attention: every token weights its heads, some of them chosen by a router."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, model_validator
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, split_heads, without_autocast


class MoHOptions(attnbench.BackendOptions):
    """Options of `moh`. The defaults are those of the first blocks of the released MoH-DiT-S/2-75."""

    num_shared_heads: NonNegativeInt = 2
    """Heads every token uses; the others are routed."""
    top_k: NonNegativeInt = 1
    """Routed heads a token keeps; 0 only where all heads are shared."""
    balance_weight: float = Field(default=0.01, ge=0.0)
    """Weight of the load-balance loss, averaged over the blocks; 0 is off."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released code: yes)."""

    @model_validator(mode="after")
    def _balance_needs_routed_heads(self) -> MoHOptions:
        default = type(self).model_fields["balance_weight"].default
        if self.top_k == 0 and self.balance_weight not in (0.0, default):
            raise ValueError(
                f"balance_weight: {self.balance_weight} does nothing with top_k: 0, where no head is routed; "
                "leave it out, or share fewer heads and set top_k to 1 or more"
            )
        return self


class HeadRouter(nn.Linear):
    """Softmax over heads from every token: [B, N, C] -> [B, N, heads], always in fp32 or fp64.

    Rounding can flip a top-k choice, so half precision never reaches the logits.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            return F.linear(x.to(dtype), self.weight.to(dtype)).softmax(-1)


class MoHAttention(nn.Module):
    """concat_h(g_ih o_ih) W_o, o the heads of softmax attention, g_i the gates of token i.

    [B, N, C] -> [B, N, C]. All heads are computed; a head that was not chosen is multiplied by 0.
    Routed heads: top-k of softmax(W_g x), renormalised to sum k; shared heads: softmax(W_1 x) times
    their number; the groups weighted by 2 softmax(W_0 x). A group of one shared head has gate 1 (ours:
    the released code builds no W_1 there and then asks for it). With top_k = 1 the renormalised gate is 1
    and W_g learns from the balance loss alone, as in the released code. Gates in fp32; the attention's
    softmax in the input's dtype with fp32 accumulation inside the fused kernels.
    Source: MoH arXiv:2410.11842, sec. 3; read in its released code for DiT.
    """

    def __init__(self, site: attnbench.AttentionSite, options: MoHOptions) -> None:
        super().__init__()
        dim, shared = site.dim, options.num_shared_heads
        routed = site.num_heads - shared
        self.num_heads, self.options = site.num_heads, options
        self.balance_weight = options.balance_weight / site.depth  # the released loss is a mean over blocks
        self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        self.routed_router = HeadRouter(dim, routed) if routed else None  # W_g
        self.shared_router = HeadRouter(dim, shared) if shared > 1 else None  # W_1
        self.group_router = HeadRouter(dim, 2) if routed and shared else None  # W_0
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        o = F.scaled_dot_product_attention(q, k, v)
        gates = self._gates(x, context).transpose(1, 2).unsqueeze(-1)  # [B, H, N, 1]
        return self.out(merge_heads((o * gates).to(o.dtype)))

    def _gates(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        """Return the gates [B, N, H], shared heads first."""
        shared, routed = self._shared(x), self._routed(x, context)
        if self.group_router is not None:
            groups = 2 * self.group_router(x)  # [B, N, 2]
            shared, routed = groups[..., :1] * shared, groups[..., 1:] * routed
        return torch.cat([shared, routed], dim=-1)

    def _shared(self, x: torch.Tensor) -> torch.Tensor:
        count = self.options.num_shared_heads
        if self.shared_router is not None:
            return count * self.shared_router(x)
        return x.new_ones(*x.shape[:2], count, dtype=torch.promote_types(x.dtype, torch.float32))

    def _routed(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        if self.routed_router is None:
            return x.new_ones(*x.shape[:2], 0, dtype=torch.promote_types(x.dtype, torch.float32))
        p = self.routed_router(x)  # [B, N, E]
        chosen = p.topk(self.options.top_k, dim=-1).indices
        mask = torch.zeros_like(p).scatter(-1, chosen, 1.0)
        context.record("routed_heads", mask.bool())
        if self.training and self.balance_weight:
            context.add_loss("balance", self.balance_weight * load_balance(p, mask, context))
        kept = p * mask
        total = kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).eps)
        return self.options.top_k * kept / total


def load_balance(p: torch.Tensor, mask: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
    """MoH's balance loss: E sum_e (mean probability of e) (share of tokens that keep e) -> scalar.

    p and mask [B, N, E]; means over the batch of all processes; top_k when balanced.
    Source: MoH-DiT, released code.
    """
    probability, share = context.batch_mean(torch.stack([p.mean(1), mask.mean(1)], dim=1))  # [E] each
    return p.shape[-1] * (probability * share).sum()


def supports(
    site: attnbench.AttentionSite, options: MoHOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more heads than there are, and routed heads of which none would be kept."""
    shared, heads = options.num_shared_heads, site.num_heads
    if shared > heads:
        return f"num_shared_heads={shared} exceeds the model's {heads} heads; choose at most {heads}"
    routed = heads - shared
    if not min(1, routed) <= options.top_k <= routed:
        allowed = f"1 to {routed}" if routed else "0"
        return (
            f"top_k={options.top_k} does not fit the {routed} routed heads ({heads} heads, {shared} shared); "
            f"choose {allowed}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: MoHOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, N C for each output of a router, 2 N^2 C for all heads' attention."""
    n, c, shared = site.num_tokens, site.dim, options.num_shared_heads
    routed = site.num_heads - shared
    outputs = routed + (shared if shared > 1 else 0) + (2 if routed and shared else 0)
    return attnbench.MacCount(linear=4 * n * c * c + outputs * n * c, attention=2 * n * n * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `moh`."""
    yield attnbench.AttentionBackend(
        name="moh",
        summary="mixture-of-head softmax attention as in MoH-DiT",
        family="dynamic",
        source="MoH arXiv:2410.11842, sec. 3, and its released code",
        options=MoHOptions,
        symmetry="permutation",
        build=MoHAttention,
        macs=macs,
        supports=supports,
        complexity="quadratic",
    )
