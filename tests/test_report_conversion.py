"""The section on conversion: what is compared, who reaches what, the teacher, the chart, the compute."""

from __future__ import annotations

import re

import pytest
from report_cases import make_result, with_measurement

from attnbench.report.compare.budgets import budget
from attnbench.report.content import gather
from attnbench.report.conversion import conversion_tables, conversions
from attnbench.report.conversion_drawing import conversion_drawings
from attnbench.report.markdown import render
from attnbench.report.page import render as render_page
from attnbench.report.pareto_costs import training_macs
from attnbench.results import Measurement, Result

TEACHER = {"case": {"model.attention": "softmax"}, "noise": 0.5}
# accuracy of a case by attention, whether it is taught, and steps; of two seeds
ACCURACY = {
    ("softmax", False, 250): (0.98, 0.99),
    ("linear", False, 25): (0.10, 0.12),
    ("linear", False, 250): (0.95, 0.97),
    ("linear", True, 25): (0.90, 0.92),
    ("linear", True, 62): (0.96, 0.98),
    ("agent", False, 250): (0.97, 0.97),
    ("agent", True, 62): (0.91, 0.93),
}


def results() -> list[Result]:
    """Two seeds of every case above, as a suite with three axes would have left them."""
    found = []
    teachers = {}
    for (attention, taught, steps), values in ACCURACY.items():
        for seed, accuracy in enumerate(values):
            word = "converted" if taught else "from scratch"
            label = f"{attention} · {word} · steps={steps} · seed={seed}"
            axes = {"attention": attention, "teacher": word, "steps": str(steps), "seed": str(seed)}
            made = make_result(label, len(found), axes=axes)
            train = {**made.case["train"], "steps": steps, "batch_size": 128}
            case = {**made.case, "seed": seed, "label": label, "train": train}
            case["model"] = {**case["model"], "attention": {"name": attention, "options": {}}}
            if taught:
                case["train"] = {**train, "teacher": TEACHER}
                case["teacher"] = {"identity": f"key {seed}", "case": teachers[seed]}
            elif attention == "softmax":
                teachers[seed] = case
            changed = [Measurement(name="class_accuracy", values=[accuracy], n=500, better="higher")]
            changed.append(Measurement(name="steps", values=[float(steps)]))
            if taught:
                changed.append(Measurement(name="step_macs", unit="MAC", values=[4e6]))
            found.append(with_measurement(made.model_copy(update={"case": case}), *changed))
    return found


def test_seeds_are_one_row_and_each_attention_meets_its_own_trainings() -> None:
    """A conversion for each taught attention, its trainings from scratch, and the teacher's two seeds."""
    linear, agent = conversions(results())
    assert (linear.label, agent.label) == ("linear", "agent")
    assert (list(linear.converted), list(linear.scratch)) == ([25, 62], [25, 250])
    assert (list(agent.converted), list(agent.scratch)) == ([62], [250])
    assert linear.teacher is not None
    assert linear.teacher.label == "softmax · from scratch · steps=250"
    assert len(linear.teacher.results) == 2


def test_the_table_says_who_reaches_the_longest_training_from_scratch() -> None:
    """By means over seeds: linear at 62 steps, agent not, by how much; and the teacher's mean."""
    table = conversion_tables(results())[0]
    assert table.title == "Conversion: class accuracy against steps"
    titles = [column.title for column in table.columns]
    assert titles == [
        "Attention", "Converted, 25 steps", "Converted, 62 steps", "From scratch, 25 steps",
        "From scratch, 250 steps", "Reaches 250 steps from scratch", "Training MACs, share of that",
    ]  # fmt: skip
    linear, agent = table.rows
    assert [cell.text for cell in linear.cells[:5]] == ["linear", "0.910", "0.970", "0.110", "0.960"]
    assert linear.cells[5].text == "at 62 steps"
    assert [cell.text for cell in agent.cells[:5]] == ["agent", "–", "0.920", "–", "0.970"]
    assert (agent.cells[5].text, agent.cells[5].detail) == ("no", "0.05 short at 62 steps")
    notes = "\n".join(table.notes)
    assert (
        "1 of 2 reach, converted, what 250 steps from scratch reach (by means over seeds); not: agent."
        in notes
    )
    assert "Teacher: softmax · from scratch · steps=250: 0.985, sd 0.00707 over 2 seeds." in notes


def test_a_distance_is_reached_from_above() -> None:
    """Of a quantity where lower is better, the longest training is reached by as low a value."""
    table = conversion_tables(results())[1]
    assert table.title == "Conversion: FD-digits against steps"
    for row, one in zip(table.rows, conversions(results()), strict=True):
        values = [cell.value for cell in row.cells[1:5]]
        converted = [value for value in values[:2] if value is not None]
        reached = [steps for steps, v in zip(one.converted, converted, strict=True) if v <= values[3]]
        assert row.cells[5].text == (f"at {reached[0]} steps" if reached else "no")


def test_the_teacher_s_pass_is_in_the_compute_that_reports_compare_by() -> None:
    """Steps x batch x what the stage counted for a step, in both places; without a teacher three passes."""
    found = {result.label: result for result in results()}
    taught, untaught = (
        found["linear · converted · steps=62 · seed=0"],
        found["linear · from scratch · steps=25 · seed=0"],
    )
    assert training_macs(taught) == budget(taught, "macs") == 62 * 128 * 4e6
    forward = next(m.value for m in untaught.measurements if m.name == "macs_full@8")
    assert training_macs(untaught) == 25 * 128 * 3 * forward


def test_panels_have_both_lines_the_seeds_and_the_teacher(tmp_path) -> None:
    """One panel an attention; filled marks for conversions, open ones from scratch, a dashed teacher."""
    (drawing,) = conversion_drawings(results(), tmp_path)
    svg = drawing.svg
    assert re.findall(r"<title>(.*?)</title>", svg) == ["linear", "agent"]
    assert svg.count('r="3.2"') == 2 + 6  # the legend's, and a mean for each taught attention and steps
    assert svg.count('r="1.3"') == 2 * 6  # two seeds of each
    assert svg.count("stroke-dasharray") == 1 + 2
    assert "the dashed line is the teacher" in drawing.caption


def test_both_reports_have_the_section(tmp_path) -> None:
    """Markdown and page; the chart is a figure of both."""
    content = gather(tmp_path, results(), "t", "q", "attnbench run t")
    markdown = render(content, {figure.name: f"figures/{figure.name}.svg" for figure in content.figures})
    page = render_page(content)
    for text in (markdown, page):
        assert "Conversion: class accuracy against steps" in text
    assert "figures/conversion.svg" in markdown
    assert page.count("<title>agent</title>") == 1


@pytest.mark.parametrize("kept", ["untaught", "unscored"])
def test_nothing_is_said_where_nothing_was_converted(tmp_path, kept) -> None:
    """Without a taught case there is no section; without a quality no chart."""
    if kept == "untaught":
        found = [result for result in results() if "from scratch" in result.label]
        assert conversions(found) == []
    else:
        found = [result.model_copy(update={"measurements": []}) for result in results()]
    assert conversion_tables(found) == []
    assert conversion_drawings(found, tmp_path) == []
