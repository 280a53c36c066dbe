"""The skeleton in two parts: DDT's formulas, costs, starts, and every place that builds or runs a block."""

from __future__ import annotations

import math

import pytest
import torch
from exchange_cases import inputs, model_config, random_export

from attnbench.contract import AttentionContext
from attnbench.errors import SuiteError, UserInputError
from attnbench.exchange import read_exported, transferred, write_exported
from attnbench.exchange.layouts import not_a_dit
from attnbench.exchange.loading import build_unfused, instantiate
from attnbench.models import build_model, closed_form_macs
from attnbench.models.embeddings import sincos_position_embedding
from attnbench.models.macs import block_macs
from attnbench.models.recipes import recipe, resolve
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.profiling.memory_plan import plan_memory
from attnbench.profiling.passes import build_pass
from attnbench.profiling.protocol import Workload
from attnbench.profiling.traffic import pass_traffic
from attnbench.specs import GrowthSpec
from attnbench.stages.training.loss import recompute_blocks
from attnbench.suite.loading import load_suite

DECOUPLED = {"decoupled": {"decoder_depth": 1}}


def tiny(**overrides):
    """Two blocks, of which the second decodes."""
    return resolve("tiny-dit", {"depth": 2, "dim": 16, "num_heads": 2, **DECOUPLED, **overrides})


def awake(config, dtype=torch.float64):
    """A model none of whose weights is zero."""
    model = build_model(config, 4, 3, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return model


def batch(dtype=torch.float64):
    """Two images with their times and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 4, 4, generator=generator).to(dtype)
    return x, torch.tensor([30.0, 970.0]), torch.tensor([1, 3])


def linear(w, name, x):
    """x W^T + b."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x):
    """x sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def normed(x):
    """LayerNorm without weights."""
    centred = x - x.mean()
    return centred / torch.sqrt(centred.square().mean() + 1e-6)


def gelu(x):
    """GELU by its approximation with tanh."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def block(w, n, tokens, conditions):
    """One block on a list of tokens [C], each with its condition [C]: attention first, then the MLP."""
    parts = [linear(w, f"blocks.{n}.modulation.1", silu(c)).chunk(6) for c in conditions]
    shown = [normed(x) * (1 + p[1]) + p[0] for x, p in zip(tokens, parts, strict=True)]
    qkv = [linear(w, f"blocks.{n}.attn.qkv.qkv", x).view(3, 2, 8) for x in shown]  # of two heads
    mixed = []
    for q, _, _ in qkv:
        heads = []
        for head in range(2):
            weights = torch.stack([q[head] @ k[head] / math.sqrt(8) for _, k, _ in qkv]).softmax(0)
            heads.append(sum(p * v[head] for p, (_, _, v) in zip(weights, qkv, strict=True)))
        mixed.append(linear(w, f"blocks.{n}.attn.out", torch.cat(heads)))
    tokens = [x + p[2] * y for x, p, y in zip(tokens, parts, mixed, strict=True)]
    out = []
    for x, p in zip(tokens, parts, strict=True):
        hidden = gelu(linear(w, f"blocks.{n}.ffn.fc1", normed(x) * (1 + p[4]) + p[3]))
        out.append(x + p[5] * linear(w, f"blocks.{n}.ffn.fc2", hidden))
    return out


def reference(model, x, t, y):
    """DDT on one image [1, 4, 4], a token at a time: encode, z = s + t, decode from x again under z."""
    w = dict(model.named_parameters())
    angles = t.double() * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    waves = torch.cat([angles.cos(), angles.sin()])
    time = linear(w, "time_embed.out", silu(linear(w, "time_embed.expand", waves)))
    condition = time + w["label_embed.table.weight"][y]
    position = sincos_position_embedding(16, (2, 2)).double()
    patches = [x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() for i in range(2) for j in range(2)]

    def embedded(name):
        weight, bias = w[f"{name}.proj.weight"].flatten(1), w[f"{name}.proj.bias"]
        return [weight @ patch + bias + place for patch, place in zip(patches, position, strict=True)]

    z = [s + time for s in block(w, 0, embedded("patch_embed"), [condition] * 4)]
    image = torch.zeros(4, 4, dtype=torch.float64)
    for place, (h, c) in enumerate(zip(block(w, 1, embedded("decoder_embed"), z), z, strict=True)):
        shift, scale = linear(w, "final.modulation.1", silu(c)).chunk(2)
        i, j = place // 2, place % 2
        patch = linear(w, "final.linear", normed(h) * (1 + scale) + shift).view(2, 2)
        image = image.index_put(
            (torch.arange(2 * i, 2 * i + 2)[:, None], torch.arange(2 * j, 2 * j + 2)[None]), patch
        )
    return image


def test_forward_and_gradients_are_the_formulas():
    """Outputs and the gradient of every parameter, in float64, against a token at a time."""
    model, (x, t, y) = awake(tiny()), batch()
    weights = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    expected = torch.stack([reference(model, *each) for each in zip(x, t, y, strict=True)])
    got = model(x, t, y)[:, 0]
    assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weights).sum(), parameters.values())
    theirs = torch.autograd.grad((expected * weights).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        # the gradient of softmax's key bias is zero but for rounding: measured against the others of qkv
        assert (a - b).abs().max() <= 1e-11 * b.abs().max(), name
        assert b.any(), name


def test_a_picture_does_not_depend_on_its_batch():
    """Each image alone gives what it gives in company."""
    model, (x, t, y) = awake(tiny()), batch()
    whole = model(x, t, y)
    for i in range(2):
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], whole[i])


def test_the_rest_starts_as_without_it():
    """The second embedding is drawn last: every other weight is that of the model in one part."""
    plain = build_model(tiny(decoupled=None), 8, 10, seed=3).state_dict()
    both = build_model(tiny(), 8, 10, seed=3).state_dict()
    assert set(both) - set(plain) == {"decoder_embed.proj.weight", "decoder_embed.proj.bias"}
    assert all(torch.equal(both[name], tensor) for name, tensor in plain.items())
    assert both["decoder_embed.proj.weight"].any()
    assert not torch.equal(both["decoder_embed.proj.weight"], both["patch_embed.proj.weight"])


@pytest.mark.parametrize("settings", [{}, {"stream_conv": True, "ffn": {"kind": "swiglu"}}])
def test_multiply_adds_agree(settings):
    """A modulation for every token is N 6 C^2 and not 6 C^2: closed form and both counters, exactly."""
    config = tiny(**settings)
    model = build_model(config, 8, 10, device="meta")
    shown = (torch.empty(1, 1, 8, 8, device="meta"), torch.empty(1, device="meta"))
    shown += (torch.empty(1, dtype=torch.int64, device="meta"),)
    full = closed_form_macs(config, 8).full
    assert full == count_with_torch(model, shown).macs == count_with_fvcore(model, shown).macs
    decoder, encoder = (block_macs(config, 8, n).modulation.full for n in (1, 0))
    assert (decoder, encoder) == (16 * 6 * 16**2, 6 * 16**2)
    tokens, context = shown[0].new_empty(1, 16, 16), AttentionContext(grid=(4, 4))
    alone = _Decoding(model.blocks[1], context)
    assert count_with_torch(alone, (tokens,)).macs == block_macs(config, 8, 1).total.full


class _Decoding(torch.nn.Module):
    """A decoder's block as a module of its tokens alone."""

    def __init__(self, block, context):
        super().__init__()
        self.block, self.context = block, context

    def forward(self, x):
        return self.block(x, self.context, x)


def test_ddt_xl_has_its_released_size():
    """675 M parameters, as its authors print: two embeddings, 28 blocks, three matrices of SwiGLU."""
    model = build_model(recipe("ddt-xl"), 32, 1000, device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(675, abs=0.5)


def test_recomputed_blocks_give_the_same_gradients():
    """Activation checkpointing passes each token's condition on."""
    gradients = []
    for recompute in (False, True):
        model, shown = awake(tiny()).train(), batch()
        model.label_embed.dropout = 0.0
        if recompute:
            recompute_blocks(model)
        model(*shown).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_middle_block_may_be_a_decoder_s(mode):
    """It is timed, planned and its bytes counted with a condition for each token."""
    workload = Workload(config=tiny(), input_size=8, num_classes=10, mode=mode, scope="block", batch_size=2)
    assert build_pass(workload, torch.device("cpu")).run().shape == (2, 16, 16)
    planned = plan_memory(workload)
    encoder = workload.model_copy(update={"config": tiny(decoupled=None)})
    assert planned.activations_mib > plan_memory(encoder).activations_mib
    if mode == "forward":
        assert pass_traffic(workload).activations > pass_traffic(encoder).activations


def test_it_compiles_as_one_graph():
    """No break between encoder and decoder."""
    model, shown = awake(tiny(), torch.float32), batch(torch.float32)
    expected = model(*shown)
    torch._dynamo.reset()
    try:
        got = torch.compile(model, backend="eager", fullgraph=True)(*shown)
    finally:
        torch._dynamo.reset()
    assert torch.equal(got, expected)


def test_exported_and_grown(tmp_path):
    """A folder opens to the same function; of a decoupled model the encoder grows, bit for bit."""
    settings = {"depth": 3, "decoupled": {"decoder_depth": 1}}
    source = random_export(model_config(**settings))
    write_exported(source, tmp_path / "ddt")
    shown = inputs(source)
    expected = instantiate(source)(*shown)
    assert torch.equal(instantiate(read_exported(tmp_path / "ddt"))(*shown), expected)
    for strategy in ("preserve", "cyclic", "expand"):
        deep = model_config(**{**settings, "depth": 5})
        deeper, report = transferred(source, deep, growth=GrowthSpec(strategy=strategy))
        model = build_unfused(deeper.config).eval()
        model.load_state_dict(deeper.weights)
        assert torch.equal(model(*shown), expected)
        assert "blocks.4.modulation.1.weight" in report.copied
    with pytest.raises(UserInputError, match=r"decoupled .*decoder_depth=1.* there and None"):
        transferred(source, model_config(depth=3))
    assert "it is decoupled into encoder and decoder" in not_a_dit(source.config.model)


def test_a_decoder_of_all_blocks_is_refused():
    """It would have nothing to decode."""
    with pytest.raises(SuiteError, match="decoupled: leaves no encoder: decoder_depth 4 of depth 4"):
        load_suite("quick", ["model.decoupled.decoder_depth=4"])


def test_nothing_of_it_is_written_where_it_is_not_asked_for():
    """So keys and cases of stored results stay; with it they are others."""
    assert "decoupled" not in recipe("tiny-dit").model_dump(mode="json")
    first = load_suite("quick", ["matrix.model.attention=[softmax]"]).cases[0]
    other = load_suite("quick", ["matrix.model.attention=[softmax]", "model.decoupled.decoder_depth=1"])
    assert first.key("train") != other.cases[0].key("train")
