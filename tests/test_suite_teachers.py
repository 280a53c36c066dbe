"""Teachers in suites: a case, a run or a folder; part of the key; refused where they cannot teach."""

import pytest
from exchange_cases import digits_case, random_export, train_case
from suite_registry import errors, load

from attnbench.commands.show_suite import _amount, _training, case_rows, suite_facts
from attnbench.errors import SuiteError
from attnbench.exchange import write_exported
from attnbench.exchange.config import CodecInfo
from attnbench.running.estimates import training_macs
from attnbench.running.machines import this_machine
from attnbench.running.plan import missing_inputs, plan
from attnbench.running.schedule import _in_other_hands, _wanted
from attnbench.specs import GrowthSpec, ModelConfig
from attnbench.storage.hashing import file_sha256
from attnbench.storage.locks import alone_in
from attnbench.storage.names import AVERAGED
from attnbench.suite.loading import load_suite

SUITE = """\
name: convert
question: Which?
model: {recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2}
data: digits
train: {objective: flow, batch_size: 16}
sample: {sampler: euler, num_steps: 3, per_class: 30}
evaluate: {kd_subset_size: 300}
matrix:
  model.attention: [softmax, linear]
  train.teacher: [null, &t {case: {model.attention: softmax, train.steps: 20}}]
  train.steps: [5, 20]
exclude:
  - {train.teacher: *t, train.steps: 20}
  - {model.attention: softmax, train.teacher: *t}
"""
ONE = """\
name: one
question: Which?
model: {recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2, attention: linear}
data: digits
train: {objective: flow, teacher: {model: given}}
sample: {sampler: euler}
evaluate: {kd_subset_size: 300}
"""
SIZES = {"name": "t", "depth": 1, "dim": 16, "num_heads": 2, "input": "pixel", "in_channels": 1}


def folder(root, *, side=8, num_classes=10, objective="flow", data="digits at 8 px", codec=None, **model):
    """Write an exported model `given` below a folder; by default one that fits ONE."""
    config = ModelConfig(**({**SIZES, "learned_variance": False} | model))
    random = random_export(
        config, side=side, num_classes=num_classes, objective=objective, data=data, codec=codec
    )
    return write_exported(random, root / "given")


def test_combinations_may_be_excluded_and_a_teacher_named_by_its_place(tmp_path):
    """Four trainings from scratch and one conversion, taught by the softmax case of 20 steps."""
    cases = {case.label: case for case in load(tmp_path, SUITE)}
    assert list(cases) == [
        "softmax · from scratch · steps=5",
        "softmax · from scratch · steps=20",
        "linear · from scratch · steps=5",
        "linear · from scratch · steps=20",
        "linear · converted · steps=5",
    ]
    teacher = cases["softmax · from scratch · steps=20"]
    student = cases["linear · converted · steps=5"]
    assert student.teacher.identity == teacher.key("train")
    assert student.teacher.case.key("train") == teacher.key("train")
    assert student.axes["teacher"] == "converted"


def test_each_seed_has_the_teacher_of_its_seed(tmp_path):
    """On an axis that the suite does not name for the teacher, it is where the student is."""
    cases = load(tmp_path, SUITE, "seed=[0, 1]")
    taught = [case for case in cases if case.teacher]
    assert [(case.seed, case.teacher.case.seed) for case in taught] == [(0, 0), (1, 1)]


def test_what_is_asked_of_a_teacher_is_in_the_key_and_its_label_is_not(tmp_path):
    """Another weight is another training; another label is the same one; no teacher is what it was before."""

    def keys(teacher):
        text = SUITE.replace("train.steps: 20}}]", f"train.steps: 20}}{teacher}}}]")
        return {case.label.split(" · ")[1]: case.key("train") for case in load(tmp_path, text)}

    plain = keys("")
    assert keys(", noise: 0.25")["converted"] != plain["converted"]
    assert keys(", label: taught")["taught"] == plain["converted"]
    (without,) = load(tmp_path, ONE.replace(", teacher: {model: given}", ""))
    assert "teacher" not in without.model_dump()["train"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("train.steps: 20}}]", "train.steps: 9}}]"), r"no case of this suite .* train\.steps: 5, 20"),
        (("{model.attention: softmax, train.steps: 20}", "{model.depth: 1}"), r"model\.depth names no axis"),
        (("case: {model", "model: x, case: {model"), r"one of them, got both"),
    ],
)
def test_a_place_that_is_no_case_is_refused(tmp_path, change, line):
    """With the axes and values that there are."""
    with pytest.raises(SuiteError, match=line):
        load(tmp_path, SUITE.replace("exclude:", "ignored:").split("ignored:")[0].replace(*change))


def test_excluding_everything_is_refused(tmp_path):
    """So is an axis or a value that there is not."""
    (line,) = errors(tmp_path, SUITE, "exclude=[{train.steps: [5, 20]}]")
    assert "exclude: leaves no case of the matrix" in line
    (line,) = errors(tmp_path, SUITE, "exclude=[{train.lr: 1}]")
    assert "exclude[0].train.lr: is no axis of the suite's matrix" in line


def test_a_folder_s_weights_are_in_the_key_and_its_place_is_not(tmp_path):
    """The same folder elsewhere is the same training; other weights are another."""
    config = folder(tmp_path)
    (here,) = load(tmp_path, ONE)
    assert here.teacher.identity == config.weights_sha256
    (tmp_path / "there").mkdir()
    (tmp_path / "given").rename(tmp_path / "there" / "given")
    (there,) = load(tmp_path / "there", ONE)
    assert here.key("train") == there.key("train")
    (tmp_path / "other").mkdir()
    folder(tmp_path / "other", num_heads=4)
    changed = here.model_copy(update={"teacher": here.teacher.model_copy(update={"identity": "0" * 64})})
    assert changed.key("train") != here.key("train")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"depth": 2}, r"given is a model with depth 2 \(here 1\); choose a model of these sizes"),
        ({"objective": "ddpm"}, r"was trained with objective ddpm \(here flow\); set train\.objective: ddpm"),
        ({"num_classes": 7}, r"knows 7 classes \(here 10\)"),
        ({"side": 16}, r"takes inputs of side 16 \(here 8\)"),
        (
            {"data": "photo-patches at 16 px"},
            r"was trained on photo-patches at 16 px \(here digits at 8 px\)",
        ),
        ({"ffn": {"kind": "swiglu"}}, r"model with ffn swiglu of width 64 \(here ffn mlp of width 64\)"),
        ({"ffn": {"hidden": 8}}, r"model with ffn mlp of width 8 \(here ffn mlp of width 64\)"),
        ({"stream_conv": True}, r"model with stream_conv true \(here stream_conv false\)"),
        ({"class_dropout": 0.0}, r"was trained without dropped labels \(here model\.class_dropout 0\.1\)"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_with_the_suite(tmp_path, given, line):
    """Shape, objective, classes, side, data: what it is, what is wanted, the next step; in file and line."""
    folder(tmp_path, **given)
    found = errors(tmp_path, ONE)
    assert len(found) == 1
    assert found[0].startswith("s.yaml:5:") or "/s.yaml:5:" in found[0]
    with pytest.raises(SuiteError, match=line):
        load(tmp_path, ONE)


def test_a_teacher_of_other_sizes_may_teach_outputs_alone(tmp_path):
    """LiT's S is taught by XL: without inheritance and features only the input has to be the same."""
    folder(tmp_path, depth=2, dim=32, ffn={"kind": "swiglu"}, stream_conv=True)
    (case,) = load(tmp_path, ONE.replace("model: given", "model: given, inherit: none"))
    assert case.teacher.model.depth == 2


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("model: given, variance: 0.1", r"teacher\.variance: is 0\.1, but the model .* predicts no variance"),
        ("model: given, noise: 0, inherit: none", r"the teacher would do nothing"),
        ("model: given, rest: frozen, inherit: none", r"frozen needs something inherited"),
        ("model: 'hub:facebook/DiT-XL-2-256'", r"attnbench import hub:facebook/DiT-XL-2-256 --to FOLDER"),
        ("noise: 1", r"one of them, got neither"),
        ("model: ''", r"train\.teacher\.model: .*got an empty text; name one"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, asked, line):
    """Each with the way out."""
    folder(tmp_path)
    with pytest.raises(SuiteError, match=line):
        load(tmp_path, ONE.replace("model: given", asked))


def test_weights_and_a_teacher_s_weights_do_not_go_together(tmp_path):
    """Two sources of the first weights: which one counts would be a guess."""
    folder(tmp_path)
    with pytest.raises(
        SuiteError, match=r"init_from: and teacher\.inherit: rest both give the first weights"
    ):
        load(tmp_path, ONE, "train.init_from=given")


def test_another_autoencoder_is_refused(tmp_path):
    """By its kind and its place on the hub, as far as both say it."""
    codec = {"kind": "autoencoder-dc", "scale": 1.0, "shift": 0.0, "fingerprint": "f", "hub": "a/dc at 1"}
    folder(
        tmp_path, side=2, in_channels=4, input="latent", objective="ddpm", learned_variance=True, data="",
        codec=CodecInfo(**codec),
    )  # fmt: skip
    text = ONE.replace(
        "data: digits", "data: {name: image-folder, path: x, image_size: 16, codec: {hub: s/vae}}"
    )
    text = text.replace("num_heads: 2", "num_heads: 2, input: latent, in_channels: 4, learned_variance: true")
    text = text.replace("objective: flow", "objective: ddpm").replace("euler", "ddpm")
    with pytest.raises(
        SuiteError, match=r"latents of autoencoder-dc a/dc at 1 \(here autoencoder-kl s/vae\)"
    ):
        load(tmp_path, text)


def test_a_run_s_case_teaches(tmp_path):
    """Named as RUN:CASE: its finished weights' hash is the identity; an unfinished one is refused."""
    run_dir, case = tmp_path / "runs" / "small", digits_case("wide", {"name": "softmax"})
    train_case(run_dir, case)
    text = ONE.replace("given", f"{run_dir}:wide").replace("objective: flow", "objective: ddpm")
    text = text.replace("euler", "ddpm").replace(
        "attention: linear", "attention: linear, learned_variance: true"
    )
    (found,) = load(tmp_path, text)
    weights = tmp_path / "runs" / "store" / "train" / case.key("train") / AVERAGED
    assert found.teacher.identity == file_sha256(weights)
    assert found.teacher.trains_here is None
    weights.unlink()
    with pytest.raises(SuiteError, match=r"the training of 'wide' .* is not finished"):
        load(tmp_path, text)


def test_a_teacher_that_this_machine_lacks_is_missing(tmp_path):
    """A node of a cluster gets the case with its teacher found: the folder or the store is not there."""
    folder(tmp_path)
    (case,) = load(tmp_path, ONE)
    assert missing_inputs(case) == ()
    (tmp_path / "given").rename(tmp_path / "elsewhere")
    (said,) = missing_inputs(case)
    assert said.startswith(f"train.teacher.model: {tmp_path / 'given'} does not exist; name a folder")
    *_, student = load(tmp_path, SUITE)
    assert missing_inputs(student) == ()  # its own run trains it
    origin = student.teacher.model_copy(update={"store": tmp_path / "store"})
    (said,) = missing_inputs(student.model_copy(update={"teacher": origin}))
    assert f"{tmp_path / 'store' / 'train' / student.teacher.identity / AVERAGED} does not exist" in said


def test_a_missing_teacher_is_named_before_a_run(tmp_path):
    """A suite is valid without it; plan and run say what is missing."""
    (case,) = load(tmp_path, ONE)
    assert case.teacher is None
    (said,) = missing_inputs(case)
    assert said.startswith(f"train.teacher.model: {tmp_path / 'given'} does not exist; name a folder")


def test_a_student_waits_for_its_teacher_and_the_plan_counts_it_once(tmp_path):
    """Its training wants the teacher's; chosen alone, it is planned with the teacher's training."""
    cases = load(tmp_path, SUITE)
    teacher, student = cases[1], cases[-1]
    assert ("train", teacher.key("train")) in _wanted(student)
    alone = plan([student], tmp_path)[0].time_s
    both = plan([teacher, student], tmp_path)
    assert alone > both[1].time_s > 0
    untaught = plan([cases[2]], tmp_path)[0].time_s  # as many steps, without a teacher's pass
    assert both[1].time_s > 0.5 * untaught
    disk = plan([student], tmp_path)[0].disk["train"]
    assert disk == both[1].disk["train"] + both[0].disk["train"]


def test_show_counts_and_names_the_teacher(tmp_path):
    """Its passes are in the training's multiply-adds, as `plan` counts them, and it stands in the line."""
    load(tmp_path, SUITE)
    suite = load_suite(tmp_path / "s.yaml")
    (row,) = (row for row in case_rows(suite) if row[0] == "linear · converted · steps=5")
    assert row[3] == _amount(training_macs(suite.cases[-1]))
    (line,) = (text for title, text in suite_facts(suite) if title == "training" and "taught by" in text)
    assert line.endswith("taught by softmax · from scratch · steps=20, of which it inherits rest")
    grown = suite.cases[0].train.model_copy(
        update={"init_from": tmp_path / "small", "growth": GrowthSpec(strategy="cyclic")}
    )
    said = _training(suite.cases[0].model_copy(update={"train": grown}))
    assert said.endswith(f"from {tmp_path / 'small'}, grown by cyclic")


def test_the_shipped_conversions_name_their_teachers():
    """Every student of the digits is taught by the one softmax training; LiT's settings are the paper's."""
    cases = load_suite("convert_digits").cases
    (teacher,) = (case for case in cases if case.model.attention_names() == {"softmax"})
    taught = [case for case in cases if case.teacher]
    assert {case.teacher.identity for case in taught} == {teacher.key("train")}
    scratch = {(case.axes["attention"], case.train.steps) for case in cases if case.train.teacher is None}
    assert {(case.axes["attention"], case.train.steps) for case in taught} <= scratch
    for case in load_suite("convert_imagenet").cases:
        spec = case.train.teacher
        assert (spec.noise, spec.variance, spec.inherit, spec.rest) == (0.5, 0.05, "rest", "trained")


def test_a_teacher_that_another_run_trains_is_waited_for_elsewhere(tmp_path):
    """Its student is not begun meanwhile, so that no place of a run stands still for it."""
    *_, student = load(tmp_path, SUITE)
    with alone_in(tmp_path / "train" / student.teacher.identity, print):
        assert _in_other_hands(student, tmp_path)
    assert not _in_other_hands(student, tmp_path)


def test_a_longer_training_of_the_same_suite_is_planned_from_the_shorter_one(tmp_path):
    """Of 5 and 20 steps the second training is planned with 15; the compute it stands for is of all 20."""
    load(tmp_path, SUITE)
    suite = load_suite(tmp_path / "s.yaml")
    chosen = {
        (case.model.attention.name, case.train.steps): case
        for case in suite.cases
        if case.train.teacher is None
    }
    longer, machine = chosen["linear", 20], this_machine("cpu")
    (alone,), together = plan([longer], tmp_path, machine), plan(suite.cases, tmp_path, machine)
    (beside,) = (one for one in together if one.case.id == longer.id)
    assert beside.times_s["train"] == pytest.approx(0.75 * alone.times_s["train"], rel=1e-12)
    assert beside.training_macs == alone.training_macs
