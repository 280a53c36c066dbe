"""The page in a real browser: explored by mouse and keyboard, whole without scripts, deaf to markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, chromium
from report_cases import HOSTILE, make_suite, with_measurement

from attnbench.report import write_report
from attnbench.report.charts import loss_chart, scaling_chart
from attnbench.report.content import Content, gather
from attnbench.report.drawing import MARKERS, PALETTE, distinct
from attnbench.report.grids import COLUMNS, GAP, read_grids
from attnbench.report.markdown import render_table
from attnbench.report.marks import OUTLINES
from attnbench.report.page import render
from attnbench.report.page.data import MOST_POINTS, page_json, style
from attnbench.report.pareto_chart import pareto_drawings
from attnbench.results import Measurement
from attnbench.stages.sampling.grid import GAP as WRITTEN_GAP
from attnbench.stages.sampling.grid import MAX_COLUMNS, write_grid

MARKUP = "<img src=x onerror='window.ran=1'><b>\u2028</script><script>window.ran=1</script>"
ROWS = "[...document.querySelector('table').querySelectorAll('tbody tr:not([hidden])')]"
EXPLORED = "document.documentElement.dataset.explored"
VENDOR = Path(__file__).parent.parent / "attnbench" / "report" / "page" / "vendor"
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")


def hostile_suite(folder: Path):
    """Return the made-up suite with grids as runs write them and markup for a plugin's measurements."""
    named = [Measurement(name=f"{MARKUP}{i}", values=[2.0], unit=MARKUP) for i in range(4)]
    results = make_suite()
    for i in range(len(results) - 1):
        images = np.random.default_rng(i).integers(0, 255, (40, 8, 8, 1), dtype=np.uint8)
        (folder / f"cases/{i}").mkdir(parents=True, exist_ok=True)
        write_grid(folder / f"cases/{i}/grid.png", images, num_columns=MAX_COLUMNS)
    return [with_measurement(result, *named) for result in results]


def gathered(results) -> Content:
    """Return what a report of these results says, without their grids."""
    return gather(Path("nowhere"), results, title="t", question="", command="attnbench run quick")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose suite, case and measurement are named in markup."""
    folder = tmp_path_factory.mktemp("run")
    return write_report(folder, hostile_suite(folder), f"suite {MARKUP}", f"why {MARKUP}?").html


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory):
    """One browser for all tests."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def tab(started: Browser, page: Path) -> Browser:
    """The page, freshly opened at 1280 pixels."""
    started.size(1280)
    started.open(page)
    started.wait(EXPLORED)
    return started


def rows(tab: Browser, column: int) -> list[str]:
    """Return one column's texts of the comparison, of the rows that are shown."""
    return tab.run(f"{ROWS}.map(row => row.cells[{column}].firstChild.textContent)")


def heading(tab: Browser, title: str) -> int:
    """Return the position of a column of the comparison."""
    names = tab.run("[...document.querySelector('table').tHead.rows[1].cells].map(c => c.textContent)")
    return next(i for i, name in enumerate(names) if name.startswith(title))


def set_series(tab: Browser, series: int) -> None:
    """Click a case's box among the cases shown."""
    tab.run(f"document.querySelectorAll('#chooser input[type=checkbox]')[{series}].click()")


@in_a_browser
def test_the_page_asks_for_nothing_and_complains_of_nothing(tab: Browser, page: Path) -> None:
    """No request but for itself and the images within, not a word on the console; names stay text."""
    tab.run("document.getElementById('figures').scrollIntoView()")
    tab.wait("document.querySelectorAll('.drawn').length === 4")
    assert {address for address in tab.requests if not address.startswith("data:image/png")} == {
        page.as_uri()
    }
    assert tab.complaints == []
    assert tab.run("document.querySelectorAll('b, img[src=x]').length") == 0
    labels = tab.run("[...document.querySelectorAll('#chooser li')].map(item => item.textContent)")
    assert HOSTILE in labels
    choices = tab.run("[...document.querySelectorAll('.columns li')].map(item => item.textContent)")
    assert any(choice.startswith("<img src=x onerror='window.ran=1'><b>") for choice in choices)
    assert tab.run("document.body.textContent").count("<img src=x onerror='window.ran=1'><b>") >= 3
    assert tab.run("typeof window.ran") == "undefined"


@in_a_browser
def test_markup_could_not_run_if_it_got_in(tab: Browser) -> None:
    """The page's policy knows its scripts by their hashes: handlers and other scripts are refused."""
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">')")
    tab.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    time.sleep(0.1)
    assert tab.run("typeof window.ran") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@in_a_browser
def test_a_column_sorts_by_keyboard_and_says_so(tab: Browser) -> None:
    """First the better end, then the other, then as written; what is missing and the floor stay below."""
    column = heading(tab, "FD-digits")
    written = rows(tab, column)
    numbers = sorted((text for text in written[:-1] if text != "–"), key=float)
    head = f"document.querySelector('table').tHead.rows[1].cells[{column}]"
    tab.run(f"{head}.firstChild.focus()")
    tab.press("Enter")
    assert rows(tab, column) == [*numbers, "–", written[-1]]
    assert tab.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert "sorted by FD-digits" in tab.run("document.getElementById('said').textContent")
    tab.press(" ")
    assert rows(tab, column) == [*numbers[::-1], "–", written[-1]]
    tab.press("Enter")
    assert rows(tab, column) == written
    assert tab.run(f"{head}.getAttribute('aria-sort')") is None


@in_a_browser
def test_rows_are_filtered_and_columns_chosen(tab: Browser) -> None:
    """Typing leaves the rows that hold the words; a column that is not wanted goes with its cells."""
    tab.run(
        "(box => { box.value = 'DyDiLA'; box.dispatchEvent(new Event('input')) })"
        "(document.querySelector('main input[type=search]'))"
    )
    left = tab.run(f"{ROWS}.map(row => row.cells[0].textContent)")
    beginnings = ["dydila(mode=token)", "dydila(mode=map)", "real held-out images (floor)"]
    assert [text[: len(begun)] for text, begun in zip(left, beginnings, strict=True)] == beginnings
    column = heading(tab, "KD-digits")
    bands = "[...document.querySelector('table').tHead.rows[0].cells]"
    band = f"{bands}.find(cell => cell.textContent === 'Quality').colSpan"
    before = tab.run(band)
    tab.run(f"document.querySelectorAll('.columns')[0].querySelectorAll('input')[{column - 1}].click()")
    hidden = f"[...document.querySelector('table').querySelectorAll('tr > :nth-child({column + 1})')]"
    assert tab.run(f"{hidden}.filter(c => !c.closest('tr').querySelector('.group')).every(c => c.hidden)")
    assert tab.run(band) == before - 1


@in_a_browser
def test_a_case_is_hidden_everywhere_at_once(tab: Browser) -> None:
    """Its row in every table, its line in every chart, its sample and its grid; and back again."""
    tab.run("document.getElementById('figures').scrollIntoView()")
    tab.wait("document.querySelectorAll('.drawn').length === 4")

    def shown() -> list[int]:
        counts = (
            "[...document.querySelectorAll('tr[data-series=\"1\"]')].filter(row => !row.hidden).length",
            "document.querySelectorAll('.drawn .series-1').length",
            "[...document.querySelectorAll('.tiles figure')].filter(tile => !tile.hidden).length",
        )
        return [tab.run(count) for count in counts]

    before = shown()
    assert all(before)
    set_series(tab, 1)
    assert shown() == [0, 0, before[2] - 1]
    assert tab.run("document.getElementById('said').textContent") == "6 of 7 cases shown"
    set_series(tab, 1)
    assert shown() == before


@in_a_browser
def test_pointing_at_a_mark_tells_its_values(tab: Browser) -> None:
    """The case, and both quantities with their units."""
    tab.run("document.querySelector('[data-chart^=pareto-latency]').scrollIntoView({block: 'center'})")
    tab.wait("document.querySelector('[data-chart^=pareto-latency] .series-2 path')")
    mark = "document.querySelector('[data-chart^=pareto-latency] .series-2 path').getBoundingClientRect()"
    x, y = tab.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({mark})")
    tab.move(x, y)
    tip = "[...document.querySelectorAll('[data-chart^=pareto-latency] [aria-label=tip] tspan')]"
    tab.wait(f"{tip}.length")
    told = tab.run(f"{tip}.map(line => line.textContent.trim()).join('|')")
    assert "focused" in told
    assert re.search(r"Latency: [\d.]+ ms", told)
    assert "FD-digits: 11" in told


@in_a_browser
def test_the_same_sample_of_every_model_is_cut_out(tab: Browser, page: Path) -> None:
    """Class 3, image 5 is shown as the run's grids have it."""
    tab.run("document.getElementById('browser').scrollIntoView()")
    for which, number in ((0, 3), (1, 5)):
        box = f"document.querySelectorAll('#browser input')[{which}]"
        tab.run(f"{box}.value = {number}; {box}.dispatchEvent(new Event('input'))")
    tab.wait("document.querySelector('.tiles canvas').width === 48")
    tiles = "[...document.querySelectorAll('.tiles canvas')]"
    pixel = f"{tiles}.map(tile => tile.getContext('2d').getImageData(8, 14, 1, 1).data[0])"
    tab.wait(f"{pixel}.some(Boolean)")
    images = [np.random.default_rng(i).integers(0, 255, (40, 8, 8, 1), dtype=np.uint8) for i in range(6)]
    assert tab.run(pixel) == [int(image[2 * MAX_COLUMNS + 4, 2, 1, 0]) for image in images]


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_column_hides_without_a_sign(started: Browser, page: Path, width: int) -> None:
    """The page itself never scrolls sideways; a table that does has a shadow, and its first column stays."""
    started.size(width, 20_000)  # tables below the window are not laid out
    started.open(page)
    started.wait(EXPLORED)
    assert started.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 1)"
    started.wait(f"{wide}.every(s => s.parentElement.classList.contains('more'))")
    if width == 390:
        place = (
            f"{wide}.map(s => (s.scrollLeft = 150, s.querySelector('tbody th')"
            ".getBoundingClientRect().left - s.getBoundingClientRect().left))"
        )
        assert all(left <= 2 for left in started.run(place))
        assert started.run(f"{wide}.length")


@in_a_browser
def test_without_scripts_the_page_is_whole(started: Browser, page: Path) -> None:
    """Tables and drawings stand there, and no control that would do nothing."""
    started.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        started.open(page)
        count = {
            selector: started.run(f"document.querySelectorAll('{selector}').length")
            for selector in ("svg[role=img]", "table", "button, input, [role=button]", "#chooser > *")
        }
    finally:
        started.send("Emulation.setScriptExecutionDisabled", value=False)
    assert count["svg[role=img]"] == 4
    assert count["table"] >= 6
    assert count["button, input, [role=button]"] == count["#chooser > *"] == 0


@in_a_browser
def test_the_first_stop_of_the_keyboard_skips_to_the_comparison(tab: Browser) -> None:
    """And every table has a caption for those who hear it."""
    tab.press("Tab")
    assert tab.run("document.activeElement.getAttribute('href')") == "#comparison"
    assert tab.run("[...document.querySelectorAll('table')].every(table => table.caption.textContent)")


def test_the_page_is_self_contained(page: Path) -> None:
    """No script of another place, no frame, no address but those within the page and data URIs."""
    html = page.read_text()
    without_scripts = re.sub(r"(<script[^>]*>).*?</script>", r"\1", html, flags=re.DOTALL)
    assert set(re.findall(r"<script[^>]*>", without_scripts)) == {
        "<script>", '<script type="application/json" id="data">',
    }  # fmt: skip
    assert not re.search(r"<(iframe|object|embed|link|base|form)\b", without_scripts)
    addresses = re.findall(r'\b(?:src|href|action|srcset)="([^"]*)"', without_scripts)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert "url(http" not in html
    assert "@import" not in html


def test_the_policy_names_each_script(page: Path) -> None:
    """What a browser may run is what stands in the page, byte for byte."""
    html = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "unsafe-eval" not in policy[1]
    assert "script-src 'unsafe" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy[1]) == hashes
    assert len(hashes) == 3


def test_third_party_scripts_are_the_published_ones() -> None:
    """Their sums are those the table beside them states, and their licences lie there."""
    text = (VENDOR / "README.md").read_text()
    stated = dict(re.findall(r"^\| `(\S+)` .*`([0-9a-f]{64})` \|$", text, flags=re.MULTILINE))
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in VENDOR.glob("*.js")}
    assert stated == found
    assert all((VENDOR / f"{name.split('.')[0]}.LICENSE").is_file() for name in found)


def test_data_in_the_page_cannot_end_its_script(page: Path) -> None:
    """Whatever a label holds, the JSON has no angle bracket and reads back as it was."""
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert data is not None
    assert not re.search("[<>&\u2028]", data[1])
    assert HOSTILE in [series["label"] for series in json.loads(data[1])["series"]]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_sorted_as_missing(value: float) -> None:
    """Scripts cannot compare `inf` and `nan` as Python spells them."""
    diverged = with_measurement(make_suite()[0], Measurement(name="x", values=[value], better="lower"))
    text = render(gathered([diverged, *make_suite()[1:]]))
    assert re.search(r"<td[^>]*>(inf|nan|–)", text)
    assert not re.search(r'data-value="-?(inf|nan)"', text)


def test_grids_are_cut_as_the_stage_lays_them_out(tmp_path: Path) -> None:
    """Five rows of eight images, with the stage's own gap; another picture is not cut."""
    assert (COLUMNS, GAP) == (MAX_COLUMNS, WRITTEN_GAP)
    grids = read_grids(tmp_path, hostile_suite(tmp_path))
    assert {(grid.columns, grid.rows, grid.by_class) for grid in grids} == {(8, 5, True)}
    results = make_suite(tmp_path)
    assert {grid.columns for grid in read_grids(tmp_path, results)} == {0}


def test_many_series_are_told_apart() -> None:
    """No two of 28 lines share mark and dash, no two of 56 points colour and mark; marks have shapes."""
    looks = [style(i) for i in range(56)]
    assert len({(look["mark"], look["dash"]) for look in looks[:28]}) == 28
    assert len({(look["colour"], look["mark"]) for look in looks}) == len(PALETTE) * len(MARKERS) == 56
    assert set(OUTLINES) == set(MARKERS)


def test_long_labels_stay_different() -> None:
    """Labels that begin alike lose their middle, those that also end alike get a number; the same stay so."""
    stem = "dydila(mode=token, kernel=dynamic, num_kernels="
    ends = [
        f"{stem}9)",
        f"{stem}5)",
        "softmax",
        f"{stem}{'x' * 40}1{'y' * 30})",
        f"{stem}{'x' * 40}2{'y' * 30})",
    ]
    shown = distinct([*ends, "softmax"])
    assert len(set(shown)) == len(ends)
    assert max(map(len, shown)) <= 34
    assert shown[2] == shown[5] == "softmax"


def test_charts_hold_what_the_results_hold() -> None:
    """The front of a trade-off is what no other case beats; scaling needs two sides."""
    results = make_suite()
    (drawn,) = pareto_drawings(results, ["latency"])
    chart = drawn.chart
    assert chart is not None
    assert chart.front == (chart.lines[0].points[0],)  # the first case is the best and the fastest
    assert [line.series for line in chart.lines] == [0, 1, 2, 3, 4, 5]  # the failed one is no point
    assert scaling_chart(results) is None
    larger = Measurement(name="latency_ms@16", values=[9.0])
    scaling = scaling_chart([with_measurement(results[0], larger), results[1]])
    assert scaling is not None
    assert [[x for x, _ in line.points] for line in scaling.lines] == [[8, 16]]


def test_long_curves_are_thinned_on_the_page() -> None:
    """Of a thousand points two hundred are shown, the first and the last among them."""
    curve = [(float(step), 1 / step) for step in range(1, 1001)]
    result = make_suite()[0].model_copy(update={"curves": {"loss": curve}})
    chart = loss_chart([result])
    content = gathered([result])
    figures = [replace(content.figures[0], chart=chart)]
    lines = json.loads(page_json(replace(content, figures=figures)))["charts"]["loss"]["lines"]
    assert len(lines[0]["points"]) == MOST_POINTS
    assert (lines[0]["points"][0], lines[0]["points"][-1]) == ([1, 1], [1000, 0.001])


def test_seeds_of_one_configuration_look_alike_and_are_chosen_together() -> None:
    """Cases that differ by seed alone share colour, dash and mark, and one box hides all of them."""
    results = [
        make_suite()[i].model_copy(
            update={"label": f"{name} · seed={seed}", "axes": {"seed": str(seed)}, "case_id": f"{i}{seed}",
                    "case": {"seed": seed, "model": {"depth": 4 + i}}}
        )
        for i, name in enumerate(("a", "b")) for seed in (0, 1)
    ]  # fmt: skip
    data = json.loads(page_json(gathered(results)))
    assert data["choices"] == [{"label": "a", "series": [0, 1]}, {"label": "b", "series": [2, 3]}]
    looks = [(series["colour"], series["dash"], series["mark"]) for series in data["series"]]
    assert looks[0] == looks[1] != looks[2] == looks[3]


def test_marks_of_footnotes_are_raised() -> None:
    """A cell's marks stand behind its text, smaller and higher, in Markdown and on the page."""
    results = make_suite()
    content = gathered(results)
    row = content.comparison.rows[0]
    cells = (row.cells[0], replace(row.cells[1], text="1.5", detail="", marks="a, <b>"), *row.cells[2:])
    table = replace(content.comparison, rows=(replace(row, cells=cells),))
    assert "| 1.5<sup>a, &#60;b&#62;</sup> |" in render_table(table)
    assert "1.5<sup>a, &lt;b&gt;</sup></td>" in render(replace(content, comparison=table))
