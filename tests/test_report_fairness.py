"""Rows that are not alike are told apart in footnotes, and only alike ones compete."""

from __future__ import annotations

from typing import Any

import pytest
from report_cases import ENVIRONMENT, HOSTILE, make_result, make_suite, with_measurement

from attnbench.report import comparison_table
from attnbench.report.configurations import configurations
from attnbench.report.fairness import Fairness, differences, fairness
from attnbench.report.markdown import render_table
from attnbench.report.tables import Table
from attnbench.results import Measurement, Result

LABELS = ("softmax", "linear", "focused", "agent")


def alike(count: int = 4) -> list[Result]:
    """Return cases of one size that differ in their attention alone."""
    results = []
    for index, label in enumerate(LABELS[:count]):
        size = (Measurement(name="params", values=[1e6]), Measurement(name="macs_full@8", values=[1e7]))
        results.append(with_measurement(make_result(label, index), *size))
    return results


def changed(result: Result, section: str, **settings: Any) -> Result:
    """Return a case with other settings of one section."""
    case = {**result.case, section: {**result.case.get(section, {}), **settings}}
    return result.model_copy(update={"case": case})


def of(results: list[Result]) -> Fairness:
    """Return the fairness of a table with one row each."""
    return fairness(configurations(results))


def bold(table: Table, title: str) -> list[str]:
    """Return the labels of the rows whose value is bold in a column."""
    index = [column.title for column in table.columns].index(title)
    return [row.cells[0].text for row in table.rows if row.cells[index].best]


def test_cases_that_differ_in_attention_alone_have_no_footnote() -> None:
    """Then nothing is in the way of comparing them."""
    found = of(alike())
    assert found.footnotes == ()
    assert found.notes() == ()
    assert set(found.quality) == set(found.cost) == {0}


def test_other_noise_is_told_and_compared_all_the_same() -> None:
    """It is another draw of the same distribution, as another seed is; unsaid is earlier noise."""
    results = alike()
    results[1] = changed(results[1], "sample", noise="box-muller")
    found = of(results)
    words = "noise of the samples box-muller, the others ziggurat"
    assert [(note.text, note.rows, note.ranked) for note in found.footnotes] == [(words, (1,), True)]
    assert set(found.quality) == {0}


@pytest.mark.parametrize(
    ("section", "setting", "words"),
    [
        ("train", {"steps": 800}, "training steps 800, the others 400"),
        ("train", {"precision": "bf16"}, "precision in training bf16, the others fp32"),
        ("train", {"lr": 0.1}, "train.lr 0.1, the others 0.002"),
        ("data", {"name": "photo-patches"}, "data photo-patches, the others digits"),
        ("sample", {"guidance_scale": 4.0}, "guidance scale 4, the others 1"),
        ("sample", {"sampler": "heun"}, "sampler heun, the others euler"),
        ("sample", {"num_steps": 25}, "sampling steps 25, the others 50"),
        ("sample", {"precision": "bf16"}, "precision in sampling bf16, the others fp32"),
        ("evaluate", {"extractor": "dinov2"}, "extractor dinov2, the others digits-cnn"),
        ("evaluate", {"reference": "held-out"}, "images compared with held-out, the others train"),
    ],
)
def test_a_setting_of_one_row_alone_is_told(section: str, setting: dict[str, Any], words: str) -> None:
    """The row has a mark, the note says what differs and from what, and its quality is not compared."""
    results = [changed(result, "evaluate", extractor="digits-cnn", reference="train") for result in alike()]
    results[1] = changed(results[1], section, **setting)
    found = of(results)
    assert [(note.mark, note.text, note.rows) for note in found.footnotes] == [("a", words, (1,))]
    assert [found.marks(row) for row in range(4)] == ["", "a", "", ""]
    assert found.quality == (0, 1, 0, 0)
    table = comparison_table(results)
    assert table.rows[1].cells[0].marks == "a"
    assert f"a: {words}" in table.notes
    assert bold(table, "FD-digits") == ["softmax"]


def test_what_changes_no_result_is_no_difference() -> None:
    """Batches of sampling, the log's interval, checkpoints: two cases that differ there are alike."""
    results = alike(2)
    results[1] = changed(
        changed(results[1], "sample", batch_size=7), "train", log_every=3, checkpoint_every=9
    )
    assert of(results).footnotes == ()


def test_an_unwritten_setting_has_its_default() -> None:
    """What an older version did not write is what it did: the default, which is no difference."""
    results = alike(2)
    assert of([changed(results[0], "train", timestep_density="uniform"), results[1]]).footnotes == ()
    told = of([changed(results[0], "train", timestep_density="logit-normal"), results[1]]).footnotes
    assert told[0].text == "train.timestep_density logit-normal (softmax); uniform (linear)"


def test_two_rows_that_differ_are_both_marked_and_neither_is_best() -> None:
    """Where no value is the usual one, none is the odd one, and there is nothing to compare with."""
    results = alike(2)
    results[1] = changed(results[1], "train", steps=800)
    (note,) = of(results).footnotes
    assert note.text == "training steps 400 (softmax); 800 (linear)"
    assert note.rows == (0, 1)
    assert bold(comparison_table(results), "FD-digits") == []
    assert bold(comparison_table(results), "Latency") == ["softmax"]  # one pass is one pass


def test_long_values_that_differ_at_their_end_differ() -> None:
    """Two folders deep in one place are two datasets; the note shows where they part."""
    results = [
        changed(result, "data", path="/" + "deep/" * 30 + name)
        for result, name in zip(alike(3), ("one", "one", "two"), strict=True)
    ]
    (note,) = of(results).footnotes
    assert note.text.endswith("deep/one")
    assert "deep/two, the others" in note.text
    assert len(note.text) < 150


def test_sizes_within_two_percent_are_equal() -> None:
    """Parameters and full MACs are held against the softmax row; larger ones are told, and still compared."""
    results = alike(3)
    results[1] = with_measurement(results[1], Measurement(name="params", values=[1.019e6]))
    assert of(results).footnotes == ()
    results[1] = with_measurement(results[1], Measurement(name="params", values=[1.1e6]))
    results[2] = with_measurement(results[2], Measurement(name="macs_full@8", values=[0.8e7]))
    found = of(results)
    assert [(note.text, note.rows) for note in found.footnotes] == [
        ("Parameters differ from those of softmax by more than 2 %: +10 %", (1,)),
        ("MACs, full count differ from those of softmax by more than 2 %: −20 %", (2,)),
    ]
    assert set(found.quality) == {0}


def test_sizes_are_compared_at_one_resolution() -> None:
    """Four times the tokens are four times the MACs, which says nothing of the model."""
    results = [
        *alike(2),
        *(with_measurement(make_result(label, 5, side=16), *sizes()) for label in ("a", "b")),
    ]
    assert not [note for note in of(results).footnotes if "MACs" in note.aspect]


def sizes() -> tuple[Measurement, ...]:
    """Return the size of `alike` at 16 px."""
    return Measurement(name="params", values=[1e6]), Measurement(name="macs_full@16", values=[4e7])


def test_an_axis_of_the_suite_is_no_footnote_but_has_a_best_each() -> None:
    """Guidance scales are varied on purpose: the best at each scale is bold, and the note says so."""
    results = []
    for index, (label, scale) in enumerate((a, s) for a in ("softmax", "linear") for s in (1.0, 4.0)):
        result = with_measurement(
            make_result(f"{label} · guidance_scale={scale}", index), *alike(1)[0].measurements
        )
        result = changed(result, "sample", guidance_scale=scale)
        fd = Measurement(name="FD-digits", values=[10.0 - index], n=500, better="lower")
        axes = {"attention": label, "guidance_scale": str(scale)}
        results.append(with_measurement(result.model_copy(update={"axes": axes}), fd))
    found = of(results)
    assert found.footnotes == ()
    assert found.varied == ("guidance_scale",)
    table = comparison_table(results)
    assert bold(table, "FD-digits") == ["linear · guidance_scale=1.0", "linear · guidance_scale=4.0"]
    assert "Quality is compared within each guidance_scale: a best for each." in table.notes
    alone = comparison_table(results[:2])  # one attention: the scales are what is compared
    assert bold(alone, "FD-digits") == ["softmax · guidance_scale=4.0"]


def test_images_seeds_and_machines_are_told() -> None:
    """Another n takes a row out of the comparison; another seed or machine is said."""
    results = alike(3)
    few = [m.model_copy(update={"n": 450}) if m.n == 500 else m for m in results[0].measurements]
    results[0] = results[0].model_copy(update={"measurements": few})
    results[1] = results[1].model_copy(update={"case": {**results[1].case, "seed": 7}})
    other = ENVIRONMENT.model_copy(update={"cpu": "Other CPU"})
    results[2] = results[2].model_copy(update={"environment": other})
    found = of(results)
    assert [(note.text, note.rows, note.ranked) for note in found.footnotes] == [
        ("images scored 450, the others 500", (0,), False),
        ("seeds 7, the others 0", (1,), True),
        (
            "machine Other CPU, 2 threads, torch 2.13.0+cpu, the others Some CPU @ 2.50GHz, 2 threads, torch "
            "2.13.0+cpu",
            (2,),
            True,
        ),
    ]  # fmt: skip
    assert found.cost == (0, 0, 1)


def test_models_that_differ_beside_their_attention_are_told() -> None:
    """Another depth or another feed-forward network is no matter of attention."""
    results = [changed(result, "model", ffn={"kind": "mlp"}) for result in alike(3)]
    results[2] = changed(results[2], "model", depth=6, ffn={"kind": "glumbconv"})
    (note,) = of(results).footnotes
    assert (
        note.text
        == "model beside its attention: depth 6, ffn.kind glumbconv, the others depth 4, ffn.kind mlp"
    )
    assert note.ranked


def test_markup_in_labels_and_settings_stays_text() -> None:
    """A hostile label, setting or axis in a footnote is what it says, in Markdown too."""
    results = [*alike(2), make_result(HOSTILE, 3), make_result(f"{HOSTILE} 2", 4)]
    results[0] = changed(results[0], "data", path="<b>bold</b>\n| x")
    results[2] = changed(results[2], "data", path="[link](http://x)")
    text = render_table(comparison_table(results))
    assert "<b>" not in text
    assert "<script>" not in text
    assert "[link](" not in text
    assert all("\n" not in note.text for note in differences(results))


def test_marks_go_on_after_z() -> None:
    """Thirty differences have thirty marks."""
    results = alike(3)
    results[2] = changed(results[2], "train", **{f"setting_{i}": i for i in range(30)})
    results[0], results[1] = (
        changed(r, "train", **{f"setting_{i}": -1 for i in range(30)}) for r in results[:2]
    )
    marks = [note.mark for note in of(results).footnotes]
    assert marks[:2] == ["a", "b"]
    assert marks[25:28] == ["z", "aa", "ab"]
    assert len(set(marks)) == 30


def test_results_without_settings_are_compared() -> None:
    """Results made by hand say nothing of their settings: no footnote, one group."""
    bare = [make_result(f"case {i}", i, case={}, measurements=[]) for i in range(3)]
    found = of(bare)
    assert found.footnotes == ()
    assert set(found.quality) == {0}


def test_the_made_up_suite_tells_its_sizes() -> None:
    """Parameters and MACs that grow by row stand in the notes of today's table."""
    notes = comparison_table(make_suite()).notes
    assert "a: Parameters differ from those of softmax by more than 2 %: +3 % to +10 %" in notes
