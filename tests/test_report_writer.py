"""The written report: complete, self-contained, and deaf to whatever markup a label holds."""

from __future__ import annotations

import io
import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_cases import ENVIRONMENT, HOSTILE, make_result, make_suite, write_grid
from rich.console import Console

from attnbench.errors import StorageError, UserInputError
from attnbench.report import ReportPaths, TerminalTable, comparison_table, write_report
from attnbench.report.content import gather
from attnbench.report.figures import case_drawings
from attnbench.report.markdown import escape
from attnbench.report.pareto_chart import pareto_drawings
from attnbench.report.quantities import other_names
from attnbench.report.sections import at_a_glance, definitions, warnings
from attnbench.report.tables import plain
from attnbench.results import Measurement, Result

TITLE, QUESTION = "Six attentions <b>", "Which is | best?"


def loss_svg(results: list[Result]) -> str | None:
    """Return the drawing of the training loss, or None where a report has none."""
    return next((one.svg for one in case_drawings(results) if one.name == "loss"), None)


class Page(HTMLParser):
    """Collects what a browser would see: tags, addresses, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag, its id and every address in it."""
        self.tags.append(tag)
        self.addresses += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")
        ]
        self.ids += [v or "" for k, v in attrs if k == "id"]

    def handle_data(self, data: str) -> None:
        """Note the text."""
        self.texts.append(data)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the made-up suite's report in it."""
    folder = tmp_path_factory.mktemp("run")
    write_report(folder, make_suite(folder), TITLE, QUESTION)
    return folder


def markdown_cells(text: str) -> list[list[str]]:
    """Return the rows of every Markdown table as plain text, as a Markdown parser sees them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows and token.level > 3:
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


def test_page_ids_are_unique_and_links_find_them(run_dir: Path) -> None:
    """Several drawings share one page without sharing ids."""
    page = Page((run_dir / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)


def test_page_shows_hostile_text_as_text(run_dir: Path) -> None:
    """Title and label arrive as the characters they are."""
    page = Page((run_dir / "report.html").read_text())
    assert "b" not in page.tags
    assert TITLE in page.texts
    assert "".join(page.texts).count(HOSTILE) >= 3  # joined, for it may break behind `alert(`


def test_page_holds_every_part(run_dir: Path) -> None:
    """Tables, six grids, three figures, environment and command are all there."""
    html = (run_dir / "report.html").read_text()
    page = Page(html)
    assert page.tags.count("img") == 6
    assert html.count("<svg role=") == 4
    assert html.count('class="pixels"') == 6
    for part in ("Cost", "Training and sampling", "Other measurements", "Environment", "Reproduce"):
        assert part in page.texts
    assert any("attnbench run quick" in text for text in page.texts)
    assert "NaN after blocks.2.attention" in html


def test_markdown_tables_survive_hostile_labels(run_dir: Path) -> None:
    """Each row has as many cases as its heading, and the label reads as it was given."""
    text = (run_dir / "report.md").read_text()
    rows = markdown_cells(text)
    comparison = rows[: len(make_suite()) + 2]
    assert {len(row) for row in comparison} == {13}
    assert comparison[6][0].partition("<sup>")[0] == HOSTILE  # marks of footnotes may stand behind it
    assert "<script" not in text


def test_markdown_names_only_files_that_exist(run_dir: Path) -> None:
    """Every image the Markdown shows lies in the run directory."""
    text = (run_dir / "report.md").read_text()
    paths = re.findall(r'<img src="([^"]+)"', text) + re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(paths) == 10
    assert all((run_dir / path).is_file() for path in paths)


def test_markdown_shows_values_floor_and_failures(run_dir: Path) -> None:
    """The best distance is bold, the floor stands below, the failure has its reason."""
    text = (run_dir / "report.md").read_text()
    assert "| **8.40** |" in text
    assert "real held-out images (floor)" in text
    assert re.search(r"\| dydila\(mode=map\) \| failed \| NonFiniteError", text)


@given(st.text(max_size=60))
def test_markdown_escape_keeps_any_text(text: str) -> None:
    """A Markdown parser reads back exactly the plain text, in one cell, without markup."""
    rows = markdown_cells(f"| a | b |\n| --- | --- |\n| x{escape(text)}x | y |\n")
    assert rows[1] == [f"x{plain(text)}x", "y"]


@given(st.text(max_size=60))
def test_terminal_shows_any_label_as_it_is(text: str) -> None:
    """Rich markup and escapes in a label are letters, not commands."""
    label = plain(text)
    result = make_result(text)
    out = io.StringIO()
    Console(file=out, width=20_000, force_terminal=False).print(TerminalTable(comparison_table([result])))
    assert "\x1b" not in out.getvalue()
    assert (label or "–") in out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 220])
def test_terminal_shows_every_number_at_any_width(width: int) -> None:
    """A narrow terminal gets several tables, a wide one the whole; no number is cut or lost."""
    out = io.StringIO()
    table = comparison_table(make_suite())
    Console(file=out, width=width).print(TerminalTable(table))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for cell in (cell for row in table.rows for cell in row.cells[1:]):
        assert f" {cell.text} " in out.getvalue()
    titles = [line for line in lines if line.startswith("Comparison")]
    assert (len(titles) == 1) == (width == 220)
    assert len({title.strip() for title in titles}) >= min(3, len(titles))


@settings(max_examples=12, deadline=None)  # each draws a figure
@given(st.text(max_size=40))
def test_figures_are_wellformed_for_any_label(text: str) -> None:
    """A label cannot break out of the drawing, nor start maths in it."""
    label = f"--> $\\frac{{ </text><script> {text}"
    svg = loss_svg([make_result(label, curves={"loss": [(1.0, 0.5), (2.0, 0.4)]})])
    assert svg is not None
    root = ElementTree.fromstring(svg)
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    shown = "".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))
    assert "--> $\\frac{ </text><script>" in shown


def test_loss_curves_leave_out_what_is_not_finite() -> None:
    """A case that broke with NaN keeps the curve it had; one without a curve is left out."""
    broken = make_result("broken", curves={"loss": [(1.0, 0.9), (2.0, 0.8), (3.0, math.nan)]})
    svg = loss_svg([broken, make_result("none", 1, curves={})])
    assert svg is not None
    assert "broken" in svg
    assert "none</text>" not in svg
    assert loss_svg([make_result("none", curves={"loss": [(1.0, math.inf)]})]) is None


def test_a_wide_range_of_losses_is_drawn_on_a_log_axis() -> None:
    """Losses from 0.01 to 1 get ticks a factor apart; losses from 0.4 to 0.5 equal steps."""

    def ticks(low: float, high: float) -> list[float]:
        svg = loss_svg([make_result("a", curves={"loss": [(1.0, high), (2.0, low)]})])
        assert svg is not None
        return [float(text) for text in re.findall(r'class="y-tick"[^>]*>([\d.]+)</text>', svg)]

    wide, narrow = ticks(0.01, 1.0), ticks(0.4, 0.5)
    assert {0.01, 0.1, 1.0} <= set(wide)
    steps = [b - a for a, b in itertools.pairwise(narrow)]
    assert max(steps) - min(steps) < 1e-9


def test_tradeoff_needs_two_finished_cases() -> None:
    """One point is no comparison, and a failed case is no point."""
    suite = make_suite()
    assert pareto_drawings([suite[0], suite[6]]) == []
    assert pareto_drawings(suite[:2]) != []


def test_figures_do_not_depend_on_the_run(run_dir: Path, tmp_path: Path) -> None:
    """The same results give the same files, byte for byte."""
    write_report(tmp_path, make_suite(tmp_path), TITLE, QUESTION)
    for name in ("report.html", "report.md", "figures/loss.svg", "figures/pareto-latency.svg"):
        assert (tmp_path / name).read_bytes() == (run_dir / name).read_bytes()


def test_grids_of_other_noise_are_not_said_to_start_alike(tmp_path: Path) -> None:
    """One row drawn from another kind of noise takes the words back, for the whole report."""

    def note(*noise: str) -> str:
        results = []
        for i, kind in enumerate(noise):
            result = make_result(f"case {i}", i)
            case = {**result.case, "sample": {**result.case["sample"], "noise": kind}}
            results.append(result.model_copy(update={"case": case}))
        return gather(tmp_path, results, "t", "", "").grids_note

    assert "starts from the same noise" in note("box-muller", "box-muller")
    assert "not all from the same noise" in note("box-muller", "ziggurat")


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("cases/0/missing.png", None, "cannot be read: No such file"),
        ("cases/0/grid.png", b"not an image", "is not a PNG file"),
        ("../outside.png", None, "outside the run directory"),
    ],
)
def test_a_grid_that_cannot_be_shown_says_why(
    tmp_path: Path, path: str, content: bytes | None, reason: str
) -> None:
    """A missing, broken or outside grid is named; the report is written all the same."""
    folder = tmp_path / "run"
    write_grid(tmp_path / "outside.png", 0)
    write_grid(folder / "cases/1/grid.png", 1)
    if content is not None:
        (folder / "cases/0").mkdir()
        (folder / path).write_bytes(content)
    results = [make_result("a", 0, artefacts={"grid": path}), make_result("b", 1)]
    html = write_report(folder, results, TITLE, QUESTION).html.read_text()
    assert reason in html
    assert html.count("<img ") == 1


def test_a_report_of_failures_alone_is_written(tmp_path: Path) -> None:
    """When every case failed, the report says so instead of failing too."""
    nothing: dict[str, object] = {"measurements": [], "curves": {}, "artefacts": {}}
    failed = [make_result(f"c{i}", i, status="failed", reason="out of memory", **nothing) for i in range(2)]
    paths = write_report(tmp_path, failed, TITLE, QUESTION)
    assert paths == ReportPaths(markdown=tmp_path / "report.md", html=tmp_path / "report.html")
    assert "2 (2 failed)" in paths.markdown.read_text()
    assert paths.html.read_text().count("out of memory") == 2


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    """A report of no results is refused, not written empty."""
    with pytest.raises(UserInputError, match="run the suite first"):
        write_report(tmp_path, [], TITLE, QUESTION)


def test_an_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    """Where the report cannot be written the error names the file."""
    (tmp_path / "report.md").mkdir()
    with pytest.raises(StorageError, match=r"report\.md"):
        write_report(tmp_path, make_suite(), TITLE, QUESTION)
    assert not list(tmp_path.glob(".*.tmp"))


def test_figures_of_the_paper_are_no_left_overs(tmp_path: Path) -> None:
    """A report removes figures that it no longer has, not what `attnbench figures --to` drew beside them."""
    (tmp_path / "figures").mkdir()
    old, paper = tmp_path / "figures/quality-macs.svg", tmp_path / "figures/figure-1b.svg"
    for path in (old, paper):
        path.write_text("<svg/>")
    write_report(tmp_path, make_suite(), "suite", "")
    assert (old.exists(), paper.exists()) == (False, True)


def test_the_last_result_of_a_case_counts(tmp_path: Path) -> None:
    """A case that failed first and then finished is reported as finished."""
    first = make_result("a", 0, status="failed", reason="killed")
    text = write_report(tmp_path, [first, make_result("a", 0)], TITLE, QUESTION).markdown.read_text()
    assert "1 (1 ok)" in text
    assert "killed" not in text


def test_warnings_name_what_weakens_the_numbers() -> None:
    """Few images, other feature networks, one seed, mixed machines and a dirty tree are all said."""
    environment = ENVIRONMENT.model_copy(update={"cpu": "another", "git_dirty": True})
    text = " ".join(warnings([make_result("a", 0), make_result("b", 1, environment=environment)]))
    for part in (
        "fewer than 10,000",
        "no published number",
        "One seed",
        "different environments",
        "uncommitted",
    ):
        assert part in text


def test_many_images_on_inception_need_no_warning() -> None:
    """FID on 50,000 images in one clean environment warns only of the single seed."""
    fid = Measurement(name="FID", values=[3.94], n=50_000, better="lower")
    result = make_result("a", measurements=[fid])
    assert warnings([result]) == ["One seed per case: the spread between seeds is unknown."]


def test_a_note_of_some_cases_names_them() -> None:
    """What a stage noted about one case is not told of all; shared notes stand once."""
    noted = Measurement(name="latency_ms@8", values=[2.0], note="batch 1")
    other = Measurement(name="latency_ms@8", values=[2.0], note="batch 2")
    shared = [make_result(label, i, measurements=[noted]) for i, label in enumerate("ab")]
    assert ("latency_ms", "batch 1") in definitions(shared)
    mixed = [shared[0], make_result("b", 1, measurements=[other])]
    assert {("latency_ms", "batch 1 (a)"), ("latency_ms", "batch 2 (b)")} <= set(definitions(mixed))


def _with_held_out(losses):
    """Return cases whose FD grows with their index, with these held-out losses."""
    return [
        make_result(f"case {i}", i).model_copy(
            update={
                "measurements": [
                    *make_result(f"case {i}", i).measurements,
                    Measurement(name="held_out_loss", values=[loss], n=256, better="lower"),
                ]
            }
        )
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "1.00 over 6"),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], "-1.00 over 6"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], None),
        ([0.1, 0.2, math.nan, 0.4, 0.5, 0.6], None),
    ],
)
def test_held_out_loss_is_held_against_the_distance(losses, said):
    """At a glance: how well the cheap signal orders the cases; nothing where fewer than six have both."""
    found = dict(at_a_glance(_with_held_out(losses)))
    told = [value for name, value in found.items() if name.startswith("Held-out loss against FD")]
    assert told == ([f"rank correlation {said} rows"] if said else [])


def test_intervals_over_images_stand_beside_the_values():
    """A metric with an interval shows half of it, and the note says what it is."""
    results = [make_result("a", 0), make_result("b", 1)]
    for number, result in enumerate(results):
        measured = [
            m.model_copy(update={"interval": (m.value - 0.25, m.value + 0.25)})
            if m.name == "FD-digits"
            else m
            for m in result.measurements
        ]
        results[number] = result.model_copy(update={"measurements": measured})
    table = comparison_table(results)
    position = [column.title for column in table.columns].index("FD-digits")
    assert [row.cells[position].detail for row in table.rows if row.status == "ok"] == ["± 0.25", "± 0.25"]
    assert any("95 % interval over images" in note for note in table.notes)


def test_floor_of_the_autoencoder_is_a_row_of_its_own():
    """Real images through the autoencoder stand below the held-out ones."""
    result = make_result("a", 0)
    floor = Measurement(name="floor-codec:FD-digits", values=[1.5], n=100)
    table = comparison_table([result.model_copy(update={"measurements": [*result.measurements, floor]})])
    labels = [row.cells[0].text for row in table.rows if row.status == "floor"]
    assert labels == ["real held-out images (floor)", "real images through the autoencoder (floor)"]


def test_what_training_and_evaluation_warned_of_is_told():
    """Their notes stand among the warnings, with the case, and in no table."""
    result = make_result("a", 0)
    noted = Measurement(name="training_warnings", values=[1], note="a checkpoint was damaged")
    results = [result.model_copy(update={"measurements": [*result.measurements, noted]})]
    assert any("a: a checkpoint was damaged" in warning for warning in warnings(results))
    assert "training_warnings" not in other_names(results)
