"""What shares a key is measured once: no suite may show it under two names, and no result may misname it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stage_cases import make_case
from suite_registry import SMALL, errors, load

from attnbench.specs import NOISE, OUTSIDE_KEY, UNWRITTEN_NOISE, Case, CodecSpec, ImageFolderData
from attnbench.suite.loading import suite_json_schema

pytestmark = pytest.mark.usefixtures("imagined_plugins")

EXCEPTION = "exceptions: [{when: {%s}, set: {%s}, reason: memory}]\n"


@pytest.mark.parametrize(
    ("axes", "lines"),
    [
        (
            "train.sharding: [none, fsdp2]",
            ["s.yaml:7:33: matrix.train.sharding[1]: 'fsdp2' here, 'none' in another case of the same trai"],
        ),
        (
            "sample.guidance_scale: [1, 2], sample.batch_size: [5, 6, 7]",
            [
                "s.yaml:7:64: matrix.sample.batch_size[1]: 6 here, 5 in another case of the same sampling",
                "s.yaml:7:67: matrix.sample.batch_size[2]: 7 here, 5 in another case of the same sampling",
            ],
        ),
        (
            "train.activation_checkpointing: [false, true], profile.batch_size: [1, 2]",
            ["s.yaml:7:50: matrix.train.activation_checkpointing[1]: true here, false in another case"],
        ),
        ("train.log: [[jsonl], [tensorboard]]", ["s.yaml:7:31: matrix.train.log[1]: "]),
        ("train.checkpoint_minutes: [1.0, 2.0]", ["matrix.train.checkpoint_minutes[1]: 2.0 here, 1.0 in"]),
        (
            "train: [{objective: flow}, {objective: flow, checkpoint_every: 5}]",
            ["matrix.train[1].checkpoint_every: 5 here, null in another case of the same training"],
        ),
    ],
)
def test_an_axis_of_what_changes_no_result_is_refused(here: Path, axes: str, lines: list[str]) -> None:
    """Two names for one training would compare a thing with itself; each line says what to do instead."""
    found = errors(here, SMALL + f"matrix: {{{axes}}}\n")
    assert len(found) == len(lines)
    assert all(wanted in line for wanted, line in zip(lines, found, strict=True))
    assert all("compare times in runs with a --runs folder each (-o " in line for line in found)


@pytest.mark.parametrize("when", ["1.0", "2.0"])
def test_an_exception_for_a_part_of_one_training_is_refused(here: Path, when: str) -> None:
    """Guidance scales share a training, whichever of them the exception is for."""
    text = SMALL + "matrix: {sample.guidance_scale: [1.0, 2.0]}\n"
    text += EXCEPTION % (f"sample.guidance_scale: {when}", "train.sharding: fsdp2")
    (line,) = errors(here, text)
    assert line.startswith("s.yaml:8:57: exceptions[0].set.train.sharding: 'fsdp2' here, 'none' in")


@pytest.mark.parametrize(
    "text",
    [
        "matrix: {profile.batch_size: [1, 2]}\n",
        "matrix: {evaluate.per_class: [false, true], train.sharding: [fsdp2]}\n",
        "matrix: {sample.batch_size: [7], train.lr: [1.0e-3, 2.0e-3]}\nseed: [0, 1]\n",
        "matrix: {model.depth: [2, 4]}\n"
        + EXCEPTION % ("model.depth: 4", "train.activation_checkpointing: true, sample.batch_size: 5"),
        # twice the batch where there is no guidance: two samplings of one training
        "matrix: {sample.guidance_scale: [1.0, 2.0]}\n"
        + EXCEPTION % ("sample.guidance_scale: 2.0", "sample.batch_size: 5"),
    ],
)
def test_cases_with_trainings_of_their_own_may_differ_in_it(here: Path, text: str) -> None:
    """Where something else differs, too, each case is measured as it says."""
    cases = load(here, SMALL + text)
    assert len({case.id for case in cases}) == len(cases) > 1


def test_the_same_weights_in_two_folders_are_one_case(here: Path) -> None:
    """A training's start is the weights' content; their place makes no second case."""
    (case,) = load(here, SMALL)
    config = {
        "format": "attnbench-export-1",
        "weights_sha256": "12",
        "model": case.model.model_dump(mode="json"),
        "input": {"shape": [1, 8, 8], "num_classes": 10},
    }
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps(config))
    (line,) = errors(here, SMALL + "matrix: {train.init_from: [a, b]}\n")
    assert "matrix.train.init_from[1]: has the same content as matrix.train.init_from[0]" in line
    cases = load(here, SMALL + "matrix: {train.init_from: [c, d]}\n")  # not there yet: told when they run
    assert len(cases) == 2


EARLIER = {"noise": UNWRITTEN_NOISE}
PLAIN = make_case(sample=EARLIER)
FOLDER = make_case(train={"init_from": Path("/weights")}, sample=EARLIER, seed=3).model_copy(
    update={
        "data": ImageFolderData(path=Path("/images"), codec=CodecSpec(path=Path("/vae"))),
        "initial": "ab",
        "code": {"softmax": "cd"},
    }
)


@pytest.mark.parametrize(
    ("case", "keys"),
    [
        (PLAIN, ["16abf03d5064a0a0", "fda40309e6651360", "7ad609e7803334e6", "216bb78fe3b082cd"]),
        (FOLDER, ["80c072dff4989a34", "8900f43b1c543db8", "47fd91a5003be827", "8efc47a7d8d3771e"]),
    ],
)
def test_the_keys_of_stores_that_are_there_stay(case: Case, keys: list[str]) -> None:
    """Another key would compute everything in a user's store again; `specs.FORMAT` alone may ask for that."""
    assert [case.key(stage) for stage in ("prepare", "train", "sample", "evaluate")] == keys


def test_the_ids_of_results_that_are_there_stay() -> None:
    """Results of one case are found again by its id."""
    assert [case.id for case in (PLAIN, FOLDER)] == ["0d982093fb87e0a5", "3b637eb84c2f1d30"]


def test_other_noise_is_in_the_key_of_samples_and_of_what_comes_of_them() -> None:
    """Trainings and diagnoses are the same; samples, scores and results are others."""
    other = make_case(sample={"noise": NOISE})
    assert all(other.key(stage) == PLAIN.key(stage) for stage in ("prepare", "train", "diagnose"))
    assert all(other.key(stage) != PLAIN.key(stage) for stage in ("sample", "evaluate"))
    assert other.id != PLAIN.id
    assert Case.model_validate_json(other.model_dump_json()) == other


def test_a_suite_may_ask_for_earlier_noise_and_says_todays_otherwise(here: Path) -> None:
    """Also where it varies: as a setting, an override, an axis, and in the schema as the default."""
    assert [case.sample.noise for case in load(here, SMALL)] == [NOISE]
    assert [case.sample.noise for case in load(here, SMALL, "sample.noise=ziggurat")] == [UNWRITTEN_NOISE]
    varied = load(here, SMALL + "matrix: {sample.noise: [ziggurat, box-muller]}\n")
    assert [case.sample.noise for case in varied] == [UNWRITTEN_NOISE, NOISE]
    assert suite_json_schema()["$defs"]["SampleSpec"]["properties"]["noise"]["default"] == NOISE


def test_settings_outside_the_key_exist_and_change_no_key() -> None:
    """A name that is no setting would leave nothing out, and say nothing."""
    others = {
        "train": {
            "activation_checkpointing": True,
            "sharding": "fsdp2",
            "checkpoint_every": 7,
            "checkpoint_minutes": 3.0,
            "log": ["tensorboard"],
        },
        "sample": {"batch_size": 3},
    }
    assert {stage: set(settings) for stage, settings in others.items()} == OUTSIDE_KEY
    assert all(PLAIN.outside_key(stage).keys() == OUTSIDE_KEY[stage] for stage in ("train", "sample"))
    other = make_case(**{**others, "sample": {**others["sample"], **EARLIER}})
    assert other.id == PLAIN.id
    assert all(other.outside_key(stage) == others[stage] for stage in ("train", "sample"))
