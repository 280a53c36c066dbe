"""Backends with one fault each, and the checks of the conformance kit that must see it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.contract import AttentionBackend, BackendOptions, MacCount
from attnbench.layers import QKVProjection, merge_heads, split_heads


class Sound(nn.Module):
    """Linear attention with a sigmoid as feature map: nothing wrong with it."""

    def __init__(self, site, options):
        super().__init__()
        self.num_heads = site.num_heads
        self.qkv = QKVProjection(site.dim, bias=True)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x, context):
        return self.out(self.mix(*self.qkv(x)))

    def mix(self, q, k, v):
        q, k, v = (split_heads(z, self.num_heads) for z in (0.1 + q.sigmoid(), 0.1 + k.sigmoid(), v))
        return merge_heads(q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2).unsqueeze(-1)))


def macs(site, options):
    n, c, d = site.num_tokens, site.dim, site.head_dim
    return MacCount(linear=4 * n * c * c, attention=2 * n * c * d + n * c)


def quadratic_macs(site, options):
    n, c = site.num_tokens, site.dim
    return MacCount(linear=4 * n * c * c, attention=2 * n * n * c)


BROKEN: dict[str, tuple[AttentionBackend, set[str]]] = {}


def record(name="sound", module=Sound, **fields):
    fields = {"macs": macs, "complexity": "linear", "source": "nowhere", "summary": "a test"} | fields
    return AttentionBackend(name=name, build=module, **fields)


def caught_by(*checks, **fields):
    """Enter a module class as a backend that exactly `checks` must fail."""

    def enter(module):
        name = fields.pop("name", module.__name__)
        BROKEN[name] = record(name, module, **fields), set(checks)
        return module

    return enter


@caught_by("shape-non-square", "shape-odd")
class SquareOnly(Sound):
    def forward(self, x, context):
        return super().forward(x, context)[:, : min(context.grid) ** 2]


@caught_by("shape-square")
class LosesATokenOnSquares(Sound):
    def forward(self, x, context):
        height, width = context.grid
        return super().forward(x, context)[:, : height * width - (height == width)]


@caught_by("batch-independence")
class BatchStatistics(Sound):
    def forward(self, x, context):
        return super().forward(x - 0.01 * x.mean(0), context)


@caught_by("finite-negative")
class DividesByADeadNorm(Sound):
    def forward(self, x, context):
        q, k, v = self.qkv(x)
        # the gradient of a root at 0 is infinite; a factor of 0 makes it NaN, where ReLU would drop it
        norm = (q * (q > 0)).square().sum(-1, keepdim=True).sqrt()
        return self.out(self.mix(q, k, v) * (1 + norm))


@caught_by("finite-large")
class Overflows(Sound):
    def mix(self, q, k, v):
        return super().mix(q, k, v) + 0 * q.exp()


@caught_by("finite-tiny")
class DividesByTheToken(Sound):
    def forward(self, x, context):
        return super().forward(x / x.norm(dim=-1, keepdim=True), context)


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


@caught_by("finite", "finite-large", "finite-tiny", "finite-negative", "gradcheck")
class NaNGradient(Sound):
    def mix(self, q, k, v):
        return super().mix(q, k, NaNBackward.apply(v))


class DoubledBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@caught_by("gradcheck")
class WrongGradient(Sound):
    def mix(self, q, k, v):
        return super().mix(q, k, DoubledBackward.apply(v))


@caught_by("determinism")
class Noisy(Sound):
    def forward(self, x, context):
        return super().forward(x + 1e-3 * torch.randn_like(x[:1]), context)


@caught_by("same-seed")
class OwnGenerator(Sound):
    def __init__(self, site, options):
        super().__init__(site, options)
        generator = torch.Generator()
        generator.seed()
        self.scale = nn.Parameter(1 + 0.1 * torch.rand(site.dim, generator=generator, device="cpu"))

    def forward(self, x, context):
        return super().forward(x * self.scale, context)


@caught_by("inputs-unchanged")
class WritesIntoX(Sound):
    def forward(self, x, context):
        x *= 2
        return super().forward(x, context)


@caught_by("inputs-unchanged", name="WritesIntoTheTimestep")
class WritesIntoTheTimestep(Sound):
    def forward(self, x, context):
        if context.timestep is not None:
            context.timestep.clamp_(max=500)
        return super().forward(x, context)


@caught_by("state-dict")
class WeightsOutsideTheState(Sound):
    def __init__(self, site, options):
        super().__init__(site, options)
        self.scale = torch.rand(site.dim)

    def forward(self, x, context):
        return super().forward(x * self.scale.to(x), context)


@caught_by("state-dict")
class ForgetsItsStatistics(Sound):
    """Running statistics in a plain attribute: lost with the checkpoint."""

    def __init__(self, site, options):
        super().__init__(site, options)
        self.level = 0.0

    def forward(self, x, context):
        if self.training:
            self.level = 1.0
        return super().forward(x + self.level, context)


@caught_by("compile")
class GraphBreak(Sound):
    def forward(self, x, context):
        torch._dynamo.graph_break()
        return super().forward(x, context)


@caught_by("dtype")
class ReturnsFp32(Sound):
    def forward(self, x, context):
        y = super().forward(x, context)
        return y.float() if x.dtype is torch.bfloat16 else y


@caught_by("macs")
class WrongMacs(Sound):
    """One multiply-add in a hundred too many."""


BROKEN["WrongMacs"] = (
    record("WrongMacs", macs=lambda site, o: MacCount(linear=round(1.01 * macs(site, o).full))),
    {"macs"},
)


@caught_by("macs-scaling", macs=quadratic_macs)
class QuadraticComputeSaidLinear(Sound):
    """Fused softmax: keeps O(N), computes O(N^2)."""

    def mix(self, q, k, v):
        heads = (split_heads(z, self.num_heads) for z in (q, k, v))
        return merge_heads(F.scaled_dot_product_attention(*heads))


@caught_by("macs-scaling", "memory-scaling", macs=quadratic_macs)
class QuadraticSaidLinear(Sound):
    def mix(self, q, k, v):
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))
        return merge_heads((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v)


@caught_by("macs-scaling", "memory-scaling", macs=quadratic_macs, complexity="subquadratic")
class QuadraticSaidSubquadratic(QuadraticSaidLinear):
    pass


@caught_by("memory-scaling")
class QuadraticMemoryOnly(Sound):
    """All pairs elementwise, without a matmul."""

    def mix(self, q, k, v):
        pairs = (q.mean(-1).unsqueeze(-1) - k.mean(-1).unsqueeze(-2)).tanh()  # [B, N, N]
        return super().mix(q, k, v) + pairs.mean(-1, keepdim=True)


@caught_by("macs-scaling", complexity="quadratic")
class LinearSaidQuadratic(Sound):
    pass


@caught_by("symmetry", symmetry="permutation")
class PositionsSaidPermutation(Sound):
    def forward(self, x, context):
        ramp = torch.linspace(0, 0.1, x.shape[1], device=x.device, dtype=x.dtype)
        return super().forward(x + ramp[:, None], context)


@caught_by("symmetry", symmetry="translation", name="PositionsSaidTranslation")
class PositionsSaidTranslation(PositionsSaidPermutation):
    pass


@caught_by("diagnostics")
class RecordsItsGraph(Sound):
    def forward(self, x, context):
        y = super().forward(x, context)
        if context.recorder is not None:
            context.recorder("y", y)
        return y


@caught_by("diagnostics")
class ChangesWhenWatched(Sound):
    def forward(self, x, context):
        return super().forward(x if context.recorder is None else 1.1 * x, context)


class WithLoss(Sound):
    """A sound auxiliary loss, and its diagnostic."""

    def forward(self, x, context):
        y = super().forward(x, context)
        context.record("y", y)
        if self.training:
            self.lose(context, y)
        return y

    def lose(self, context, y):
        context.add_loss("size", 0.1 * y.square().mean())


@caught_by("auxiliary-losses")
class LossInEval(WithLoss):
    def forward(self, x, context):
        y = super().forward(x, context)
        self.lose(context, y)
        return y


@caught_by("auxiliary-losses")
class LossPerImage(WithLoss):
    def lose(self, context, y):
        context.add_loss("size", y.square().mean((1, 2)))


@caught_by("auxiliary-losses")
class LossWithoutGradient(WithLoss):
    def lose(self, context, y):
        context.add_loss("size", y.detach().square().mean())


class WithSharedMeans(Sound):
    """A sound balancing loss of means over the batch, one of them made of the other."""

    def forward(self, x, context):
        y = super().forward(x, context)
        if self.training:
            p = y.softmax(-1)
            mean = context.batch_mean(p.mean(1))
            context.add_loss("balance", mean.square().sum())
            context.add_loss("spread", context.batch_mean((p - mean).square().flatten(0, 1)).sqrt().sum())
        return y


@caught_by("losses-of-halves")
class SquaredLocalMeans(WithLoss):
    """The square of a mean over halves is not, on average, that over the batch."""

    def lose(self, context, y):
        context.add_loss("balance", y.softmax(-1).mean((0, 1)).square().sum())


@caught_by("losses-of-halves")
class MeansThatDependOnTheData(WithLoss):
    """Processes that take means in different numbers wait for each other for ever."""

    def lose(self, context, y):
        for _ in range(int(1e4 * y.detach().abs().mean().item()) % 50):
            context.batch_mean(y)
        super().lose(context, y)


@caught_by("losses-of-halves")
class LossOfFullBatchesOnly(WithLoss):
    def lose(self, context, y):
        super().lose(context, y)
        if len(y) >= 4:
            context.add_loss("more", 0.1 * y.square().mean())


@caught_by("missing-context")
class NeedsATimestepInSilence(Sound):
    def forward(self, x, context):
        return super().forward(x * (1 + 1e-3 * context.timestep[:, None, None]).to(x.dtype), context)


@caught_by("supports")
class RefusesWidth32WhenBuilt(Sound):
    """`supports` says yes to it."""

    def __init__(self, site, options):
        if site.dim == 32:
            raise ValueError("not this width")
        super().__init__(site, options)


def answer(value):
    return lambda site, options, dtype, device: value if site.dim == 64 else None


def raising(site, options, dtype, device):
    if site.dim == 64:
        raise KeyError("dim")


BROKEN["SupportsSaysTrue"] = record("SupportsSaysTrue", supports=answer(True)), {"supports"}
BROKEN["SupportsSaysNothing"] = record("SupportsSaysNothing", supports=answer("")), {"supports"}
BROKEN["SupportsRaises"] = record("SupportsRaises", supports=raising), {"supports"}
BROKEN["NoSource"] = record("NoSource", source=" "), {"documentation"}


class Undescribed(BackendOptions):
    described: int = 1
    """This one is."""
    silent: int = 2


BROKEN["SilentOption"] = record("SilentOption", options=Undescribed), {"documentation"}
