"""The registry: built-ins and strangers alike, broken ones as rows, clashes and misspelt hooks as errors."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pluggy
import pytest

from attnbench.contract import AttentionBackend, MacCount
from attnbench.errors import NameClashError, PluginError, UnknownNameError
from attnbench.hookspecs import hookimpl
from attnbench.plugins import BUILTIN_PLUGINS, load_plugins, registry

ROOT = Path(__file__).resolve().parent.parent


def backend(name):
    return AttentionBackend(
        name=name,
        summary="",
        source="",
        build=lambda site, options: None,
        macs=lambda site, options: MacCount(),
    )


def plugin(answer, hook="attnbench_backends"):
    module = types.ModuleType("stranger")

    def implementation():
        return answer()

    implementation.__name__ = hook
    setattr(module, hook, hookimpl(implementation))
    return module


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name, load):
        self.name, self.value, self.load, self.dist = name, f"{name}_module", load, None


def load(*points):
    return load_plugins(builtins=("attnbench.backends.linear",), entry_points=lambda: list(points))


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


def test_every_hook_has_a_specification_and_a_docstring():
    """What we ask plugins is documented."""
    from attnbench import hookspecs

    hooks = [getattr(hookspecs, name) for name in dir(hookspecs) if name.startswith("attnbench_")]
    assert hooks
    assert all(hook.__doc__ for hook in hooks)


def test_a_dist_info_on_the_path_is_found(tmp_path, monkeypatch):
    """The real entry-point route, without pip: metadata on sys.path is enough."""
    (tmp_path / "their_module.py").write_text("x = 1 / 0\n")
    info = tmp_path / "theirs-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[attnbench]\ntheirs = their_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    row = next(row for row in load_plugins().rows if row.name == "theirs")
    assert (row.origin, row.status) == ("theirs 1.2", "broken")
    assert "ZeroDivisionError" in row.reason


@pytest.fixture(scope="session")
def hello_site(tmp_path_factory):
    """The tutorial plugin, installed by pip from its folder as a stranger would."""
    site = tmp_path_factory.mktemp("hello")
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    folder = ROOT / "plugins" / "attnbench-hello"
    subprocess.run([sys.executable, "-m", "pip", *words, str(folder)], check=True, timeout=120)
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
