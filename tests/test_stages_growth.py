"""Growth of depth: what a deeper model computes at first, where its blocks come from, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from exchange_cases import call, digits_case, inputs, model_config, random_export, workspace_of

from attnbench.errors import SuiteError, UserInputError
from attnbench.exchange import read_exported, transferred, write_exported
from attnbench.exchange.loading import build_unfused
from attnbench.report.aspects import settings_of
from attnbench.specs import Case, DecoupledSpec, FfnSpec, GrowthSpec, TrainSpec
from attnbench.stages import train
from attnbench.stages.training.block_origins import origins_of_blocks
from attnbench.stages.training.checkpoint import load_averaged
from attnbench.stages.training.growth import grown
from attnbench.suite.loading import load_suite

PRESERVE, CYCLIC, EXPAND = (GrowthSpec(strategy=name) for name in ("preserve", "cyclic", "expand"))
SOFTMAX = {"name": "softmax"}


def module(exported, dtype=torch.float32):
    """The model of an export in eval mode."""
    model = build_unfused(exported.config).to(dtype).eval()
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in exported.weights.items()})
    return model


@pytest.mark.parametrize(
    ("growth", "blocks"),
    [
        (PRESERVE, [0, 1, None, None, None, None]),
        (CYCLIC, [0, 1, 0, 1, 0, 1]),
        (EXPAND, [0, 0, 0, 1, 1, 1]),
        (GrowthSpec(strategy="cyclic", keep=1), [0] * 6),
    ],
)
def test_blocks_come_from_where_the_released_code_takes_them(growth, blocks):
    """20 blocks to 60 are 0, 20, 40 from block 0 in one, 0, 1, 2 in the other; here 2 to 6."""
    origins = origins_of_blocks(2, 6, growth)
    assert [origin.block for origin in origins] == blocks
    kept = [place for place, origin in enumerate(origins) if not origin.is_new]
    assert kept == ([0, 3] if growth is EXPAND else list(range(growth.keep or 2)))


@pytest.mark.parametrize("growth", [PRESERVE, CYCLIC, EXPAND], ids=lambda growth: growth.strategy)
@pytest.mark.parametrize(
    "settings",
    [{}, {"attention": "dydila", "stream_conv": True}, {"attention": "moh", "ffn": {"kind": "glumbconv"}}],
    ids=["softmax", "dydila", "moh"],
)
def test_the_function_is_preserved_bit_for_bit(settings, growth):
    """New blocks add zero times something to the stream: there is nothing to round."""
    source = random_export(model_config(**settings))
    deeper, report = transferred(source, model_config(depth=4, **settings), growth=growth)
    assert report.left == ()
    batch = inputs(source)
    with torch.no_grad():
        expected, y = module(source)(*batch), module(deeper)(*batch)
    assert expected.abs().max() > 0
    assert torch.equal(y, expected)


@pytest.mark.parametrize("growth", [PRESERVE, CYCLIC, EXPAND], ids=lambda growth: growth.strategy)
def test_new_blocks_learn(growth):
    """The gates of every new block have a gradient in the first step, though it adds nothing yet."""
    source = random_export(model_config())
    deeper, _ = transferred(source, model_config(depth=4), growth=growth)
    model = module(deeper)
    model(*inputs(source)).square().mean().backward()
    for place, origin in enumerate(origins_of_blocks(2, 4, growth)):
        gates = model.blocks[place].modulation[1].bias.grad.chunk(6)
        assert origin.is_new == (not model.blocks[place].modulation[1].bias.chunk(6)[2].any())
        assert gates[2].any()
        assert gates[5].any()


@pytest.mark.parametrize("strategy", ["cyclic", "expand"])
def test_copies_without_identity_are_the_source_s_blocks(strategy):
    """In float64, against the source's own modules called in the order of the deeper model's blocks."""
    source = random_export(model_config(stream_conv=True))
    growth = GrowthSpec(strategy=strategy, identity=False)
    deeper, _ = transferred(source, model_config(depth=4, stream_conv=True), growth=growth)
    shallow = module(source, torch.float64)
    order = [origin.block for origin in origins_of_blocks(2, 4, growth)]
    shallow.blocks = torch.nn.ModuleList(shallow.blocks[block] for block in order)
    x, t, y = inputs(source)
    with torch.no_grad():
        expected = shallow(x.double(), t, y)
        assert torch.equal(module(deeper, torch.float64)(x.double(), t, y), expected)


def test_kept_blocks_are_the_first_ones():
    """Sana 1.5 leaves the last blocks of its source out: nothing of them is in the deeper model."""
    source = random_export(model_config(depth=3))
    growth = GrowthSpec(keep=2)
    found = grown(source.weights, source.config.model, model_config(depth=4), growth)
    assert {name.split(".")[1] for name in found if name.startswith("blocks.")} == {"0", "1"}
    deeper, report = transferred(source, model_config(depth=4), growth=growth)
    assert torch.equal(deeper.weights["blocks.1.ffn.fc1.weight"], source.weights["blocks.1.ffn.fc1.weight"])
    assert "blocks.2.ffn.fc1.weight" in report.missing
    assert deeper.config.transferred_from.growth == growth


@pytest.mark.parametrize(("attention", "growth"), [("differential", EXPAND), ("dig", EXPAND)])
def test_an_attention_that_depends_on_its_block_is_refused(attention, growth):
    """Block 1 of the source would be block 2 there, with another constant or another direction."""
    source = random_export(model_config(attention=attention))
    with pytest.raises(UserInputError, match=rf"{attention} depends on the number.*preserve or cyclic"):
        transferred(source, model_config(depth=4, attention=attention), growth=growth)
    transferred(source, model_config(depth=4, attention=attention), growth=PRESERVE)


@pytest.mark.parametrize(
    ("depth", "growth", "said"),
    [
        (2, PRESERVE, "depth 2 does not exceed the 2 blocks"),
        (5, EXPAND, "multiple of the 2 blocks kept, got depth 5; choose 6, or strategy cyclic"),
        (5, GrowthSpec(keep=3), "growth.keep is 3, but the source has 2 blocks"),
    ],
)
def test_depths_that_do_not_go_together(depth, growth, said):
    """The error has both numbers and the way out."""
    with pytest.raises(UserInputError, match=said):
        transferred(random_export(model_config()), model_config(depth=depth), growth=growth)


def test_the_same_attention_moves_as_a_whole():
    """Also where only the classes are others: routers, banks and convolutions are the same parts."""
    source = random_export(model_config(attention="dydila"))
    _, report = transferred(source, source.config.model, num_classes=7)
    assert [name for name, _ in report.left] == ["label_embed.table.weight"]


SUITE = """\
name: deeper
question: Does it grow?
model: {recipe: tiny-dit, depth: 4, dim: 16, num_heads: 2}
data: digits
train: {objective: flow, init_from: given, growth: {strategy: cyclic}}
sample: {sampler: euler}
evaluate: {kd_subset_size: 300}
"""


def suite(folder, text=SUITE, **settings):
    """A suite beside a folder `given` with a model of two blocks."""
    path = folder / "suite.yaml"
    path.write_text(SUITE.replace(", init_from: given, growth: {strategy: cyclic}", ""))
    model = load_suite(path).cases[0].model.model_copy(update={"depth": 2, **settings})
    write_exported(random_export(model, num_classes=10), folder / "given")
    path.write_text(text)
    return path


def test_a_suite_says_how_its_model_grows(tmp_path):
    """The strategy is part of the training's key, and nothing of it where it is not said."""
    (case,) = load_suite(suite(tmp_path)).cases
    assert case.train.growth == CYCLIC
    (other,) = load_suite(tmp_path / "suite.yaml", ["train.growth.strategy=expand"]).cases
    assert case.key("train") != other.key("train")
    assert "growth" not in TrainSpec().model_dump(mode="json")
    assert Case.model_validate_json(case.model_dump_json()) == case


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("depth: 4", r"suite.yaml:5:.*depth 5.*choose 6"),
        ("init_from: given, ", r"train.growth: needs weights to grow from.*train.init_from"),
        (", growth: {strategy: expand}", r"depth 2 \(here 4\).*train.growth"),
        ("dim: 16", r"suite.yaml:5:.*dim 16 \(here 32\)"),
        ("num_heads: 2", r"block 0 would start from block 0.*is linear, there it is softmax"),
        ("strategy: expand", r"train.growth.identity: is true for strategy preserve"),
    ],
)
def test_suites_that_cannot_grow(tmp_path, written, said):
    """Each is refused with its line before anything is trained."""
    text = SUITE.replace("cyclic", "expand")
    changed = {
        "depth: 4": "depth: 5",
        "dim: 16": "dim: 32",
        "num_heads: 2": "num_heads: 2, attention: linear",
        "strategy: expand": "identity: false",
    }
    path = suite(tmp_path, text.replace(written, changed.get(written, "")))
    with pytest.raises(SuiteError, match=said):
        load_suite(path)


def test_a_training_starts_from_the_grown_weights(tmp_path):
    """With a vanishing learning rate its average is what `transfer` makes of the same folder."""
    one = digits_case("softmax", SOFTMAX)
    source = random_export(one.model, num_classes=10)
    write_exported(source, tmp_path / "given")
    case = digits_case("deeper", SOFTMAX, init_from=tmp_path / "given", growth=CYCLIC, lr=1e-30)
    case = case.model_copy(update={"model": one.model.model_copy(update={"depth": 3})})
    workspace = workspace_of(tmp_path / "runs" / "small")
    train.run(case, workspace)
    averaged, _ = load_averaged(workspace.folder("train", case) / train.AVERAGED, case.key("train"))
    deeper, _ = transferred(source, case.model, growth=CYCLIC)
    assert averaged.keys() == deeper.weights.keys()
    # AdamW moves the zero gates of new blocks by the learning rate, and nothing else by a bit
    assert all(torch.equal(averaged[n] * (averaged[n].abs() > 1e-20), deeper.weights[n]) for n in averaged)


def test_command_line(tmp_path, monkeypatch, capsys):
    """`attnbench transfer --depth` writes a deeper model that says how it grew; wrong words are refused."""
    write_exported(random_export(model_config()), tmp_path / "given")
    words = ("transfer", tmp_path / "given", "--depth", 4)
    assert call(monkeypatch, *words, "--growth", "expand", "--to", tmp_path / "deep") == 0
    assert "4 blocks here, 2 there: expand" in capsys.readouterr().out
    config = read_exported(tmp_path / "deep").config
    assert (config.model.depth, config.transferred_from.growth) == (4, EXPAND)
    assert "4 blocks grew out of fewer there (strategy expand)" in (tmp_path / "deep/README.md").read_text()
    assert call(monkeypatch, *words, "--growth", "expnd", "--to", tmp_path / "no") == 2
    assert "expand" in capsys.readouterr().err
    assert call(monkeypatch, "transfer", tmp_path / "given", "--depth", 1, "--to", tmp_path / "no") == 2
    assert "does not exceed" in capsys.readouterr().err


def test_reports_tell_how_rows_grew(tmp_path):
    """A row that grew, is decoupled or has experts, and one that is not, differ in settings both tell of."""
    (case,) = load_suite(suite(tmp_path)).cases
    plain = case.model_copy(update={"train": case.train.model_copy(update={"growth": None})})
    other = {"decoupled": DecoupledSpec(decoder_depth=1), "ffn": FfnSpec(kind="moe")}
    case = case.model_copy(update={"model": case.model.model_copy(update=other)})
    grew, plain = (dict(settings_of(SimpleNamespace(case=c.model_dump(mode="json")))) for c in (case, plain))
    told = {"train.growth.strategy": "cyclic", "model.decoupled.decoder_depth": "1"}
    told["model.ffn.moe.num_experts"] = "8"
    assert {name: grew[name] for name in told} == told
    assert {name: plain[name] for name in told} == dict.fromkeys(told, "null")
