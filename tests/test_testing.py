"""The conformance kit: built-ins and strangers pass, and every fault is seen by the check meant for it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from broken_backends import BROKEN, Sound, WithLoss, WithSharedMeans, record
from command_line import ROOT, attnbench, attnbench_here

from attnbench.contract import BackendOptions
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.plugins import registry
from attnbench.testing import CHECKS, check_backend, run_checks

NAMES = [check.name for check in CHECKS]
BUILT_INS = [name for name, provided in registry().backends.items() if provided.origin == "built-in"]
# Compiling takes most of the kit's time: these few alone are compiled, the sound ones among them.
COMPILED = {"GraphBreak", "WritesIntoX", "Noisy", "WrongGradient", "LossInEval"}
# DyDiLA's routers with a gradient that is no surrogate
SWITCH = {"projection_router": "switch", "factor_router": "switch"}


@pytest.mark.parametrize("name", BUILT_INS)
def test_built_ins_conform(name):
    """Every built-in backend passes the whole kit with its default options."""
    check_backend(registry().backend(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dydila", {"mode": "map", "dwc_maps": "per_map", "dwc": "plain"} | SWITCH),
        ("dydila", {"balance_weight": 0.01} | SWITCH),
        ("agent", {"num_agents": 4, "position_bias": False}),
        ("softmax", {"implementation": "math"}),
    ],
)
def test_other_options_conform(name, options):
    """Options that change the mathematics are held to the same promises (compiling aside)."""
    check_backend(registry().backend(name), options, only=[n for n in NAMES if n != "compile"])


def test_the_tutorial_plugin_conforms(monkeypatch):
    """A stranger's record is checked like a built-in."""
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "attnbench-hello"))
    for hello in importlib.import_module("attnbench_hello").attnbench_backends():
        check_backend(hello)


@pytest.mark.parametrize("module", [Sound, WithLoss, WithSharedMeans])
def test_what_the_broken_ones_are_made_of_conforms(module):
    """Without its fault a broken backend passes everything, so the fault alone is what is seen."""
    check_backend(record(module=module))


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_seen_by_its_check_and_by_no_other(name):
    """Each broken backend fails exactly the checks meant for its fault."""
    broken, meant = BROKEN[name]
    only = NAMES if name in COMPILED else [n for n in NAMES if n != "compile"]
    results = run_checks(broken, only=only)
    assert {r.name: r.detail for r in results if r.bad}.keys() == meant
    assert [r.name for r in results] == only


def test_every_check_has_a_fault_it_sees():
    """No check is there that nothing here can make fail."""
    assert set().union(*(meant for _, meant in BROKEN.values())) == set(NAMES)


def test_every_check_says_its_question():
    """A check is documented by one sentence, and names are unique."""
    assert all(check.question.endswith(".") for check in CHECKS)
    assert len(set(NAMES)) == len(NAMES)


def status_of(results, name):
    return {r.name: (r.status, r.detail) for r in results}[name]


def test_an_expected_failure_carries_its_reason():
    """A failure the record announces is no failure, and its reason is shown."""
    broken, _ = BROKEN["WrongMacs"]
    expecting = dataclasses.replace(broken, expected_failures={"macs": "counted by hand"})
    status, detail = status_of(run_checks(expecting, only=["macs"]), "macs")
    assert status == "expected-failure"
    assert "counted by hand" in detail
    check_backend(expecting, only=["macs"])


def test_an_expected_failure_that_passes_is_a_failure():
    """Once the fault is gone, the announcement has to go, too."""
    expecting = record(expected_failures={"macs": "counted by hand"})
    status, detail = status_of(run_checks(expecting, only=["macs"]), "macs")
    assert status == "unexpected-pass"
    assert "remove it from expected_failures" in detail
    with pytest.raises(AssertionError, match="macs: unexpected-pass"):
        check_backend(expecting, only=["macs"])


class Choice(BackendOptions):
    """Options of a record that announces a failure of its defaults."""

    sound: bool = False
    """Whether the gradient is right."""


def choose(site, options):
    return Sound(site, options) if options.sound else BROKEN["WrongGradient"][0].build(site, options)


def test_an_expected_failure_is_about_the_default_options():
    """With other options a pass is a pass."""
    choosing = record(module=choose, options=Choice, expected_failures={"gradcheck": "doubled on purpose"})
    assert status_of(run_checks(choosing, only=["gradcheck"]), "gradcheck")[0] == "expected-failure"
    results = run_checks(choosing, {"sound": True}, only=["gradcheck"])
    assert status_of(results, "gradcheck")[0] == "passed"


def test_several_sets_of_options_must_all_pass():
    """One bad set fails the check, and the detail says which."""
    choosing = record(module=choose, options=Choice)
    status, detail = status_of(run_checks(choosing, [{"sound": True}, {}], only=["gradcheck"]), "gradcheck")
    assert status == "failed"
    assert detail.startswith("{}: ")


def test_an_expected_failure_of_an_unknown_check_names_the_known_ones():
    """A misspelt check in expected_failures is an error, not a silent nothing."""
    with pytest.raises(UnknownNameError, match=r"unknown check 'gradchek' \(did you mean 'gradcheck'\?\)"):
        run_checks(record(expected_failures={"gradchek": "a typo"}))


def test_wrong_options_are_the_users_error():
    """An unknown option names the nearest spelling before anything is checked."""
    with pytest.raises(UserInputError, match="did you mean 'sound'"):
        run_checks(record(options=Choice), {"sond": True})


def test_sites_are_chosen_among_those_supported():
    """A backend that takes grids of 14 x 14 and widths of 64 only is still checked there."""

    def picky(site, options, dtype, device):
        fits = site.dim == 64 and site.grid == (14, 14) and dtype is torch.float32
        return None if fits else "only 14 x 14 and width 64 in fp32"

    results = {r.name: r for r in run_checks(record(supports=picky))}
    assert results["shape-square"].detail == "grid (14, 14)"
    assert results["batch-independence"].status == "passed"
    assert results["gradcheck"].status == "skipped"
    assert "only 14 x 14" in results["shape-odd"].detail
    assert not [r for r in results.values() if r.bad]


class RandomLoss(WithLoss):
    """A loss of noisy outputs: the noise of two halves is not that of a batch."""

    def lose(self, context, y):
        super().lose(context, y + 0.1 * torch.randn_like(y))


class RouterInFp32(WithSharedMeans):
    """Probabilities in fp32, whatever comes in, as many routers have them."""

    def forward(self, x, context):
        y = Sound.forward(self, x, context)
        if self.training:
            context.add_loss("balance", context.batch_mean(y.float().softmax(-1).mean(1)).square().sum())
        return y


@pytest.mark.parametrize(
    ("module", "status", "told"),
    [
        (Sound, "skipped", "adds no auxiliary loss"),
        (WithLoss, "passed", "means shared: 0"),
        (RandomLoss, "skipped", "random numbers"),
        (RouterInFp32, "passed", "means shared: 1"),
    ],
)
def test_losses_of_halves_asks_only_what_can_be_asked(module, status, told):
    """No loss, or a random one, is no failure; a router is held to the rounding of its own dtype."""
    (result,) = run_checks(record(module=module), only=["losses-of-halves"])
    assert result.status == status
    assert told in result.detail


def test_losses_of_halves_tells_what_two_processes_would_train():
    """The failure has both losses and the way out."""
    (result,) = run_checks(BROKEN["SquaredLocalMeans"][0], only=["losses-of-halves"])
    assert "on average over its halves" in result.detail
    assert "context.batch_mean" in result.detail


def test_refusing_everything_is_seen():
    """A kit that could check nothing does not pass."""
    results = run_checks(record(supports=lambda *_: "needs a GPU"))
    assert [r.name for r in results if r.bad] == ["supports"]
    assert "needs a GPU" in status_of(results, "supports")[1]
    assert {r.status for r in results} == {"failed", "skipped", "passed"}


def test_a_module_that_needs_the_timestep_may_say_so():
    """An attnbench error that names the missing field is what the kit asks for."""

    class Asks(Sound):
        def forward(self, x, context):
            if context.timestep is None:
                raise UserInputError("this backend needs context.timestep; pass the diffusion timestep [B]")
            return super().forward(x, context)

    result = status_of(run_checks(record(module=Asks), only=["missing-context"]), "missing-context")
    assert result == ("passed", "needs timestep, and says so")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "lineer"], "did you mean 'linear'"),
        (["check", "no.such.module:Record"], "cannot import 'no.such.module'"),
        (["check", "attnbench.backends.linear:Lineer"], "available: attnbench_backends"),
        (["check", "attnbench.contract:MacCount"], "name an AttentionBackend"),
        (["check", ":x"], "of the form pkg.module:Object"),
        (["check", "linear", "--options", "{eps"], "--options takes a JSON object"),
        (["check", "linear", "--options", '{"epsilon": 1}'], "unknown key 'epsilon'"),
        (["check", "linear", "--json", "no/folder/rows.json"], "create it first"),
        (["new-plugin", "My_Attention"], "cannot name a backend"),
        (["new-plugin", "softmax"], "is there already"),
        (["new-plugin", "mine", "--folder", "nowhere"], "create it first"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(words, said, tmp_path):
    """Wrong names, imports and options: one message on stderr, exit code 2, nothing written."""
    done = attnbench_here(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


LOCAL = """\
import dataclasses
from attnbench.plugins import registry

linear = registry().backend("linear")
dishonest = dataclasses.replace(linear, name="dishonest", complexity="quadratic", expected_failures={})
"""


def test_check_prints_rows_and_writes_them(tmp_path):
    """A record in a local module: a table of checks, the same rows as JSON, exit code 1 on a failure."""
    (tmp_path / "mine.py").write_text(LOCAL)
    done = attnbench("check", "mine:dishonest", "--json", "rows.json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["check"] for row in rows] == NAMES
    assert [row["check"] for row in rows if row["status"] == "failed"] == ["macs-scaling"]
    assert all(name in done.stdout for name in (*NAMES, "declare linear", "dishonest"))
    assert "\x1b" not in done.stdout + done.stderr


def test_check_of_sound_backends_is_exit_code_0(tmp_path):
    """Several names give one row of passes each; repeated --options are all checked."""
    options = ["--options", "{}", "--options", '{"qkv_bias": true}']
    done = attnbench_here("check", "elu", "softmax", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    # neither has an auxiliary loss to ask about
    assert done.stdout.count(f"{len(NAMES) - 1} of {len(NAMES)} checks") == 2


def test_a_new_plugin_installs_shows_up_and_passes(tmp_path):
    """The written package, installed by pip, is listed with its origin, and its own tests pass."""
    done = attnbench_here("new-plugin", "my-mixer", cwd=tmp_path)
    folder = tmp_path / "attnbench-my-mixer"
    assert done.returncode == 0, done.stderr
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "attnbench_my_mixer.py",
        "pyproject.toml",
        "test_attnbench_my_mixer.py",
    }
    site = tmp_path / "site"
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=120)
    listed = attnbench("list", "backends", cwd=tmp_path, path=[site])
    line = next(line for line in listed.stdout.splitlines() if "my-mixer" in line)
    assert "attnbench-my-mixer 0.1.0" in line
    tests = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert tests.returncode == 0, tests.stdout
    assert f"{len(NAMES) + 1} passed" in tests.stdout


def test_a_new_plugin_leaves_an_existing_folder_alone(tmp_path):
    """A second call refuses, and what stands there is unchanged."""
    folder = tmp_path / "attnbench-mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    done = attnbench_here("new-plugin", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_the_guide_lists_every_check():
    """The table in the author's guide has the checks of the kit, in its words."""
    guide = (ROOT / "plugins" / "README.md").read_text()
    rows = [f"| `{check.name}` | {check.question.rstrip('.')} |" for check in CHECKS]
    assert "\n".join(rows) in guide


def test_the_suite_in_the_guide_is_valid(tmp_path):
    """The suite a reader copies validates once my-attention is a backend that exists."""
    guide = (ROOT / "plugins" / "README.md").read_text()
    suite = guide.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mine.yaml").write_text(suite.replace("my-attention", "elu"))
    done = attnbench_here("validate", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 cases" in done.stdout
