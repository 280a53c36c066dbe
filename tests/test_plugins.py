"""The registry: built-ins and strangers alike, broken ones as rows, clashes and misspelt hooks as errors."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import threading
import types

import pluggy
import pytest
from command_line import ROOT, attnbench, attnbench_here
from plugin_cases import Point, backend, load, plugin

from attnbench.contract import (
    AttentionBackend,
    MacCount,
)
from attnbench.errors import NameClashError, PluginError, UnknownNameError
from attnbench.plugins import BUILTIN_PLUGINS, load_plugins, registry
from attnbench.testing import run_checks


def test_built_ins_take_the_strangers_path():
    """A stranger's record stands in the same table as a built-in's, with its origin."""
    found = load(Point("theirs", lambda: plugin(lambda: [backend("theirs")])))
    assert list(found.backends) == ["linear", "theirs"]
    assert found.backends["theirs"].origin == "theirs_module"


def test_every_built_in_provides_something():
    """No built-in plugin is a dead file."""
    rows = {row.name: row for row in registry().rows}
    assert all(rows[name].provides for name in BUILTIN_PLUGINS)


def test_a_broken_import_is_a_row():
    """A stranger that cannot be imported leaves the tool alive and says why."""

    def broken():
        raise ImportError("libcudart.so.99: cannot open shared object file")

    found = load(Point("bad", broken), Point("good", lambda: plugin(lambda: [backend("good")])))
    rows = {row.name: row for row in found.rows}
    assert rows["bad"].status == "broken"
    assert "libcudart.so.99" in rows["bad"].reason
    assert "good" in found.backends


def test_a_generator_that_fails_halfway_is_a_row_and_leaves_nothing():
    """A generator hook runs inside the guard; nothing it yielded before failing stays registered."""

    def half():
        yield backend("first")
        raise RuntimeError("no GPU")

    found = load(Point("half", lambda: plugin(half)))
    assert "first" not in found.backends
    assert found.rows[-1].status == "broken"


def test_a_clash_names_both_providers():
    """Two plugins with one name are an error that names both."""
    with pytest.raises(NameClashError, match=r"attnbench\.backends\.linear \(built-in\) and by theirs"):
        load(Point("theirs", lambda: plugin(lambda: [backend("linear")])))


def test_a_misspelt_hook_is_an_error():
    """pluggy ignores unknown hooks in silence; here the plugin's row says so."""
    found = load(Point("typo", lambda: plugin(lambda: [backend("x")], hook="attnbench_backend")))
    assert found.rows[-1].status == "broken"
    assert "attnbench_backend" in found.rows[-1].reason


def test_a_misspelt_hook_of_a_built_in_stops_everything(monkeypatch):
    """A mistake of our own is not a row."""
    monkeypatch.setitem(sys.modules, "typo_builtin", plugin(list, hook="attnbench_backendz"))
    with pytest.raises(pluggy.PluginValidationError):
        load_plugins(builtins=("typo_builtin",), entry_points=list)


def test_a_wrong_record_is_refused():
    """A hook that yields something else names what it yielded."""
    found = load(Point("wrong", lambda: plugin(lambda: ["softmax"])))
    assert PluginError.__name__ in found.rows[-1].reason
    assert "got str" in found.rows[-1].reason


def test_an_unknown_name_suggests_the_nearest():
    """The error lists what exists and guesses what was meant."""
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        registry().backend("sotfmax")


def distribution(folder, name, version, entry_points, **modules):
    """Write what pip leaves of a distribution: modules, and metadata with entry points."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[attnbench]\n{entry_points}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed distributions; modules called `their_*` are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("their_")]:
        del sys.modules[name]


def rows_of(found):
    return [(row.name, row.origin, row.status) for row in found.rows if row.origin != "built-in"]


def test_a_dist_info_on_the_path_is_found(site):
    """The real entry-point route, without pip: metadata on sys.path is enough."""
    distribution(site, "theirs", "1.2", "theirs = their_module", their_module="x = 1 / 0")
    found = load_plugins(builtins=())
    assert rows_of(found) == [("theirs", "theirs 1.2", "broken")]
    assert "ZeroDivisionError" in found.rows[0].reason


PLUGIN = """\
import attnbench

@attnbench.hookimpl
def attnbench_backends():
    yield attnbench.AttentionBackend(
        name={!r}, summary="", source="", build=lambda *_: None, macs=lambda *_: attnbench.MacCount()
    )
"""


CONTRACT = {
    "AttentionBackend", "AttentionContext", "AttentionSite", "BackendOptions", "MacCount", "hookimpl",
}  # fmt: skip


def test_the_file_of_a_built_in_is_a_plugin_as_it_stands(site):
    """A stranger may copy any file of attnbench/backends into a package; it imports what strangers may."""
    files = sorted((ROOT / "attnbench" / "backends").glob("[a-z]*.py"))
    modules = {f"their_{file.stem}": file.read_text() for file in files}
    distribution(site, "theirs", "1.0", "\n".join(f"{name} = {name}" for name in modules), **modules)
    found = load_plugins(builtins=())
    assert [row.reason for row in found.rows if row.status == "broken"] == []
    assert len(found.backends) == len(files) > 20
    for file in files:
        imported = re.findall(r"^(?:from|import) (attnbench\S*)", file.read_text(), re.MULTILINE)
        assert "attnbench" in imported
        assert all(re.fullmatch(r"attnbench(\.errors|\.layers(\.\w+)?)?", name) for name in imported)
        used = set(re.findall(r"\battnbench\.(\w+)", file.read_text())) - {"layers", "errors"}
        assert used <= CONTRACT, f"{file.name} uses more of attnbench than a plugin may"


def test_two_entry_points_of_one_name_are_a_row_that_names_both(site):
    """The first in order of their modules stays; the other says which two distributions clash."""
    distribution(site, "ours", "1.0", "fast = their_a", their_a=PLUGIN.format("a"))
    distribution(site, "theirs", "2.1", "fast = their_b", their_b=PLUGIN.format("b"))
    found = load_plugins(builtins=())
    assert rows_of(found) == [("fast", "ours 1.0", "ok"), ("fast", "theirs 2.1", "broken")]
    assert "two entry points are called 'fast', one of ours 1.0 and one of theirs 2.1" in found.rows[1].reason
    assert list(found.backends) == ["a"]


def test_one_module_under_two_entry_points_is_a_row_that_names_both(site):
    """It is registered once."""
    distribution(site, "ours", "1.0", "one = their_a", their_a=PLUGIN.format("a"))
    distribution(site, "theirs", "2.1", "two = their_a")
    found = load_plugins(builtins=())
    assert rows_of(found) == [("one", "ours 1.0", "ok"), ("two", "theirs 2.1", "broken")]
    assert "their_a is loaded already, as one of ours 1.0" in found.rows[1].reason
    assert "two of theirs 2.1" in found.rows[1].reason


def test_a_built_in_under_an_entry_point_is_a_row(site):
    """Nobody provides a built-in a second time."""
    distribution(site, "theirs", "2.1", "mine = attnbench.backends.linear")
    found = load_plugins(builtins=("attnbench.backends.linear",))
    assert found.rows[1].status == "broken"
    assert "as attnbench.backends.linear of built-in" in found.rows[1].reason


@pytest.mark.parametrize(
    "waiting",
    [
        "time.sleep(600)",
        "while True:\n    try:\n        time.sleep(600)\n    except Exception:\n        pass",
        "while True:\n    try:\n        time.sleep(600)\n    except:\n        time.sleep(600)",
        "socket.create_server(('localhost', 0)).accept()",
        "fcntl.flock(open(__file__), fcntl.LOCK_EX)",
    ],
)
def test_a_plugin_that_hangs_at_import_is_a_row(waiting, site):
    """Sleep, retries that swallow errors, a network and a lock in other hands are interrupted."""
    text = f"import fcntl, socket, time\n{waiting}\n"
    distribution(site, "theirs", "1.0", "slow = their_slow\nwell = their_well", their_slow=text)
    (site / "their_well.py").write_text(PLUGIN.format("well"))
    holder = [
        sys.executable,
        "-c",
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()",
    ]
    with subprocess.Popen(
        [*holder, str(site / "their_slow.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        found = load_plugins(builtins=(), seconds=0.5)
        other.stdin.close()
    assert rows_of(found) == [("slow", "theirs 1.0", "broken"), ("well", "theirs 1.0", "ok")]
    assert re.search(r"is not imported after 0.5 s, still at .*\.py:\d", found.rows[0].reason)


def test_somebody_elses_timer_goes_on(site):
    """Loading plugins gives the timer and its handler back."""
    distribution(site, "theirs", "1.0", "well = their_well", their_well=PLUGIN.format("well"))
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    before = signal.setitimer(signal.ITIMER_REAL, 3000, 7)
    try:
        mine = signal.getsignal(signal.SIGALRM)
        load_plugins(builtins=())
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 2000 < left <= 3000
        assert interval == pytest.approx(7)
        assert signal.getsignal(signal.SIGALRM) is mine
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def test_plugins_load_outside_the_main_thread(site):
    """No signal can be had there; loading is not interrupted."""
    distribution(site, "theirs", "1.0", "well = their_well", their_well=PLUGIN.format("well"))
    found = []
    thread = threading.Thread(target=lambda: found.append(load_plugins(builtins=())))
    thread.start()
    thread.join(60)
    assert rows_of(found[0]) == [("well", "theirs 1.0", "ok")]


def test_ctrl_c_remains_the_users(site):
    """Whoever interrupts the import of a plugin wants to stop the tool."""
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    distribution(site, "theirs", "1.0", "theirs = their_module", their_module=text)
    with pytest.raises(KeyboardInterrupt):
        load_plugins(builtins=())


STRANGERS = {  # modules of one distribution
    "their_exit": "import sys\nsys.exit()\n",
    "their_arguments": "import argparse\nargparse.ArgumentParser().parse_args()\n",
    "their_skip": "import pytest\npytest.skip('no GPU here', allow_module_level=True)\n",
    "their_hook_exits": "import sys, attnbench\n@attnbench.hookimpl\ndef attnbench_backends():\n"
    "    yield sys.exit('no licence')\n",
    "their_printer": "import os, pathlib\nprint('loud at import')\n"
    "pathlib.Path(os.environ['SEEN']).write_text('imported')\n" + PLUGIN.format("loud"),
}


@pytest.fixture(scope="session")
def strangers(tmp_path_factory):
    """A distribution with plugins that misbehave, built and installed by pip."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("strangers")
    entries = "".join(f'{module} = "{module}"\n' for module in STRANGERS)
    files = ", ".join(f'"{module}.py"' for module in STRANGERS)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "strangers"\nversion = "0.3"\n'
        f"[project.entry-points.attnbench]\n{entries}"
        f"[tool.hatch.build.targets.wheel]\ninclude = [{files}]\n"
    )
    for module, text in STRANGERS.items():
        (source / f"{module}.py").write_text(text)
    install(source, target)
    return target


def install(source, target):
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True, timeout=120)


def test_installed_plugins_that_exit_or_print_are_rows(strangers, tmp_path, monkeypatch):
    """sys.exit, argparse and pytest.skip at import leave the tool alive, and stdout is the tool's own."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    done = attnbench("list", "plugins", path=[strangers])
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if "strangers 0.3" in line}
    assert rows.keys() == STRANGERS.keys()
    for module, said in {
        "their_exit": "exits when it is imported (SystemExit: None)",
        "their_arguments": "exits when it is imported (SystemExit: 2)",
        "their_skip": "Skipped: no GPU here",
        "their_hook_exits": "(SystemExit: no licence)",
    }.items():
        assert "broken" in rows[module]
        assert said in rows[module]
    assert " ok " in rows["their_printer"]
    assert "loud at import" not in done.stdout
    assert "loud at import" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["list", "--help"], ["schema"]])
def test_what_needs_no_plugin_loads_none(words, strangers, tmp_path, monkeypatch):
    """Help is there whatever is installed."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    done = attnbench(*words, path=[strangers])
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "seen").exists()


def test_check_of_a_module_that_exits_says_so(tmp_path):
    """`attnbench check` does not end well without having checked anything."""
    (tmp_path / "their_exit.py").write_text("import sys\nsys.exit(0)\n")
    done = attnbench_here("check", "their_exit:attnbench_backends", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot import 'their_exit'" in done.stderr


@pytest.mark.parametrize("body", ["sys.exit(0)", "raise ValueError('no')"])
def test_check_of_a_hook_that_exits_says_so(body, tmp_path, monkeypatch):
    """A hook is a generator: it runs when it is read, not when it is called."""
    module = f"their_hook_{len(body)}"
    text = f"import sys\n\ndef attnbench_backends():\n    {body}\n    yield\n"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    done = attnbench_here("check", f"{module}:attnbench_backends", cwd=tmp_path)
    assert done.returncode == 2
    assert "gives no backends" in done.stderr
    assert ("SystemExit: 0" if "exit" in body else "ValueError: no") in done.stderr


def test_a_plugin_of_which_one_record_is_refused_leaves_nothing():
    """A broken row, and neither its first record nor its hooks."""
    nowhere = types.ModuleType("nowhere")
    exec("def build(site, options): return None", vars(nowhere))

    def answer():
        yield backend("good-one")
        yield dataclasses.replace(backend("bad-one"), build=nowhere.build)

    module = plugin(answer)
    points = [Point(name, lambda: module) for name in ("first", "second")]
    found = load(*points)
    assert "good-one" not in found.backends
    assert [(row.name, row.status) for row in found.rows[1:]] == [("first", "broken"), ("second", "broken")]
    assert all("KeyError" not in row.reason for row in found.rows)


def test_a_module_that_exits_fails_its_check():
    """An attention that calls sys.exit ends a check, not the kit."""

    def leave(site, options):
        sys.exit(0)

    record = AttentionBackend(name="x", summary="", source="", build=leave, macs=lambda *_: MacCount())
    (result,) = run_checks(record, only=["shape-square"])
    assert (result.status, result.detail) == ("failed", "SystemExit: 0")


@pytest.fixture(scope="session")
def hello_site(tmp_path_factory):
    """The tutorial plugin, installed by pip from its folder as a stranger would."""
    site = tmp_path_factory.mktemp("hello")
    install(ROOT / "plugins" / "attnbench-hello", site)
    return site


def test_the_tutorial_plugin_installs_and_shows_up(hello_site):
    """After pip install, `attnbench list backends` shows hello and who provides it."""
    done = subprocess.run(
        [sys.executable, "-m", "attnbench.cli", "list", "backends"],
        env={"PYTHONPATH": f"{hello_site}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if "hello" in line)
    assert "attnbench-hello 0.1.0" in line


def test_the_tutorial_is_two_files_and_a_test():
    """The plugin a newcomer copies stays small."""
    files = {p.name for p in (ROOT / "plugins" / "attnbench-hello").iterdir() if p.is_file()}
    assert files == {"pyproject.toml", "attnbench_hello.py", "test_hello.py"}
