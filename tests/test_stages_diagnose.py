"""The stage that looks inside a trained model: asked for or absent, never part of another number."""

from __future__ import annotations

import math

import pytest
import torch
from runner_cases import tiny_suite
from suite_registry import SMALL, errors, load

from attnbench.diffusion.ddpm import linear_betas
from attnbench.models import build_model
from attnbench.report.diagnosis_record import MEASURES, Diagnosis
from attnbench.results import checked_record
from attnbench.running.estimates import diagnose_passes
from attnbench.running.plan import plan
from attnbench.specs import DiagnoseSpec
from attnbench.stages import diagnose, evaluate, prepare, train
from attnbench.stages.case import finished_case, run_case
from attnbench.stages.diagnosing.examples import Examples, in_turns
from attnbench.stages.diagnosing.heard import Heard
from attnbench.stages.diagnosing.inspection import Inspection
from attnbench.stages.diagnosing.maps import PROBES
from attnbench.storage.names import DIAGNOSIS, DONE
from attnbench.storage.store import StageOutput, Workspace, stages_of, write_output

ASKED = DiagnoseSpec(images=12, timesteps=[100, 900], map_images=2)


def asking(case, **changed):
    """The case with a diagnosis."""
    return case.model_copy(update={"diagnose": ASKED.model_copy(update=changed)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A case of token-wise DyDiLA, trained for eight steps, and its workspace."""
    root = tmp_path_factory.mktemp("diagnose")
    (case,) = tiny_suite(root, "tiny", "matrix.model.attention=[dydila]", "model.depth=2").cases
    workspace = Workspace(root=root / "store", device=torch.device("cpu"))
    prepare.run(case, workspace)
    train.run(case, workspace)
    return case, workspace


def record_of(case, workspace) -> Diagnosis:
    """What the stage has written."""
    return checked_record((workspace.folder("diagnose", case) / DIAGNOSIS).read_bytes(), Diagnosis)


def test_a_trained_case_is_described(trained):
    """Measures by timestep and block, choices by class, lambdas of queries and keys, a query's maps."""
    case, workspace = trained
    case = asking(case)
    output = diagnose.run(case, workspace)
    found = record_of(case, workspace)
    assert (found.images, found.map_images, found.num_queries, found.grid) == (12, 2, 16, (4, 4))
    assert (found.timesteps, found.paths, found.problems) == ([100, 900], ["values"] * 2, [])
    assert found.classes == list(range(10))
    for name in MEASURES:
        values = torch.tensor(found.measures[name])
        (measured,) = (m for m in output.measurements if m.name == f"diagnose:{name}")
        assert values.shape == (2, 2)
        assert measured.values == pytest.approx([values.mean().item()])
        assert output.curves[f"diagnose:{name}"] == [
            (n, pytest.approx(v)) for n, v in enumerate(values.mean(0).tolist())
        ]
    chosen = found.choices["projector_q"]
    assert chosen.options == 3  # as the attention's settings say, chosen or not
    assert torch.tensor(chosen.by_class).sum(-1).flatten().tolist() == pytest.approx([1.0] * 20)
    assert found.choices["factor"].by_class == []  # recorded as [2, B N]: whose is not said
    assert [len(banks) for banks in found.factors["lambda"].means] == [2, 2]
    assert (found.query_maps.query, found.query_maps.timestep) == (2 * 4 + 2, 900)
    assert [sum(row) for row in found.query_maps.weights] == pytest.approx([1.0, 1.0], abs=1e-4)


def test_it_is_done_once_and_again_to_the_same_bytes(trained, monkeypatch):
    """A finished one is read; one that was killed before its mark is made again."""
    case, workspace = trained
    case = asking(case)
    output = diagnose.run(case, workspace)
    folder = workspace.folder("diagnose", case)
    before = (folder / DIAGNOSIS).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(diagnose, "diagnose", lambda *_: pytest.fail("computed again"))
        assert diagnose.run(case, workspace) == output
    (folder / DONE).unlink()
    (folder / DIAGNOSIS).write_bytes(before[:100])
    assert diagnose.run(case, workspace).measurements[1:] == output.measurements[1:]
    assert (folder / DIAGNOSIS).read_bytes() == before


def test_no_other_stage_depends_on_it(trained):
    """Keys and id are the same with and without; its own key holds its settings and the training."""
    case, _ = trained
    with_it, other = asking(case), asking(case, images=13)
    assert (case.id, stages_of(case)) == (with_it.id, ("prepare", "train", "sample", "evaluate"))
    assert stages_of(with_it) == (*stages_of(case), "diagnose")
    assert [case.key(s) for s in stages_of(case)] == [with_it.key(s) for s in stages_of(case)]
    longer = with_it.model_copy(update={"train": case.train.model_copy(update={"steps": 9})})
    resampled = with_it.model_copy(update={"sample": case.sample.model_copy(update={"num_steps": 9})})
    assert len({c.key("diagnose") for c in (with_it, other, longer)}) == 3
    assert resampled.key("diagnose") == with_it.key("diagnose")
    assert "diagnose" not in case.model_dump(mode="json")
    assert type(case).model_validate_json(with_it.model_dump_json()) == with_it


def scored_quickly(case, workspace):
    """In place of the stage `evaluate`: what it leaves, without its networks."""
    write_output(workspace.folder("evaluate", case), output := StageOutput())
    return output


def test_a_case_has_the_same_numbers_with_and_without(trained, monkeypatch):
    """What was there stays to the byte; the diagnosis comes behind it."""
    case, workspace = trained
    monkeypatch.setattr(evaluate, "run", scored_quickly)
    plain = run_case(case, workspace)
    files = {p: p.read_bytes() for s in ("train", "sample") for p in (workspace.root / s).rglob("*.*")}
    assert finished_case(asking(case, images=11), workspace.root) is None
    full = run_case(asking(case, images=11), workspace)
    assert (plain.status, full.status, plain.case_id) == ("ok", "ok", full.case_id)
    assert full.measurements[: len(plain.measurements)] == plain.measurements
    assert plain.curves.items() <= full.curves.items()
    assert full.artefacts.keys() - plain.artefacts.keys() == {"diagnosis"}
    assert all(path.read_bytes() == content for path, content in files.items())
    again = finished_case(asking(case, images=11), workspace.root)
    assert again.measurements == full.measurements
    assert run_case(case, workspace).measurements == plain.measurements


def test_a_plan_knows_it(trained):
    """What is finished and what it will take, of cases that ask for it alone."""
    case, workspace = trained
    asked = asking(case, images=10)
    before = plan([case, asked], workspace.root)
    assert "diagnose" not in before[1].finished
    assert (diagnose_passes(case), diagnose_passes(asked)) == (0, 2 * (10 + 2 * 16 * (1 + 2 * PROBES)))
    diagnose.run(asked, workspace)
    after = plan([case, asked], workspace.root)
    assert ("diagnose" in after[0].finished, "diagnose" in after[1].finished) == (False, True)


class Refusing(torch.nn.Module):
    """Runs, but not under autograd."""

    def forward(self, x, context):
        if torch.is_grad_enabled():
            raise RuntimeError("forward\nonly")
        context.record("gates", x > 0)
        return x


def inspected(case, change) -> Diagnosis:
    """What is found in an untrained model with something changed."""
    torch.manual_seed(0)
    model = build_model(case.model, 8, 10).eval().requires_grad_(False)
    change(model)
    examples = Examples(
        case=case, x0=torch.randn(3, 1, 8, 8), labels=torch.tensor([0, 1, 2]), indices=[0, 1, 2]
    )
    inspection = Inspection(case=case, asked=ASKED, model=model, examples=examples)
    for timestep in ASKED.timesteps:
        inspection.look(timestep, torch.device("cpu"))
    return inspection.result([str(n) for n in range(10)])


def test_a_single_token_is_like_no_other(trained):
    """Nothing is wrong with its numbers, and the reason says so."""
    config = trained[0].model.model_copy(update={"patch_size": 8})
    found = inspected(trained[0].model_copy(update={"model": config}), lambda model: None)
    assert found.problems == ["blocks 0 to 1: a single token, which is like no other"]


def test_an_attention_without_a_map_is_named_and_the_case_goes_on(trained):
    """The other block's map, all similarities and what it records are there; the mean is not made up."""
    case, _ = trained

    def refuse(model):
        model.blocks[1].attn = Refusing()

    found = inspected(case, refuse)
    assert found.problems == ["block 1: no attention map: RuntimeError: forward only"]
    assert (found.paths, found.query_maps.weights[1]) == (["values", ""], [])
    assert [row[1] for row in found.measures["entropy"]] == [None, None]
    assert (found.mean("entropy"), len(found.over_layers("entropy"))) == (None, 1)
    assert math.isfinite(found.mean("token_similarity"))
    assert found.choices["gates"].options == case.model.dim
    output = diagnose.describe(found, 1.0)
    noted = {m.name: (m.values, m.note) for m in output.measurements}
    assert noted["diagnose:entropy"][0] == []
    assert noted["diagnose_warnings"] == ([1], found.problems[0])


def test_weights_that_are_not_finite_are_said(trained):
    """NaN becomes a word, not a number."""
    found = inspected(trained[0], lambda model: model.blocks[0].ffn.apply(spoil))
    assert "blocks 0 to 1: tokens are not finite" in found.problems
    assert found.mean("token_similarity") is None
    assert found.over_layers("token_similarity") == []


def spoil(module):
    """Make a linear layer's weights NaN."""
    if isinstance(module, torch.nn.Linear):
        module.weight.fill_(math.nan)


def test_classes_take_turns():
    """The first of each class, then the second; of more classes than images, spread ones."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert in_turns(labels, 4).tolist() == [0, 3, 4, 1]
    assert in_turns(labels, 99).tolist() == [0, 3, 4, 1, 5, 2]
    assert labels[in_turns(labels, 2)].tolist() == [0, 2]


def test_noise_belongs_to_the_image(trained):
    """Other images beside it, and another place in the batch, change nothing; another timestep does."""
    x0, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    both = Examples(case=trained[0], x0=x0, labels=labels, indices=[7, 3])
    alone = Examples(case=trained[0], x0=x0[:1], labels=labels[:1], indices=[3])
    cpu = torch.device("cpu")
    assert torch.equal(both.at(500, cpu)[0][1], alone.at(500, cpu)[0][0])
    assert not torch.equal(both.at(500, cpu)[0][0], both.at(500, cpu)[0][1])
    assert not torch.equal(alone.at(500, cpu)[0] / 0.5, alone.at(900, cpu)[0] / 0.9)
    assert both.at(900, cpu)[1].tolist() == [900.0, 900.0]
    ddpm = trained[0].model_copy(update={"train": trained[0].train.model_copy(update={"objective": "ddpm"})})
    noised = Examples(case=ddpm, x0=x0[:1], labels=labels[:1], indices=[3]).at(500, cpu)[0]
    signal = 1 - (1 - linear_betas())[:501].prod()  # of x0 = 0 only noise is left
    torch.testing.assert_close(noised, alone.at(500, cpu)[0] / 0.5 * signal.sqrt().float())


def test_records_of_any_shape_are_counted_or_averaged():
    """Choices [B, N] by class; banks; truth values; numbers of images; what is no number of use is left."""
    heard = Heard(2, torch.tensor([4, 6]))
    heard.expect(torch.tensor([6, 4]), num_tokens=2)
    heard("blocks.0.used", torch.tensor(True))
    heard("blocks.0.turned", torch.ones(2, 3, 4).transpose(1, 2))
    heard("blocks.0.sparse", torch.eye(2).to_sparse())
    heard("blocks.7.router", torch.tensor([[0, 0], [1, 2]]))
    assert heard.factors()["turned"].means == [[1.0], []]
    assert [list(layers) for layers in heard.problems.values()] == [[0]]
    assert next(iter(heard.problems)).startswith("record 'sparse' left out: ")
    heard("blocks.1.router", torch.tensor([[0, 0], [1, 2]]))
    heard("blocks.0.bank", torch.tensor([[0, 1, 1, 1]]))
    heard("blocks.0.lambda", torch.tensor([[[1.0], [3.0]], [[5.0], [5.0]]]))
    heard("blocks.0.heads", torch.tensor([[[True, False]] * 2, [[True, True]] * 2]))
    heard("blocks.0.mediators", torch.tensor([9, 1]))
    heard("blocks.0.index", torch.tensor([[-1, 10**9]]))
    heard("elsewhere", torch.tensor([1.0]))
    choices, factors = heard.choices([{}, {}]), heard.factors()
    assert choices["router"].by_class == [[[], [0.0, 0.5, 0.5]], [[], [1.0, 0.0, 0.0]]]
    assert choices["router"].shares == [[], [0.5, 0.25, 0.25]]
    assert choices["bank"].shares[0] == [0.25, 0.75]
    assert choices["heads"].by_class == [[[0.5, 0.5], []], [[1.0, 0.0], []]]
    assert factors["lambda"].means == [[2.0, 5.0], []]
    assert factors["mediators"].means == [[5.0], []]
    assert choices.keys() | factors.keys() == {"router", "bank", "heads", "lambda", "mediators", "turned"}


def test_a_suite_asks_for_it_in_a_word(tmp_path):
    """`diagnose: true`, or its settings; nothing, null and false ask for nothing."""
    asked = {
        "": None,
        "diagnose: null\n": None,
        "diagnose: false\n": None,
        "diagnose: true\n": DiagnoseSpec(),
        "diagnose: {images: 5}\n": DiagnoseSpec(images=5),
    }
    assert {text: load(tmp_path, SMALL + text)[0].diagnose for text in asked} == asked
    assert load(tmp_path, SMALL, "diagnose=true", "diagnose.images=5")[0].diagnose == DiagnoseSpec(images=5)
    assert load(tmp_path, SMALL, "diagnose.timesteps=[0, 999]")[0].diagnose.timesteps == [0, 999]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("images: 0", "diagnose.images: must be greater than 0, got 0"),
        ("map_images: -1", "diagnose.map_images: must be greater than 0, got -1"),
        ("queries: 0", "diagnose.queries: must be greater than 0, got 0"),
        ("timesteps: [1000]", "diagnose.timesteps[0]: must be less than 1000, got 1000"),
        ("timesteps: [-1]", "diagnose.timesteps[0]: must be greater than or equal to 0, got -1"),
        ("timesteps: [1, 1]", "diagnose.timesteps: must differ from one another, got [1, 1]"),
        ("timesteps: []", "diagnose.timesteps: must be a list with at least one item"),
        (
            "image: 3",
            "unknown key 'image' (did you mean 'images'?); allowed: images, map_images, queries, timesteps",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, setting, words):
    """What, where, and what is allowed, before anything is trained."""
    (line,) = errors(tmp_path, f"{SMALL}diagnose: {{{setting}}}\n")
    assert words in line
