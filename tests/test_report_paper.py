"""The paper's tables: every printed number, what is measured beside it, and nothing chosen in silence."""

from __future__ import annotations

import itertools
import math
import re
from importlib import resources

import pytest
from command_line import ROOT
from paper_cases import SHIFTS, full_run, paper_result
from scipy.stats import permutation_test, spearmanr

from attnbench.backends.dydila import DyDiLAOptions
from attnbench.models.published import TABLES, recipes_of
from attnbench.models.recipes import load_recipes
from attnbench.plugins import registry
from attnbench.report.paper.filling import fill
from attnbench.report.paper.layout import layout_table
from attnbench.report.paper.published import METRICS, paper_table, published
from attnbench.report.paper.ranks import rank_agreement
from attnbench.report.paper.rows import DEFAULTS
from attnbench.report.tables import MISSING, Row, Table
from attnbench.results import Measurement
from attnbench.storage.run_folders import read_run

DIGITS = next((ROOT / "reports" / "digits_all").iterdir())
COLUMNS = {  # of one guidance scale, as printed
    "table1": "FID sFID KID sKID IS P% R%", "table3": "FID sFID IS P R", "table8": "FID sFID IS P% R%",
}  # fmt: skip
SHAPES = {  # rows, guidance scales, whether GFLOPs are the last column
    "table1": (18, "1.0 4.0", True), "table2": (6, "1.0 4.0", True), "table3": (7, "1.0 1.5 4.0", False),
    "table4": (6, "4.0", False), "table5": (2, "4.0", True), "table6": (2, "4.0", False),
    "table7": (6, "2.0 3.0", True), "table8": (3, "1.25 2.0 3.0", False),
}  # fmt: skip


def laid_out(name: str, *runs: list) -> Table:
    """Return a layout of runs called `run 1`, `run 2`, ..."""
    named = {f"run {number}": results for number, results in enumerate(runs, 1)}
    return layout_table(fill(paper_table(name), named), name)


def rows_called(table: Table, values: str) -> list[Row]:
    """Return the rows whose second cell begins with a word."""
    return [row for row in table.rows if row.cells[1].text.startswith(values)]


def cell(table: Table, model: str, values: str, group: str, title: str):
    """Return one cell by row and column."""
    at = next(i for i, c in enumerate(table.columns) if (c.group, c.title) == (group, title))
    (row,) = [r for r in rows_called(table, values) if r.cells[0].text == model]
    return row.cells[at]


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_stands_in_its_place(name: str) -> None:
    """Shape, headings and numbers, rounded here from the file by a rule of its own."""
    table, (rows, scales, gflops) = laid_out(name, full_run(name)), SHAPES[name]
    metrics = COLUMNS.get(name, COLUMNS["table1"]).split()
    assert [(c.group, c.title) for c in table.columns] == [
        ("", "Model"), ("", "Values"),
        *((f"CFG={scale}", metric) for scale in scales.split() for metric in metrics),
        *([("", "GFLOPs")] if gflops else []),
    ]  # fmt: skip
    shown = rows_called(table, "published")
    assert len(shown) == rows
    for row, printed in zip(shown, published().tables[name].rows, strict=True):
        values = [value for scale in printed.cfg.values() for value in scale] + [printed.gflops] * gflops
        decimals = [4 if "KID" in metric else 2 for metric in metrics] * len(printed.cfg) + [2] * gflops
        expected = [MISSING if v is None else f"{v:.{d}f}" for v, d in zip(values, decimals, strict=True)]
        assert [c.text for c in row.cells] == [printed.title, "published", *expected]


def test_some_numbers_by_hand() -> None:
    """Read off the paper, not off the file."""
    table = laid_out("table1", full_run("table1"))
    assert cell(table, "DyDi-LiT-L", "published", "CFG=4.0", "FID").text == "20.03"
    assert cell(table, "Sana-B", "published", "CFG=1.0", "KID").text == "0.0696"
    assert cell(table, "DiG-L", "published", "", "GFLOPs").text == "23.58"
    three = laid_out("table3", full_run("table3"))
    assert cell(three, "DiT-S", "published", "CFG=1.0", "FID").text == "68.40"
    assert cell(three, "DiT-S*", "published", "CFG=1.5", "P").text == "0.47"
    eight = laid_out("table8", full_run("table8"))
    assert cell(eight, "Sana-S*", "published", "CFG=1.25", "R%").text == "53.29"


def test_bold_is_the_best_of_a_size() -> None:
    """Ties are both bold; costs never are."""
    table = laid_out("table1", full_run("table1"))
    bold = {(r.cells[0].text, table.columns[i].group, table.columns[i].title)
            for r in rows_called(table, "published") for i, c in enumerate(r.cells) if c.best}  # fmt: skip
    assert ("DyDi-LiT-S", "CFG=1.0", "FID") in bold
    assert ("DiT-S", "CFG=4.0", "R%") in bold  # 28.23, above DyDi-LiT-S's 20.93
    assert {m for m, g, t in bold if (g, t) == ("CFG=4.0", "sKID")} == {
        "DyDi-LiT-S", "DiT-B", "DyDi-LiT-B", "DiT-L", "DyDi-LiT-L",
    }  # fmt: skip
    assert not {b for b in bold if b[2] == "GFLOPs"}


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_recipes_and_gflops_are_theirs(name: str) -> None:
    """The file and the recipes' own `published` agree, whichever is edited."""
    table, recipes = paper_table(name), load_recipes()
    assert {row.recipe for row in table.rows} == set(recipes_of(name))
    for row in table.rows:
        assert recipes[row.recipe].published[name] == row.gflops
        assert recipes[row.recipe].size == row.size


def test_a_number_that_two_tables_print_is_one_number() -> None:
    """Sana-S and DyDi-LiT-S at guidance 4 stand in Tables 1 and 4, the fifth rung in 4, 5 and 6."""
    seen: dict[tuple[str, str, str], list[float | None]] = {}
    for name in ("table1", "table4", "table5", "table6", "table7"):
        for row, scale in ((r, s) for r in paper_table(name).rows for s in r.cfg):
            assert (
                seen.setdefault((row.recipe, scale, paper_table(name).dataset), row.cfg[scale])
                == row.cfg[scale]
            )
    assert len(seen) == 36 + 4 + 2 + 12  # rungs 2 to 5; map-wise and increasing; six systems at 2 and 3


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        ("table1", "subin_256"),
        ("table2", "subin_512"),
        ("table3", "imagenet_256"),
        ("table8", "table8_guidance"),
    ],
)
def test_protocol_is_what_the_shipped_suites_run(name: str, suite: str) -> None:
    """The settings that a run is held against are those of the suite for that table."""
    from attnbench.suite.loading import load_suite

    case = load_suite(suite, []).cases[0].model_dump(mode="json")
    for key, value in paper_table(name).protocol.items():
        section, setting = key.split(".")
        assert case[section][setting] == value, key


def test_defaults_that_tell_rows_apart_are_the_backends() -> None:
    """Reports read them without torch, so that they stand twice."""
    for name, options in DEFAULTS.items():
        fields = registry().backend(name).options.model_fields
        assert {key: fields[key].default for key in options} == options, name


def test_published_file_is_shipped_and_names_its_source() -> None:
    """The package needs no other file."""
    assert resources.files("attnbench.report.paper").joinpath("published.json").is_file()
    assert "arXiv:2601.13683" in published().source


@pytest.mark.parametrize("name", TABLES)
def test_differences_of_a_full_run_are_the_known_shifts(name: str) -> None:
    """Measured is published plus a shift: each difference is that shift, in the paper's rounding."""
    table = laid_out(name, full_run(name))
    source = paper_table(name)
    keys = [*source.metrics * len(source.scales)]
    # of the two rows of DiT-S in Table 3 the run is the replicated one's
    own = [
        row
        for row in rows_called(table, "difference")
        if not (name == "table3" and row.cells[0].text == "DiT-S")
    ]
    assert len(own) == len(source.rows) - (name == "table3")
    for row in own:
        for key, shown in zip(keys, row.cells[2:], strict=False):
            if shown.value is None:  # nothing printed to differ from
                continue
            metric = METRICS[key]
            assert shown.text == f"{SHIFTS[key]:+.{metric.decimals}f}".replace("-", "−")
    assert not [note for note in table.notes if "Not in this table" in note or "Not as the paper" in note]


def test_several_runs_fill_one_table_and_the_rest_is_not_run() -> None:
    """Small models of one run, one base model of another; everything else says so."""
    small = [r for r in full_run("table1") if r.axes["recipe"].endswith("-s")]
    base = [r for r in full_run("table1") if r.axes["recipe"] == "dit-b"]
    table = laid_out("table1", small, base)
    assert cell(table, "DiT-B", "difference", "CFG=1.0", "FID").text == "+1.25"
    assert cell(table, "DiT-L", "measured", "CFG=1.0", "FID").text == "not run"
    assert sum(c.text == "not run" for row in table.rows for c in row.cells) == 11 * 15


def test_means_over_seeds_with_their_test() -> None:
    """The mean, its spread, an interval on the difference; bold only where seeds tell two rows apart."""
    runs = []
    for seed in range(3):
        noise = {key: shift + 0.3 * (seed - 1) for key, shift in SHIFTS.items()}  # the same in every row
        run = full_run("table4", noise, seed)
        rest = Measurement(name="FID", values=[25.73 + 0.3 * (seed - 1) + 0.02 * (-1) ** seed], n=30000)
        kept = [m for m in run[-1].measurements if m.name != "FID"]
        run[-1] = run[-1].model_copy(update={"measurements": [rest, *kept]})
        runs.append(run)
    table = laid_out("table4", list(itertools.chain(*runs)))
    measured = cell(table, "Sana-S", "measured", "CFG=4.0", "FID")
    assert (measured.text, measured.detail) == ("29.25", "± 0.30")
    difference = cell(table, "Sana-S", "difference", "CFG=4.0", "FID")
    # t interval of 3 values of spread 0.3: 4.3027 * 0.3 / sqrt(3) = 0.745
    assert (difference.text, difference.detail) == ("+1.25", "+0.50 to +2.00")
    assert rows_called(table, "measured")[0].cells[1].text == "measured, mean of 3 seeds"
    assert cell(table, "+reparameterization", "measured", "CFG=4.0", "FID").best
    # by constant shifts the seeds change nothing but the level: no residual, nothing to test with
    assert not cell(table, "+reparameterization", "measured", "CFG=4.0", "P%").best
    assert any("paired by seed" in note for note in table.notes)


def test_one_seed_makes_no_measured_value_bold() -> None:
    """The spread between seeds is unknown, and that is said."""
    table = laid_out("table4", full_run("table4"))
    assert not [c for row in rows_called(table, "measured") for c in row.cells if c.best]
    assert any(note.startswith("One seed per measured value") for note in table.notes)


def test_two_settings_for_one_cell_are_told_not_chosen() -> None:
    """Neither number is shown; the note names both cases and what differs."""
    run = full_run("table6")
    other = paper_result("token-differential-s", "table6", "4.0", {"fid": 99.0}, train={"steps": 50_000})
    table = laid_out("table6", run, [other])
    shown = cell(table, "Initialization to 0.01 (Default)", "measured", "CFG=4.0", "FID")
    assert (shown.text, shown.value) == ("several", None)
    (note,) = [note for note in table.notes if note.startswith(f"{shown.marks}: ")]
    assert "they differ in train.steps" in note
    assert "run 1: token-differential-s" in note
    assert "run 2: token-differential-s" in note
    assert "99" not in str(table.rows)


def test_one_case_in_two_runs_counts_once_unless_its_numbers_differ() -> None:
    """Suites share cases; the same case with other numbers is said."""
    run = full_run("table6")
    assert laid_out("table6", run, run[:1]).rows == laid_out("table6", run).rows
    twice = [run[0].model_copy(update={"measurements": [Measurement(name="FID", values=[31.0], n=30000)]})]
    shown = laid_out("table6", run, twice)
    assert cell(shown, "Increasing initialization", "measured", "CFG=4.0", "FID").text == "several"
    assert any("seed 0 was measured twice, with different results" in note for note in shown.notes)


def test_departures_from_the_paper_are_footnoted() -> None:
    """Other steps, another depth: still in its row, and said."""
    depth = {"depth": 6}
    short = paper_result(
        "dit-s", "table1", "4.0", {"fid": 40.0}, train={"steps": 1000}, model={**recipe_of("dit-s"), **depth}
    )
    table = laid_out("table1", [short])
    assert cell(table, "DiT-S", "difference", "CFG=4.0", "FID").text == "+4.71"
    assert any("train.steps 1,000 for 100,600" in note for note in table.notes)
    assert any("model.depth 6 for 12" in note for note in table.notes)


def test_another_number_of_images_has_no_difference() -> None:
    """The distance depends on n."""
    table = laid_out("table1", [paper_result("dit-s", "table1", "4.0", {"fid": 40.0}, n=1000)])
    shown = cell(table, "DiT-S", "difference", "CFG=4.0", "FID")
    assert shown.value is None
    assert any(note.startswith(f"{shown.marks}: measured on 1,000 images") for note in table.notes)


def test_another_attention_is_not_the_recipes_row() -> None:
    """dit-s with linear attention is not DiT-S; beside Sana-S it stands by its attention, no difference."""
    model = {**recipe_of("dit-s"), "attention": {"name": "linear", "options": {}}}
    table = laid_out("table1", [paper_result("dit-s", "table1", "4.0", {"fid": 40.0}, model=model)])
    assert cell(table, "Sana-S", "prepared 256 px", "CFG=4.0", "FID").text == "40.00"
    assert not rows_called(table, "difference")


def test_sana_1_5_leaves_sanas_row_to_sana() -> None:
    """Both are linear attention; the norms of queries and keys are in no recipe of the paper."""
    run = []
    for place, norm in enumerate((True, False)):
        model = {**recipe_of("tiny-dit"), "attention": {"name": "linear", "options": {"qk_norm": norm}}}
        one = paper_result("tiny-dit", "table1", "4.0", {"fid": 10.0 + place}, model=model)
        run.append(one.model_copy(update={"label": "sana-1.5" if norm else "linear"}))
    table = laid_out("table1", run)
    assert cell(table, "Sana-S", "prepared 256 px", "CFG=4.0", "FID").value == 11
    assert any("sana-1.5" in note and "more like that of Sana-S" in note for note in table.notes)


def test_of_several_attentions_the_one_most_like_the_rows_recipe_stands_in_it() -> None:
    """Of three token-wise rungs Table 5 takes that of its recipe, whatever their order, and names the others.

    An option that the recipe leaves at its default counts: an increasing lambda is not Table 5's.
    """
    rungs = {"rung": {"dwc": "single"}, "increasing": {"dwc": "single", "lambda_init": 0.2},
             "reparameterised": {}, "map": {"mode": "map"}}  # fmt: skip
    defaults = {key: DyDiLAOptions.model_fields[key].default for key in DEFAULTS["dydila"]}
    for order in itertools.permutations(rungs):
        run = []
        for seed, (place, label) in itertools.product((0, 1), enumerate(order)):
            attention = {"name": "dydila", "options": {**defaults, **rungs[label]}}
            model = {**recipe_of("tiny-dit"), "attention": attention}
            one = paper_result("tiny-dit", "table5", "4.0", {"fid": 10.0 + place}, seed=seed, model=model)
            named = f"{label} · seed={seed}" if seed else label
            run.append(one.model_copy(update={"label": named}))
        table = laid_out("table5", run)
        shown = cell(table, "Token-wise paradigm (Default)", "prepared 256 px", "CFG=4.0", "FID")
        assert shown.value == 10 + order.index("rung")
        (note,) = (n for n in table.notes if "more like that of Token-wise paradigm" in n)
        assert "increasing (2 seeds)" in note.replace("run 1: ", "")
        assert "reparameterised (2 seeds)" in note.replace("run 1: ", "")


def test_failed_cases_say_so() -> None:
    """A failure is no hole."""
    failed = full_run("table6")[0].model_copy(
        update={"status": "failed", "reason": "NaN", "measurements": []}
    )
    table = laid_out("table6", [failed])
    shown = cell(table, "Increasing initialization", "measured", "CFG=4.0", "FID")
    assert shown.text == "failed"
    assert any("failed: NaN" in note for note in table.notes)


def test_rows_of_a_line_that_are_not_alike_are_told() -> None:
    """DiG trains in fp32 in the paper, too; the reader is told."""
    run = full_run("table7")
    dig = [i for i, r in enumerate(run) if r.axes["recipe"] == "dig-s"]
    for i in dig:
        run[i] = run[i].model_copy(
            update={"case": {**run[i].case, "train": {**run[i].case["train"], "precision": "fp32"}}}
        )
    notes = laid_out("table7", run).notes
    assert any(
        re.search(r"rows differ in train\.precision: bf16 \(10 cases\), fp32 \(run 1: dig-s", n)
        for n in notes
    )


@pytest.mark.parametrize(
    ("name", "filled"),
    [
        ("table1", {"DiT-S", "DiG-S", "PixArt-Sigma-S", "EDiT-S", "Sana-S", "DyDi-LiT-S"}),
        ("table4", {"Sana-S", "+reparameterization"}),
        ("table5", {"Attention map-wise paradigm", "Token-wise paradigm (Default)"}),
        ("table6", {"Initialization to 0.01 (Default)"}),
    ],
)
def test_digits_fill_the_rows_of_their_attentions(name: str, filled: set[str]) -> None:
    """Under their own metric names, without difference; ranks only from six rows on."""
    table = laid_out(name, list(read_run(DIGITS, DIGITS).results))
    rows = [row for row in rows_called(table, "digits 8 px, CFG=2.0") if row.status == "ok"]
    assert {row.cells[0].text for row in rows if row.cells[2].value is not None} == filled
    assert table.columns[2].small_print == "measured: FD-digits-cnn"
    assert not rows_called(table, "difference")
    ranks = [row for row in table.rows if row.status == "floor"]
    assert bool(ranks) == (len(filled) >= 6)
    assert bool(ranks) or len(filled) == 1 or any("fewer than 6" in note for note in table.notes)


def test_ranks_agree_with_scipy() -> None:
    """Correlation and exact p value, with a tie."""
    x, y = [111.85, 129.04, 121.15, 118.46, 103.74, 94.08], [1.1, 1.3, 1.2, 1.1, 1.0, 1.4]
    exact = permutation_test(
        (y,), lambda order: spearmanr(x, order).statistic, permutation_type="pairings", n_resamples=math.inf
    )
    assert rank_agreement(x, y) == pytest.approx((exact.statistic, exact.pvalue))
    assert rank_agreement(x[:5], y[:5]) is None
    assert rank_agreement(x, [1.0] * 6) is None
    long = list(range(12)), [3, 1, 2, 0, 5, 4, 7, 6, 9, 8, 11, 10]
    assert rank_agreement(*long) == pytest.approx(tuple(spearmanr(*long)))


def recipe_of(name: str) -> dict:
    """Return a recipe as a case stores it."""
    return load_recipes()[name].model_dump(mode="json")


def test_a_mean_ahead_only_by_a_seed_that_the_other_lacks_is_not_bold() -> None:
    """Seeds 0 and 1 say the second is lower, for sure; the first leads by its seed 2 alone."""
    first, second = (row.recipe for row in paper_table("table5").rows)
    values = [(first, (10.0, 10.1, 2.0)), (second, (9.0, 9.11))]
    results = [
        paper_result(name, "table5", "4.0", {"fid": value}, seed)
        for name, of_seeds in values
        for seed, value in enumerate(of_seeds)
    ]
    measured = rows_called(laid_out("table5", results), "measured")
    assert [row.cells[2].text for row in measured] == ["7.37", "9.05"]
    assert not any(cell.best for row in measured for cell in row.cells)


def test_the_degrees_of_freedom_are_of_the_rows_that_ran() -> None:
    """Two of the six rows of Table 4: (2 - 1) x (3 - 1), not (6 - 1) x (3 - 1)."""
    names = ("sana-s", "dydi-lit-s")
    results = [r for seed in range(3) for r in full_run("table4", SHIFTS, seed) if r.axes["recipe"] in names]
    (note,) = [note for note in laid_out("table4", results).notes if note.startswith("Measured:")]
    assert "pooled over 2 rows, 2 degrees of freedom." in note


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_seed_that_diverged_is_shown_as_it_is(value: float) -> None:
    """Neither a spread nor a difference is made of it, and nothing is bold."""
    name = paper_table("table5").rows[0].recipe
    values = enumerate((10.0, value, 11.0))
    results = [paper_result(name, "table5", "4.0", {"fid": fid}, seed) for seed, fid in values]
    shown = cell(laid_out("table5", results), "Attention map-wise paradigm", "measured", "CFG=4.0", "FID")
    assert (shown.text, shown.detail, shown.best) == (str(value), "", False)


def test_a_seed_that_failed_is_told_beside_the_mean_of_the_others() -> None:
    """The mean is of two seeds, and a footnote says which is not in it and why; another run may have it."""
    name = paper_table("table5").rows[0].recipe
    results = [paper_result(name, "table5", "4.0", {"fid": 10.0 + seed}, seed) for seed in range(3)]
    lost = results[2].model_copy(update={"status": "failed", "reason": "killed", "measurements": []})
    at = ("Attention map-wise paradigm", "measured, mean of 2 seeds", "CFG=4.0", "FID")
    table = laid_out("table5", [*results[:2], lost])
    assert (cell(table, *at).text, cell(table, *at).marks) == ("10.50", "a")
    assert "a: seed 2 failed: killed" in table.notes
    assert not [n for n in laid_out("table5", [*results[:2], lost], results[2:]).notes if "killed" in n]
