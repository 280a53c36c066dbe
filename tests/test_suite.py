"""Suites: resolved cases with readable labels, and every wrong line named."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from suite_registry import SMALL, errors, load

from attnbench.errors import SuiteError, UnknownNameError, UserInputError
from attnbench.problems import models_in
from attnbench.specs import AttentionSpec, ImageFolderData
from attnbench.suite.loading import PATH_SETTINGS, SuiteSpec, load_suite, suite_json_schema

pytestmark = pytest.mark.usefixtures("imagined_plugins")


# --- shipped suites


def test_quick_is_six_attentions_in_one_skeleton() -> None:
    """The quick suite differs between its cases in attention only."""
    cases = load_suite("quick").cases
    assert [case.label for case in cases] == [
        "softmax", "linear", "focused", "agent(num_agents=4)", "dydila-token", "dydila-map",
    ]  # fmt: skip
    same = {
        case.model_copy(update={"model": None, "code": {}, "label": "", "axes": {}}).model_dump_json()
        for case in cases
    }
    assert len(same) == 1
    assert len({case.id for case in cases}) == 6


def test_photos_compares_the_same_six_on_colour() -> None:
    """The photo suite takes the attentions of the quick one."""
    quick, photos = load_suite("quick").cases, load_suite("photos").cases
    assert [case.model.attention for case in photos] == [case.model.attention for case in quick]
    assert {case.data.name for case in photos} == {"photo-patches"}


def test_suites_are_found_by_path_or_name(here: Path) -> None:
    """A misspelt name or path is refused with the nearest one."""
    (here / "suites").mkdir()
    (here / "suites" / "quick.yaml").write_text(SMALL)
    assert load_suite("suites/quick.yaml").name == "small"
    assert load_suite("quick").name == "quick"
    with pytest.raises(UnknownNameError, match=r"unknown suite 'quik' \(did you mean 'quick'\?\)"):
        load_suite("quik")
    with pytest.raises(
        SuiteError, match=r"suites/quik\.yaml: no such file \(did you mean 'suites/quick\.yaml'"
    ):
        load_suite("suites/quik.yaml")
    with pytest.raises(SuiteError, match="suites: is a folder, not a suite"):
        load_suite("suites")


# --- cases


def test_a_suite_without_a_matrix_is_one_case(here: Path) -> None:
    """The single case is called by its recipe."""
    (case,) = load(here, SMALL)
    assert (case.suite, case.label, case.axes, case.seed) == ("small", "tiny-dit", {}, 0)
    assert (case.train.lr, case.sample.num_steps) == (2e-3, 25)


def test_the_matrix_is_a_product_in_order_with_seeds_last(here: Path) -> None:
    """Labels name what varies and nothing else."""
    text = SMALL + "seed: [0, 7]\nmatrix:\n  model.depth: [2, 4]\n  sample.guidance_scale: [1, 2.5]\n"
    cases = load(here, text)
    assert [case.label for case in cases[:3]] == [
        "depth=2 · guidance_scale=1 · seed=0",
        "depth=2 · guidance_scale=1 · seed=7",
        "depth=2 · guidance_scale=2.5 · seed=0",
    ]
    assert len(cases) == 8
    assert [case.seed for case in cases[:2]] == [0, 7]
    assert cases[-1].axes == {"depth": "4", "guidance_scale": "2.5", "seed": "7"}


def test_equal_last_parts_of_keys_are_written_in_full(here: Path) -> None:
    """`batch_size` alone would not say whose."""
    text = SMALL + "matrix:\n  train.batch_size: [3]\n  sample.batch_size: [4]\n"
    assert load(here, text)[0].label == "train.batch_size=3 · sample.batch_size=4"


def test_attentions_per_block_are_labelled_as_runs(here: Path) -> None:
    """A list of attentions for the blocks reads as counts in order."""
    text = SMALL + "matrix:\n  model.attention: [[softmax, linear, linear, softmax], linear]\n"
    assert [case.label for case in load(here, text)] == ["1x softmax + 2x linear + 1x softmax", "linear"]


def test_options_are_completed_so_that_defaults_and_stated_values_are_equal(here: Path) -> None:
    """The content of a case does not depend on whether a default was written; its label does."""
    short = load(here, SMALL, "model.attention=dydila")[0]
    long = load(here, SMALL, "model.attention={name: dydila, options: {mode: token, gamma_init: 3}}")[0]
    assert short.key("evaluate") == long.key("evaluate")
    assert isinstance(short.model.attention, AttentionSpec)
    assert isinstance(long.model.attention, AttentionSpec)
    assert short.model.attention.options["num_kernels"] == 9
    assert short.model.attention.title == "dydila"
    assert long.model.attention.title == "dydila(mode=token, gamma_init=3)"


def test_options_of_the_recipes_attention_can_vary(here: Path) -> None:
    """A matrix key may reach into options that only the recipe states."""
    data = "data: {name: image-folder, path: x, codec: {path: y}}\n"
    text = f"name: a\nquestion: b\nmodel: dydi-lit-s\n{data}"
    cases = load(here, text + "matrix:\n  model.attention.options.mode: [token, map]\n")
    assert [case.label for case in cases] == ["mode=token", "mode=map"]
    assert {case.model.attention_at(0).options["num_projectors"] for case in cases} == {3}


def test_recipes_and_datasets_name_themselves(here: Path) -> None:
    """Axes of models and data show values, all others key and value."""
    text = SMALL.replace("model: tiny-dit\ndata: digits\n", "")
    text += (
        "matrix:\n  model: [tiny-dit, {recipe: tiny-dit, depth: 2}]\n  data: [digits]\n  train.steps: [5]\n"
    )
    assert [case.label for case in load(here, text)] == [
        "tiny-dit · digits · steps=5",
        "tiny-dit(depth=2) · digits · steps=5",
    ]


# --- overrides and paths


def test_overrides_replace_add_and_reach_into_the_matrix(here: Path) -> None:
    """Dotted keys address any setting, and the lists of the matrix."""
    text = SMALL + "matrix:\n  model.attention: [softmax, linear]\n"
    assert load(here, text, "train.lr=1", "train.lr=1e-4")[0].train.lr == 1e-4
    assert load(here, text, "train.lr=1")[0].train.lr == 1.0
    assert [case.label for case in load(here, text, "matrix.model.attention=[dydila]")] == ["dydila"]
    assert load(here, text, "matrix={}", "model.attention=linear")[0].model.attention_at(0).name == "linear"
    assert load(here, SMALL, "model.depth=2")[0].model.depth == 2


def test_an_override_the_matrix_would_overwrite_is_refused(here: Path) -> None:
    """Nothing a user types is ignored in silence."""
    (line,) = errors(here, SMALL + "matrix:\n  model.attention: [softmax]\n", "model.attention=linear")
    assert line == (
        "override 'model.attention=linear': the suite's matrix varies model.attention; "
        "give its values instead, as in -o matrix.model.attention=[VALUE]"
    )


def test_relative_paths_start_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a suite from its folder, in an override from the working directory; `~` is the home folder."""
    folder, elsewhere = tmp_path / "suites", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/somebody")
    data = "data: {name: image-folder, path: ../images, codec: {path: ~/vae}}\n"
    text = f"name: a\nquestion: b\nmodel: dit-s\n{data}"
    (case,) = load(folder, text, "evaluate.weights=w.pth")
    assert isinstance(case.data, ImageFolderData)
    assert case.data.codec is not None
    assert case.data.path == tmp_path / "images"
    assert case.data.codec.path == Path("/home/somebody/vae")
    assert case.evaluate.weights == elsewhere / "w.pth"


def test_every_path_in_the_settings_is_resolved() -> None:
    """A new path setting must not be forgotten."""

    def paths(model: Any, prefix: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = []
        for name, field in model.model_fields.items():
            if field.annotation is Path or Path in get_args(field.annotation):
                found.append((*prefix, name))
            for inner in models_in(field.annotation):
                found += paths(inner, (*prefix, name))
        return found

    assert sorted(set(paths(SuiteSpec, ()))) == sorted(PATH_SETTINGS)


# --- schema


def test_the_json_schema_describes_suites_for_editors() -> None:
    """Shorthands are allowed, recipes replace names, and every setting is described."""
    schema = suite_json_schema()
    definitions = schema["$defs"]
    assert {"type": "string"} in definitions["AttentionSpec"]["anyOf"]
    assert "recipe" in definitions["ModelConfig"]["properties"]
    assert "name" not in definitions["ModelConfig"]["properties"]
    assert schema["additionalProperties"] is False
    for section in ("train", "sample", "evaluate", "profile"):
        assert schema["properties"][section]["description"]
    for name in ("TrainSpec", "SampleSpec", "EvaluateSpec", "ProfileSpec", "ModelConfig"):
        assert all(setting["description"] for setting in definitions[name]["properties"].values())


# --- wild input

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["softmax", "tiny-dit", "digits", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "recipe", "options", "path", "a.b"]), inner, max_size=2)
    ),
    max_leaves=5,
)
KEYS = ("name", "seed", "model", "model.attention", "data", "data.codec", "train", "train.steps", "matrix")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from([*KEYS, "matrix.model.attention", "matrix.data", "evaluate.weights"]), value=VALUES
)
def test_any_value_anywhere_is_a_suite_or_a_suite_error(here: Path, key: str, value: Any) -> None:
    """No value of any shape at any key gets past with another exception."""
    with contextlib.suppress(UserInputError):
        assert load(here, SMALL, f"{key}={json.dumps(value)}")


def test_listing_suites_needs_no_torch() -> None:
    """`attnbench list suites` answers at once."""
    code = "import sys, attnbench.suite.files as s; assert s.list_suites(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
