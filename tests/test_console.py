"""What stands on a terminal of 80 or 100 columns, and in a file: whole words, whole names, every reason."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from command_line import ROOT, attnbench_here
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from attnbench.console import (
    CATALOGUES,
    catalogue,
    duration,
    listing,
    profile_announcement,
)
from attnbench.console.catalogues import FAMILIES
from attnbench.console.scores_view import with_uncertainty
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.plugins import registry
from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import ProfileRow
from attnbench.report import TerminalTable
from attnbench.report.profile_tables import rows_table
from attnbench.report.tables import MISSING, Cell, Column, Row, Table, text_cell
from attnbench.specs import ProfileSpec

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def shown(renderable, width):
    """Return what a terminal of that width shows, without colours."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def words(text):
    """Return the words of a rendered table, frames left out."""
    return re.sub(r"[│┃]", " ", text).split()


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("kind", sorted(CATALOGUES))
def test_a_catalogue_breaks_between_words_only(kind, width):
    """Every name, sentence and file of a listing stands whole, and no line is wider than the terminal."""
    table = CATALOGUES[kind]()
    text = shown(table, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    found = set(words(text))
    for row in table.rows:
        for cell in row.cells:
            assert set(cell.text.split()) <= found, cell.text
    lines = text.splitlines()
    for name in (row.cells[0].text for row in table.rows):
        assert sum(re.match(rf"{re.escape(name)}(\s|$)", line) is not None for line in lines) == 1, name


def test_backends_stand_by_family_on_one_screen():
    """One line each at 120 columns, under the heading of its family; none is of no family."""
    table = catalogue("backends")
    lines = [line.rstrip() for line in shown(table, 120).splitlines()]
    headings = [line for line in lines if line in FAMILIES.values()]
    built_in = [f for f in FAMILIES if any(p.record.family == f for p in registry().backends.values())]
    assert headings == [FAMILIES[family] for family in built_in]
    assert "other" not in built_in
    start = lines.index(FAMILIES["sparse"])
    assert any(line.startswith("window ") for line in lines[start : lines.index(FAMILIES["linear"])])
    assert len(lines) == len(table.rows) + len(headings) + 5  # title, columns, a rule, and the note


def test_a_search_looks_through_sources_and_keeps_headings():
    """`attnbench list backends softmax mediators`: every word, in whatever case, in whatever column."""
    found = catalogue("backends", ["ARXIV:2408.05710"])
    assert [row.cells[0].text for row in found.rows] == ["mediators"]
    assert FAMILIES["dynamic"] in shown(found, 120)
    found = catalogue("backends", ["2204.07143", "sparse"])
    assert [row.cells[0].text for row in found.rows] == ["window"]
    with pytest.raises(UserInputError, match="has 'mamba' and 'nothing like it' in its name"):
        catalogue("backends", ["mamba", "nothing like it"])
    with pytest.raises(UnknownNameError, match="models"):
        catalogue("model")


ANYTHING = st.text(st.characters(codec="utf-8", exclude_characters="│┃"), max_size=90)


@given(rows=st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING), max_size=5), width=st.integers(40, 120))
def test_a_listing_of_any_text_keeps_to_its_width(rows, width):
    """Whatever a plugin says about itself: no line is too wide, no short word is cut, nothing is lost."""
    table = listing("anything", ("name", "what", "source"), rows)
    text = shown(table, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    found = set(words(text))
    for row in table.rows:
        for cell in row.cells[1:]:
            if cell.text != MISSING:
                assert {word for word in cell.text.split() if cell_len(word) <= 20} <= found


def test_in_a_file_an_entry_is_one_line():
    """With room for everything nothing stands below: one line per entry, so that grep finds all of it."""
    rows = [("softmax", "quadratic", "softmax attention as in DiT"), ("linear", "linear", "as in Sana")]
    lines = shown(listing("things", ("name", "in tokens", "summary"), rows), 200).splitlines()
    assert [tuple(line.rstrip().split(maxsplit=2)) for line in lines[3:]] == rows


MODELS = ("dit-s", "dynamic-measure-kernel-s", "mediators-dit-s")


def cost(model, resolution, **changes):
    """Return a row as a session gives it."""
    row = ProfileRow(
        model=model,
        resolution=resolution,
        tokens=(resolution // 16) ** 2,
        device="cpu",
        precision="fp32",
        batch_size=1,
        params=38_770_000,
        macs_paper=5_981_000_000,
        macs_published=5_980_000_000,
        macs_full=6_722_000_000,
        attention_macs=2_568_000_000,
        rounds=[Round(latency_ms=[123.456], cpu_time_ms=[120.0])] * 6,
        peak_memory_mib=488.0,
        extra_memory_mib=112.0,
    )
    return row.model_copy(update=changes)


TOO_LATE = "did not finish within 120 s (timeout_s)"
DIED = "the measuring process was killed by SIGKILL (which is how a system out of memory ends processes)"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_costs_fit_the_terminal(width):
    """Every model's name and every number stands whole, whatever the table is cut into."""
    rows = [cost(model, side) for model in MODELS for side in (256, 2048)]
    text = shown(TerminalTable(rows_table(rows, "Costs")), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    found = set(words(text))
    assert {
        *MODELS,
        "256",
        "2048",
        "38.77",
        "5.98",
        "5.9810",
        "6.722",
        "2.568",
        "123.5",
        "488",
        "112.0",
    } <= found


@pytest.mark.parametrize("width", [80, 200])
def test_what_was_not_measured_says_why(width):
    """The reason of every skipped and failed row stands below the table, and what gives a row more time."""
    gone = {"rounds": [], "peak_memory_mib": None, "extra_memory_mib": None}
    rows = [
        cost("dit-s", 256),
        cost("dit-s", 2048, status="skipped", reason=TOO_LATE, **gone),
        cost("sana-s", 2048, status="failed", reason=DIED, **gone),
    ]
    text = " ".join(words(shown(TerminalTable(rows_table(rows, "Costs")), width)))
    assert "2 of 3 rows could not be measured" in text
    assert f"dit-s at 2048 px: skipped: {TOO_LATE}" in text
    assert f"sana-s at 2048 px: failed: {DIED}" in text
    assert "--timeout-s gives a row more time" in text
    fine = " ".join(words(shown(TerminalTable(rows_table(rows[:1], "Costs")), width)))
    assert "could not be measured" not in fine
    assert "--timeout-s" not in fine


@pytest.mark.parametrize("width", [80, 200])
def test_a_long_remark_on_a_missing_number_stands_below_the_table(width):
    """It leaves the labels their room, and is told whole."""
    remark = "failed: the counts of multiply-adds differ by 0.31% (allowed 0.1%); correct the macs()"
    columns = Column(title="Case", numeric=False), Column(title="Latency", group="Cost")
    cells = text_cell("dig-s at guidance 1.5"), Cell(detail=remark)
    text = shown(TerminalTable(Table(title="t", columns=columns, rows=(Row(cells=cells),))), width)
    assert "dig-s at guidance 1.5" in text
    assert f"dig-s at guidance 1.5: Latency: {remark}" in " ".join(words(text))


def test_what_a_profile_may_take_is_said_before():
    """Rows and the longest time: 3 models at 4 resolutions of 120 s each are 24 minutes."""
    spec = ProfileSpec(resolutions=[256, 512, 1024, 2048])
    said = profile_announcement(3, spec, "cpu")
    assert "12 rows (3 models at 256, 512, 1024, 2048 px) on cpu" in said
    assert "at most 24 min of measuring (120 s a row, --timeout-s)" in said
    counted = profile_announcement(3, spec.model_copy(update={"measure": ["macs"]}), "cpu")
    assert "nothing is timed" in counted
    assert "at most" not in counted


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (91, "2 min"),
        (5400, "1.5 h"),
        (47.9 * 3600, "47.9 h"),
        (50 * 3600, "2.1 days"),
        (36 * 86_400, "36 days"),
        (400 * 86_400, "1.1 years"),
        (25_131 * 86_400, "69 years"),
    ],
)
def test_durations_are_in_the_unit_a_person_would_choose(seconds, said):
    """No 25131 days."""
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.0107812, 0.00437, 0.0041), ("0.0108", "± 0.0044", "std 0.0041")),
        ((153.21, 12.34), ("153", "± 12")),
        ((-0.00294, 0.00156), ("−0.0029", "± 0.0016")),
        ((1.0, 0.0), ("1.000", "± 0")),
        ((6.5234, None), ("6.523",)),
        ((float("nan"), float("nan")), ("nan",)),
    ],
)
def test_a_value_has_the_digits_of_its_interval(numbers, said):
    """Two digits of the interval, and the value to the same decimal."""
    assert with_uncertainty(*numbers) == said


@given(value=st.floats(-1e6, 1e6), half=st.floats(1e-6, 1e5))
def test_value_and_interval_end_in_the_same_decimal(value, half):
    """As many digits behind the point in both, and the interval is not rounded away."""
    shown_value, shown_half = with_uncertainty(value, half)
    decimals = [len(text.partition(".")[2]) for text in (shown_value, shown_half)]
    assert decimals[0] == decimals[1]
    assert float(shown_half.removeprefix("± ").replace(",", "")) == pytest.approx(half, rel=0.051)


@pytest.mark.parametrize("group", [(), ("samples",), ("weights",), ("reference",)])
def test_no_summary_of_a_command_is_cut(group, monkeypatch):
    """`--help` at 80 columns says each command's summary to its end."""
    monkeypatch.setenv("COLUMNS", "80")
    done = attnbench_here(*group, "--help")
    commands = done.stdout.partition("Commands:\n")[2].splitlines()
    assert commands
    for line in commands:
        assert line.endswith("."), line
        assert not line.endswith("..."), line
        assert len(line) <= 80


def test_a_real_terminal_of_80_columns(tmp_path):
    """Through a pseudo-terminal: names of suites stand whole, their files too, and no line is wider."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "attnbench.cli", "list", "suites"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env,
    )  # fmt: skip
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 2**16)
        except OSError:  # Linux says the other end is closed with an error
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = CONTROL.sub("", b"".join(pieces).decode()).replace("\r", "").splitlines()
    assert max(map(cell_len, lines)) <= 80
    from attnbench.suite.files import list_suites

    for suite in list_suites():
        assert any(line.split()[:1] == [suite.name] for line in lines), suite.name
        if len(str(suite.path)) <= 76:  # a checkout in a deep folder has longer ones
            assert any(line.strip() == str(suite.path) for line in lines), suite.path
