"""Checkpoints of facebookresearch/DiT: the same function as their own code, clear refusals."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F
from exchange_cases import inputs

from attnbench.errors import DataError, UserInputError
from attnbench.exchange import (
    from_original,
    instantiate,
)
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


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02}.", b"PK\x03\x04" + bytes(40), bytes(200)])
def test_any_damaged_pickle_is_one_sentence(tmp_path, content):
    """Whatever bytes stand in a .pt file, the error is ours and does not advise to run code in it."""
    (tmp_path / "dit.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"dit\.pt") as caught:
        from_original(tmp_path / "dit.pt")
    assert "weights_only" not in str(caught.value)
