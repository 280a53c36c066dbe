"""Weight transfer between attentions: what is the same part moves, everything else is accounted for."""

from __future__ import annotations

import pytest
import torch
from exchange_cases import call, inputs, model_config, random_export
from torch import nn

from attnbench import load_model
from attnbench.errors import UserInputError
from attnbench.exchange import read_exported, transfer, transferred, write_exported
from attnbench.exchange.loading import build_unfused

SHELL = ("patch_embed.", "time_embed.", "label_embed.", "final.")
TARGETS = ["linear", "elu", "focused", "dydila", "moh", "rala", "differential", "dig", "spatial-reduction"]


@pytest.mark.parametrize("attention", TARGETS)
def test_every_tensor_is_accounted_for(attention):
    """Copied and left are the source's tensors, copied and missing the target's; values say the same."""
    source = random_export(model_config())
    target, report = transferred(source, model_config(attention=attention), seed=4)
    fresh = build_unfused(target.config, 4).state_dict()
    left = dict(report.left)
    assert sorted([*report.copied, *left]) == sorted(source.weights)
    assert sorted([*report.copied, *report.missing]) == sorted(target.weights)
    for name in report.copied:
        assert torch.equal(target.weights[name], source.weights[name])
    for name in report.missing:
        assert torch.equal(target.weights[name], fresh[name])
    assert all(name in report.copied for name in source.weights if ".attn." not in name)


def test_what_moves_from_softmax_to_linear():
    """Linear attention has no bias in its projection: that is left, with its reason; nothing is missing."""
    _, report = transferred(random_export(model_config(depth=1)), model_config(depth=1, attention="linear"))
    assert dict(report.left) == {"blocks.0.attn.qkv.qkv.bias": "the target has no such tensor"}
    assert report.missing == ()


def test_separate_projections_stay_as_they_are():
    """DiG has an `out` of the right shape, but no shared projection: its attention keeps its own start."""
    _, report = transferred(random_export(model_config(depth=1)), model_config(depth=1, attention="dig"))
    assert {name for name, _ in report.left} == {
        f"blocks.0.attn.{name}" for name in ("qkv.qkv.weight", "qkv.qkv.bias", "out.weight", "out.bias")
    }
    assert "no projection that means the same" in report.left[0][1]


class ImpostorProjection(nn.Module):
    """Holds a tensor of the right name and shape that is no query, key, value projection."""

    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)


def test_equal_names_and_shapes_of_another_part_are_not_copied():
    """A stranger's `attn.qkv.qkv.weight` is left alone unless it is the shared QKVProjection."""
    source = random_export(model_config(depth=1))
    target = build_unfused(source.config, 9)
    target.blocks[0].attn.qkv = ImpostorProjection(32)
    before = target.blocks[0].attn.qkv.qkv.weight.clone()
    report = transfer(source.weights, target)
    assert torch.equal(target.blocks[0].attn.qkv.qkv.weight, before)
    assert "blocks.0.attn.qkv.qkv.weight" in dict(report.left)
    assert "blocks.0.attn.out.weight" in dict(report.left)


def test_feed_forward_networks_move_as_a_whole():
    """Mix-FFN and SwiGLU share names and shapes of two matrices, yet mean other things: nothing moves."""
    source = random_export(model_config(ffn={"kind": "glumbconv", "ratio": 2.0}))
    _, report = transferred(source, model_config(ffn={"kind": "swiglu", "ratio": 2.0}))
    left = dict(report.left)
    assert left["blocks.0.ffn.expand.weight"] == "the feed-forward networks differ in kind or width"
    assert "blocks.0.ffn.reduce.weight" in left
    assert not any(".ffn." in name for name in report.copied)


def test_own_parts_of_the_sources_attention_are_left():
    """From rala to mlla, the convolutions called `lepe` in both are not taken for each other."""
    source = random_export(model_config(depth=1, attention="mlla"))
    _, report = transferred(source, model_config(depth=1, attention="rala"))
    assert dict(report.left)["blocks.0.attn.lepe.conv.weight"] == "belongs to the source's attention alone"


@pytest.mark.parametrize(
    "change", [{"depth": 3}, {"dim": 16}, {"learned_variance": False}, {"in_channels": 3}]
)
def test_other_shells_are_refused(change):
    """Another depth, width or output is an error that names it, not half a transfer."""
    with pytest.raises(UserInputError, match=f"{next(iter(change))} "):
        transferred(random_export(model_config()), model_config(**change))


def test_command_line(tmp_path, monkeypatch, capsys):
    """`attnbench transfer` prints the table and writes a folder that opens and says it is untrained."""
    source, target = tmp_path / "source", tmp_path / "target"
    written = write_exported(random_export(model_config()), source)
    assert call(monkeypatch, "transfer", source, "--attention", "focused", "--to", target) == 0
    assert "blocks.*.attn.qkv.qkv.weight" in capsys.readouterr().out
    config = load_model(target).attnbench_config
    assert config.attention == ["focused"]
    assert config.transferred_from.weights_sha256 == written.weights_sha256
    assert config.transferred_from.attention == ["softmax"]
    assert "Not trained as it stands" in (target / "README.md").read_text()
    assert call(monkeypatch, "transfer", source, "--to", tmp_path / "other") == 2
    assert "--attention NAME" in capsys.readouterr().err


def test_chain_of_folders_keeps_the_weights(tmp_path):
    """Softmax to linear and back through folders returns every tensor but the bias that linear lacks."""
    source = random_export(model_config())
    there, _ = transferred(source, model_config(attention="linear"))
    write_exported(there, tmp_path / "linear")
    back, report = transferred(read_exported(tmp_path / "linear"), model_config())
    assert [name for name in report.missing if not name.endswith("qkv.qkv.bias")] == []
    for name in report.copied:
        assert torch.equal(back.weights[name], source.weights[name])


def test_other_classes_start_anew(tmp_path, monkeypatch, capsys):
    """--classes makes weights for another data set: all but the table of classes are the source's."""
    source = random_export(model_config(), num_classes=5, class_names=[*"abcde"])
    write_exported(source, tmp_path / "source")
    words = ("transfer", tmp_path / "source", "--classes", 7, "--to", tmp_path / "target")
    assert call(monkeypatch, *words) == 0
    assert "shape 6 x 32, the target's is 8 x 32" in capsys.readouterr().out
    target = read_exported(tmp_path / "target")
    assert (target.config.input.num_classes, target.config.class_names) == (7, None)
    assert len(target.weights["label_embed.table.weight"]) == 8
    for name, tensor in source.weights.items():
        assert name == "label_embed.table.weight" or torch.equal(target.weights[name], tensor)


def test_another_image_size_keeps_every_weight(tmp_path, monkeypatch):
    """The sine-cosine embedding of the new grid is computed; images of 128 px are latents of 16 x 16."""
    source = random_export(model_config(), side=8)
    write_exported(source, tmp_path / "source")
    words = ("transfer", tmp_path / "source", "--image-size", 128, "--to", tmp_path / "target")
    assert call(monkeypatch, *words) == 0
    target = read_exported(tmp_path / "target")
    assert target.config.input.shape == (4, 16, 16)
    assert all(torch.equal(target.weights[name], tensor) for name, tensor in source.weights.items())
    assert load_model(tmp_path / "target")(*inputs(target)).shape == (5, 8, 16, 16)


def test_a_learned_embedding_of_another_grid_starts_anew():
    """It has a row for each token: that is a tensor of another shape, and listed as left."""
    source = random_export(model_config(position_embedding="learned"))
    _, report = transferred(source, source.config.model, side=16)
    assert dict(report.left) == {"position": "shape 16 x 32, the target's is 64 x 32"}
