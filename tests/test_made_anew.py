"""A case that was finished before and is computed again comes with its reason, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import attnbench_here
from exchange_cases import digits_case
from report_cases import make_result
from runner_cases import tiny_suite
from teaching_cases import student, teacher_case

from attnbench import plugins
from attnbench.results import append_result
from attnbench.running.made_anew import _differences, made_anew
from attnbench.specs import TeacherOrigin, TeacherSpec
from attnbench.storage.names import DONE, RESULTS, STORE
from attnbench.storage.store import StageOutput, write_output


@pytest.fixture
def run_dir(tmp_path):
    """A run that has finished both cases of a suite; its store is empty."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    for case in tiny_suite(tmp_path, "tiny").cases:
        settings = json.loads(case.model_dump_json())
        append_result(folder / RESULTS, make_result(case.label, case=settings, case_id=case.id))
    return folder


def test_another_setting_is_named_with_both_values(run_dir, tmp_path):
    """Also by `plan`, `validate` and `run`, with the cases it is for."""
    cases = tiny_suite(tmp_path, "tiny", "train.lr=2e-3", "matrix.model.attention=[softmax]").cases
    assert made_anew(cases, run_dir) == {"computed again, since train.lr is 0.002 (was 0.001)": ["softmax"]}
    for command in ("plan", "validate"):
        said = attnbench_here(command, "tiny.yaml", "-o", "train.lr=2e-3", cwd=tmp_path)
        assert said.returncode == 0, said.stderr
        words = " ".join((said.stdout + said.stderr).split())
        assert "every case: computed again, since train.lr is 0.002 (was 0.001)" in words


def test_many_settings_are_counted(run_dir, tmp_path):
    """Three are named; what changes no result is not among them."""
    changed = ("train.lr=2e-3", "train.batch_size=4", "train.log_every=1", "sample.per_class=2", "seed=5")
    cases = tiny_suite(tmp_path, "tiny", *changed, "train.checkpoint_every=3", "sample.batch_size=7").cases
    (reason,) = made_anew(cases, run_dir)
    assert reason == (
        "computed again, since sample.per_class is 2 (was 4), seed is 5 (was 0), "
        "train.batch_size is 4 (was 8), 2 more"
    )


def test_edited_code_is_named_with_its_plugin(run_dir, tmp_path, monkeypatch):
    """One's own plugin by its name and version, a built-in attention by attnbench."""
    theirs = plugins.Provided(record=None, plugin="theirs", origin="their-package 1.2")
    registry = plugins.Registry(backends=plugins.registry().backends | {"softmax": theirs})
    monkeypatch.setattr("attnbench.running.made_anew.registry", lambda: registry)
    cases = [
        case.model_copy(update={"code": dict.fromkeys(case.code, "edited")})
        for case in tiny_suite(tmp_path, "tiny").cases
    ]
    start = "computed again, since the code of attention"
    assert made_anew(cases, run_dir) == {
        f"{start} 'softmax' has changed (plugin theirs of their-package 1.2)": ["softmax"],
        f"{start} 'linear' has changed (attnbench)": ["linear"],
    }


def test_what_is_finished_or_was_never_there_has_no_reason(run_dir, tmp_path):
    """A finished case of a changed suite, one without a result, a store that was emptied, a damaged line."""
    cases = tiny_suite(tmp_path, "tiny", "train.lr=2e-3").cases
    folder = tmp_path / "runs" / STORE / "evaluate" / cases[0].key("evaluate")
    folder.mkdir(parents=True)
    write_output(folder, StageOutput())
    assert (folder / DONE).exists()
    assert list(made_anew(cases, run_dir).values()) == [["linear"]]
    assert made_anew(tiny_suite(tmp_path, "tiny").cases, run_dir) == {}
    assert made_anew(cases, run_dir.parent / "another") == {}
    with (run_dir / RESULTS).open("ab") as file:
        file.write(b"{}\n")
    assert made_anew(cases, run_dir) == {}


@pytest.mark.parametrize(
    ("teacher", "asked", "reason"),
    [
        ({"steps": 4}, {}, "of its teacher, train.steps is 4 (was 3)"),
        ({"code": {"softmax": "edited"}}, {}, "of its teacher, the code of attention 'softmax' has changed"),
        ({"identity": "0" * 64}, {}, "its teacher is another"),
        ({}, {"noise": 0.25}, "train.teacher.noise is 0.25 (was 0.5)"),
        ({}, {"label": "taught", "case": {"model.attention": "linear"}}, None),
        (None, {}, "it has no teacher (had one)"),
    ],
)
def test_another_teacher_is_named(teacher, asked, reason):
    """What of it differs, where that can be told; how a suite calls it and where it lies is in no key."""
    plain = teacher_case().model_copy(update={"code": {"softmax": "first"}})
    before = student(plain, asked={})
    if teacher is None:
        now = before.model_copy(
            update={"teacher": None, "train": before.train.model_copy(update={"teacher": None})}
        )
    else:
        own = {"train": plain.train.model_copy(update=teacher)} if "steps" in teacher else teacher
        identity = own.get("identity")
        theirs = plain if identity else plain.model_copy(update=own)
        spec = TeacherSpec.model_validate(before.train.teacher.model_dump() | asked)
        origin = TeacherOrigin(identity=identity or theirs.key("train"), case=theirs)
        train = before.train.model_copy(update={"teacher": spec})
        now = before.model_copy(update={"teacher": origin, "train": train})
    assert (before.key("train") != now.key("train")) == (reason is not None)
    told = list(_differences(before, now))
    assert [line[: len(reason)] for line in told] == [reason] if reason else not told


def test_where_weights_lie_is_no_reason():
    """The same weights in another folder are the same training; others are told with their folder."""
    case = digits_case("grown", {"name": "softmax"}, init_from=Path("/a"))
    before = case.model_copy(update={"initial": "1"})
    moved = before.model_copy(update={"train": before.train.model_copy(update={"init_from": Path("/b")})})
    assert not list(_differences(before, moved))
    others = moved.model_copy(update={"initial": "2"})
    assert list(_differences(before, others)) == ['train.init_from is "/b" (was "/a")']
    assert list(_differences(moved, others)) == ["the weights in train.init_from are others"]
