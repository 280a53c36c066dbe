"""`attnbench report --layout`, `--format`, `--to` and `attnbench claims` as a user meets them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import ROOT
from paper_cases import full_run
from report_cases import ENVIRONMENT, make_result
from typer.testing import CliRunner

from attnbench.cli import app
from attnbench.commands.tables import recipes_in_full
from attnbench.errors import AttnbenchError, UserInputError
from attnbench.report.claims.shown import Checklist
from attnbench.report.formats import record
from attnbench.report.paper.filling import fill
from attnbench.report.paper.published import paper_table
from attnbench.results import Measurement, Result, append_result
from attnbench.suite.loading import load_suite

DIGITS, PHOTOS, QUICK = (
    next((ROOT / "reports" / name).iterdir()) for name in ("digits_all", "photos", "quick")
)


def run(*words: object) -> tuple[int, str, str]:
    """Run the command line; return exit code, stdout and stderr."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, AttnbenchError):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def written(folder: Path, results: list[Result]) -> Path:
    """Write a run's folder."""
    for result in results:
        append_result(folder / "results.jsonl", result)
    return folder


def test_layout_of_two_runs_in_a_file(tmp_path: Path) -> None:
    """Digits and photographs below the same published rows; the ending chooses the format."""
    code, out, said = run("report", DIGITS, PHOTOS, "--layout", "table5", "--to", tmp_path / "five.json")
    assert (code, out) == (0, "")
    assert "five.json (json)" in said
    table = record.read((tmp_path / "five.json").read_text())
    assert [row.cells[1].text.split(",")[0] for row in table.rows[:3]] == [
        "published",
        "digits 8 px",
        "photo-patches 16 px",
    ]
    assert not (DIGITS / "five.json").exists()


def test_comparison_alone_in_a_format() -> None:
    """Without a layout it is the comparison of one run; nothing else is written."""
    before = sorted(path.name for path in QUICK.iterdir())
    code, out, _ = run("report", QUICK, "--format", "csv")
    assert code == 0
    assert out.startswith("Case,Seeds,Parameters (M),")
    assert sorted(path.name for path in QUICK.iterdir()) == before
    with pytest.raises(UserInputError, match="2 runs: --layout table1 to table8 puts several into one table"):
        run("report", QUICK, PHOTOS)


def test_terminal_tells_equal_columns_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance stands in the heading where one table holds several."""
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = run("report", DIGITS, "--layout", "table7")
    assert code == 0
    assert "CFG=2.0 FID" in out
    assert "CFG=3.0 FID" in out


def test_a_layout_that_nothing_fills_is_exit_code_1(tmp_path: Path) -> None:
    """Nothing is written; the reasons and the rows there are stand on stderr."""
    only = [r for r in full_run("table7") if r.axes["recipe"] == "dig-s"]
    code, out, said = run(
        "report", written(tmp_path / "r", only), "--layout", "table4", "--to", tmp_path / "t.md"
    )
    assert (code, out) == (1, "")
    assert not (tmp_path / "t.md").exists()
    assert "no result stands in a row of table4" in said
    assert "neither recipe nor attention is a row of this table" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", QUICK, "--layout", "tabel4"], r"unknown layout 'tabel4' \(did you mean 'table4'\?\)"),
        (["report", QUICK, "--layout", "table4", "--format", "tex"], r"unknown format 'tex'"),
        (["report", QUICK, "--to", "x.pdf"], "its ending names no format"),
        (["report", QUICK, "--to", ROOT, "--format", "md"], "is a folder; name a file in it"),
        (["report", QUICK, QUICK, "--layout", "table1"], "is named twice"),
        (["report", "never-run", "--layout", "table1"], "no results at"),
        (["claims", QUICK, QUICK], "is named twice"),
        (["claims", QUICK, "--format", "html"], "unknown format 'html'"),
        (["claims", QUICK, "--to", "x.pdf"], "its ending names no format"),
    ],
)
def test_wrong_input_is_told(words: list[object], said: str) -> None:
    """What, got, allowed, next step; exit code 2 by its class."""
    with pytest.raises(UserInputError, match=said):
        run(*words)


@pytest.mark.parametrize("command", [["report", "--layout", "table1"], ["claims"]])
def test_damaged_and_foreign_lines_are_named(command: list[str], tmp_path: Path) -> None:
    """File and line; nothing is left out in silence."""
    shutil.copy(QUICK / "results.jsonl", tmp_path / "results.jsonl")
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    for line, said in (
        (lines[0][:-40], "not a result"),
        ('{"format": 99}', "format 99, this attnbench reads"),
    ):
        (tmp_path / "results.jsonl").write_text("\n".join([lines[1], line, *lines[2:]]) + "\n")
        with pytest.raises(UserInputError, match=f"results.jsonl:2: .*{said}"):
            run(command[0], tmp_path, *command[1:])


def test_an_option_that_no_recipe_states_departs_too(tmp_path: Path) -> None:
    """Options are compared with the backend's defaults, where a recipe of the paper ran."""
    result = next(r for r in full_run("table1") if r.axes["recipe"] == "dydi-lit-s")
    options = {**result.case["model"]["attention"]["options"], "normaliser": "none"}
    model = {**result.case["model"], "attention": {"name": "dydila", "options": options}}
    folder = written(tmp_path / "r", [result.model_copy(update={"case": {**result.case, "model": model}})])
    _, out, _ = run("report", folder, "--layout", "table1", "--format", "md")
    assert "dydila.normaliser none for undifferenced" in out


def test_claims_on_one_seed_test_costs_alone(tmp_path: Path) -> None:
    """Exit code 0, for something could be tested; quality is not tested, and why is said."""
    code, out, _ = run("claims", DIGITS)
    assert code == 0
    assert "C2  its additional computation" in out
    assert "one seed supports nothing about methods" in out
    code, _, said = run("claims", DIGITS, "--to", tmp_path / "claims.json")
    assert (code, "claims.json" in said) == (0, True)
    read = Checklist.model_validate_json((tmp_path / "claims.json").read_text())
    assert [claim.claim for claim in read.claims] == [f"C{n}" for n in range(1, 8)]
    assert read.claims[0].findings[0].verdict == "not tested"


def test_claims_that_nothing_tests_are_exit_code_1(tmp_path: Path) -> None:
    """Each says what it needs."""
    only = [r for r in full_run("table7") if r.axes["recipe"] == "dig-s"]
    code, out, said = run("claims", written(tmp_path / "r", only), "--format", "md")
    assert code == 1
    assert out.count("**not tested**") >= 7
    assert "no claim could be tested" in said


@pytest.mark.parametrize(
    ("layout", "suite", "rows"),
    [
        ("table1", "subin_256", 18), ("table2", "subin_512", 6), ("table3", "imagenet_256", 7),
        ("table4", "table4_components", 6), ("table5", "table5_paradigms", 2),
        ("table6", "table6_lambda_init", 2), ("table7", "table7_guidance", 6),
        ("table8", "table8_guidance", 3),
    ],
)  # fmt: skip
def test_the_shipped_suites_fill_their_tables(layout: str, suite: str, rows: int) -> None:
    """Cases as the suites make them, options written out: each in its row and column, nothing departs."""
    cases = [case.model_dump(mode="json") for case in load_suite(suite, []).cases]
    fid = Measurement(name="FID", values=[50.0], n=paper_table(layout).samples)
    results = [
        Result(case_id=str(i), suite=suite, label=case["label"], status="ok", measurements=[fid], case=case,
               environment=ENVIRONMENT)
        for i, case in enumerate(cases)
    ]  # fmt: skip
    runs = {suite: results}
    filling = fill(paper_table(layout), runs, recipes_in_full(runs))
    assert not filling.left_out
    assert [filling.title(line) for line in filling.lines] == ["measured"]
    assert len(filling.slots) == rows * len(paper_table(layout).scales)
    assert not [remark for remark in filling.remarks if "rows differ in train.precision" not in remark]


def test_what_stands_in_no_row_is_named_without_its_terminal_escapes(tmp_path: Path) -> None:
    """A label with an escape sequence is shown, not obeyed."""
    folder = written(tmp_path, [make_result("\x1b[31mred", 0)])
    code, _, said = run("report", folder, "--layout", "table4")
    assert code == 1
    assert "\ufffd[31mred" in said
    assert "\x1b" not in said
