"""Mixtures of experts: DiffMoE and token choice by their formulas, batches, processes, costs, settings."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from exchange_cases import inputs, model_config, random_export
from process_cases import assert_same_but_for_rounding, digits_case, trained

from attnbench.contract import AttentionContext
from attnbench.data import load_dataset
from attnbench.diffusion.noise import fork_rng
from attnbench.errors import SuiteError, UserInputError
from attnbench.exchange import read_exported, transferred, write_exported
from attnbench.exchange.loading import instantiate
from attnbench.models import build_model, closed_form_macs
from attnbench.models.experts import DiffMoe, share
from attnbench.models.ffn import build_ffn
from attnbench.models.recipes import recipe, resolve
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.profiling.memory_plan import plan_memory
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload
from attnbench.specs import FfnSpec, MoeSpec
from attnbench.stages import train
from attnbench.stages.latents.model_space import training_source
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.loss import recompute_blocks
from attnbench.stages.training.trainer import Trainer
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

C, GRID, E, HIDDEN = 6, (2, 4), 4, 5
CAPACITY = 1.5  # of 24 tokens each of four experts takes nine, of the eight of one image three
EXACT = 1e-12  # float64: sums of fewer than a hundred terms, relative to the largest


def mixture(dtype=torch.float64, **moe):
    """A network none of whose weights is zero, every block's."""
    spec = FfnSpec(kind="moe", hidden=HIDDEN, moe=MoeSpec(num_experts=E, every_block=True, **moe))
    ffn = build_ffn(spec, C)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ffn.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return ffn.to(dtype)


def tokens(images=3, dtype=torch.float64, seed=1):
    """x [B, N, C]."""
    return torch.randn(images, 8, C, generator=torch.Generator().manual_seed(seed)).to(dtype)


def context(losses=None, **more):
    """A context that keeps the losses."""
    sink = None if losses is None else losses.__setitem__
    return AttentionContext(grid=GRID, loss_sink=sink, **more)


def silu(x):
    """x sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def mlp(ffn, e, x):
    """Expert e on one token [C], with GELU by tanh."""
    h = x @ ffn.experts.expand[e] + ffn.experts.expand_bias[e]
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return h @ ffn.experts.reduce[e] + ffn.experts.reduce_bias[e]


def gate(ffn, x):
    """softmax of the router's logits of one token, [E]."""
    logits = torch.exp(ffn.router @ x)
    return logits / logits.sum()


def predicted(ffn, x):
    """The predictor's logits of one token, which no gradient leaves, [E]."""
    first, _, last = ffn.predictor
    return last.weight @ silu(first.weight @ x.detach() + first.bias) + last.bias


def largest(values, count):
    """The places of the `count` largest."""
    return sorted(range(len(values)), key=lambda place: -values[place].item())[:count]


def diffmoe_training(ffn, x):
    """DiffMoE's training on the pool of all tokens: output, the predictor's loss and the moved thresholds."""
    pool = list(x.flatten(0, 1))
    gates, logits = [gate(ffn, z) for z in pool], [predicted(ffn, z) for z in pool]
    count = int(len(pool) * CAPACITY / E)
    out, loss, thresholds = [torch.zeros(C, dtype=x.dtype) for _ in pool], 0.0, []
    for e in range(E):
        taken = largest([g[e] for g in gates], count)
        for place, z in enumerate(pool):
            sign = -1 if place in taken else 1  # log p of those taken, log (1 - p) of the others
            loss = loss + torch.log(1 + torch.exp(sign * logits[place][e])) / (len(pool) * E)
            if place in taken:
                out[place] = out[place] + gates[place][e] * mlp(ffn, e, z)
        smallest = 1 / (1 + torch.exp(-logits[largest([w[e] for w in logits], count)[-1]][e]))
        thresholds.append(0.95 * ffn.threshold[e] + 0.05 * smallest.detach())
    return torch.stack(out).view_as(x), loss, torch.stack(thresholds)


def same(a, b, limit=EXACT):
    """Compare relative to the largest number."""
    assert b.abs().max() > 0
    assert (a - b).abs().max() <= limit * b.abs().max()


def test_diffmoe_trains_as_its_formulas_say():
    """Output, loss, thresholds, and the gradient of x and every weight, a token and an expert at a time."""
    ffn, losses = mixture(capacity=CAPACITY).train(), {}
    ffn.threshold.fill_(0.3)
    x = tokens().requires_grad_()
    expected, loss, thresholds = diffmoe_training(ffn, x)
    y = ffn(x, context(losses))
    same(y, expected)
    same(losses["blocks.0.expert_capacity"], loss)
    same(ffn.threshold, thresholds)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double()
    leaves = {"x": x, **dict(ffn.named_parameters())}
    ours = torch.autograd.grad((y * weights).sum() + losses["blocks.0.expert_capacity"], leaves.values())
    theirs = torch.autograd.grad((expected * weights).sum() + loss, leaves.values())
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, 10 * EXACT)


def test_the_predictor_moves_nothing_else():
    """Its loss has a gradient in the predictor alone."""
    ffn, losses, x = mixture().train(), {}, tokens().requires_grad_()
    ffn(x, context(losses))
    losses["blocks.0.expert_capacity"].backward()
    assert {name for name, p in ffn.named_parameters() if p.grad is not None} == {
        f"predictor.{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")
    }
    assert x.grad is None


def decided(ffn, x):
    """DiffMoE's inference on one image [N, C]: how many exceed the threshold, and as many by gate."""
    out = [torch.zeros(C, dtype=x.dtype) for _ in x]
    counts = []
    for e in range(E):
        exceed = [1 / (1 + torch.exp(-predicted(ffn, z)[e])) > ffn.threshold[e] for z in x]
        counts.append(sum(map(int, exceed)))
        for place in largest([gate(ffn, z)[e] for z in x], counts[-1]):
            out[place] = out[place] + gate(ffn, x[place])[e] * mlp(ffn, e, x[place])
    return torch.stack(out), counts


def with_thresholds(**moe):
    """A network that has been trained, as far as its thresholds tell."""
    ffn = mixture(**moe)
    ffn.threshold.copy_(torch.tensor([0.2, 0.5, 0.7, 0.9999]))
    return ffn.eval()


def test_inference_counts_by_the_predictor_and_takes_by_gate():
    """Some experts take all, some take none; images differ in what they take; gradients flow."""
    ffn, x, seen = with_thresholds(), tokens().requires_grad_(), {}
    expected, counts = zip(*(decided(ffn, image) for image in x), strict=True)
    assert len(set(map(tuple, counts))) == len(counts)
    assert min(min(c) for c in counts) == 0
    y = ffn(x, context(recorder=seen.__setitem__))
    same(y, torch.stack(expected))
    assert seen["blocks.0.experts"].sum(1).tolist() == [list(c) for c in counts]
    assert seen["blocks.0.expert_capacity"].tolist() == [sum(c) / 8 for c in counts]
    (ours,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad(torch.stack(expected).square().sum(), x)
    same(ours, theirs, 10 * EXACT)


@pytest.mark.parametrize("ffn", [with_thresholds(), mixture().eval(), mixture(routing="token-choice").eval()])
def test_a_picture_does_not_depend_on_its_batch(ffn):
    """With thresholds, before there are any, and where tokens choose."""
    x = tokens(5)
    whole = ffn(x, context())
    for images in (slice(0, 1), slice(2, 4)):
        same(ffn(x[images], context()), whole[images])


def test_before_any_training_every_image_has_the_stated_capacity():
    """Each expert takes floor(N capacity / E) of each image; the released thresholds of 0 would take all."""
    ffn, seen = mixture(capacity=CAPACITY).eval(), {}
    ffn(tokens(), context(recorder=seen.__setitem__))
    assert seen["blocks.0.experts"].sum(1).eq(share(8, ffn.spec)).all()
    assert share(8, ffn.spec) == 3
    x = tokens()
    with torch.no_grad():
        image = [gate(ffn, z) for z in x[1]]
        taken = {place for e in range(E) for place in largest([g[e] for g in image], 3)}
        untaken = sorted(set(range(8)) - taken)
        same(ffn(x, context())[1][sorted(taken)].abs().sum(), ffn(x, context())[1].abs().sum())
        assert not ffn(x, context())[1][untaken].any()


def token_choice(ffn, x):
    """Each token's two experts of largest gate; the loss over all tokens."""
    pool = list(x.flatten(0, 1))
    gates = [gate(ffn, z) for z in pool]
    kept = [largest(list(g), 2) for g in gates]
    out = [sum(g[e] * mlp(ffn, e, z) for e in mine) for z, g, mine in zip(pool, gates, kept, strict=True)]
    share_of = [sum(e in mine for mine in kept) / (2 * len(pool)) for e in range(E)]
    loss = 0.01 * E * sum(torch.stack(gates)[:, e].mean() * share_of[e] for e in range(E))
    return torch.stack(out).view_as(x), loss


def test_token_choice_is_its_formula():
    """Output, balance loss, and the gradient of x and every weight."""
    ffn, losses, x = mixture(routing="token-choice", capacity=2).train(), {}, tokens().requires_grad_()
    (expected, loss), y = token_choice(ffn, x), ffn(x, context(losses))
    same(y, expected)
    same(losses["blocks.0.expert_balance"], loss)
    leaves = {"x": x, **dict(ffn.named_parameters())}
    ours = torch.autograd.grad(y.square().sum() + losses["blocks.0.expert_balance"], leaves.values())
    theirs = torch.autograd.grad(expected.square().sum() + loss, leaves.values())
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, 10 * EXACT)


def test_the_pool_is_that_of_all_processes():
    """Two halves that see each other's gates are the batch: outputs, losses, gradients, thresholds."""
    x, parts = tokens(4), []

    def listening(values):
        parts.append(values)
        return values.unsqueeze(0), 0

    whole, losses = mixture(capacity=CAPACITY).train(), {}
    expected = whole(x, context(losses))
    (expected.square().sum() / 4 + losses["blocks.0.expert_capacity"]).backward()
    for half in x.split(2):
        copy.deepcopy(mixture(capacity=CAPACITY)).train()(half, context(gather_over_processes=listening))
    both, shared = torch.stack(parts), mixture(capacity=CAPACITY)
    gradients = []
    for rank, half in enumerate(x.split(2)):
        ffn, found = copy.deepcopy(shared).train(), {}
        y = ffn(half, context(found, gather_over_processes=lambda _, rank=rank: (both, rank)))
        same(y, expected[2 * rank : 2 * rank + 2])
        (y.square().sum() / 2 + found["blocks.0.expert_capacity"]).backward()
        gradients.append([p.grad for p in ffn.parameters()])
        same(ffn.threshold, whole.threshold)
    for a, b, parameter in zip(*gradients, whole.parameters(), strict=True):
        same((a + b) / 2, parameter.grad, 10 * EXACT)


def moe_case(**settings):
    """A training of six steps with experts in both blocks."""
    case = digits_case(**settings)
    ffn = FfnSpec(kind="moe", ratio=1.0, moe=MoeSpec(num_experts=4, every_block=True))
    return case.model_copy(update={"model": case.model.model_copy(update={"ffn": ffn})})


def test_two_processes_train_what_one_trains(tmp_path):
    """Gathered gates, two pools a step, weights in shards; blocks computed again move no threshold twice."""
    settings = {"sharding": "fsdp2", "activation_checkpointing": True}
    one = trained(tmp_path / "one", moe_case(grad_accumulation=2), 1)
    two = trained(tmp_path / "two", moe_case(grad_accumulation=2, **settings), 2)
    assert_same_but_for_rounding(one, two)
    name = "model/blocks.1.ffn.threshold"
    assert 0.05 < one[0][name].min() < 1 - 0.95**12  # twelve pools from 0 towards a sigmoid
    torch.testing.assert_close(two[0][name], one[0][name], rtol=1e-4, atol=1e-5)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path):
    """Thresholds are part of a checkpoint, as weights and averages are."""
    case = moe_case(objective="flow")
    workspace = Workspace(root=tmp_path / "parts", device=torch.device("cpu"))
    source = training_source(case, load_dataset(case.data), workspace)
    with fork_rng(workspace.device):
        shape = ModelInput(shape=source.shape, num_classes=10)
        trainer = Trainer(case, workspace, train.initial_model(case, shape, workspace.device), source, False)
        trainer.train_until(3)
    (parts, losses), (whole, expected) = (trained(tmp_path / name, case, 1) for name in ("parts", "whole"))
    assert losses == expected
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def tiny(**moe):
    """A model of two blocks with experts in both."""
    ffn = {"kind": "moe", "ratio": 2.0, "moe": {"num_experts": 4, "every_block": True, **moe}}
    return resolve("tiny-dit", {"depth": 2, "dim": 16, "num_heads": 2, "ffn": ffn})


def awake(config, dtype=torch.float32):
    """A model none of whose weights is zero."""
    model = build_model(config, 8, 10, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return model


def batch(dtype=torch.float32, seed=0):
    """Two images with times and labels."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x, torch.tensor([30.0, 970.0]), torch.tensor([1, 7])


def test_blocks_computed_again_move_no_threshold():
    """Activation checkpointing: the same gradients, and thresholds that moved once."""
    found = []
    for recompute in (False, True):
        model, losses = awake(tiny()).train(), []
        model.label_embed.dropout = 0.0
        if recompute:
            recompute_blocks(model)
        y = model(*batch(), loss_sink=lambda _, value, losses=losses: losses.append(value))
        (y.square().sum() + sum(losses)).backward()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])
        assert len(losses) == 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("routing", ["diffmoe", "token-choice"])
def test_multiply_adds_are_those_that_run(routing):
    """In every second block: closed form and both counters, exactly; at capacity 1 experts are an MLP."""
    config = tiny(routing=routing, every_block=False)
    model = build_model(config, 8, 10, device="meta").eval()
    shown = (torch.empty(1, 1, 8, 8, device="meta"), torch.empty(1, device="meta"))
    shown += (torch.empty(1, dtype=torch.int64, device="meta"),)
    full = closed_form_macs(config, 8).full
    assert full == count_with_torch(model, shown).macs == count_with_fvcore(model, shown).macs
    dense = closed_form_macs(resolve("tiny-dit", {**sizes(config), "ffn": {"ratio": 2.0}}), 8).full
    router, predictor = 16 * 16 * 4, 16 * (16 * 16 + 16 * 4)
    assert full - dense == router + (predictor if routing == "diffmoe" else 0)


def sizes(config):
    """The sizes of a model."""
    return {"depth": config.depth, "dim": config.dim, "num_heads": config.num_heads}


def test_passes_and_plans_run():
    """A timed training step and forward pass, and their memory on fake tensors."""
    for mode in ("forward", "train"):
        config = tiny().model_copy(update={"depth": 1})
        workload = Workload(config=config, input_size=8, num_classes=10, mode=mode, batch_size=2)
        assert build_pass(workload, torch.device("cpu")).run().isfinite().all()
        assert plan_memory(workload).planned_peak_mib > 0


@pytest.mark.parametrize("routing", ["diffmoe", "token-choice"])
def test_it_compiles_as_one_graph(routing):
    """Training, and inference with thresholds, where how many rows an expert has is data; none again."""
    model = awake(tiny(routing=routing).model_copy(update={"depth": 1})).train()
    model.label_embed.dropout = 0.0
    given = {"loss_sink": lambda name, value: None}
    for module in model.modules():
        if isinstance(module, DiffMoe):
            module.threshold.fill_(0.4)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for training in (True, False):
            model.train(training)
            shown = {} if not training else given
            with torch.set_grad_enabled(training):
                same(compiled(*batch(), **shown), model(*batch(), **shown), 1e-5)
                with torch._dynamo.config.patch(error_on_recompile=True):
                    compiled(*batch(seed=4), **shown)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("routing", ["diffmoe", "token-choice"])
def test_half_precision(routing):
    """Weights in bf16, and autocast: choices in fp32, the stream in the input's dtype."""
    for training in (True, False):
        model = awake(tiny(routing=routing), torch.bfloat16).train(training)
        assert model(*batch(torch.bfloat16)).dtype == torch.bfloat16
        model = awake(tiny(routing=routing)).train(training)
        model.label_embed.dropout = 0.0
        with torch.autocast("cpu", torch.bfloat16):
            y = model(*batch())
        # choices are made of rounded tokens, and a few may flip: far from another function, all the same
        assert (y.float() - model(*batch())).norm() < 0.3 * y.float().norm()


def test_every_parameter_learns():
    """Router, experts and predictor get a gradient through the model and its losses."""
    for routing in ("diffmoe", "token-choice"):
        model, losses = awake(tiny(routing=routing)).train(), []
        y = model(*batch(), loss_sink=lambda _, value, losses=losses: losses.append(value))
        (y.square().mean() + sum(losses)).backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not [name for name in silent if "qkv.bias" not in name]  # softmax's key bias has none


def test_experts_start_as_the_skeleton_s_layers():
    """Each expert Xavier-uniform by its own widths and another than its neighbour; the router as released."""
    ffn = build_model(tiny(), 8, 10, seed=2).blocks[1].ffn
    assert 0.9 * (6 / 48) ** 0.5 < ffn.experts.expand.abs().max() <= (6 / 48) ** 0.5
    assert not torch.equal(ffn.experts.expand[0], ffn.experts.expand[1])
    assert not ffn.experts.reduce_bias.any()
    assert 0.004 < ffn.router.std() < 0.008
    again, other = (build_model(tiny(), 8, 10, seed=s).blocks[1].ffn for s in (2, 3))
    assert torch.equal(again.router, ffn.router)
    assert not torch.equal(other.router, ffn.router)


def test_exported_and_transferred(tmp_path):
    """Thresholds travel with the weights; a mixture of another number of experts moves in no part."""
    ffn = {"kind": "moe", "ratio": 1.0, "moe": {"num_experts": 4}}
    source = random_export(model_config(ffn=ffn))
    source.weights["blocks.1.ffn.threshold"].fill_(0.5)
    write_exported(source, tmp_path / "moe")
    model = instantiate(read_exported(tmp_path / "moe"))
    assert model.blocks[1].ffn.has_threshold
    assert torch.equal(model(*inputs(source)), instantiate(source)(*inputs(source)))
    _, report = transferred(source, model_config(ffn={**ffn, "moe": {"num_experts": 8}}))
    assert "blocks.1.ffn.threshold" in dict(report.left)
    assert not any("blocks.1.ffn" in name for name in report.copied)


@pytest.mark.parametrize(
    ("moe", "said"),
    [
        ({"capacity": 9.0}, "capacity exceeds num_experts 8, got 9"),
        ({"routing": "token-choice", "capacity": 1.5}, "whole number of experts, got 1.5; choose 1"),
        ({"balance_weight": 0.1}, "balance_weight does nothing with routing diffmoe"),
        ({"routing": "token-choice", "threshold_decay": 0.5}, "threshold_decay does nothing with"),
    ],
)
def test_settings_that_do_not_go_together(moe, said):
    """The error names the setting and what is allowed."""
    with pytest.raises(UserInputError) as caught:
        resolve("tiny-dit", {"ffn": {"kind": "moe", "moe": moe}})
    assert said in str(caught.value).replace(": ", " ")


def test_a_suite_names_it_in_one_setting():
    """`kind: moe` is enough; without it experts do nothing and are refused; keys of other cases stay."""
    (case,) = load_suite("quick", ["model.ffn.kind=moe", "matrix.model.attention=[softmax]"]).cases
    assert case.model.ffn.moe == MoeSpec()
    assert [case.model.ffn.kind_at(n) for n in range(4)] == ["mlp", "moe", "mlp", "moe"]
    with pytest.raises(SuiteError, match="moe: does nothing with kind mlp"):
        load_suite("quick", ["model.ffn.moe.num_experts=4"])
    assert "moe" not in recipe("tiny-dit").model_dump(mode="json")["ffn"]
