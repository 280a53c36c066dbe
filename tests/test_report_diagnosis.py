"""Drawings and the table of what `diagnose` recorded, from records made up by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_cases import HOSTILE, make_result, make_suite

from attnbench.report.diagnosis import diagnosis_drawings, diagnosis_table
from attnbench.report.diagnosis_pictures import evenness
from attnbench.report.diagnosis_record import MEASURES, Choices, Diagnosis, Factors, QueryMaps, read_diagnosis
from attnbench.report.router_curves import KINDS, curve_name
from attnbench.results import Measurement, Result, with_checksum

DEPTH, CLASSES = 3, ["zero", "_one", "<b>two</b>"]


def made_up(index: int = 0, **changed: object) -> Diagnosis:
    """A diagnosis of three blocks on a grid of 2 x 3 tokens; `index` shifts every number."""
    fields: dict[str, object] = {
        "images": 6,
        "map_images": 2,
        "num_queries": 6,
        "timesteps": [100, 900],
        "grid": (2, 3),
        "heads": 2,
        "classes": [0, 1, 2],
        "class_names": CLASSES,
        "paths": ["values"] * DEPTH,
        "measures": {name: [[0.1 * (n + index)] * DEPTH for n in (1, 2)] for name in MEASURES},
        "choices": {},
        "factors": {},
        "query_maps": QueryMaps(
            query=4, timestep=900, weights=[[(index + n) / 99 for n in range(6)]] * DEPTH
        ),
        "problems": [],
    }
    return Diagnosis.model_validate(fields | changed)


def routed() -> dict[str, object]:
    """What token-wise DyDiLA records."""
    shares = [[0.5, 0.25, 0.25]] * DEPTH
    by_class = [shares, [[0.0, 1.0, 0.0]] * DEPTH, [[]] * DEPTH]
    return {
        "choices": {
            "projector_q": Choices(options=3, shares=shares, by_class=by_class),
            "factor": Choices(options=3, shares=shares, by_class=[]),
        },
        "factors": {"lambda": Factors(means=[[0.01, 0.02], [], [0.03, 0.04]])},
    }


def with_diagnosis(folder: Path, result: Result, diagnosis: Diagnosis) -> Result:
    """Lay a diagnosis beside the report, as a run does, with the measurements of its stage."""
    place = f"pictures/{result.case_id}-diagnosis.json"
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / place).write_bytes(with_checksum(diagnosis))
    means = {name: diagnosis.mean(name) for name in MEASURES}
    found = [
        Measurement(name=f"diagnose:{name}", values=[] if mean is None else [mean], n=6)
        for name, mean in means.items()
    ]
    return result.model_copy(
        update={
            "artefacts": {**result.artefacts, "diagnosis": place},
            "measurements": [*result.measurements, *found],
        }
    )


def words_of(svg: str) -> list[str]:
    """The texts of a drawing, which must be well-formed."""
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    return ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """22 cases, the second with routers, one with a hostile label, one that begins with an underscore."""
    folder = tmp_path_factory.mktemp("run")
    results = [
        with_diagnosis(
            folder,
            make_result({2: HOSTILE, 3: "_hidden"}.get(n, f"case {n}"), n),
            made_up(n, **(routed() if n == 1 else {})),
        )
        for n in range(22)
    ]
    return folder, results, diagnosis_drawings(results, folder)


def test_every_drawing_is_there_and_names_every_case(drawn):
    """Every label is text, whatever is in it, and none is lost."""
    _, results, drawings = drawn
    found = {drawing.name: words_of(drawing.svg) for drawing in drawings}
    assert list(found) == [
        "oversmoothing", "oversmoothing-timesteps", "lambda", "router-balance", "query-maps", "projectors-1",
    ]  # fmt: skip
    for name in ("oversmoothing", "oversmoothing-timesteps"):
        assert {r.label for r in results if r.label != HOSTILE} <= set(found[name])
    assert "_hidden" in found["query-maps"]
    assert not any("<script" in drawing.svg for drawing in drawings)
    assert {*CLASSES} <= set(found["projectors-1"])
    assert {"case 1: projector q", "case 1: factor"} <= set(found["router-balance"])
    assert all(drawing.caption.endswith(".") for drawing in drawings)


def balanced(result: Result, **least: float) -> Result:
    """A case whose routers' balance over training is known, two points each; `least` at the end."""
    curves = {
        curve_name(router, kind): [(20.0, 0.9), (40.0, end if kind == "least_evenness" else 0.95)]
        for router, end in least.items()
        for kind in KINDS
    }
    return result.model_copy(update={"curves": {**result.curves, **curves}})


def test_router_balance_over_training_is_drawn_with_words(tmp_path):
    """Where one case is diagnosed: a row a router, the names of the cases that have any, and the least."""
    results = [
        balanced(make_result("token", 0), kernel=0.25, factor=0.5),
        make_result("softmax", 1),
        balanced(make_result(HOSTILE, 2), routed_heads=0.75),
    ]
    assert diagnosis_drawings(results, tmp_path) == []
    results[1] = with_diagnosis(tmp_path, results[1], made_up(1))
    drawings = diagnosis_drawings(results, tmp_path)
    names = [drawing.name for drawing in drawings]
    assert names == ["oversmoothing", "oversmoothing-timesteps", "query-maps", "router-training"]
    words = words_of(drawings[-1].svg)
    assert {"kernel", "factor", "routed heads", "token", "largest share of one option"} <= set(words)
    assert "softmax" not in words
    assert drawings[-1].caption.endswith("Least even at the end: kernel of token, 0.25 in one block.")


def test_22_series_are_told_apart(drawn):
    """No two lines of a panel share colour and dash."""
    _, _, drawings = drawn
    svg = next(drawing.svg for drawing in drawings if drawing.name == "oversmoothing")
    styles = re.findall(
        r'style="fill: none; (?:stroke-dasharray: [^;]*; stroke-dashoffset: 0; )?stroke: #[^"]*"', svg
    )
    lines = {style for style in styles if "stroke-width: 1.5" in style}
    assert len(lines) == 22


def test_drawings_do_not_depend_on_the_clock(drawn):
    """The same results give the same bytes."""
    folder, results, _ = drawn
    once, again = (diagnosis_drawings(results[1:2], folder) for _ in range(2))
    assert [drawing.svg for drawing in once] == [drawing.svg for drawing in again]


def test_nothing_recorded_is_nothing_drawn(tmp_path):
    """Results without a diagnosis, as all earlier ones, have neither drawings nor a table."""
    results = make_suite()
    assert diagnosis_drawings(results, tmp_path) == []
    assert diagnosis_table(results, tmp_path) is None


def test_what_is_missing_leaves_the_rest(tmp_path):
    """One block without a map, one timestep, no query: the others are drawn."""
    entropy = [[0.5, None, 0.7]]
    measures = dict.fromkeys(MEASURES, entropy)
    one = made_up(measures=measures, timesteps=[500], query_maps=None, paths=["values", "", "tokens"])
    results = [with_diagnosis(tmp_path, make_result("one", 0), one)]
    assert one.over_layers("entropy") == [(0, 0.5), (2, 0.7)]
    assert one.mean("entropy") is None
    assert [drawing.name for drawing in diagnosis_drawings(results, tmp_path)] == ["oversmoothing"]
    assert diagnosis_table(results, tmp_path).rows[0].cells[1].text == "–"
    nothing = made_up(measures={}, timesteps=[500], query_maps=None)
    assert diagnosis_drawings([with_diagnosis(tmp_path, make_result("two", 1), nothing)], tmp_path) == []


def test_the_table_marks_maps_of_another_kind(tmp_path):
    """Maps of input tokens stand beside maps of values only with a mark that says so."""
    results = [
        with_diagnosis(tmp_path, make_result("ours", 0), made_up(0)),
        with_diagnosis(tmp_path, make_result("a stranger", 1), made_up(1, paths=["tokens"] * DEPTH)),
        make_result("none", 2),
    ]
    table = diagnosis_table(results, tmp_path)
    marks = {
        (row.cells[0].text, column.title): cell.marks
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    }
    assert [row.cells[0].text for row in table.rows] == ["ours", "a stranger"]
    assert marks["a stranger", "Map entropy"] == "t"
    assert marks["a stranger", "Token similarity"] == marks["ours", "Map entropy"] == ""
    assert [note for note in table.notes if note.startswith("t: ")]
    assert table.rows[0].cells[1].value == pytest.approx(0.15)


def test_a_damaged_diagnosis_is_named(tmp_path):
    """A changed digit, a lost file and a path elsewhere: no drawing, and a word in the table's notes."""
    result = with_diagnosis(tmp_path, make_result("one", 0), made_up())
    path = tmp_path / result.artefacts["diagnosis"]
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2", 1))
    assert "damaged" in read_diagnosis(tmp_path, result)
    assert diagnosis_drawings([result], tmp_path) == []
    assert any(
        note.startswith("one: its diagnosis is damaged") for note in diagnosis_table([result], tmp_path).notes
    )
    path.unlink()
    assert "No such file" in read_diagnosis(tmp_path, result)
    outside = result.model_copy(update={"artefacts": {"diagnosis": "../elsewhere.json"}})
    assert read_diagnosis(tmp_path, outside) == "its diagnosis lies outside the run directory"


def test_evenness_is_between_0_and_1():
    """By hand; a single option leaves no choice."""
    assert evenness([0.25] * 4) == pytest.approx(1)
    assert evenness([1.0, 0.0, 0.0]) == 0
    assert evenness([1.0]) == 1
    assert evenness([0.5, 0.5, 0.0]) == pytest.approx(math.log(2) / math.log(3))
