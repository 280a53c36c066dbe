"""The command line as a user meets it: real processes, exit codes, plain text, one error message."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from command_line import ROOT, attnbench, attnbench_here
from extractor_cases import empty_caches
from runner_cases import TINY

from attnbench import __version__, cli
from attnbench.running.plan import closed_form
from attnbench.suite.loading import load_suite


def test_version():
    """--version prints the package's version."""
    assert attnbench("--version").stdout.strip() == f"attnbench {__version__}"


def test_help_imports_no_torch():
    """--help needs neither torch nor pydantic."""
    code = (
        "import sys; sys.argv = ['attnbench', '--help']\n"
        "from attnbench.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pydantic', 'timm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip().endswith("[]")


def test_reading_a_suite_imports_no_compiler():
    """What every command imports leaves out what takes as long as torch: torchvision, timm, torch.compile."""
    code = (
        "import sys, attnbench.suite.loading, attnbench.running.runner, attnbench.report.run_report\n"
        "print([m for m in ('torch._dynamo', 'torchvision', 'timm', 'scipy', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_is_registered_for_the_end_is_done():
    """A command ends without Python's teardown, but not without its exit functions and what it has to say."""
    code = (
        "import atexit, sys; atexit.register(print, 'in the end', end='')\n"
        "sys.argv = ['attnbench', 'show', 'nil']\n"
        "from attnbench.cli import command\n"
        "command()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (2, "in the end")
    assert done.stderr.startswith("error: ")


IN_A_PROCESS = (["run", "quik"], ["frobnicate"])  # each takes seconds of imports


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "quik"], "did you mean 'quick'"),
        (["validate", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["list", "backend"], "did you mean 'backends'"),
        (["show", "dydilla"], "did you mean 'dydila'"),
        (["profile", "--models", "dit-x", "--res", "256"], "unknown model recipe or table 'dit-x'"),
        (["profile", "--res", "250", "--models", "dit-s"], "multiple of 16 px"),
        (["profile", "--res", "big"], "--res takes whole, positive numbers of pixels, got 'big'"),
        (["profile", "--res", "256", "--measure", "speed"], "--measure"),
        (["profile", "--res", "256", "--device", "tpu"], "tpu"),
        (["run", "quick", "--device", "abacus"], "abacus"),
        (["report", "never-run"], "no results at"),
        (["run", "quick", "-o", "train.stpes=3"], "did you mean 'steps'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(words, said, tmp_path):
    """Wrong input: what is wrong on stderr, no traceback, nothing on stdout, exit code 2."""
    call = attnbench if words in IN_A_PROCESS else attnbench_here
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_typo_has_its_line(tmp_path):
    """A misspelt key names file, line and column, the nearest spelling and what is allowed."""
    text = (ROOT / "suites" / "quick.yaml").read_text().replace("  lr:", "  learn_rate:")
    (tmp_path / "mine.yaml").write_text(text)
    line = next(n for n, words in enumerate(text.splitlines(), 1) if "learn_rate" in words)
    done = attnbench_here("validate", tmp_path / "mine.yaml")
    assert done.returncode == 2
    assert f"mine.yaml:{line}:3: train.learn_rate: unknown key 'learn_rate'" in done.stderr
    assert "allowed: activation_checkpointing, batch_size" in done.stderr


@pytest.mark.parametrize("name", ["quick", "photos", "subin_256"])
def test_shipped_suites_are_valid(name):
    """Every shipped suite validates without its data."""
    done = attnbench_here("validate", name)
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


def test_plan_works_without_the_data(tmp_path):
    """The paper's suite can be planned before its images, autoencoder and weights are there."""
    done = attnbench_here("plan", "subin_256", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "36 cases" in done.stdout
    assert not (tmp_path / "runs").exists()
    said = " ".join(done.stdout.split())
    said_of_data = r"every case: data\.path: \S.* does not exist; name yours with -o data\.path=PATH"
    assert re.search(said_of_data, said)


def test_plan_names_what_is_missing_and_only_that(tmp_path, monkeypatch):
    """What is there is not complained of; weights that are in no usual place are, with how to get them."""
    empty_caches(tmp_path, monkeypatch)
    (tmp_path / "vae").mkdir()
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nquestion: Which?\nmodel: {recipe: dit-s, depth: 1}\n"
        "data: {name: image-folder, path: images, codec: {path: vae}}\n"
        "evaluate: {extractor: inception-tf}\nmatrix: {sample.guidance_scale: [1.0, 2.0]}\n"
    )
    said = " ".join(attnbench_here("plan", "mine.yaml", cwd=tmp_path).stdout.split())
    assert "every case: data.path: " in said
    assert "data.codec.path" not in said
    assert "needs the weights file pt_inception-2015-12-05-6726825d.pth, which is in no usual place" in said
    assert "attnbench weights fetch inception-tf" in said
    fine = attnbench_here("plan", "quick", cwd=tmp_path).stdout
    assert "cannot do this" not in fine


def test_profile_writes_the_rows_as_json(tmp_path):
    """--json holds one object per model and resolution with the promised keys."""
    what = ["--res", "256,512", "--models", "dit-s,dydi-lit-s", "--measure", "macs,params"]
    done = attnbench("profile", *what, "--json", "cost.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    keys = {
        "model",
        "resolution",
        "tokens",
        "params",
        "macs_paper",
        "macs_full",
        "latency_ms",
        "peak_memory_mib",
    }
    assert [(r["model"], r["resolution"], r["tokens"]) for r in rows] == [
        ("dit-s", 256, 256),
        ("dit-s", 512, 1024),
        ("dydi-lit-s", 256, 256),
        ("dydi-lit-s", 512, 1024),
    ]
    assert all(keys | {"status", "reason"} <= set(row) for row in rows)
    assert f"{rows[2]['macs_paper'] / 1e9:.2f}" == "5.98"
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["backends", "models", "suites", "plugins", "datasets", "extractors"])
def test_listings_are_plain_text(kind):
    """Without a terminal, listings hold no control codes and are not empty."""
    done = attnbench_here("list", kind)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("moh", "Heads every token uses; the others are routed."),
        ("pixart-sigma-s", "6 x softmax, 6 x pixart-sigma(stride=4)"),
        ("dydi-lit-s", "paper: 9 blocks at every size"),
        ("dit-s", "ffn kind: mlp, ratio: 4.0 public code: DiT, tanh-GELU MLP of ratio 4"),
        ("dit-s", "Table 1: 6.06 G, Table 3: no GFLOPs, Table 7: 6.06 G, Table 8: no GFLOPs"),
        ("quick", "dydila-token"),
        ("quick", "cases 6 (attention: 6)"),
        ("quick", "flow, 250 steps of 128 images"),
        ("table8_guidance", "which is not there; taken for 100 classes"),
        ("table8_guidance", "missing every case: data.path:"),
        ("digits", "digits"),
        ("efficientnet-lite0", "efficientnet-lite0"),
    ],
)
def test_show_knows_every_kind(name, says):
    """`show` explains options of backends, origins of models, suites, datasets and extractors."""
    done = attnbench_here("show", name)
    assert done.returncode == 0, done.stderr
    assert says in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", ["softmax", "dydila", "dit-s", "dydi-lit-s", "quick", "inception-tf"])
def test_show_has_no_empty_column(name):
    """Whatever stands under a heading says something: no cell of `show` is a dash."""
    done = attnbench_here("show", name)
    assert done.returncode == 0, done.stderr
    assert "–" not in done.stdout.split()


def test_show_explains_a_suites_file(tmp_path):
    """One's own file: settings where cases differ, the compute of each, what is missing."""
    path = tmp_path / "mine.yaml"
    path.write_text(TINY.replace("model.attention: [softmax, linear]", "train.steps: [8, 16]"))
    done = attnbench_here("show", path)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "tiny-dit: 1 block of width 32, 2 heads" in shown
    assert "training steps=8: flow, 8 steps of 8 images" in shown
    assert "missing nothing" in shown
    case = load_suite(path).cases[1]
    training = 3 * closed_form(case).full * 8 * 16
    assert f"{training / 1e6:.1f} M" in shown
    wrong = attnbench_here("show", tmp_path / "none.yaml")
    assert (wrong.returncode, "none.yaml" in wrong.stderr) == (2, True)


def test_profile_of_a_table_puts_published_numbers_beside_ours(tmp_path):
    """`--models table8` is the recipes of Table 8; the rows carry what is published for them."""
    what = ["--models", "table8", "--res", "256", "--measure", "macs,params", "--json", "t.json"]
    done = attnbench_here("profile", *what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [(row["model"], row["size"]) for row in rows] == [
        ("dit-s", "S"),
        ("sana-s", "S"),
        ("dydi-lit-s", "S"),
    ]
    assert [row["macs_published"] for row in rows] == [6_060_000_000, 5_970_000_000, 5_980_000_000]
    for row in rows:
        assert round(row["macs_paper"] / 1e9, 2) == row["macs_published"] / 1e9
        assert 0 < row["attention_macs"] < row["block_macs"] < row["macs_full"]


def test_a_profile_without_a_whole_row_says_why_and_fails(tmp_path):
    """Rows that run out of time are skipped with a reason on the screen; none measured is exit code 1."""
    words = ("--models", "tiny-dit", "--res", "64", "--measure", "params,latency", "--timeout-s", "0.001")
    done = attnbench("profile", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "tiny-dit at 64 px: skipped: did not finish within 0.001 s" in done.stdout
    assert "1 row (1 model at 64 px) on cpu; at most 0 s of measuring (0.001 s a row" in done.stderr


def test_schema_is_json():
    """`schema` prints a JSON schema with descriptions."""
    schema = json.loads(attnbench_here("schema").stdout)
    assert schema["properties"]["train"]
    assert "description" in json.dumps(schema)


def test_a_quiet_run_and_a_report_say_why_a_case_failed(tmp_path):
    """The reason stands below the table, also with -q and when the report is written again."""
    words = ("-o", "train.lr=1e30", "-o", "train.steps=3", "-o", "matrix.model.attention=[softmax]")
    done = attnbench("run", "quick", "-q", *words, cwd=tmp_path)
    assert done.returncode == 1
    again = attnbench_here("report", "quick", cwd=tmp_path)
    for said in (done.stdout, again.stdout):
        assert re.search(r"softmax: failed: train: training step \d+: .* lower train.lr", said)


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    """torch would end the process with a word about its own libraries."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", ["attnbench", "validate", "quick"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: the working directory has been removed; change into one that exists\n"
    )


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(monkeypatch, capsys):
    """typer takes care of it only once it has read the command line."""

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
