"""Suites of thousands of cases: what many of them share is found once, counted here and never timed."""

from __future__ import annotations

import importlib
import io

import pytest
from process_cases import digits_case
from rich.console import Console

from attnbench import results as results_module
from attnbench import specs
from attnbench.models import skeleton
from attnbench.report import configurations as configurations_module
from attnbench.results import Result, append_result, environment, read_results, timestamp
from attnbench.running.machines import Machine
from attnbench.running.needs import refusals
from attnbench.running.plan import plan
from attnbench.storage import store as store_module
from attnbench.suite import matrix
from attnbench.suite.exceptions import apply_exceptions, read_exceptions
from attnbench.suite.extending import read_suite
from attnbench.suite.loading import load_suite
from attnbench.suite.resolving import Findings, Resolver
from attnbench.suite.schema import SuiteSpec

listing_module = importlib.import_module(
    "attnbench.console.listing"
)  # the package has a function of that name
MACHINE = Machine(macs_per_s={"fp32": 1e9, "bf16": 4e9}, said="a machine of a test")
SUITE = """name: many
question: How many cases are too many?
seed: [0, 1, 2, 3]
model: {recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2}
data: digits
train: {objective: flow, steps: 10, batch_size: 8}
sample: {sampler: euler, num_steps: 2, per_class: 2}
evaluate: {extractor: digits-cnn, metrics: [fd], kd_subset_size: 20}
matrix:
  model.attention: [softmax, {name: linear, options: {qk_norm: true}}]
  train.lr: [0.001, 0.002, 0.003]
exceptions:
  - {when: {train.lr: 0.002}, set: {train.steps: 20, sample.num_steps: 4}, reason: a test}
"""
ATTENTIONS, RATES, SEEDS = 2, 3, 4


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def counting(monkeypatch):
    """Put a counted function in the place of one, and return it."""

    def count(owner, name):
        counted = Counted(getattr(owner, name))
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: counted(*args, **kwargs))
        return counted

    return count


@pytest.fixture
def path(tmp_path):
    (tmp_path / "many.yaml").write_text(SUITE)
    return tmp_path / "many.yaml"


def test_a_section_is_read_once_and_cases_are_those_read_alone(path, counting):
    """Each draft by a resolver of its own, which has nothing to share, gives the same case."""
    read = counting(SuiteSpec, "model_validate")
    cases = load_suite(path).cases
    assert len(cases) == ATTENTIONS * RATES * SEEDS
    assert read.calls <= ATTENTIONS + RATES + SEEDS
    settings = read_suite(path)
    matrix.expand_shorthand(settings.data)
    axes, _ = matrix.read_axes(settings, SuiteSpec)
    rules, _ = read_exceptions(settings, axes, SuiteSpec)
    drafts = list(matrix.drafts(axes))
    assert not list(apply_exceptions(rules, drafts))
    alone = [Resolver(settings=settings, findings=Findings(settings)).case(draft) for draft in drafts]
    assert [case.model_dump() for case in cases] == [case.model_dump() for case in alone]
    assert {case.train.steps for case in cases} == {10, 20}  # the exception holds where it should


def test_settings_are_written_out_once_for_all_keys(path, counting):
    """Keys and ids of all cases need the content of each distinct model once, not of each case's."""
    cases = load_suite(path).cases
    contents = counting(specs.ModelConfig, "content")
    for case in cases:
        assert len({case.key(stage) for stage in ("prepare", "train", "sample", "evaluate")} | {case.id}) == 5
    assert contents.calls <= ATTENTIONS
    copied = cases[0].model_copy(update={"seed": 99})  # what was found of the first is not its
    assert copied.key("train") != cases[0].key("train")
    assert copied.id == specs.Case.model_validate(copied.model_dump()).id


def test_a_plan_builds_each_model_once_and_looks_for_no_folder_that_is_not_there(path, tmp_path, counting):
    cases = load_suite(path).cases
    built, read = counting(skeleton, "build_model"), counting(store_module, "read_output")
    planned = plan(cases, tmp_path / "store", MACHINE, device="cpu")
    assert (built.calls, read.calls) == (ATTENTIONS, 0)
    alone = plan(cases[-1:], tmp_path / "store", MACHINE, device="cpu")[0]
    assert (planned[-1].macs, planned[-1].memory) == (alone.macs, alone.memory)


def test_a_model_that_cannot_be_built_is_tried_once(path, tmp_path, counting, monkeypatch):
    """An error is an answer, too: each case has it as its problem."""
    failing = Counted(lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(skeleton, "build_model", failing)
    planned = plan(load_suite(path).cases, tmp_path, MACHINE, device="cpu")
    assert all("ZeroDivisionError" in one.problem for one in planned)
    assert failing.calls == ATTENTIONS


def test_missing_folders_are_asked_for_once_in_a_block_and_again_after_it(path, tmp_path):
    """Between two commands of one process a folder may come."""
    suite = load_suite(path, [f"train.init_from={tmp_path / 'weights'}"])
    assert [len(labels) for labels in refusals(suite.cases).values()] == [len(suite.cases)]
    (tmp_path / "weights").mkdir()
    assert refusals(suite.cases) == {}


def result(case: specs.Case) -> Result:
    return Result(
        case_id=case.id, suite=case.suite, label=case.label, status="ok", environment=environment("cpu"),
        created=timestamp(), case=case.model_dump(mode="json"),
    )  # fmt: skip


def test_a_line_of_results_is_added_without_reading_those_before(tmp_path, monkeypatch):
    """Also where what a killed writer left is longer than a block."""
    path, one = tmp_path / "results.jsonl", result(digits_case())
    append_result(path, one)
    whole = path.stat().st_size
    monkeypatch.setattr(results_module, "_BLOCK", whole // 7)
    for _ in range(3):
        append_result(path, one)
    with path.open("ab") as file:
        file.write(b'{"half' * whole)
    append_result(path, one)
    assert read_results(path) == [one] * 5

    class Reading(io.BytesIO):
        amount = 0

        def read(self, size=-1):
            self.amount += size if size >= 0 else 10**9
            return super().read(size)

    file = Reading(path.read_bytes())
    assert results_module._end_of_last_line(file, 5 * whole) == 5 * whole
    assert file.amount <= whole // 7


def test_a_report_groups_the_same_results_once(counting):
    """And others, equal or not, anew: results are known by being the very same."""
    case = digits_case()
    found = [result(case.model_copy(update={"seed": seed})) for seed in range(3)]
    hashed = counting(configurations_module, "_identity")
    first = configurations_module.configurations(found)
    assert configurations_module.configurations(tuple(found)) == first
    assert hashed.calls == len(found)
    assert len(configurations_module.configurations(found[:2])[0].results) == 2


@pytest.mark.parametrize("width", [200, 40, 12])
def test_lines_of_a_listing_without_the_grid_are_those_with_it(width, monkeypatch):
    """Wide characters, words to be folded, and tabs included."""
    rows = [
        ("softmax · lr=0.1", "1.2 G", "all"),
        ("名前", "", "-"),
        ("a long label " * 5, "1", "x"),
        ("a\tb", "", "c"),
    ]
    table = listing_module.listing("t", ("case", "MACs", "state"), rows, ["a note"], numeric=["MACs"])

    def drawn() -> str:
        file = io.StringIO()
        Console(file=file, width=width, force_terminal=True, color_system="truecolor").print(table)
        return file.getvalue()

    fast = drawn()
    monkeypatch.setattr(listing_module, "_entry_line", lambda *words: [listing_module._draw_line(*words, "")])
    assert fast == drawn()
