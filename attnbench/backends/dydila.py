"""DyDiLA: dynamic differential linear attention, token-wise (Eq. 8) and map-wise (Eq. 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    DepthwiseConv,
    QKVProjection,
    ReparameterisedConv,
    RouterTraining,
    contraction,
    contraction_macs,
    largest,
    linear_attention,
    merge_heads,
    power_focus,
    probability,
    routed_difference,
    routed_focus,
    routed_projection,
    router_logits,
    select,
    split_heads,
    unit_gate,
)


class DyDiLAOptions(attnbench.BackendOptions):
    """Options of `dydila`; what the paper leaves open is an option, with its default marked "ours"."""

    mode: Literal["token", "map", "none"] = "token"
    """`token`: differences of tokens (Eq. 8); `map`: of attention maps (Eq. 10); `none`: no differencing."""
    query_key: Literal["shared", "dynamic"] = "shared"
    """Only with `mode: none`, where one Q and one K are left: which projections give them (Table 4)."""
    kernel: Literal["dynamic", "fixed"] = "dynamic"
    """`dynamic`: routed, learned gammas (Eq. 6); `fixed`: gamma_init for all, not learned (Table 4)."""
    num_projectors: PositiveInt = 3
    """n_P, projectors of each of Q' and K' (paper: 3, 5, 7 for S, B, L)."""
    num_kernels: PositiveInt = 9
    """n_F, kernel factors gamma (paper: 9, 15, 21); a token's choice holds for all heads."""
    num_factors: PositiveInt = 9
    """n_D, differential factors lambda (paper: 9, 15, 21); a token's choice holds for all heads."""
    gamma_init: float = Field(default=3.0, ge=1.0)
    """Initial value of every gamma."""
    lambda_init: float = 0.01
    """Initial value of every lambda (in the first block, where lambda_init_last is given)."""
    lambda_init_last: float | None = None
    """Initial value in the last block, linear in between (Table 6: 0.2 to 0.8); null: the same."""
    normaliser: Literal["undifferenced", "none", "tokens", "rms"] = "undifferenced"
    """`none`: Eq. 8 literally; `tokens`: 1/N; `undifferenced`: Eq. 4's denominator of Q~ and K~ (ours);
    `rms`: unit root mean square over the width."""
    projection_router: Literal["frozen", "unit_gate", "switch"] = "unit_gate"
    """How the argmax over projectors trains (ours). No straight-through: it needs all n_P outputs."""
    factor_router: RouterTraining = "straight_through"
    """How the argmaxes over gamma and lambda train (ours)."""
    balance_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the load-balance loss over projectors; 0 is off."""
    dwc: Literal["reparameterised", "single", "plain", "none"] = "reparameterised"
    """Depthwise convolution on V: 3x3 + 1x3 + 3x1 with BatchNorm, fused for inference; `single`: only
    the 3x3 of these; `plain`: a 3x3 without BatchNorm."""
    dwc_maps: Literal["shared", "per_map"] = "shared"
    """Map mode: one convolution (Eq. 10), or one per map (what Table 5's 6.45 GFLOPs count)."""
    qkv_bias: bool = False
    """Bias of the shared projection (ours: none, as in Sana)."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominators."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""

    @model_validator(mode="after")
    def _query_key_needs_no_difference(self) -> DyDiLAOptions:
        if self.query_key == "dynamic" and self.mode != "none":
            raise ValueError(
                f"query_key: dynamic needs mode: none, got mode: {self.mode}; token and map mode always "
                "take Q, K from shared and Q', K' from dynamic projections"
            )
        return self

    @model_validator(mode="after")
    def _no_idle_options(self) -> DyDiLAOptions:
        parts = (  # options, whether the part they are of is there, and what decides that
            (
                ("num_projectors", "projection_router", "balance_weight"),
                self.routes_projections,
                ("mode", "query_key"),
            ),
            (("num_kernels",), self.kernel == "dynamic", ("kernel",)),
            (("num_factors", "lambda_init", "lambda_init_last"), self.mode != "none", ("mode",)),
            (("factor_router",), self.mode != "none" or self.kernel == "dynamic", ("mode", "kernel")),
            (("dwc_maps",), self.mode == "map" and self.dwc != "none", ("mode", "dwc")),
            (("eps",), self.normaliser in ("undifferenced", "rms"), ("normaliser",)),
        )
        for names, present, deciding in parts:
            for name in names:
                value = getattr(self, name)
                if not present and value != type(self).model_fields[name].default:
                    because = ", ".join(f"{other}: {getattr(self, other)}" for other in deciding)
                    raise ValueError(f"{name}: {value} does nothing with {because}; leave it out")
        return self

    @model_validator(mode="after")
    def _frozen_is_frozen(self) -> DyDiLAOptions:
        if self.projection_router == "frozen" and self.balance_weight:
            raise ValueError(
                f"balance_weight: {self.balance_weight} would train the router that projection_router: "
                "frozen leaves as it starts; set balance_weight: 0, or projection_router: unit_gate or switch"
            )
        return self

    @property
    def routes_projections(self) -> bool:
        """Whether the dynamic projection module exists."""
        return self.mode != "none" or self.query_key == "dynamic"

    @property
    def num_queries_and_keys(self) -> int:
        """How many of Q, K, Q', K' there are: 4, or 2 without differencing."""
        return 2 if self.mode == "none" else 4


class Router(nn.Module):
    """Banks of linear routers [C, choices]; their logits are always in fp32 or fp64.

    Rounding can flip an argmax, so half precision never reaches the logits.
    """

    def __init__(self, banks: int, dim: int, choices: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(banks, dim, choices))
        for bank in self.weight:
            nn.init.xavier_uniform_(bank)

    @property
    def banks(self) -> tuple[torch.Tensor, ...]:
        """The weight of every bank; `layers.router_logits` multiplies by it."""
        return self.weight.unbind()


class ValueProjection(nn.Linear):
    """V alone, starting as wide as it would inside the shared [3 C, C] projection (Xavier of that shape)."""

    keeps_own_init = True

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__(dim, dim, bias=bias)
        nn.init.xavier_uniform_(self.weight, gain=2**-0.5)
        if bias:
            nn.init.zeros_(self.bias)


class DyDiLA(nn.Module):
    """O = TDO(Q~, Q~', K~, K~', V) + DWC(V), then an output projection.

    [B, N, C] -> [B, N, C]. Router logits, phi and denominators in fp32 (fp64 for fp64 input).
    One set of gammas and one of lambdas per block, as the paper's index-free symbols read. With several
    heads (ours: the paper's formulas have one) everything but the contraction is over the full width C:
    the routers see the whole token, phi keeps the norm of all C values, a token has one projector and one
    gamma for each of Q, K, Q', K', and one lambda for each difference, whatever the head. Heads cut Q~, K~
    and V for q (k^T v) and its denominator alone; `rms` is over all C values again. Each projector starts
    Xavier-uniform by its own [C, C] shape (ours), which makes Q', K' sqrt(2) times as large as Q, K from
    the shared [3 C, C] matrix; after Eq. 4's denominator only lambda would notice.
    Source: arXiv:2601.13683, eqs. 1-10.
    """

    def __init__(self, site: attnbench.AttentionSite, options: DyDiLAOptions) -> None:
        super().__init__()
        dim, n_p = site.dim, options.num_projectors
        self.num_heads, self.options = site.num_heads, options
        if options.query_key == "shared":
            self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        else:
            self.value = ValueProjection(dim, bias=options.qkv_bias)
        if options.routes_projections:
            self.projection_router = Router(1, dim, 2 * n_p)  # R_P^Q and R_P^K side by side
            self.projectors = nn.Parameter(torch.empty(2 * n_p, dim, dim))  # W^Q_1.., W^K_1..
            for matrix in self.projectors:
                nn.init.xavier_uniform_(matrix)
        if options.kernel == "dynamic":
            self.kernel_router = Router(options.num_queries_and_keys, dim, options.num_kernels)
            self.gamma = nn.Parameter(torch.full((options.num_kernels,), options.gamma_init))
        if options.mode != "none":
            factor_banks = 2 if options.mode == "token" else 1  # for Q and K, or for the map
            self.factor_router = Router(factor_banks, 2 * dim, options.num_factors)
            self.lam = nn.Parameter(torch.full((options.num_factors,), _lambda_init(site, options)))
        num_convs = 2 if options.mode == "map" and options.dwc_maps == "per_map" else 1
        self.convs = nn.ModuleList(_conv(dim, options) for _ in range(num_convs))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        if self.options.query_key == "shared":
            *shared, v = self.qkv(x)
            tokens = [z.flatten(0, 1) for z in shared]  # [T, C] each with T = B N
        else:
            tokens, v = [], self.value(x)
        if self.options.routes_projections:
            tokens += self._routed_projections(x, context)
        z = self._measure(tokens, context)
        if self.options.mode == "token":
            o = self._token_difference(z, v, context)
        elif self.options.mode == "map":
            o = self._map_difference(z, v, context)
        else:
            q, k = (part.view(v.shape) for part in z)
            o = self._normalise_rms(self._contract(q, k, v)) + self._dwc(0, v, context)
        return self.out(o)

    def _routed_projections(self, x: torch.Tensor, context: attnbench.AttentionContext) -> list[torch.Tensor]:
        """Dynamic projection module, eqs. 1-2: Q' and K', each [T, C]."""
        tokens, n_p = x.flatten(0, 1), self.options.num_projectors  # [T, C]
        logits = router_logits(*self.projection_router.banks, tokens)  # [2 n_P, T]
        banks = logits.split(n_p)
        expert = [largest(bank) for bank in banks]
        primes = [
            routed_projection(tokens, matrices, e.unsqueeze(1)).squeeze(1)
            for matrices, e in zip(self.projectors.split(n_p), expert, strict=True)
        ]
        training = self.options.projection_router
        if training != "frozen":
            gates = [probability(bank, e) for bank, e in zip(banks, expert, strict=True)]
            if training == "unit_gate":
                primes = [unit_gate(z, p) for z, p in zip(primes, gates, strict=True)]
            else:
                primes = [z * p.unsqueeze(-1).to(z.dtype) for z, p in zip(primes, gates, strict=True)]
        context.record("projector_q", expert[0].view(x.shape[:2]))
        context.record("projector_k", expert[1].view(x.shape[:2]))
        if self.options.balance_weight and self.training:
            balance = load_balance(logits.unflatten(0, (2, n_p)), torch.stack(expert), context)
            context.add_loss("balance", self.options.balance_weight * balance)
        return primes

    def _measure(self, tokens: list[torch.Tensor], context: attnbench.AttentionContext) -> list[torch.Tensor]:
        """Dynamic measure kernel, eqs. 5-6, on each of Q, K, Q', K' (or Q, K): [T, C] -> [T, C]."""
        if self.options.kernel == "fixed":
            return [power_focus(z, z.new_full((), self.options.gamma_init)) for z in tokens]
        gamma, training = at_least_one(self.gamma), self.options.factor_router
        banks = self.kernel_router.banks
        found = [routed_focus(z, bank, gamma, training) for z, bank in zip(tokens, banks, strict=True)]
        context.record("kernel", torch.stack([index for _, index in found]))
        return [focused for focused, _ in found]

    def _token_difference(
        self, z: list[torch.Tensor], v: torch.Tensor, context: attnbench.AttentionContext
    ) -> torch.Tensor:
        """Token differential operator, eqs. 7-9: (Q~ - lQ Q~') ((K~ - lK K~')^T V) + DWC(V)."""
        training, banks = self.options.factor_router, self.factor_router.banks
        found = [routed_difference(z[i], z[i + 2], banks[i], self.lam, training) for i in range(2)]
        context.record("factor", torch.stack([index for _, index, _ in found]))
        context.record("lambda", torch.stack([chosen for *_, chosen in found]))
        q, k = (difference.view(v.shape) for difference, _, _ in found)
        o = self._contract(q, k, v, mass=(z[0].view(v.shape), z[1].view(v.shape)))
        return self._normalise_rms(o) + self._dwc(0, v, context)

    def _map_difference(
        self, z: list[torch.Tensor], v: torch.Tensor, context: attnbench.AttentionContext
    ) -> torch.Tensor:
        """Eq. 10: Q~ (K~^T V) - l Q~' (K~'^T V) + DWC(V), each map with its own denominator."""
        logits = router_logits(*self.factor_router.banks, z[0], z[2])
        index, factor, scale = select(logits, self.lam, self.options.factor_router)
        context.record("factor", index.unsqueeze(0))
        context.record("lambda", factor.unsqueeze(0))
        factor = factor if scale is None else factor * scale
        q, k, q_prime, k_prime = (part.view(v.shape) for part in z)
        first = self._contract(q, k, v)
        second = self._contract(q_prime, k_prime, v)
        lam = factor.view(*v.shape[:2], 1).to(first.dtype)
        o = self._normalise_rms(first - lam * second) + self._dwc(0, v, context)
        if self.options.dwc_maps == "per_map":  # each map is a whole attention with its convolution
            o = o - lam * self._dwc(1, v, context)
        return o

    def _contract(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mass: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Compute q (k^T v) per head under the chosen normaliser, its denominator of `mass` or of q and k.

        All [B, N, C].
        """
        options = self.options
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        if options.normaliser == "undifferenced":
            heads = mass and (split_heads(mass[0], self.num_heads), split_heads(mass[1], self.num_heads))
            o = linear_attention(q, k, v, eps=options.eps, association=options.association, mass=heads)
        else:
            o = contraction(q, k, v, options.association)  # [B, H, N, D]
        return merge_heads(o / v.shape[-2] if options.normaliser == "tokens" else o)

    def _normalise_rms(self, o: torch.Tensor) -> torch.Tensor:
        if self.options.normaliser != "rms":
            return o
        return F.rms_norm(o, o.shape[-1:], eps=self.options.eps)

    def _dwc(self, which: int, v: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor | float:
        return 0.0 if self.options.dwc == "none" else self.convs[which](v, context.grid)


def load_balance(
    logits: torch.Tensor, expert: torch.Tensor, context: attnbench.AttentionContext
) -> torch.Tensor:
    """Switch Transformer's balance loss per bank: logits [banks, n, T], expert [banks, T] -> scalar.

    n * sum_e (share of tokens of e) * (mean probability of e), over the tokens of all processes; 1 when
    balanced.
    Source: arXiv:2101.03961, eqs. 4-6.
    """
    n = logits.shape[1]
    p, mask = logits.softmax(1).permute(2, 0, 1), F.one_hot(expert.T, n).to(logits.dtype)  # [T, banks, n]
    probability, share = context.batch_mean(torch.stack([p, mask], dim=1))  # [banks, n] each
    return n * (share * probability).sum(-1).mean()


def at_least_one(gamma: torch.Tensor) -> torch.Tensor:
    """Clamp gamma to >= 1 (below, the slope explodes near 0) but let its gradient through."""
    return gamma + (gamma.clamp_min(1.0) - gamma).detach()


def _lambda_init(site: attnbench.AttentionSite, options: DyDiLAOptions) -> float:
    last = options.lambda_init if options.lambda_init_last is None else options.lambda_init_last
    return options.lambda_init + (last - options.lambda_init) * site.layer_idx / max(site.depth - 1, 1)


def _conv(dim: int, options: DyDiLAOptions) -> nn.Module:
    if options.dwc == "none":
        return nn.Identity()
    if options.dwc == "plain":
        return DepthwiseConv(dim, 3)
    sizes = ((3, 3), (1, 3), (3, 1)) if options.dwc == "reparameterised" else ((3, 3),)
    return ReparameterisedConv(dim, sizes)


def macs(site: attnbench.AttentionSite, options: DyDiLAOptions) -> attnbench.MacCount:
    """Closed form in inference form, the depthwise branches fused.

    Shared projections 4 N C^2; routed projections 2 N C^2 and routers N C (2 n_P + 4 n_F + 4 n_D or
    2 n_D) are raw parameters, which the paper's count does not see; BatchNorm counts 4 N C there.
    """
    n, c = site.num_tokens, site.dim
    maps = 2 if options.mode == "map" else 1
    convs = 0 if options.dwc == "none" else (maps if options.dwc_maps == "per_map" else 1)
    routed = 2 * n * c * c + 2 * options.num_projectors * n * c if options.routes_projections else 0
    kernels = options.num_queries_and_keys * options.num_kernels if options.kernel == "dynamic" else 0
    factors = {"token": 4, "map": 2, "none": 0}[options.mode] * options.num_factors
    count = attnbench.MacCount(
        linear=(4 if options.query_key == "shared" else 2) * n * c * c + convs * 9 * n * c,
        unhooked=routed + (kernels + factors) * n * c,
        norm=convs * 4 * n * c if options.dwc in ("reparameterised", "single") else 0,
    )
    for _ in range(maps):
        count = count + contraction_macs(site, options.association)
    return count


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `dydila`."""
    yield attnbench.AttentionBackend(
        name="dydila",
        summary="dynamic differential linear attention, token-wise or map-wise",
        family="dynamic",
        source="DyDi-LiT arXiv:2601.13683 eqs. 1-10",
        options=DyDiLAOptions,
        build=DyDiLA,
        macs=macs,
        complexity="linear",
        expected_failures={
            "gradcheck": "routers train straight-through or by a unit gate: surrogate gradients on purpose"
        },
    )
