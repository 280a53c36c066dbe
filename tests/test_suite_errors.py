"""Bad suites: one line per problem, with file, line, column, what is allowed and the nearest spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_registry import SMALL, errors, load

pytestmark = pytest.mark.usefixtures("imagined_plugins")


def test_an_unknown_key_is_one_complete_line(here: Path) -> None:
    """File, line, column, key, nearest spelling and everything allowed."""
    text = SMALL.replace("train: {objective: flow, lr: 2e-3}", "train:\n  objective: flow\n  stpes: 3")
    (line,) = errors(here, text)
    assert line == (
        "s.yaml:7:3: train.stpes: unknown key 'stpes' (did you mean 'steps'?); allowed: "
        "activation_checkpointing, batch_size, checkpoint_every, checkpoint_minutes, compile, ema_decay, "
        "ema_warmup, extra_ema_decays, grad_accumulation, grad_clip, growth, held_out_every, "
        "held_out_images, horizontal_flip, init_from, log, log_every, lr, objective, precision, sharding, "
        "steps, teacher, timestep_density, warmup_steps, weight_decay"
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trian.lr=3", "trian: unknown key 'trian' (did you mean 'train'?)"),
        ("train.steps=1.5", "train.steps: must be an integer, got 1.5"),
        ("train.steps=true", "train.steps: must be an integer, got true"),
        ("train.steps=0", "train.steps: must be greater than 0, got 0"),
        ("train.lr='1e-3'", "train.lr: must be a number, got '1e-3'"),
        ("train.precision=fp16", "train.precision: must be fp32 or bf16, got 'fp16' (did you mean 'bf16'?)"),
        ("train=[1]", "train: must be a mapping, got a list of 1"),
        ("question=", "question: must be a string, got null"),
        ("name=../x", "name: must match pattern"),
        ("seed=[]", "seed: must be an integer or a list with at least one item"),
        ("seed=-1", "seed: must be greater than or equal to 0"),
        (
            "data=digit",
            "data.name: must be digits, photo-patches, image-folder or prepared, got 'digit' (did you",
        ),
        ("data={}", "data.name: is missing; allowed: digits, photo-patches, image-folder, prepared"),
        ("data=image-folder", "data.path: is missing (Folder with one sub-folder per class)"),
        ("data.path=x", "data.path: unknown key 'path'; allowed: name"),
        ("model=tiny-dti", "model.recipe: unknown model recipe 'tiny-dti' (did you mean 'tiny-dit'?)"),
        ("model={depth: 2}", "model.recipe: is missing; available: dit-s, dit-b, dit-l"),
        ("model.name=x", "model.name: unknown key 'name'; allowed: attention"),
        ("model.num_heads=5", "model.num_heads: must divide dim, got dim=96, num_heads=5"),
        ("model.attention=[softmax]", "model.attention: lists one entry per block: got 1 for depth 4"),
        ("model.attention=5", "model.attention: must be a mapping or a list, got 5"),
        (
            "model.attention=sofmax",
            "model.attention.name: unknown backend 'sofmax' (did you mean 'softmax'?)",
        ),
        ("evaluate.extractor=inceptoin-tf", "evaluate.extractor: unknown extractor 'inceptoin-tf' (did you"),
        (
            "evaluate.metrics=[fd, fid]",
            "evaluate.metrics[1]: must be fd, sfd, kd, skd, is, precision or recall, got 'fid'",
        ),
        ("sample.guidance_channels=some", "sample.guidance_channels: must be all or an integer, got 'some'"),
    ],
)
def test_wrong_settings_name_themselves_and_what_is_allowed(here: Path, override: str, line: str) -> None:
    """Unknown keys, types and names, each in one line that names the override."""
    (found,) = errors(here, SMALL, override)
    assert found.startswith(f"override {override!r}: {line}")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            "{mod: map}",
            ".options.mod: unknown key 'mod' (did you mean 'mode'?); allowed: gamma_init, mode, num_fac",
        ),
        ("{mode: mop}", ".options.mode: must be token or map, got 'mop' (did you mean 'map'?)"),
        ("{num_projectors: 1.5}", ".options.num_projectors: must be an integer, got 1.5"),
        ("{num_projectors: '3'}", ".options.num_projectors: must be an integer, got '3'"),
        ("3", ".options: must be a mapping, got 3"),
    ],
)
def test_backend_options_are_checked_against_the_backend(here: Path, options: str, line: str) -> None:
    """An option is held to its backend's own model, at its place in the matrix."""
    matrix = f"matrix:\n  model.attention:\n    - softmax\n    - {{name: dydila, options: {options}}}\n"
    (found,) = errors(here, SMALL + matrix)
    assert found.startswith("s.yaml:10:")
    assert f": matrix.model.attention[1]{line}" in found


def test_options_follow_json_rules(here: Path) -> None:
    """YAML has no tuples and writes whole numbers without a dot; both are accepted."""
    option = "model.attention={name: dydila, options: {window: [3, 5], gamma_init: 2}}"
    assert load(here, SMALL, option)[0].model.attention_at(0).options["window"] == [3, 5]


def test_a_missing_backend_mentions_broken_plugins(here: Path) -> None:
    """The name may be one that a broken plugin would provide."""
    (line,) = errors(here, SMALL, "model.attention=lost-attention")
    assert "(broken plugins, see `attnbench list plugins`: lost)" in line


def test_all_problems_are_listed_in_file_order(here: Path) -> None:
    """One run of the checks is enough; overrides come last."""
    text = (
        "name: b\nquestion: q\nmodel:\n  recipe: tiny-dti\n  depht: 3\ndata:\n  name: image-folder\n"
        "  imagesize: 3\ntrian: 3\nsample: [1]\nmatrix:\n"
        "  model.attention: [softmax, {name: dydila, options: {num_kernels: x}}]\n"
        "  sample.gidance: [1]\n  train.steps: 5\n"
    )
    lines = errors(here, text, "profile.rounds=x")
    assert [line.split(": ")[:2] for line in lines] == [
        ["s.yaml:4:3", "model.recipe"],
        ["s.yaml:5:3", "model.depht"],
        ["s.yaml:6:1", "data.path"],
        ["s.yaml:8:3", "data.imagesize"],
        ["s.yaml:9:1", "trian"],
        ["s.yaml:10:1", "sample"],
        ["s.yaml:12:55", "matrix.model.attention[1].options.num_kernels"],
        ["s.yaml:13:3", "matrix.sample.gidance"],
        ["s.yaml:14:3", "matrix.train.steps"],
        ["override 'profile.rounds=x'", "profile.rounds"],
    ]


@pytest.mark.parametrize(
    ("matrix", "line"),
    [
        (
            "{train.stpes: [1]}",
            "matrix.train.stpes: names no setting (did you mean 'train.steps'?); allowed: train.",
        ),
        (
            "{modle.attention: [1]}",
            "matrix.modle.attention: names no setting (did you mean 'model.attention'?)",
        ),
        ("{model.name: [a]}", "matrix.model.name: names no setting"),
        ("{seed: [1]}", "matrix.seed: names no setting"),
        ("{train.steps: []}", "matrix.train.steps: must be a list of values, got an empty list"),
        ("{train.steps: 5}", "matrix.train.steps: must be a list of values, got 5"),
        ("3", "matrix: must be a mapping, got 3"),
        (
            "{model: [tiny-dit], model.depth: [3]}",
            "matrix.model.depth: varies a part of what matrix.model varies",
        ),
        ("{train.steps: [1, x]}", "matrix.train.steps[1]: must be an integer, got 'x'"),
        (
            "{model.recipe: [tiny-dit, tiny]}",
            "matrix.model.recipe[1]: unknown model recipe 'tiny' (did you mean",
        ),
        ("{train.steps: [1, 2, 1]}", "matrix.train.steps[2]: has the same content as matrix.train.steps[0]"),
    ],
)
def test_wrong_matrices_are_refused(here: Path, matrix: str, line: str) -> None:
    """Keys that name nothing, lists that are none or empty, axes that overlap, cases that repeat."""
    (found,) = errors(here, SMALL + f"matrix: {matrix}\n")
    assert found.startswith("s.yaml:7:")
    assert f": {line}" in found


def test_cases_equal_through_defaults_are_refused(here: Path) -> None:
    """Stating a default makes no new case."""
    (line,) = errors(here, SMALL, "matrix.model.attention=[dydila, {name: dydila, options: {mode: token}}]")
    assert "matrix.model.attention[1]: has the same content as matrix.model.attention[0]" in line


def test_labels_must_tell_cases_apart(here: Path) -> None:
    """Two attentions may not carry one label."""
    two = "[{name: softmax, label: same}, {name: linear, label: same}]"
    (line,) = errors(here, SMALL, f"matrix.model.attention={two}")
    assert "matrix.model.attention[1]: has the same label as matrix.model.attention[0]: 'same'" in line


def test_a_label_must_be_seen(here: Path) -> None:
    """A column of a report without a name has nothing to point at."""
    (line,) = errors(here, SMALL, "matrix.model.attention=[{name: softmax, label: ' '}]")
    assert "label: must have a character that can be seen" in line


def test_an_option_cannot_vary_in_a_list_of_attentions(here: Path) -> None:
    """There is no one place for the value to go."""
    text = SMALL + "matrix:\n  model.attention.options.mode: [map]\n"
    (line,) = errors(here, text, "model.attention=[softmax, softmax, dydila, dydila]")
    assert "cannot be varied: model.attention is a list of 4, not a mapping" in line


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["sample.sampler=ddim"],
            ["sample.sampler: sampler 'ddim' cannot sample a model trained with objective"],
        ),
        (["model.learned_variance=true"], ["model.learned_variance: objective flow learns no variance"]),
        (["train.objective=ddpm"], ["sample.sampler: sampler 'euler' cannot sample"]),
        (["sample.guidance_channels=3"], ["sample.guidance_channels: must be 'all' or 1 to 1"]),
        (
            ["sample.guidance_scale=2", "model.class_dropout=0"],
            ["model.class_dropout: guidance with scale 2"],
        ),
        (
            [
                "sample={sampler: heun, num_steps: 50, guidance_scale: 2, per_class: 200}",
                "model.class_dropout=0",
            ],
            ["sample.num_steps: sampler 'heun' makes two", "model.class_dropout: guidance with scale 2"],
        ),
        (["data=photo-patches"], ["model.in_channels: must be 3, the channels of photo-patches, got 1"]),
        (["model.in_channels=3"], ["model.in_channels: must be 1, the channels of digits, got 3"]),
        (["model.patch_size=3"], ["model.patch_size: resolution 8 does not fit"]),
        (["profile.resolutions=[8, 9]"], ["profile.resolutions[1]: resolution 9 does not fit"]),
        (
            ["model={recipe: dit-s, learned_variance: false}"],
            ["model.input: dit-s works on latents, which digits"],
        ),
        (
            ["train.objective=ddpm", "sample.sampler=ddpm", "train.timestep_density=logit-normal"],
            ["train.timestep_density: logit-normal needs objective flow, got ddpm"],
        ),
    ],
)
def test_settings_that_do_not_go_together(here: Path, overrides: list[str], lines: list[str]) -> None:
    """Each is fine alone; together they cannot run, and the line names the setting to change."""
    found = errors(here, SMALL, *overrides)
    assert len(found) == len(lines)
    assert all(wanted in line for wanted, line in zip(lines, found, strict=True))


@pytest.mark.parametrize(
    ("data", "model", "line"),
    [
        ("{name: image-folder, path: x}", "dit-s", "data.codec: is missing: dit-s works on latents"),
        (
            "{name: image-folder, path: x, codec: {path: y}}",
            "{recipe: tiny-dit-rgb, learned_variance: true}",
            "data.codec: would not be used: tiny-dit-rgb works on pixels",
        ),
        (
            "{name: image-folder, path: x, image_size: 250, codec: {path: y}}",
            "dit-s",
            "data.image_size: resolution 250 does not fit model dit-s",
        ),
    ],
)
def test_folders_fit_the_models_input(here: Path, data: str, model: str, line: str) -> None:
    """Latents need an autoencoder, pixels none, and sides cut into patches."""
    (found,) = errors(here, f"name: a\nquestion: b\nmodel: {model}\ndata: {data}\n")
    assert line in found


def test_a_problem_shared_by_all_cases_is_said_once(here: Path) -> None:
    """Ten cases with one wrong sampler are one line."""
    text = SMALL + "seed: [0, 1, 2, 3, 4]\nmatrix:\n  model.depth: [2, 4]\n"
    assert len(errors(here, text, "sample.sampler=ddpm")) == 1
