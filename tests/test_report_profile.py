"""A profile's tables, figures and page, from rows with known growth."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from profile_cases import SIDES, make_row
from report_cases import HOSTILE
from rich.console import Console

from attnbench.errors import UserInputError
from attnbench.models.macs import block_macs, macs_by_part
from attnbench.models.recipes import recipe
from attnbench.profiling.crossovers import crossovers
from attnbench.profiling.parts import BlockParts, BlockTimes, block_times
from attnbench.profiling.requested import block_parts, softmax_models
from attnbench.profiling.rows import ProfileRequest
from attnbench.profiling.scaling import scalings
from attnbench.report.drawing import colour, dash, marker
from attnbench.report.profile_figures import block_figure, cost_figure
from attnbench.report.profile_page import write_profile_report
from attnbench.report.profile_tables import rows_table, scaling_table
from attnbench.report.terminal import TerminalTable

CURVES = {
    "_softmax": lambda n: 1e-4 * n**2,
    "linear": lambda n: 0.1 * n,  # meets the first at 1000 tokens, 506 px
    "dear": lambda n: 10.0 * n,
    "cheap": lambda n: 1e-3 * n,
    "wavy": lambda n: 1e-4 * n**2 * {256: 0.5, 1024: 2.0, 4096: 2.0, 16384: 0.5}[n],
}


def rows(labels=tuple(CURVES), **changes):
    return [
        make_row(
            label,
            side,
            [curve((side // 16) ** 2)] * 6,
            macs_full=side**2,
            live_memory_mib=float(side),
            **changes,
        )
        for label, curve in zip(labels, CURVES.values(), strict=False)
        for side in SIDES
    ]


def table(kept, **options):
    return scaling_table(scalings(kept), crossovers(kept, ["_softmax"]), **options)


def column(found, title, unit=""):
    (i,) = [i for i, c in enumerate(found.columns) if (c.title, c.unit) == (title, unit)]
    return {row.cells[0].text: (row.cells[i].text, row.cells[i].detail) for row in found.rows}


def shown(found, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(TerminalTable(found))
    return console.export_text()


def test_exponents_and_crossovers_read_as_they_are():
    """Exponents with intervals; a crossover's side and tokens, or the word that says why there is none."""
    found = table(rows())
    assert column(found, "Time's exponent")["_softmax"] == ("2.00", "2.00 to 2.00")
    assert column(found, "Time's exponent")["linear"] == ("1.00", "1.00 to 1.00")
    assert column(found, "Memory's exponent")["linear"] == ("0.50", "")
    faster = column(found, "Faster from", "px")
    assert faster["_softmax"] == ("baseline", "")
    assert faster["linear"] == ("506", "506 to 506")
    assert (faster["dear"][0], faster["cheap"][0]) == ("never", "always")
    assert column(found, "Faster from", "tokens")["linear"] == ("1,000", "")
    notes = " ".join(found.notes)
    assert "wavy: its time crosses _softmax's 2 times, at 362, 1,448 px" in notes
    assert "measured from 256 to 2048 px" in notes
    assert "Baseline: _softmax." in notes
    assert "last two" not in " ".join(c.title for c in found.columns)
    assert column(table(rows(), last_sizes=True), "Time's, last two sizes")["linear"][0] == "1.00"


def test_growth_fits_eighty_columns():
    """One table of whole numbers where labels are short; where they are long nothing is wider, either."""
    text = shown(table(rows()))
    assert text.count("Model") == 1
    assert all(word in text for word in ("506 to 506", "2.00 to 2.00", "1,000", "baseline"))
    long = shown(table(rows(("_softmax", "a-label-of-thirty-five-letters-here"))))
    assert max(map(len, long.splitlines())) <= 80
    assert "506 to 506" in long


def test_what_was_left_out_is_said():
    """A row that failed stands below both tables with its reason, and in no number."""
    kept = [*rows(("_softmax", "linear")), make_row("linear", 4096, status="failed", reason="it\nburnt")]
    assert "Left out, for the reasons at the costs: linear at 4096 px." in table(kept).notes
    costs = rows_table(kept, "Costs")
    assert "  linear at 4096 px: failed: it burnt" in costs.notes
    assert [c.title for c in costs.columns][-3:] == ["MACs, full count", "Latency", "Live memory"]
    assert scaling_table([], []) is None


def test_a_ceiling_is_explained_and_a_disturbance_named():
    """A share of the ceiling stands with what bounds it; a disturbed latency says so beside its number."""
    one = make_row("m", 256, [2.0] * 6, ceiling_share=0.5, bound="memory", disturbed="others ran")
    costs = rows_table([one], "Costs")
    cells = {c.title: cell for c, cell in zip(costs.columns, costs.rows[0].cells, strict=True)}
    assert (cells["Of the ceiling"].text, cells["Of the ceiling"].detail) == ("50", "memory")
    assert cells["Latency"].detail == "2.000 to 2.000, disturbed"
    assert any(note.startswith("Disturbed, not ranked: m at 256 px: ") for note in costs.notes)
    assert any("weights once" in note for note in costs.notes)


def texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_costs_are_drawn_with_every_label():
    """Three panels, one series a model, labels as they are whatever they hold; crossovers have a legend."""
    labels = ("_softmax", HOSTILE[:30], "dear", "cheap", "wavy")
    kept = rows(labels)
    svg = cost_figure(kept, crossovers(kept, ["_softmax"]))
    words = texts(svg)
    assert {"time [ms]", "live memory [MiB]", "multiply-adds [G]", *labels} <= set(words)
    assert "less than the baseline from here" in words
    assert "less than the baseline from here" not in texts(cost_figure(kept))
    assert all(name.startswith("cost-") for name in re.findall(r' id="([^"]+)"', svg))
    assert cost_figure([row for row in kept if row.resolution == 256]) is None


def test_twenty_two_series_are_told_apart():
    """No two of 22 series share colour, line and marker; neighbours share none."""
    looks = [(colour(i), str(dash(i)), marker(i)) for i in range(22)]
    assert len(set(looks)) == 22
    assert all(a[0] != b[0] and a[2] != b[2] for a, b in itertools.pairwise(looks))


PARTS = BlockParts(
    model="_m", resolution=256, projections=3 * 10**9, core=10**9, feed_forward=5 * 10**9, modulation=10**9
)


def test_blocks_are_drawn_in_shares():
    """Segments carry their share of the bar; measured times stand beside where there are any."""
    times = [BlockTimes(model="_m", resolution=256, attention_ms=1.0, rest_ms=3.0)]
    words = texts(block_figure([PARTS], times))
    assert {"_m", "30%", "10%", "50%", "25%", "75%", "time of a block [ms]"} <= set(words)
    assert "time of a block [ms]" not in texts(block_figure([PARTS]))
    assert block_figure([]) is None


def test_a_block_is_the_sum_of_its_parts():
    """Parts by closed form add up to the blocks of the whole model's count, with routers and convolutions."""
    for name in ("dydi-lit-s", "dig-s", "dit-s"):
        config = recipe(name)
        found = block_parts(ProfileRequest(label="m", config=config, num_classes=10), 256)
        assert found.total == block_macs(config, 32, config.depth // 2).total.full
        assert (
            config.depth * found.total == macs_by_part(config, 32).blocks.full
        )  # all blocks of these are alike
    # DiT-S at 256 tokens: 4 N C^2, 2 N^2 C, 8 N C^2, 6 C^2
    n, c = 256, 384
    expected = (4 * n * c * c, 2 * n * n * c, 8 * n * c * c, 6 * c * c)
    assert (found.projections, found.core, found.feed_forward, found.modulation) == expected


def test_times_of_a_block_are_those_of_its_scopes():
    """The rest is block less attention; disturbed rows and an attention slower than its block say nothing."""
    timed = {"good": (2.0, 5.0, ""), "odd": (6.0, 5.0, ""), "spoilt": (2.0, 5.0, "others ran")}
    kept = [
        make_row(model, 256, [ms] * 6, scope=scope, disturbed=disturbed)
        for model, (inner, whole, disturbed) in timed.items()
        for scope, ms in (("attention", inner), ("block", whole))
    ]
    assert block_times(kept) == [BlockTimes(model="good", resolution=256, attention_ms=2.0, rest_ms=3.0)]


def test_softmax_models_are_the_baselines():
    """By what their blocks are, not by their names."""
    asked = [
        ProfileRequest(label=n, config=recipe(n), num_classes=1) for n in ("sana-s", "dit-s", "tiny-dit")
    ]
    assert softmax_models(asked) == ["dit-s", "tiny-dit"]


def test_page_holds_every_setting(tmp_path):
    """One section a setting, one figure each, blocks at the end; every link leads to a file."""
    kept = rows() + rows(batch_size=8) + rows(("_softmax", HOSTILE), scope="attention")
    page = write_profile_report(
        kept, tmp_path / "out", baselines=["_softmax"], parts=[PARTS], command="attnbench profile\n--res 256"
    )
    text = page.read_text()
    assert page == tmp_path / "out" / "profile.md"
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Forward pass of the model, batch 1, fp32, cpu, 1 thread",
        "Forward pass of the model, batch 8, fp32, cpu, 1 thread",
        "Forward pass of the attention, batch 1, fp32, cpu, 1 thread",
        "Where a block spends",
        "Reproduce",
    ]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links == [
        "figures/cost-1.svg",
        "figures/cost-2.svg",
        "figures/cost-3.svg",
        "figures/block-256.svg",
    ]
    for link in links:
        drawn = (page.parent / link).read_text()
        assert "background: #fff" in drawn
        ElementTree.fromstring(drawn)
    assert "<script>" not in text
    assert "| linear | 1.00 (1.00 to 1.00) |" in text
    assert "    attnbench profile --res 256" in text


def test_no_rows_are_no_page(tmp_path):
    """An empty profile is the user's error, and nothing is written."""
    with pytest.raises(UserInputError, match="no rows"):
        write_profile_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_page_needs_no_torch():
    """Reports read rows and import no torch."""
    code = "import sys, attnbench.report.profile_page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
