"""Conversion by distillation: what is inherited, what the loss adds, what is refused, and that it resumes."""

import json
import shutil

import pytest
import torch
from exchange_cases import digits_case, random_export, workspace_of
from process_cases import EPS
from teaching_cases import LINEAR, SOFTMAX, STILL, run_both, student, teacher_case, weights_of
from torch import nn

from attnbench.errors import AttnbenchError, CheckpointError, DataError, UserInputError
from attnbench.exchange import write_exported
from attnbench.models import build_model
from attnbench.models.macs import macs_by_part
from attnbench.specs import PhotoPatchesData, TeacherOrigin, TeacherSpec
from attnbench.stages import train
from attnbench.stages.interrupts import Stopped
from attnbench.stages.training import trainer
from attnbench.stages.training.checkpoint import ModelInput
from attnbench.stages.training.distillation import Distillation
from attnbench.stages.training.inheritance import ATTENTION
from attnbench.stages.training.teaching import Teacher, inherit, load_teacher
from attnbench.storage.names import AVERAGED, CHECKPOINT, TRAIN_LOG
from attnbench.storage.store import StageOutput, read_output

DIGITS = ModelInput(shape=(1, 8, 8), num_classes=10)
EVERYTHING = {"noise": 0.5, "variance": 0.05, "features": 0.5}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The teacher's case and a folder whose store holds its finished training."""
    root, case = tmp_path_factory.mktemp("teacher"), teacher_case()
    train.run(case, workspace_of(root / "run"))
    return root, case


@pytest.fixture
def taught(teacher, tmp_path):
    """The teacher's case and a copy of its store of one's own."""
    root, case = teacher
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path, case


def recorded(root, case):
    """What the log says of the teacher's terms at each step."""
    lines = (workspace_of(root / "run").folder("train", case) / TRAIN_LOG).read_text().splitlines()
    found = [json.loads(line).get("recorded", {}) for line in lines]
    return [{name: kept["mean"] for name, kept in line.items()} for line in found if line]


def small_model(attention, seed):
    """A model of two blocks none of whose outputs is zero, in double precision."""
    config = digits_case("m", attention).model.model_copy(update={"depth": 2})
    model = build_model(config, 8, 10, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()  # drops no label


def interrupt(root, case, step, monkeypatch):
    """Train a case until Ctrl-C strikes in some step."""
    make_step = trainer.Trainer._step

    def step_or_stop(self, number, *rest):
        if number == step:
            raise KeyboardInterrupt
        return make_step(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", step_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run_both(root, case)


@pytest.mark.parametrize("features_of", ["attention", "block"])
def test_the_terms_are_weighted_mean_squared_distances(features_of):
    """Against the same sums written out: noise, raw variance, features of each block."""
    teacher, ours = small_model(SOFTMAX, 1), small_model(LINEAR, 2)
    spec = TeacherSpec(case={"a": 1}, noise=0.5, variance=0.05, features=0.25, features_of=features_of)
    generator = torch.Generator().manual_seed(3)
    x, t = torch.randn(4, 1, 8, 8, generator=generator).double(), torch.tensor([0.0, 10.0, 500.0, 999.0])
    y = torch.tensor([0, 3, 9, 10])
    kept = {teacher: [], ours: []}
    for model, found in kept.items():
        for block in model.blocks:
            part = block.attn if features_of == "attention" else block
            part.register_forward_hook(lambda module, args, out, found=found: found.append(out))
    outputs = {model: model(x, t.double(), y) for model in (teacher, ours)}
    a, b = (outputs[model].float() for model in (ours, teacher))
    expected = {
        "noise": 0.5 * (a[:, :1] - b[:, :1]).square().mean(),
        "variance": 0.05 * (a[:, 1:] - b[:, 1:]).square().mean(),
        "features": 0.25
        * sum((p.float() - q.float()).square().mean() for p, q in zip(*reversed(kept.values()), strict=True))
        / 2,
    }
    distillation = Distillation(teacher, ours, spec, channels=1)
    lesson = distillation.ask(x, t.double(), y, torch.autocast("cpu", enabled=False))
    with distillation.listen() as features:
        output = ours(x, t.double(), y)
    terms = distillation.terms(output, features, lesson)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        # one rounding of float32 in each difference and square, and one in each of the means
        assert terms[name].item() == pytest.approx(value.item(), rel=8 * EPS)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for n, p in ours.named_parameters() if "blocks.0.attn" in n)


def test_the_teacher_runs_under_inference_mode_in_the_student_s_precision():
    """Its answers are inference tensors, in bfloat16 where the student is autocast."""
    model = small_model(SOFTMAX, 1).float()
    spec = TeacherSpec(case={"a": 1}, features=1.0)
    distillation = Distillation(model, small_model(LINEAR, 2).float(), spec, channels=1)
    with torch.enable_grad():
        lesson = distillation.ask(
            torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.int64),
            torch.autocast("cpu", torch.bfloat16),
        )  # fmt: skip
    answers = (lesson.output, *lesson.features)
    assert len(lesson.features) == 2
    assert all(answer.is_inference() and not answer.requires_grad for answer in answers)
    assert {answer.dtype for answer in lesson.features} == {torch.bfloat16}


@pytest.mark.parametrize("inherit", ["rest", "rest-and-projections", "none"])
def test_a_student_starts_from_what_it_inherits(taught, inherit):
    """With a vanishing learning rate the average is the teacher's rest, bit for bit."""
    root, case = taught
    theirs = weights_of(root, case)
    ours = run_both(root, student(case, asked={"inherit": inherit}, lr=STILL))
    same = {name for name in ours if name in theirs and torch.equal(ours[name], theirs[name])}
    trained = {
        name for name in theirs if not torch.equal(theirs[name], torch.zeros(()).expand_as(theirs[name]))
    }
    attention = {name for name in trained & ours.keys() if ATTENTION.fullmatch(name)}
    rest = {name for name in trained if not ATTENTION.fullmatch(name)}
    assert attention
    assert rest <= same if inherit != "none" else not (rest & same)
    assert attention & same == (attention if inherit == "rest-and-projections" else set())


def test_a_frozen_rest_stays_and_the_attention_moves(taught):
    """The teacher's weights outside the attention, after steps of a real learning rate."""
    root, case = taught
    theirs = weights_of(root, case)
    asked = {"inherit": "rest-and-projections", "rest": "frozen"}
    ours = run_both(root, student(case, asked=asked))
    for name, tensor in ours.items():
        if not ATTENTION.fullmatch(name):
            assert torch.equal(tensor, theirs[name]), name
    assert not torch.equal(ours["blocks.0.attn.out.weight"], theirs["blocks.0.attn.out.weight"])


def test_its_own_copy_has_nothing_to_learn_from_the_teacher(taught):
    """A student that is the teacher is at distance 0 from it, exactly, until it has moved."""
    root, case = taught
    asked = {"inherit": "rest-and-projections", **EVERYTHING}
    copy = student(case, SOFTMAX, asked=asked)
    run_both(root, copy)
    first, second = recorded(root, copy)
    assert first == {"teacher.noise": 0.0, "teacher.variance": 0.0, "teacher.features": 0.0}
    assert all(value > 0 for value in second.values())


def test_the_teacher_is_trained_first_by_whoever_needs_it(teacher, tmp_path):
    """In an empty store a student's training trains its teacher too, to the same bytes."""
    root, case = teacher
    run_both(tmp_path, student(case, asked={}))
    here, there = (workspace_of(place / "run").folder("train", case) for place in (tmp_path, root))
    assert (here / AVERAGED).read_bytes() == (there / AVERAGED).read_bytes()


def test_a_teacher_that_cannot_be_trained_is_told(tmp_path):
    """The student's error names the teacher and what happened to it."""
    case = student(teacher_case(batch_size=7, grad_accumulation=7, lr=1e30), asked={})
    with pytest.raises(AttnbenchError, match=r"the teacher 'teacher' could not be trained: training step"):
        run_both(tmp_path, case)


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), SystemExit("no kernel")])
def test_a_stranger_s_error_is_the_teacher_s(tmp_path, monkeypatch, error):
    """Whatever the teacher's attention raises; a signal is not its error."""
    case = student(teacher_case(), asked={})

    def fail(self, number, *rest):
        raise error

    monkeypatch.setattr(trainer.Trainer, "_step", fail)
    with pytest.raises(AttnbenchError, match=rf"'teacher' could not be trained: {type(error).__name__}: no"):
        run_both(tmp_path, case)
    error = Stopped(2, "interrupted")
    with pytest.raises(Stopped):
        run_both(tmp_path, case)


def test_a_teacher_on_other_data_is_prepared_first(tmp_path, monkeypatch):
    """Its latents may be of another autoencoder: nobody else makes them."""
    called = []
    monkeypatch.setattr(train.prepare, "run", lambda case, workspace: called.append(case.label))
    monkeypatch.setattr(
        train, "train_case", lambda case, *rest: called.append(f"train {case.label}") or StageOutput()
    )
    teacher = teacher_case()
    for data, expected in ((teacher.data, []), (PhotoPatchesData(), ["teacher"])):
        called.clear()
        case = student(teacher.model_copy(update={"data": data, "seed": len(expected)}), asked={})
        train.train_teacher(case, workspace_of(tmp_path / "run"))
        assert called == [*expected, "train teacher"]


@pytest.mark.parametrize("change", [{"ffn": {"kind": "swiglu"}}, {"stream_conv": True}])
def test_less_than_everything_is_not_inherited(change):
    """A part that only one of them has is named, not left as it is."""
    sizes = small_model(SOFTMAX, 1)
    case = student(teacher_case(), asked={})
    theirs = Teacher(origin=case.teacher, sha256="", weights=sizes.float().state_dict())
    model = case.model.model_validate(case.model.model_dump() | {"depth": 2} | change)
    ours = build_model(model, 8, 10)
    with pytest.raises(
        UserInputError, match=r"inherit: rest takes everything but the attention.*set train\.teacher\.inherit"
    ):
        inherit(ours, theirs, case)


def test_a_killed_conversion_goes_on_bit_for_bit(taught, tmp_path, monkeypatch):
    """Interrupted between checkpoints and started again: the same checkpoint, average and log."""
    root, teacher_ = taught
    case = student(teacher_, asked={"rest": "frozen", **EVERYTHING}, steps=5, checkpoint_every=2)
    run_both(root, case)
    whole = {
        n: (workspace_of(root / "run").folder("train", case) / n).read_bytes()
        for n in (CHECKPOINT, TRAIN_LOG)
    }
    shutil.rmtree(workspace_of(root / "run").folder("train", case))
    interrupt(root, case, 3, monkeypatch)
    run_both(root, case)
    for name, content in whole.items():
        assert (workspace_of(root / "run").folder("train", case) / name).read_bytes() == content


def test_a_training_does_not_go_on_under_another_teacher(taught, monkeypatch):
    """Where the teacher was trained anew meanwhile, to other weights, the checkpoint is refused."""
    root, teacher_ = taught
    case = student(teacher_, asked={}, steps=3)
    interrupt(root, case, 2, monkeypatch)
    folder = workspace_of(root / "run").folder("train", teacher_)
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "rate", lambda self, step: 0.02)
        train.run(teacher_, workspace_of(root / "run"))
    with pytest.raises(
        CheckpointError, match=r"the teacher has been trained anew since.*move the checkpoint"
    ):
        run_both(root, case)


@pytest.mark.parametrize(
    "settings",
    [{"grad_accumulation": 2}, {"activation_checkpointing": True}],
    ids=["micro-batches", "recomputed"],
)
def test_how_a_step_is_computed_changes_no_loss(taught, settings):
    """Cut into micro-batches, or activations computed twice: the terms are those of the whole batch."""
    root, teacher_ = taught
    cases = [student(teacher_, asked={**EVERYTHING}, **more) for more in ({}, settings)]
    losses = []
    for case in cases:
        run_both(root, case)
        losses.append(
            [loss for _, loss in read_output(workspace_of(root / "run").folder("train", case)).curves["loss"]]
        )
        assert set(recorded(root, case)[0]) == {"teacher.noise", "teacher.variance", "teacher.features"}
    assert losses[1] == pytest.approx(losses[0], rel=1e3 * EPS)  # as processes are compared


def test_two_processes_convert_what_one_converts(taught):
    """The loss of a conversion, teacher included, is that of the whole batch."""
    root, teacher_ = taught
    case = student(teacher_, asked={"rest": "frozen", **EVERYTHING})
    losses = []
    for processes in (1, 2):
        workspace = workspace_of(root / "run")
        object.__setattr__(workspace, "processes", processes)
        output = train.run(case, workspace)
        losses.append([loss for _, loss in output.curves["loss"]])
        shutil.rmtree(workspace.folder("train", case))
    assert losses[1] == pytest.approx(losses[0], rel=1e3 * EPS)


@pytest.mark.parametrize("rest", ["trained", "frozen"])
def test_a_step_s_macs_are_counted_with_the_teacher_s(taught, rest):
    """Three forward passes of what is trained, two of what is frozen, one of the teacher."""
    root, teacher_ = taught
    case = student(teacher_, asked={"rest": rest})
    run_both(root, case)
    found = read_output(workspace_of(root / "run").folder("train", case)).measurements
    (macs,) = (m.values[0] for m in found if m.name == "step_macs")
    ours, theirs = macs_by_part(case.model, 8), macs_by_part(teacher_.model, 8)
    spared = ours.total.full - ours.attention.full if rest == "frozen" else 0
    assert macs == 3 * ours.total.full - spared + theirs.total.full
    (memory,) = (m.values[0] for m in found if m.name == "teacher_memory_mib")
    assert memory > sum(t.numel() * 4 for t in weights_of(root, teacher_).values()) / 2**20


def test_without_weights_the_teacher_makes_no_pass(taught):
    """Inheritance alone: nothing is recorded of a teacher, and its pass is not counted."""
    root, teacher_ = taught
    case = student(teacher_, asked={"noise": 0.0})
    run_both(root, case)
    assert recorded(root, case) == []
    found = {
        m.name: m.values for m in read_output(workspace_of(root / "run").folder("train", case)).measurements
    }
    assert found["step_macs"] == [3 * macs_by_part(case.model, 8).total.full]
    assert "teacher_memory_mib" not in found


def exported(root, **described):
    """An exported folder that teaches, and a case taught by it."""
    model = digits_case("t", SOFTMAX).model
    config = write_exported(random_export(model, side=8, num_classes=10, **described), root / "exported")
    origin = TeacherOrigin(identity=config.weights_sha256, folder=root / "exported", exported=model)
    case = digits_case("student", LINEAR, teacher=TeacherSpec(model=root / "exported"))
    return case.model_copy(update={"teacher": origin})


def test_an_exported_folder_teaches(tmp_path):
    """Its weights as the module that the sampler builds: in eval mode, and nothing of it is trained."""
    case = exported(tmp_path)
    teacher = load_teacher(case, DIGITS, workspace_of(tmp_path / "run"))
    module = teacher.module(DIGITS, torch.device("cpu"))
    assert isinstance(module, nn.Module)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in teacher.weights.items() if name in state)


@pytest.mark.parametrize("wrong", ["gone", "changed", "classes", "side"])
def test_a_teacher_that_does_not_fit_is_refused_before_a_step(tmp_path, wrong):
    """Not there, other weights than were checked, other classes, another side: what, got, and the way out."""
    case, workspace = exported(tmp_path), workspace_of(tmp_path / "run")
    given = DIGITS.model_copy(
        update={"num_classes": 11}
        if wrong == "classes"
        else {"shape": (1, 16, 16)}
        if wrong == "side"
        else {}
    )
    if wrong == "gone":
        case = case.model_copy(update={"teacher": None})
    if wrong == "changed":
        case = case.model_copy(update={"teacher": case.teacher.model_copy(update={"identity": "0" * 64})})
    match = {
        "gone": r"train\.teacher\.model: .* was not there when the suite was checked",
        "changed": r"weights have changed since the suite was checked",
        "classes": r"knows 10 classes, here .* 11; choose another teacher",
        "side": r"takes inputs of 1 x 8 x 8 .* here they are 1 x 16 x 16",
    }[wrong]
    with pytest.raises(DataError if wrong in ("gone", "changed") else UserInputError, match=match):
        load_teacher(case, given, workspace)
