"""`attnbench profile` as a user types it: backends, sizes, files that go on, interruptions, the page."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
from command_line import attnbench, attnbench_here
from typer.testing import CliRunner

import attnbench as package
from attnbench.cli import app
from attnbench.errors import UserInputError
from attnbench.profiling.profile import ProfileReport

TINY = ("--recipe", "tiny-dit", "--threads", "1", "--interval", "0.5", "--device", "cpu")


def profile(*words: str, cwd) -> subprocess.CompletedProcess[str]:
    return attnbench("profile", *TINY, *words, cwd=cwd)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two backends at two sizes: their file, their page, and what was printed."""
    folder = tmp_path_factory.mktemp("profile")
    words = ("--backends", "softmax,linear", "--res", "8,16", "--json", "cost.json", "--report", "page")
    done = profile(*words, "--rounds", "6", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_file_says_what_where_and_how(measured):
    """Rows with rounds, conditions, intervals; growth and crossovers; machine and packages; by the schema."""
    folder, _ = measured
    text = (folder / "cost.json").read_text()
    found = json.loads(text)
    assert [(row["model"], row["resolution"]) for row in found["rows"]] == [
        ("softmax", 8), ("softmax", 16), ("linear", 8), ("linear", 16),
    ]  # fmt: skip
    for row in found["rows"]:
        assert len(row["rounds"]) >= 6
        low, high = row["latency_interval_ms"]
        assert low <= row["latency_ms"] <= high
        assert row["conditions"]["threads"] == 1
        assert row["conditions"]["cpu"] == found["environment"]["cpu"]
        assert row["conditions"]["versions"]["torch"] == found["environment"]["packages"]["torch"]
        assert row["live_memory_mib"] == pytest.approx(row["extra_memory_mib"], abs=1)
        assert row["bytes_moved"] > 0
        assert row["ceiling_share"] > 0
    assert found["environment"]["packages"]["torch"]
    assert {(c["model"], c["quantity"]) for c in found["crossovers"]} == {
        ("linear", "time"),
        ("linear", "memory"),
    }
    jsonschema.validate(found, json.loads(attnbench_here("schema", "--of", "profile").stdout))
    assert ProfileReport.model_validate_json(text).rows[0].model == "softmax"


def test_the_screen_and_the_page_show_costs_and_crossovers(measured):
    """Each row is told as it comes, both tables are printed, the page has them and its figures."""
    folder, done = measured
    assert re.search(r"^softmax at 8 px: [\d.]+ ms, [\d.]+ MiB", done.stderr, re.MULTILINE)
    for words in ("Costs on cpu", "Growth and crossovers", "Baseline: softmax."):
        assert words in done.stdout
    page = (folder / "page" / "profile.md").read_text()
    assert "attnbench profile --recipe tiny-dit" in page.replace("`", "")
    assert list((folder / "page" / "figures").glob("*.svg"))


def test_a_file_is_gone_on_from(measured, tmp_path):
    """--resume takes finished rows over as they are and measures the others; without it all are new."""
    folder, _ = measured
    before = json.loads((folder / "cost.json").read_text())
    (tmp_path / "cost.json").write_text((folder / "cost.json").read_text())
    words = ("--backends", "softmax,elu", "--res", "8", "--json", "cost.json", "--rounds", "6")
    done = attnbench_here("profile", *TINY, *words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert after[0] == before["rows"][0]
    assert (after[1]["model"], after[1]["status"]) == ("elu", "ok")
    assert after[1]["session"] not in {row["session"] for row in before["rows"]}


def test_what_is_no_profile_is_not_gone_on_from(tmp_path):
    """A file that holds something else is named, and left as it is."""
    (tmp_path / "cost.json").write_text("[]")
    done = attnbench_here("profile", *TINY, "--res", "8", "--json", "cost.json", "--resume", cwd=tmp_path)
    assert done.returncode == 2
    assert "cost.json is no profile that this version can go on from" in done.stderr
    assert (tmp_path / "cost.json").read_text() == "[]"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_profile_keeps_what_is_finished(tmp_path, number, code):
    """The rows of the finished size are in the file and on the screen, and what is said of them is true."""
    words = ["--backends", "softmax", "--res", "8,256", "--measure", "macs,latency", "--within", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "attnbench.cli", "profile", *TINY, *words, "--json", "cost.json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not _rows(tmp_path / "cost.json"):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert (
        "interrupted: 1 of 2 rows are finished; they are in cost.json; the same command with --resume" in err
    )
    assert "Traceback" not in err
    assert "Costs on cpu" in out
    assert [row["resolution"] for row in _rows(tmp_path / "cost.json")] == [8]


def _rows(path) -> list[dict]:
    return json.loads(path.read_text())["rows"] if path.exists() and path.stat().st_size else []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backends", "softmaxx"], "unknown backend 'softmaxx' (did you mean 'softmax'?)"),
        (["--backends", "linear", "--only", "soft*"], "--only 'soft*' matches none of linear"),
        (["--mode", "sample", "--scope", "block"], "--scope: block does not go with mode sample"),
        (["--scope", "end-to-end"], "name its folder: --autoencoder"),
        (["--batch", "1,0"], "--batch takes whole, positive numbers of images, got '1,0'"),
        (["--precision", "fp16"], "--precision: must be fp32 or bf16, got 'fp16'"),
        (["--measure", "speed"], "--measure: must be macs, params"),
        (["--resume"], "name it with --json FILE"),
        (["--json", "absent/cost.json"], "absent does not exist; create it first"),
        (["--fit", "24"], "24"),
        (["--models", "tiny-dit", "--backends", "softmax,softmax"], "softmax: named twice"),
        (["--backends", "softmax", "--res", "9"], "resolution 9 does not fit"),
    ],
)
def test_what_cannot_be_asked(words, message, tmp_path, monkeypatch):
    """One clear error before anything is measured."""
    monkeypatch.chdir(tmp_path)
    resolutions = [] if "--res" in words else ["--res", "8"]
    done = CliRunner().invoke(app, ["profile", *TINY, *resolutions, *words])
    assert isinstance(done.exception, UserInputError)  # exit code 2: test_cli
    assert message in str(done.exception)


def test_the_python_interface():
    """`attnbench.profile` gives the same rows, and a table of them; all settings are arguments."""
    rows = package.profile(
        backends=("softmax", "linear"), recipe="tiny-dit", resolutions=(8,), batch_sizes=(1, 2), mode="train",
        scope="block", precision="bf16", measure=("macs", "latency"), rounds=1, threads=1, device="cpu",
    )  # fmt: skip
    assert [(row.model, row.batch_size, row.status) for row in rows] == [
        ("softmax", 1, "ok"), ("linear", 1, "ok"), ("softmax", 2, "ok"), ("linear", 2, "ok"),
    ]  # fmt: skip
    assert {(row.mode, row.scope, row.precision) for row in rows} == {("train", "block", "bf16")}
    table = rows.to_dataframe()
    assert list(table["latency_ms"]) == [row.latency_ms for row in rows]
    assert {"threads", "latency_ms_p99", "latency_ms_low"} <= set(table.columns)


def test_printed_numbers_are_of_the_recipe_as_it_stands():
    """Another attention in its shell has none, whatever the recipe's name."""
    asked = {"recipe": "dit-s", "resolutions": (256,), "measure": ("macs",), "quiet": True}
    softmax, linear = package.profile(backends=("softmax", "linear"), device="cpu", **asked)
    assert softmax.macs_published == 6_060_000_000
    assert linear.macs_published is None


def test_without_pandas_the_table_says_what_to_install(monkeypatch):
    """pandas is no dependency."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserInputError, match="pip install pandas"):
        package.profile(
            (), (8,), backends=("softmax",), recipe="tiny-dit", measure=("params",)
        ).to_dataframe()


def test_the_largest_batch_that_fits(tmp_path):
    """--fit plans a forward pass and a training step, and runs neither."""
    words = ("--backends", "softmax", "--res", "8", "--fit", "64MiB", "--json", "fit.json")
    done = attnbench_here("profile", *TINY, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    forward, train = json.loads((tmp_path / "fit.json").read_text())["rows"]
    assert (forward["mode"], train["mode"]) == ("forward", "train")
    assert forward["largest_batch"] > train["largest_batch"] > 1
    assert forward["rounds"] == []
