"""Recipes: the paper's sizes as data, merged deeply, refused clearly."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import pytest

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.models import build_model
from attnbench.models.recipes import FAMILIES, load_recipes, merge, recipe, resolve
from attnbench.specs import AttentionSpec, FfnSpec

WIDTHS = {"s": 384, "b": 512, "l": 768}
PUBLISHED = ("dit", "dig", "pixart-sigma", "edit", "sana", "dydi-lit", "moh-dit", "lit")


def test_every_recipe_says_what_it_is_and_where_its_sizes_come_from() -> None:
    """Each recipe carries its own name, a summary and a source."""
    recipes = load_recipes()
    families = [f"{family}-{size}" for family in PUBLISHED for size in WIDTHS]
    assert set(families) <= set(recipes)
    assert all(config.name == name and config.summary and config.source for name, config in recipes.items())


def test_every_recipe_file_is_read() -> None:
    """A file that is not listed would be a recipe nobody can name."""
    files = {file.name for file in (resources.files("attnbench.models") / "recipes").iterdir()}
    assert files == {f"{name}.yaml" for name in FAMILIES}


@pytest.mark.parametrize("name", load_recipes())
def test_every_recipe_builds(name: str) -> None:
    """Attention, feed-forward network and sizes fit, at the recipe's own size."""
    config = recipe(name)
    model = build_model(config, 32 if config.input == "latent" else 16, 10, device="meta")
    assert len(model.blocks) == config.depth


def test_an_origin_is_one_of_four() -> None:
    """Where a choice comes from starts with a word a reader can count on."""
    with pytest.raises(UserInputError, match="depth: starts with one of paper, public code, inferred, ours"):
        resolve("dit-s", {"origin": {"depth": "somebody said so"}})


@pytest.mark.parametrize("size", WIDTHS)
def test_published_families_share_one_shell(size: str) -> None:
    """Latents of 4 channels, patch 2, sine-cosine positions, learned variance, 10 % dropped labels."""
    for family in PUBLISHED:
        config = recipe(f"{family}-{size}")
        shell = (config.input, config.in_channels, config.patch_size, config.position_embedding)
        assert shell == ("latent", 4, 2, "sincos")
        assert (config.dim, config.learned_variance, config.class_dropout) == (WIDTHS[size], True, 0.1)


@pytest.mark.parametrize(("size", "heads"), [("s", 6), ("b", 8), ("l", 12)])
def test_dit_has_twelve_blocks_of_softmax_and_mlp(size: str, heads: int) -> None:
    """DiT is 12 blocks at every size, head width 64, MLP ratio 4."""
    config = recipe(f"dit-{size}")
    assert (config.depth, config.num_heads) == (12, heads)
    assert config.attention == AttentionSpec(name="softmax")
    assert config.ffn == FfnSpec(kind="mlp", ratio=4.0)


@pytest.mark.parametrize(("size", "projectors", "factors"), [("s", 3, 9), ("b", 5, 15), ("l", 7, 21)])
def test_linear_families_have_nine_blocks_and_one_head(size: str, projectors: int, factors: int) -> None:
    """Sana and DyDi-LiT differ in attention only; DyDi-LiT's banks grow with the size."""
    sana, dydi = recipe(f"sana-{size}"), recipe(f"dydi-lit-{size}")
    for config in (sana, dydi):
        assert (config.depth, config.num_heads) == (9, 1)
        assert config.ffn == FfnSpec(kind="glumbconv", ratio=4.0)
    assert sana.attention == AttentionSpec(name="linear")
    options = {"num_projectors": projectors, "num_kernels": factors, "num_factors": factors}
    assert dydi.attention == AttentionSpec(name="dydila", options=options)


def test_tiny_recipes_work_on_pixels_and_learn_no_variance() -> None:
    """The CPU skeletons fit flow matching on grey and on colour pixels."""
    grey, colour = recipe("tiny-dit"), recipe("tiny-dit-rgb")
    assert (grey.in_channels, grey.patch_size, colour.in_channels, colour.patch_size) == (1, 2, 3, 4)
    for config in (grey, colour):
        assert (config.dim, config.depth, config.num_heads, config.input) == (96, 4, 4, "pixel")
        assert not config.learned_variance


def test_overrides_merge_deeply() -> None:
    """One option of an attention changes; the recipe's other options stay."""
    config = resolve(
        "dydi-lit-s", {"depth": 8, "attention": {"options": {"mode": "map"}}, "ffn": {"ratio": 2}}
    )
    assert config.depth == 8
    assert config.ffn == FfnSpec(kind="glumbconv", ratio=2.0)
    assert isinstance(config.attention, AttentionSpec)
    assert config.attention.options["mode"] == "map"
    assert config.attention.options["num_projectors"] == 3


@pytest.mark.parametrize("attention", ["softmax", {"name": "softmax"}])
def test_a_named_attention_replaces_the_recipes(attention: object) -> None:
    """Options of one backend never leak into another."""
    assert resolve("dydi-lit-s", {"attention": attention}).attention == AttentionSpec(name="softmax")


def test_attention_may_differ_per_block() -> None:
    """A list gives each block its own attention."""
    config = resolve("tiny-dit", {"attention": ["softmax", "linear", "linear", {"name": "softmax"}]})
    assert [config.attention_at(n).name for n in range(4)] == ["softmax", "linear", "linear", "softmax"]


def test_unknown_recipes_name_the_nearest() -> None:
    """A misspelt recipe is one error with the nearest spelling."""
    with pytest.raises(UnknownNameError, match=r"unknown model recipe 'dit-xs' \(did you mean 'dit-s'\?\)"):
        recipe("dit-xs")


def test_wrong_overrides_say_which_setting_and_what_is_allowed() -> None:
    """All wrong settings are listed, never as pydantic's report."""
    wrong = {"dpeth": 3, "input": "piksel", "dim": 1.5, "attention": 5}
    with pytest.raises(UserInputError) as caught:
        resolve("dit-s", wrong)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "model dit-s: input: must be latent or pixel, got 'piksel' (did you mean 'pixel'?)" in lines
    assert "model dit-s: dim: must be an integer, got 1.5" in lines
    assert "model dit-s: attention: must be a mapping or a list, got 5" in lines
    assert any(
        line.startswith("model dit-s: dpeth: unknown key 'dpeth' (did you mean 'depth'?)") for line in lines
    )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"num_heads": 5}, "num_heads: must divide dim, got dim=384, num_heads=5"),
        ({"attention": ["softmax"]}, "attention: lists one entry per block: got 1 for depth 12"),
    ],
)
def test_sizes_that_do_not_fit_name_the_setting(overrides: dict[str, object], says: str) -> None:
    """What only shows when settings meet is reported at one of them."""
    with pytest.raises(UserInputError, match=says):
        resolve("dit-s", overrides)


def test_nobody_can_change_the_shelf() -> None:
    """What callers get is their own copy."""
    merge("dydi-lit-s", {})["attention"]["options"]["num_projectors"] = 99
    load_recipes().clear()
    config = recipe("dydi-lit-s")
    assert isinstance(config.attention, AttentionSpec)
    assert config.attention.options["num_projectors"] == 3


def test_recipes_need_no_torch_of_their_own() -> None:
    """The module itself and what it imports directly stay free of torch."""
    code = (
        "import sys, types, importlib.util as u, attnbench, pathlib\n"
        "package = types.ModuleType('attnbench.models')\n"  # without the package's own __init__
        "package.__path__ = [str(pathlib.Path(attnbench.__file__).parent / 'models')]\n"
        "sys.modules['attnbench.models'] = package\n"
        "import attnbench.models.recipes\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
