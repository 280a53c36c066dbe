"""The skeleton: counts to the paper's printed digit, equal starts, DiT's initialisation, bad sizes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import attnbench
from attnbench.errors import PluginOutputError, UnsupportedError, UserInputError
from attnbench.models import build_model, closed_form_macs, fuse_for_inference
from attnbench.models.embeddings import PatchEmbedding, sincos_position_embedding
from attnbench.models.ffn import TokenMlp, build_ffn
from attnbench.models.macs import macs_by_part
from attnbench.models.recipes import recipe, resolve
from attnbench.models.resolution import input_size
from attnbench.profiling.counters import count_with_fvcore, count_with_torch
from attnbench.specs import FfnSpec
from attnbench.torchvision_ops import define_missing_ops

# every multiply-add, worked out by hand from the layer sizes (DESIGN.md, "Two counts"); S, B, L, L at 512 px
FULL = {
    "dit": (6.056, 10.495, 23.005, 106.383),
    "pixart-sigma": (5.774, 10.119, 22.441, 97.332),
    "edit": (5.906, 10.445, 23.380, 96.136),
    "sana": (5.966, 10.374, 22.820, 98.426),
    "dydi-lit": (6.722, 11.746, 25.876, 110.649),
    "dydi-lit-matched": (5.976, 10.442, 23.002, 98.359),
}
PLACES = (("s", 256), ("b", 256), ("l", 256), ("l", 512))


@pytest.mark.parametrize("family", FULL)
def test_full_count(family):
    """`macs_full` agrees with the independent hand count to 0.1 %."""
    for (size, resolution), expected in zip(PLACES, FULL[family], strict=True):
        matched = "-matched" if family.endswith("-matched") else ""
        config = recipe(f"{family.removesuffix('-matched')}-{size}{matched}")
        count = closed_form_macs(config, input_size(config, resolution))
        assert count.full / 1e9 == pytest.approx(expected, rel=1e-3), (size, resolution)


def test_dig_counts_its_state_once_in_the_recurrent_form():
    """As a recurrence over tokens, DiG's full count is the hand count; the chunked form executes more."""
    for (size, resolution), expected in zip(PLACES, (6.956, 12.421, 27.530, 109.953), strict=True):
        name = f"dig-{size}"
        config = resolve(name, {"attention": {"options": {"form": "recurrent"}}})
        side = input_size(config, resolution)
        assert closed_form_macs(config, side).full / 1e9 == pytest.approx(expected, rel=1e-3)
        assert closed_form_macs(recipe(name), side).full > closed_form_macs(config, side).full


def test_counts_by_part_add_up():
    """Attention is a part of the blocks, the blocks a part of the whole; the ends are what is left."""
    config = recipe("dydi-lit-s")
    parts = macs_by_part(config, 32)
    ends = 256 * 384 * 16 + 256 * 384 + 384 * 384 + 2 * 384 * 384 + 256 * 384 * 32
    assert parts.total.full - parts.blocks.full == ends
    assert parts.blocks.full - parts.attention.full == 9 * (
        6 * 384**2 + 256 * (384 * 3072 + 9 * 3072 + 1536 * 384)
    )


@pytest.mark.parametrize("part", [{"stream_conv": True}, {"ffn": {"kind": "swiglu", "hidden": 20}}])
def test_parts_of_dig_are_counted_as_they_run(part):
    """The stream convolution and SwiGLU: closed form and both counters agree, exactly."""
    config = tiny(**part)
    model = build_model(config, 8, 10, device="meta")
    inputs = (torch.empty(1, 1, 8, 8, device="meta"), torch.empty(1, device="meta"))
    inputs += (torch.empty(1, dtype=torch.int64, device="meta"),)
    full = closed_form_macs(config, 8).full
    assert full == count_with_torch(model, inputs).macs == count_with_fvcore(model, inputs).macs


def test_stream_convolution_starts_as_the_identity():
    """At the start DiG's convolution on the stream changes nothing; trained weights would."""
    without = wake(build_model(tiny(), 8, 10)).eval()
    with_conv = build_model(tiny(stream_conv=True), 8, 10).eval()
    assert all(
        "stream_conv" in name for name in with_conv.load_state_dict(without.state_dict(), strict=False)[0]
    )
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 900.0]), torch.tensor([1, 2])
    assert torch.allclose(with_conv(x, t, y), without(x, t, y), atol=1e-6)
    with torch.no_grad():
        with_conv.blocks[0].stream_conv.conv.weight.mul_(2)
    assert not torch.allclose(with_conv(x, t, y), without(x, t, y), atol=1e-3)


def test_swiglu_is_its_formula():
    """SwiGLU is (SiLU(x W_g) * x W_v) W_o."""
    ffn = build_ffn(FfnSpec(kind="swiglu", hidden=20), 16).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    gate, value = ffn.expand.weight[:20], ffn.expand.weight[20:]
    z = x @ gate.T
    expected = (z * torch.sigmoid(z) * (x @ value.T)) @ ffn.reduce.weight.T
    assert torch.allclose(ffn(x, (3, 3)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dit-s", 32.9),
        ("dit-b", 58.2),
        ("dit-l", 130.3),
        ("sana-s", 30.5),
        ("sana-b", 53.8),
        ("sana-l", 120.2),
        ("dydi-lit-s", 38.8),
        ("dydi-lit-b", 78.1),
        ("dydi-lit-l", 195.9),
    ],
)
def test_parameters(name, millions):
    """Parameter counts of the recipes with 1000 classes."""
    model = build_model(recipe(name), 32, 1000, device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def tiny(**overrides):
    return resolve("tiny-dit", {"depth": 2, "dim": 16, "num_heads": 2, **overrides})


def test_only_attention_differs_between_backends():
    """Two models that differ in attention start from equal weights everywhere else."""
    a = build_model(tiny(), 8, 10, seed=3).state_dict()
    b = build_model(tiny(attention="dydila"), 8, 10, seed=3).state_dict()
    shared = [key for key in a if key in b]
    assert any(".qkv." in key for key in shared)
    assert all(torch.equal(a[key], b[key]) for key in shared if ".attn." not in key)


def test_seed_changes_the_weights_and_nothing_global():
    """The seed decides the weights; torch's global stream is left where it was."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b = build_model(tiny(), 8, 10, seed=0), build_model(tiny(), 8, 10, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(a.blocks[0].ffn.fc1.weight, b.blocks[0].ffn.fc1.weight)


def test_a_new_model_predicts_zero():
    """DiT's zero-initialised output: a fresh model returns 0 whatever it is shown."""
    model = build_model(tiny(learned_variance=True), 8, 10).eval()
    y = model(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 500.0]), torch.tensor([0, 10]))
    assert y.shape == (2, 2, 8, 8)
    assert not y.any()


def wake(model):
    """Undo the zero initialisation, so that outputs depend on everything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("ffn", ["mlp", "glumbconv", "swiglu"])
@pytest.mark.parametrize("position", ["sincos", "learned", "none"])
def test_every_parameter_learns(ffn, position):
    """In any combination of parts, every parameter of the skeleton receives a gradient."""
    config = tiny(ffn={"kind": ffn}, position_embedding=position, attention=["softmax", "linear"])
    model = wake(build_model(config, 8, 10))
    model(torch.randn(4, 1, 8, 8), torch.rand(4) * 1000, torch.arange(4)).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax is invariant to a shift of its keys, so the key bias has no gradient beyond rounding
    assert not [name for name in silent if "qkv.bias" not in name]


def test_patches_come_back_in_place():
    """Patch embedding and unpatchify use one order: a shifted input patch moves one output patch."""
    model = wake(build_model(tiny(position_embedding="none", ffn={"kind": "mlp"}), 8, 10)).eval()
    for block in model.blocks:
        torch.nn.init.zeros_(block.modulation[-1].weight)
        torch.nn.init.zeros_(block.modulation[-1].bias)
    x = torch.zeros(1, 1, 8, 8)
    still = model(x, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    x[0, 0, 2:4, 6:8] = torch.randn(2, 2)
    moved = (model(x, torch.zeros(1), torch.zeros(1, dtype=torch.long)) - still)[0, 0].abs() > 1e-7
    assert moved.nonzero().amin(0).tolist() == [2, 6]
    assert moved.nonzero().amax(0).tolist() == [3, 7]


def test_position_embedding_is_diffusers():
    """The fixed embedding equals diffusers' 2-D sine-cosine embedding to fp32 rounding."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    theirs = torch.as_tensor(get_2d_sincos_pos_embed(64, 5, base_size=5, output_type="pt")).float()
    torch.testing.assert_close(sincos_position_embedding(64, (5, 5)), theirs, rtol=0, atol=1e-6)


def test_timestep_embedding_is_diffusers():
    """The sinusoid equals diffusers' with cosine first and no frequency shift."""
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 1.5, 999.0])
    theirs = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(build_model(tiny(), 8, 10).time_embed.sinusoid(t), theirs, rtol=0, atol=1e-4)


def test_mix_ffn_starts_as_its_origin_says():
    """Its 1x1 convolutions as linear layers: Xavier-uniform, biases 0; the depthwise one as torch's."""
    model = build_model(resolve("sana-s", {"depth": 1, "dim": 16}), 8, 10)
    ffn = model.blocks[0].ffn
    for layer in (ffn.expand, ffn.reduce):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    assert not ffn.expand.bias.any()
    assert 0.9 / 3 < ffn.conv.conv.weight.abs().max() <= 1 / 3  # 1 / sqrt(fan-in of 9)
    assert ffn.conv.conv.bias.any()
    assert "1x1 convolutions start as linear layers" in model.config.origin["ffn"]


def test_glumbconv_is_diffusers():
    """Sana's Mix-FFN with the same weights gives what diffusers' GLUMBConv gives."""
    define_missing_ops()  # diffusers' models import torchvision
    from diffusers.models.transformers.sana_transformer import GLUMBConv

    from attnbench.models.ffn import GluMbConv

    torch.manual_seed(0)
    theirs = GLUMBConv(8, 8, expand_ratio=2, norm_type=None, residual_connection=False)
    ours = GluMbConv(8, 16)
    with torch.no_grad():
        ours.expand.weight.copy_(theirs.conv_inverted.weight[:, :, 0, 0])
        ours.expand.bias.copy_(theirs.conv_inverted.bias)
        ours.conv.conv.load_state_dict(theirs.conv_depth.state_dict())
        ours.reduce.weight.copy_(theirs.conv_point.weight[:, :, 0, 0])
    image = torch.randn(2, 8, 3, 5)
    tokens = image.flatten(2).transpose(1, 2)
    want = theirs(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours(tokens, (3, 5)), want, rtol=1e-5, atol=1e-5)


def test_label_dropout_only_in_training():
    """In training labels fall to the null class at the recipe's rate; in eval never."""
    model = build_model(tiny(class_dropout=0.5), 8, 10)
    torch.manual_seed(0)
    y = torch.zeros(2000, dtype=torch.long)
    null = model.label_embed.table.weight[model.null_label]
    dropped = (model.train().label_embed(y) == null).all(-1).double().mean()
    assert 0.45 < dropped < 0.55  # 4.5 standard deviations
    assert not (model.eval().label_embed(y) == null).all(-1).any()


def test_a_wrong_shape_names_the_module():
    """An attention that returns another shape is an error naming the block, not a crash later."""
    model = build_model(tiny(), 8, 10)
    model.blocks[1].attn = Truncating()
    with pytest.raises(PluginOutputError, match=r"Truncating in blocks\.1\.attn returned \(2, 15, 16\)"):
        model(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long))


class Truncating(torch.nn.Module):
    def forward(self, x, context):
        return x[:, 1:]


def test_a_resolution_the_patches_do_not_tile():
    """The error says what fits and which resolutions are nearest."""
    with pytest.raises(UserInputError, match="multiple of 16 px; the nearest are 240 and 256"):
        attnbench.build_model("dit-s", resolution=250, num_classes=10)


def test_unsupported_is_a_reason_not_a_smaller_model():
    """49 agents do not fit 16 tokens: the backend's reason comes through."""
    with pytest.raises(UnsupportedError, match="num_agents=49 exceeds the 16 tokens"):
        attnbench.build_attention("agent", dim=16, num_heads=2, grid=(4, 4))


def test_build_attention_from_the_readme():
    """The public function builds a module that needs no context."""
    attention = attnbench.build_attention("dydila", dim=32, num_heads=2, grid=(4, 6), mode="map")
    assert attention(torch.randn(2, 24, 32)).shape == (2, 24, 32)


def test_options_are_checked_by_name():
    """A misspelt option names itself, the nearest spelling and what is allowed."""
    with pytest.raises(UserInputError, match="unknown key 'moed' \\(did you mean 'mode'\\?\\)"):
        attnbench.build_attention("dydila", dim=32, num_heads=2, grid=(4, 4), moed="map")


def test_fused_model_predicts_the_same():
    """Fusing the re-parameterised convolutions changes predictions by rounding only."""
    model = wake(build_model(tiny(attention="dydila"), 8, 10))
    batch = (torch.randn(8, 1, 8, 8), torch.rand(8) * 1000, torch.arange(8))
    model(*batch)  # moves the running statistics
    torch.testing.assert_close(fuse_for_inference(model)(*batch), model.eval()(*batch), rtol=1e-4, atol=1e-5)


def test_diagnostics_and_losses_reach_their_sinks():
    """A model hands recorder and loss sink to its attention, with the block in every name."""
    config = tiny(attention={"name": "dydila", "options": {"balance_weight": 0.1}})
    seen, losses = {}, {}
    model = build_model(config, 8, 10)
    model(
        torch.randn(2, 1, 8, 8),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.long),
        recorder=seen.__setitem__,
        loss_sink=losses.__setitem__,
    )
    assert {"blocks.0.projector_q", "blocks.1.lambda"} <= set(seen)
    assert seen["blocks.0.projector_q"].shape == (2, 16)
    assert set(losses) == {"blocks.0.balance", "blocks.1.balance"}
    assert losses["blocks.0.balance"] >= 0.1 - 1e-6  # the balance loss is at least 1


def test_tokens_lie_row_by_row():
    """No LayerNorm has to copy its input, forward or backward; a convolution's tokens are transposed."""
    model = build_model(recipe("tiny-dit"), 8, 10)
    seen = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].is_contiguous()))
        block.norm2.register_full_backward_hook(lambda _, got, given: seen.append(given[0].is_contiguous()))
    model(
        torch.randn(2, 1, 8, 8), torch.tensor([30.0, 900.0]), torch.tensor([1, 2])
    ).square().mean().backward()
    assert seen == [True] * 8


@pytest.mark.parametrize(
    ("side", "told"),
    [(8, "; the smallest is 16"), (40, "; the nearest are 32 and 48"), (0, "smallest is 16")],
)
def test_a_side_that_does_not_fit_is_told_ones_that_do(side, told):
    """Below the smallest side there is no second one to name."""
    with pytest.raises(UserInputError, match=told):
        input_size(recipe("dit-s"), side)


def test_embedding_and_mlp_are_timms():
    """Names, shapes, the start from a seed and outputs are timm's PatchEmbed's and Mlp's, bit for bit."""
    define_missing_ops()
    from timm.layers import Mlp, PatchEmbed

    def made(build):
        torch.manual_seed(0)
        return build()

    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    ours = made(lambda: (PatchEmbedding(4, 3, 16), TokenMlp(16, 24)))
    theirs = made(
        lambda: (
            PatchEmbed(None, 4, 3, 16, strict_img_size=False),
            Mlp(16, 24, act_layer=partial(torch.nn.GELU, approximate="tanh")),
        )
    )
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.state_dict()) == list(other.state_dict())
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    tokens = ours[0](x)
    assert torch.equal(tokens, theirs[0](x))
    assert torch.equal(ours[1](tokens, (2, 3)), theirs[1](tokens))
