"""Checkpoints of facebookresearch/DiT: the same function as their own code, clear refusals."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F
from exchange_cases import call, inputs
from safetensors.torch import save_file

from attnbench.errors import DataError, UserInputError
from attnbench.exchange import (
    from_original,
    instantiate,
)
from attnbench.exchange.weight_files import read_weights
from attnbench.models.embeddings import sincos_position_embedding

# fp32 rounding: eleven matrix products in a row (embedders, five in each of two blocks), sums of up to 256
# terms in another order (error sqrt(256) x 2^-24 each), four times over for the gains of norms and gates.
ROUNDING = 4 * 11 * 256**0.5 * 2**-24


def close(found, wanted):
    """Compare up to fp32 rounding relative to the largest value."""
    return (found - wanted).abs().max() <= ROUNDING * wanted.abs().max()


# The tensors of DiT's released code at width 16, one block, patches of 2 on 4 channels, 5 classes.
RELEASED = {
    "x_embedder.proj.weight": (16, 4, 2, 2),
    "x_embedder.proj.bias": (16,),
    "t_embedder.mlp.0.weight": (16, 256),
    "t_embedder.mlp.0.bias": (16,),
    "t_embedder.mlp.2.weight": (16, 16),
    "t_embedder.mlp.2.bias": (16,),
    "y_embedder.embedding_table.weight": (6, 16),
    "blocks.0.attn.qkv.weight": (48, 16),
    "blocks.0.attn.qkv.bias": (48,),
    "blocks.0.attn.proj.weight": (16, 16),
    "blocks.0.attn.proj.bias": (16,),
    "blocks.0.mlp.fc1.weight": (64, 16),
    "blocks.0.mlp.fc1.bias": (64,),
    "blocks.0.mlp.fc2.weight": (16, 64),
    "blocks.0.mlp.fc2.bias": (16,),
    "blocks.0.adaLN_modulation.1.weight": (96, 16),
    "blocks.0.adaLN_modulation.1.bias": (96,),
    "final_layer.linear.weight": (32, 16),
    "final_layer.linear.bias": (32,),
    "final_layer.adaLN_modulation.1.weight": (32, 16),
    "final_layer.adaLN_modulation.1.bias": (32,),
}


def released_state():
    """Random weights under the released names, with the stored position embedding."""
    generator = torch.Generator().manual_seed(5)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in RELEASED.items()}
    state["pos_embed"] = sincos_position_embedding(16, (4, 4))[None]
    return state


def released_forward(w, x, t, y, heads):
    """DiT's forward pass in plain functions, from the weights as released; independent of our modules."""

    def linear(name, z):
        return F.linear(z, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(z, shift, scale):
        return F.layer_norm(z, z.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    angles = t[:, None] * 10000 ** (-torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()], 1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    c = c + w["y_embedder.embedding_table.weight"][y]
    z = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    z = z.flatten(2).mT + w["pos_embed"]
    batch, tokens, width = z.shape
    s1, a1, g1, s2, a2, g2 = linear("blocks.0.adaLN_modulation.1", F.silu(c)).chunk(6, 1)
    qkv = linear("blocks.0.attn.qkv", norm(z, s1, a1)).reshape(batch, tokens, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.mT) * (width // heads) ** -0.5).softmax(-1) @ v
    z = z + g1[:, None] * linear("blocks.0.attn.proj", mixed.transpose(1, 2).reshape(z.shape))
    hidden = F.gelu(linear("blocks.0.mlp.fc1", norm(z, s2, a2)), approximate="tanh")
    z = z + g2[:, None] * linear("blocks.0.mlp.fc2", hidden)
    z = linear(
        "final_layer.linear", norm(z, *linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, 1))
    )
    z = z.reshape(batch, 4, 4, 2, 2, 8)
    return torch.einsum("nhwpqc->nchpwq", z).reshape(batch, 8, 8, 8)


@pytest.mark.parametrize("training", [False, True])
def test_released_checkpoint_is_read(tmp_path, training):
    """A .pt file of facebookresearch/DiT, bare or of its training script, gives the released function."""
    state, path = released_state(), tmp_path / "dit.pt"
    content = {"ema": state, "model": {}, "args": argparse.Namespace(model="DiT-S/2")} if training else state
    torch.save(content, path)
    exported = from_original(path, num_heads=2)
    assert exported.config.input.shape == (4, 8, 8)
    x, t, y = inputs(exported)
    with torch.inference_mode():
        # angles of t = 999 differ by 999 x 2^-24 between two ways to write the frequencies
        wanted, found = released_forward(state, x, t, y, heads=2), instantiate(exported)(x, t, y)
    assert (found - wanted).abs().max() <= (ROUNDING + 999 * 2**-23) * wanted.abs().max()


class Evil:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return print, ("ran",)


def test_released_checkpoints_that_are_none(tmp_path, capsys):
    """Code in a file never runs; missing heads, parts or another position embedding are named."""
    path = tmp_path / "dit.pt"
    torch.save({"ema": Evil()}, path)
    with pytest.raises(DataError, match="cannot be read as weights"):
        from_original(path, num_heads=2)
    assert capsys.readouterr().out == ""
    torch.save(released_state(), path)
    with pytest.raises(UserInputError, match="--num-heads"):
        from_original(path)
    torch.save({**released_state(), "pos_embed": torch.zeros(1, 16, 16)}, path)
    with pytest.raises(DataError, match="sine-cosine"):
        from_original(path, num_heads=2)
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(DataError, match="no checkpoint of DiT"):
        from_original(path, num_heads=2)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read as weights"):
        from_original(path, num_heads=2)


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"\x80\x02}.", b"\x80\x04}.", b"PK\x03\x04" + bytes(40), bytes(200)]
)
def test_any_damaged_pickle_is_one_sentence(tmp_path, content, recwarn):
    """Whatever bytes stand in a .pt file, the error is ours and does not advise to run code in it."""
    (tmp_path / "dit.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"dit\.pt") as caught:
        from_original(tmp_path / "dit.pt")
    assert "weights_only" not in str(caught.value)
    assert not recwarn.list  # torch's, of a pickle's version


def named(prefix, state):
    """The state under the names that a wrapper gives."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state):
    """Weights that must not be taken."""
    return {name: tensor if name == "pos_embed" else tensor + 1 for name, tensor in state.items()}


STATE = released_state()
# what stands in the file, and which of its entries holds STATE
AS_FOUND = {
    "bare": (STATE, ""),
    "DiT's training": ({"model": other(STATE), "ema": STATE, "opt": {"state": {}, "lr": 1.0}}, "ema"),
    "an average alone": ({"ema": STATE}, "ema"),
    "live weights alone": ({"model": STATE}, "model"),
    "an average that was not kept": ({"ema": None, "model": STATE, "step": 3}, "model"),
    "an empty average": ({"ema": {}, "model": STATE}, "model"),
    "state_dict": ({"state_dict": STATE, "epoch": 1}, "state_dict"),
    "DDP": (named("module.", STATE), ""),
    "compile": (named("_orig_mod.", STATE), ""),
    "DDP of compile": ({"ema": named("module._orig_mod.", STATE)}, "ema"),
    "compile of DDP": ({"model": named("_orig_mod.module.", STATE)}, "model"),
    "compiled blocks": (
        {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in STATE.items()},
        "",
    ),
    "checkpointed blocks": (
        {name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for name, t in STATE.items()},
        "",
    ),
    "FSDP": (named("_fsdp_wrapped_module.", STATE), ""),
}


@pytest.mark.parametrize("found", AS_FOUND)
def test_checkpoints_as_they_are_found(tmp_path, found):
    """Wrapped, nested, with or without an average: the right weights are taken, and it is said which."""
    content, entry = AS_FOUND[found]
    torch.save(content, tmp_path / "found.pt")
    exported = from_original(tmp_path / "found.pt", num_heads=2)
    torch.save(STATE, tmp_path / "bare.pt")
    expected = from_original(tmp_path / "bare.pt", num_heads=2)
    assert exported.weights.keys() == expected.weights.keys()
    assert all(torch.equal(exported.weights[name], expected.weights[name]) for name in expected.weights)
    said = exported.config.imported_from
    assert ("average `ema`" in said) == (entry == "ema")
    assert ("live weights" in said) == (entry in ("model", "state_dict"))


def test_a_checkpoint_in_safetensors(tmp_path):
    """The same names in a .safetensors file."""
    save_file(named("module.", STATE), tmp_path / "dit.safetensors")
    weights = from_original(tmp_path / "dit.safetensors", num_heads=2).weights
    assert torch.equal(weights["blocks.0.attn.out.weight"], STATE["blocks.0.attn.proj.weight"])
    (tmp_path / "dit.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"dit\.safetensors cannot be read"):
        from_original(tmp_path / "dit.safetensors", num_heads=2)


def test_the_trainings_arguments_name_the_heads(tmp_path):
    """`args.model` of DiT's training script says DiT-L/2, which has 16 heads; --num-heads goes before it."""
    torch.save({"ema": STATE, "args": argparse.Namespace(model="DiT-L/2")}, tmp_path / "dit.pt")
    assert from_original(tmp_path / "dit.pt").config.model.num_heads == 16
    assert from_original(tmp_path / "dit.pt", num_heads=4).config.model.num_heads == 4
    torch.save({"ema": STATE, "args": argparse.Namespace(model="Mine")}, tmp_path / "dit.pt")
    with pytest.raises(UserInputError, match="--num-heads"):
        from_original(tmp_path / "dit.pt")


def test_checkpoints_without_weights_say_what_they_hold(tmp_path):
    """Neither a mapping of something else nor one name twice is taken for weights."""
    torch.save({"opt": {"lr": 1.0}, "epoch": 3}, tmp_path / "dit.pt")
    with pytest.raises(DataError, match="holds a mapping with opt, epoch, and no mapping of names"):
        from_original(tmp_path / "dit.pt", num_heads=2)
    torch.save({**STATE, **named("module.", STATE)}, tmp_path / "dit.pt")
    with pytest.raises(DataError, match=r"x_embedder\.proj\.weight twice"):
        from_original(tmp_path / "dit.pt", num_heads=2)


def test_the_command_says_which_weights_it_took(tmp_path, monkeypatch, capsys):
    """A file without an average is imported with a word about it."""
    torch.save({"model": STATE}, tmp_path / "dit.pt")
    assert call(monkeypatch, "import", tmp_path / "dit.pt", "--num-heads", 2, "--to", tmp_path / "dit") == 0
    assert "live weights `model` (it has no average)" in capsys.readouterr().out


def test_wrapped_weights_in_a_folder_of_diffusers(tmp_path):
    """Fine-tuned folders hold the same prefixes, in both kinds of files."""
    state = {"proj_out_1.weight": torch.ones(2, 2), "proj_out_1.bias": torch.zeros(2)}
    torch.save({"state_dict": named("module.", state)}, tmp_path / "diffusion_pytorch_model.bin")
    assert read_weights(tmp_path).keys() == state.keys()
    save_file(named("_orig_mod.", state), tmp_path / "diffusion_pytorch_model.safetensors")
    assert read_weights(tmp_path).keys() == state.keys()
