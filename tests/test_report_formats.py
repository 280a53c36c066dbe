"""Any table in any format: complete, readable by its programs, deaf to markup in labels."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt
from report_cases import make_suite

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.report import comparison_table
from attnbench.report.formats import FORMATS, format_of, latex, record, render
from attnbench.report.tables import MISSING, Cell, Column, Row, Table, plain

HOSTILE = "a|b <script>alert(1)</script> & 5 % of_x #1 $y$ {z} \\cmd ~ ^ [i](j) `c` *d* \"e\" 'f' -- Ł 中 λ"
COLUMNS = (
    Column(title="Case", numeric=False),
    Column(title="FID", better="lower", group="CFG=1.0", n="500"),
    Column(title="FID", better="lower", group="CFG=4.0", unit="measured: FD-x"),
    Column(title="GFLOPs", unit="G"),
)
TABLE = Table(
    title=f"Title {HOSTILE}",
    columns=COLUMNS,
    rows=(
        Row(
            cells=(
                Cell(text=HOSTILE),
                Cell(text="1,234.57", value=1234.5678, detail="± 0.1", best=True, n=500),
                Cell(text="−0.0012", value=-0.0012, marks="a, b"),
                Cell(),
            )
        ),
        Row(
            cells=(Cell(text="broken"), Cell(text="nan", value=math.nan), Cell(text="not run"), Cell()),
            status="failed",
        ),
        Row(cells=(Cell(text="real images"), Cell(text="0.3", value=0.3), Cell(), Cell()), status="floor"),
    ),
    notes=("a: because", "b: and because & so", f"general {HOSTILE}"),
)


class Page(HTMLParser):
    """Collects what a browser would see: tags, cells, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag; a cell begins with it."""
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        """Note the text, in its cell where it is in one."""
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip("\n")


def test_html_is_self_contained_and_shows_text_as_text() -> None:
    """Two lines of headings, a row a row; no script, no address."""
    html = render(TABLE, "html")
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "b"} & set(page.tags)
    assert "://" not in html
    assert page.rows[0] == ["", "CFG=1.0", "CFG=4.0", ""]
    assert [len(row) for row in page.rows[1:]] == [4, 4, 4, 4]
    assert page.rows[2] == [HOSTILE, "1,234.57± 0.1", "−0.0012a, b", MISSING]
    assert page.rows[3][0] == "broken (failed)"
    assert all(note in page.text for note in TABLE.notes)
    assert 'class="number best"' in html


def test_markdown_reads_back() -> None:
    """A Markdown parser finds the same cells; groups stand in front of names that repeat."""
    tokens = MarkdownIt("commonmark").enable("table").parse(render(TABLE, "md"))
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows and token.level > 3:
            shown = [
                c.content for c in token.children or [] if c.type in ("text", "text_special", "html_inline")
            ]
            rows[-1].append(re.sub("</?sup>", " ", "".join(shown)).strip())
    assert rows[0] == ["Case", "CFG=1.0 FID ↓ (n = 500)", "CFG=4.0 FID ↓ (measured: FD-x)", "GFLOPs (G)"]
    assert rows[1] == [HOSTILE, "1,234.57 (± 0.1)", "−0.0012 a, b", MISSING]
    assert [len(row) for row in rows] == [4] * 4
    assert "**1,234.57**" in render(TABLE, "md")


def test_csv_reads_back_with_numbers_in_full() -> None:
    """The csv module gets texts as they were, values unrounded, and each row's own footnotes."""
    rows = list(csv.DictReader(io.StringIO(render(TABLE, "csv"))))
    assert list(rows[0]) == [
        "Case", "CFG=1.0 FID (n = 500)", "CFG=1.0 FID (n = 500): beside", "CFG=4.0 FID (measured: FD-x)",
        "GFLOPs (G)", "status", "footnotes",
    ]  # fmt: skip
    assert rows[0]["Case"] == HOSTILE
    assert float(rows[0]["CFG=1.0 FID (n = 500)"]) == 1234.5678
    assert rows[0]["CFG=1.0 FID (n = 500): beside"] == "± 0.1, best"
    assert float(rows[0]["CFG=4.0 FID (measured: FD-x)"]) == -0.0012
    assert rows[0]["footnotes"] == "a: because b: and because & so"
    assert (rows[1]["CFG=1.0 FID (n = 500)"], rows[1]["status"], rows[1]["footnotes"]) == (
        "nan",
        "failed",
        "",
    )


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_csv_keeps_any_label(labels: list[str]) -> None:
    """Commas, quotes, spaces; line breaks are none in a table (`plain`)."""
    labels = [plain(label) for label in labels]
    table = Table(
        title="t",
        columns=(Column(title="Case", numeric=False), Column(title="x")),
        rows=tuple(Row(cells=(Cell(text=label), Cell(text="1", value=1.0))) for label in labels),
    )
    rows = list(csv.reader(io.StringIO(render(table, "csv"), newline="")))
    assert [row[0] for row in rows[1:]] == labels


def test_json_fits_its_schema_and_reads_back_whole() -> None:
    """All that a table holds; a value that is not finite is null, since JSON has no NaN."""
    text = render(TABLE, "json")
    Draft202012Validator(record.schema()).validate(json.loads(text, parse_constant=pytest.fail))
    back = record.read(text)
    assert back.rows[0] == TABLE.rows[0]
    assert back.rows[1].cells[1] == Cell(text="nan", value=None)
    assert (back.title, back.columns, back.notes) == (TABLE.title, TABLE.columns, TABLE.notes)
    with pytest.raises(ValueError, match="no table of format 1"):
        record.read('{"format": 2}')


def test_latex_escapes_every_special_letter() -> None:
    """What LaTeX would act on is printed; what pdflatex has no letter for stands as its number."""
    assert latex.escape("5 % & $x$ a_b {c} #1 ~ ^ \\d") == (
        r"5 \% \& \$x\$ a\_b \{c\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}d"
    )
    assert latex.escape("a--b Ł 中 λ ↓") == r"a-{}-b Ł \texttt{U+4E2D} $\lambda$ $\downarrow$"
    text = render(TABLE, "latex")
    assert r"\toprule" in text
    assert r"\multicolumn{1}{c}{CFG=1.0}" in text
    assert r"\textbf{1,234.57} {\tiny ($\pm$ 0.1)}" in text
    assert r"$-$0.0012\textsuperscript{a, b}" in text
    assert {line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\")} == {3}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    """A hostile table and the comparison of a suite, in one document with booktabs."""
    (tmp_path / "hostile.tex").write_text(render(TABLE, "latex"), encoding="utf-8")
    (tmp_path / "suite.tex").write_text(render(comparison_table(make_suite()), "latex"), encoding="utf-8")
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
        "\\input{hostile}\\input{suite}\\end{document}\n"
    )
    words = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=120)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_a_table_without_rows_groups_and_notes(name: str) -> None:
    """Nothing is taken for granted."""
    assert "x" in render(Table(title="t", columns=(Column(title="x"),), rows=()), name)


def test_formats_are_known_by_name_and_ending() -> None:
    """A wrong name has its nearest spelling; an ending that names none says which do."""
    with pytest.raises(UnknownNameError, match=r"unknown format 'latx' \(did you mean 'latex'\?\)"):
        render(TABLE, "latx")
    assert [format_of(Path(f"a.{end}")) for end in ("tex", "MD", "json")] == ["latex", "md", "json"]
    with pytest.raises(UserInputError, match=r"its ending names no format \(\.html"):
        format_of(Path("table.pdf"))
