"""Suites over suites: what merges, what replaces, where each value stands; the shipped suites unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_registry import SMALL

from attnbench.errors import SuiteError
from attnbench.running.plan import closed_form
from attnbench.specs import AttentionSpec, ImageFolderData, content_hash
from attnbench.suite.files import shipped_folder
from attnbench.suite.loading import list_suites, load_suite, suite_json_schema

BASE = """\
question: of the base
model: {recipe: tiny-dit, depth: 2}
data: digits
train: {objective: flow, lr: 2e-3, steps: 50, log: [jsonl]}
sample: {sampler: euler, num_steps: 25, per_class: 200}
matrix: {model.attention: [softmax, linear]}
"""
OWN = "name: own\nquestion: Which?\nextends: base.yaml\n"


@pytest.fixture
def write(here: Path, imagined_plugins: None):
    """Write files into the working directory, `base.yaml` among them."""

    def write(**files: str) -> None:
        for name, text in ({"base": BASE} | files).items():
            path = here / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def lines(*overrides: str) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        load_suite("own.yaml", overrides)
    return str(caught.value).splitlines()


def test_mappings_merge_and_lists_replace(write) -> None:
    """Key by key at any depth; a list, or a value in place of a mapping, is the nearer file's alone."""
    write(
        own=OWN
        + "train: {steps: 7, log: [tensorboard]}\nmatrix: {model.attention: [dydila], model.depth: [3]}\n"
    )
    (case,) = load_suite("own.yaml").cases
    assert (case.train.steps, case.train.lr, case.train.log) == (7, 2e-3, ["tensorboard"])
    assert (case.label, case.model.depth, case.sample.per_class) == ("dydila · depth=3", 3, 200)
    assert (case.suite, case.question) == ("own", "Which?")


def test_overrides_come_last_and_reach_what_a_base_says(write) -> None:
    """`-o` holds over every file, the base's matrix included."""
    write(own=OWN)
    cases = load_suite("own.yaml", ["train.lr=1e-4", "matrix.model.attention=[softmax]"]).cases
    assert [(case.label, case.train.lr) for case in cases] == [("softmax", 1e-4)]


def test_later_files_hold_over_earlier_ones_and_chains_reach_through(write) -> None:
    """A list in its order; a base may extend another; one file that two of them extend is read once."""
    write(
        root="train: {lr: 1e-3, warmup_steps: 5}\n",
        one="extends: root.yaml\ntrain: {steps: 11, ema_decay: 0.5}\n",
        two="extends: root.yaml\ntrain: {steps: 12}\n",
        own=OWN.replace("base.yaml", "[base.yaml, one.yaml, two.yaml]"),
    )
    train = load_suite("own.yaml").cases[0].train
    assert (train.steps, train.ema_decay, train.lr, train.warmup_steps) == (12, 0.5, 1e-3, 5)


@pytest.mark.parametrize(
    ("base", "own", "said"),
    [
        ("", "model: {attention: dydila}\n", "model.attention: base.yaml:6:10 varies it; give its values"),
        (
            "exceptions: [{when: {model.attention: [softmax]}, set: {train.lr: 1e-4}, reason: so}]\n",
            "train: {lr: 5e-3}\n",
            "train.lr: base.yaml:7:57 sets it for some cases; give exceptions here, too",
        ),
    ],
)
def test_a_value_that_a_base_would_overwrite_is_refused(write, base, own, said) -> None:
    """Its matrix and exceptions hold over single values, those of the nearer file, too: not in silence."""
    write(base=BASE + base, own=OWN + own)
    (line,) = lines()
    assert line.startswith("own.yaml:4:")
    assert said in line
    write(base=BASE + base, own=OWN + own + "matrix: {model.attention: [linear]}\nexceptions: []\n")
    if base:
        assert [case.train.lr for case in load_suite("own.yaml").cases] == [5e-3]


def test_two_bases_may_share_a_value_that_one_of_them_varies(write) -> None:
    """What both have from one file is no wish of the second against the matrix of the first."""
    write(
        root="train: {lr: 1e-3}\n",
        one="extends: root.yaml\nmatrix: {train.lr: [1e-3, 1e-4]}\n",
        two="extends: root.yaml\ntrain: {steps: 12}\n",
        own=OWN.replace("base.yaml", "[base.yaml, one.yaml, two.yaml]"),
        base=BASE.replace("lr: 2e-3, ", ""),
    )
    assert len(load_suite("own.yaml").cases) == 4


def test_a_copy_of_a_shipped_suite_finds_what_it_extends(write) -> None:
    """`_paper.yaml` lies beside the shipped suites, not beside a copy of one."""
    text = (shipped_folder() / "table4_components.yaml").read_text()
    write(own=f"{text.partition('matrix:')[0]}model: tiny-dit-rgb\ndata: {{codec: null}}\n")
    assert load_suite("own.yaml").cases


def test_a_shipped_suite_can_be_extended_by_its_name(write) -> None:
    """Ours in other sizes, without a copy of it."""
    write(own="name: own\nquestion: Which?\nextends: quick\ntrain: {steps: 3}\n")
    cases = load_suite("own.yaml").cases
    assert [case.label for case in cases] == [case.label for case in load_suite("quick").cases]
    assert {case.train.steps for case in cases} == {3}


def test_names_that_stand_for_mappings_meet_mappings(write) -> None:
    """`model: tiny-dit` below `model: {depth: 3}`, and the other way round."""
    write(
        base=BASE.replace("model: {recipe: tiny-dit, depth: 2}", "model: tiny-dit").replace("matrix", "#"),
        own=OWN + "model: {depth: 3, attention: linear}\n",
    )
    (case,) = load_suite("own.yaml").cases
    assert (case.model.name, case.model.depth, case.model.attention_at(0).name) == ("tiny-dit", 3, "linear")


def test_settings_of_another_thing_are_not_kept(write) -> None:
    """Another backend's options, another data's folder, another place of the autoencoder."""
    write(
        base=BASE.replace("matrix", "#").replace(
            "depth: 2", "attention: {name: agent, options: {num_agents: 4}}"
        ),
        own=OWN + "model: {attention: {name: dydila}}\n",
    )
    (case,) = load_suite("own.yaml").cases
    assert isinstance(case.model.attention, AttentionSpec)
    assert "num_agents" not in case.model.attention.options
    latent = "model: dit-s\ndata: {name: image-folder, path: images, codec: {hub: a/b, revision: main}}\n"
    write(base=latent, own=OWN + "data: {codec: {path: mine}}\n")
    (case,) = load_suite("own.yaml").cases
    assert isinstance(case.data, ImageFolderData)
    assert case.data.codec is not None
    assert (case.data.codec.hub, case.data.codec.path) == (None, Path("mine").absolute())
    digits = "model: {recipe: tiny-dit, learned_variance: true}\ndata: {name: digits}\n"
    write(base=latent, own=OWN + digits + "evaluate: {kd_subset_size: 100}\n")
    assert load_suite("own.yaml").cases[0].data.name == "digits"


def test_relative_paths_start_from_the_file_that_states_them(write, here: Path) -> None:
    """Also where another file extends it from elsewhere."""
    base = "model: dit-s\ndata: {name: image-folder, path: images, codec: {path: ../vae}}\n"
    write(**{"bases/base": base, "own": OWN.replace("base.yaml", "bases/base.yaml")})
    (case,) = load_suite("own.yaml").cases
    assert isinstance(case.data, ImageFolderData)
    assert case.data.codec is not None
    assert (case.data.path, case.data.codec.path) == (here / "bases/images", here / "vae")


def test_errors_stand_where_the_wrong_value_stands(write) -> None:
    """File, line and column of the base's lines and of the suite's own, the suite's first."""
    write(
        base=BASE.replace("lr: 2e-3", "lrr: 2e-3").replace("per_class: 200", "per_class: x"),
        own=OWN + "train:\n  steps: 1.5\n",
    )
    assert [line.split(": ")[:2] for line in lines("profile.rounds=x")] == [
        ["own.yaml:5:3", "train.steps"],
        ["base.yaml:4:26", "train.lrr"],
        ["base.yaml:5:41", "sample.per_class"],
        ["override 'profile.rounds=x'", "profile.rounds"],
    ]
    write(base=BASE.replace("[softmax, linear]", "[softmax, sofmax]"), own=OWN)
    (line,) = lines()
    assert line.startswith("base.yaml:6:37: matrix.model.attention[1].name: unknown backend 'sofmax'")
    write(base=BASE.replace("tiny-dit,", "tiny-dti,"), own=OWN)
    assert lines()[0].startswith("base.yaml:2:9: model.recipe: unknown model recipe 'tiny-dti'")


def test_name_and_question_are_a_suites_own(write) -> None:
    """Two suites in one run folder would mix; a base's question is not the suite's."""
    write(base="name: base\n" + BASE, own="extends: base.yaml\n")
    assert [line.partition(" (")[0] for line in lines()] == [
        "own.yaml:1:1: name: is missing",
        "own.yaml:1:1: question: is missing",
    ]


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("bse.yaml", "extends: bse.yaml: no such file (bse.yaml) (did you mean 'base.yaml'?); name one"),
        ("quik", "extends: quik: no such file (quik) (did you mean 'quick'?)"),
        (".", "extends: .: is a folder, not a suite"),
        ("3", "extends: must be a file or a list of files, relative to this one, or names of shipped suites"),
        ("[base.yaml, {a: 1}]", "extends: must be a file or a list of files"),
        ("''", "extends: must be a file or a list of files"),
        ("own.yaml", "extends: the files extend each other in a circle: own.yaml -> own.yaml; take one"),
    ],
)
def test_what_cannot_be_extended_is_said(write, extends: str, said: str) -> None:
    """One line with the place of the word, what was got, what is allowed and the nearest spelling."""
    write(own=OWN.replace("base.yaml", extends))
    (line,) = lines()
    assert line.startswith(f"own.yaml:3:1: {said}")


def test_circles_and_broken_files_are_said_where_they_are(write) -> None:
    """The file that closes the circle; the line of a base that is no YAML."""
    write(own=OWN, base="extends: back.yaml\n", back="train: {}\nextends: [own.yaml]\n")
    assert lines()[0].startswith(
        "back.yaml:2:1: extends: the files extend each other in a circle: "
        "own.yaml -> base.yaml -> back.yaml -> own.yaml; take one of them out of another's extends"
    )
    write(own=OWN, base="train: {}\na: *nope\n")
    assert lines()[0].startswith("base.yaml:2:4: ")


def test_an_override_of_extends_is_refused(write) -> None:
    """It would change nothing, since the files have been read."""
    write(own=OWN)
    assert lines("extends=quick") == [
        "override 'extends=quick': extends is read before any override; write a suite that extends both files"
    ]


def test_the_json_schema_knows_extends() -> None:
    """Editors complete and check it."""
    described = suite_json_schema()["properties"]["extends"]
    assert {kind.get("type") for kind in described["anyOf"]} == {"string", "array"}
    assert "lists replace" in described["description"]


def test_a_misspelt_extends_is_an_unknown_key(write) -> None:
    """It is a setting like all others."""
    write(own=SMALL + "extnds: base.yaml\n")
    assert "unknown key 'extnds' (did you mean 'extends'?)" in lines()[0]


# --- the shipped suites

CONTENTS = {
    "cifar10": "6 8fb578ac93e8057f",
    "convert_digits": "67 0aa9b46b6f54a0e1",
    "convert_imagenet": "4 db24e4c96b928a22",
    "digits_all": "41 1c31ee18f805cf48",
    "imagenet_256": "18 96b7e8326714a09c",
    "photos": "6 80627cfeb723735f",
    "quick": "6 4723bd3cb9a815b1",
    "skeletons_digits": "6 e8204cf923022e97",
    "study_ablations": "50 19a68f9a482d5207",
    "study_cifar10": "18 7a46ac33df3106ac",
    "study_compute": "66 f5c96ed9ece0bbbc",
    "study_digits": "492 5190a063cad1fd9a",
    "study_photos": "33 2a555ea1cc4f4f0f",
    "subin_256": "36 adf35020ebc5ddfa",
    "subin_512": "12 a54ea7d9266899c8",
    "table4_components": "6 a3c50b311e5eb4cb",
    "table5_paradigms": "2 75218434bed4652c",
    "table6_lambda_init": "2 8ffeceef9f4f7c57",
    "table7_guidance": "12 2e11ff62e2203a83",
    "table8_guidance": "9 8120b69e7ec0f6b6",
}


def test_shipped_suites_ask_for_what_they_asked_for() -> None:
    """The ids of their cases, but for the attentions' code and the noise: stores and reports name them."""
    found = {}
    for row in list_suites():
        ours = row.name in (
            "cifar10",
            "convert_imagenet",
            "imagenet_256",
            "study_cifar10",
        ) or row.name.startswith(("subin", "table"))
        suite = load_suite(row.name, ["sample.noise=ziggurat", *(["data.path=/set"] if ours else [])])
        own = [case for case in suite.cases if case.teacher is None]  # else its teacher's code is in the id
        ids = [case.model_copy(update={"code": {}}).id for case in own]
        found[row.name] = f"{len(ids)} {content_hash(ids)}"
    assert found == CONTENTS


def test_study_compute_trains_for_one_compute() -> None:
    """Steps times multiply-adds of a model in full: softmax's to 1 %, to half a step where they are set."""
    cases = [case for case in load_suite("study_compute").cases if case.seed == 0]
    spent = [case.train.steps * closed_form(case).full for case in cases]
    for case, macs in zip(cases, spent, strict=True):
        ratio = macs / spent[0]
        assert ratio == pytest.approx(1, abs=0.025 if case.train.steps == 250 else 0.5 / case.train.steps), (
            case.label
        )


def test_the_suites_of_the_paper_state_their_common_lines_once() -> None:
    """What all eight share stands in one file, which is no suite."""
    assert "_paper" not in {row.name for row in list_suites()}
    common = (shipped_folder() / "_paper.yaml").read_text().splitlines()
    settings = {line for line in common if line.startswith("  ")}
    for row in list_suites():
        if row.name.startswith(("subin", "imagenet", "table")):
            assert not settings & set(row.path.read_text().splitlines()), row.name
