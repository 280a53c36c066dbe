"""Fingerprints: an edit of anything that builds an attention is seen, and nothing else is."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import py_compile
import sys
import types
import zipfile
from pathlib import Path

import pytest

from attnbench import fingerprints
from attnbench.plugins import load_plugins, registry
from attnbench.storage.code_meaning import code_sha256

FEATURES_SINCE = {
    "digits-cnn": "9f74b28a0d88fea2",
    "dinov2": "30ca923f5b03ec0f",
    "inception-tf": "7a09b62e3ff1f975",
    "efficientnet-lite0": "eb1215a2b20f7246",
}


ROOT = Path(__file__).resolve().parent.parent
NAMES = ("their_plugin", "their_library", "their_namespace")

PLUGIN = """\
import functools
import attnbench
{code}

@attnbench.hookimpl
def attnbench_backends():
    yield attnbench.AttentionBackend(
        name="theirs", summary="", source="", build={build}, macs=lambda site, options: attnbench.MacCount()
    )
"""
LIBRARY = """\
import functools

def attention(site, options, scale=1):
    raise NotImplementedError

def factory(scale):
    return lambda site, options: scale

def decorated(function):
    @functools.wraps(function)
    def wrapper(site, options):
        return function(site, options)
    return wrapper

class Composed:
    def __init__(self, *functions):
        self.functions = functions

    def __call__(self, site, options):
        return self.functions[0](site, options)

class Builder:
    def build(self, site, options):
        raise NotImplementedError
"""
OWN = "def build(site, options):\n    return 1"
WAYS = {  # how a record may say who builds: code of the plugin, and the expression
    "function": (OWN, "build"),
    "partial": ("def build(site, options, scale):\n    return 1", "functools.partial(build, scale=2)"),
    "bound method": ("class Own:\n    def build(self, site, options):\n        return 1", "Own().build"),
    "callable object": ("class Own:\n    def __call__(self, site, options):\n        return 1", "Own()"),
    "cache": (f"@functools.cache\n{OWN}", "build"),
    "lambda": ("SCALE = 1", "lambda site, options: SCALE"),
    "decorator of another module": (f"import their_library\n@their_library.decorated\n{OWN}", "build"),
    "factory of another module": ("from their_library import factory", "factory(1)"),
    "partial of another module": ("from their_library import attention", "functools.partial(attention)"),
    "object of another module": (f"from their_library import Composed\n{OWN}", "Composed(build)"),
    "method of another module": ("from their_library import Builder", "Builder().build"),
    "module in a closure": (
        "def late():\n    import their_library\n    return lambda *_: their_library.attention",
        "late()",
    ),
}


def written(folder: Path, way: str) -> Path:
    """Write a plugin of one file, and the library it may use."""
    code, build = WAYS[way]
    folder.mkdir(exist_ok=True)
    (folder / "their_plugin.py").write_text(PLUGIN.format(code=code, build=build))
    (folder / "their_library.py").write_text(LIBRARY)
    return folder


def loaded(folder: Path, module: str = "their_plugin"):
    """Import a plugin anew from a folder, as a new process would; return its registry."""
    for name in [name for name in sys.modules if name.startswith(NAMES)]:
        del sys.modules[name]
    importlib.invalidate_caches()
    point = importlib.metadata.EntryPoint("theirs", module, "attnbench")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)  # or an edit within a second would not be seen
        return load_plugins(builtins=(), entry_points=lambda: [point])


def code_of(folder: Path, module: str = "their_plugin") -> str:
    found = loaded(folder, module)
    assert found.rows[0].status == "ok", found.rows[0].reason
    return found.backends["theirs"].code


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\nCHANGED = 1\n")


def meaning_of(path: Path) -> str:
    return code_sha256({path.name: path})[path.name][:16]


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_of_the_plugin_is_seen(way, tmp_path):
    """However the record names what builds the attention, the plugin's own file counts."""
    before = code_of(written(tmp_path, way))
    edit(tmp_path / "their_plugin.py")
    assert code_of(tmp_path) != before


@pytest.mark.parametrize("way", [way for way in WAYS if "another module" in way or "closure" in way])
def test_an_edit_of_a_library_that_builds_is_seen(way, tmp_path):
    """Behind partials, methods, wrappers and closures the other module counts, too."""
    before = code_of(written(tmp_path, way))
    edit(tmp_path / "their_library.py")
    assert code_of(tmp_path) != before


@pytest.mark.parametrize("way", ["function", "partial", "bound method", "cache", "lambda"])
def test_a_plugin_of_one_file_has_the_hash_of_that_file(way, tmp_path):
    """Neither Python's files nor an unused neighbour are in it."""
    file = written(tmp_path, way) / "their_plugin.py"
    edit(tmp_path / "their_library.py")
    assert code_of(tmp_path) == meaning_of(file)


def test_a_decorator_of_torch_does_not_count(tmp_path):
    """A new torch computes nothing again; what it wraps is looked through."""
    plugin = PLUGIN.format(code=f"import torch\n@torch.no_grad()\n{OWN}", build="build")
    (tmp_path / "their_plugin.py").write_text(plugin)
    assert code_of(tmp_path) == meaning_of(tmp_path / "their_plugin.py")


def a_package(folder: Path) -> Path:
    """Write a plugin that is a package: its hook in one file, its attention in others."""
    package = folder / "their_plugin"
    (package / "kernels").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    code = "from their_plugin.kernels.scan import build"
    (package / "hooks.py").write_text(PLUGIN.format(code=code, build="build"))
    (package / "kernels" / "__init__.py").write_text("")
    (package / "kernels" / "scan.py").write_text(OWN)
    (package / "kernels" / "late.py").write_text("LATE = True  # imported by build alone\n")
    return package


@pytest.mark.parametrize("file", ["__init__.py", "hooks.py", "kernels/scan.py", "kernels/late.py", "new.py"])
def test_an_edit_of_any_file_of_the_package_is_seen(file, tmp_path):
    """The second file of a plugin counts, imported or not, and so does a new one."""
    package = a_package(tmp_path)
    before = code_of(tmp_path, "their_plugin.hooks")
    (package / file).touch()
    edit(package / file)
    assert code_of(tmp_path, "their_plugin.hooks") != before


def test_contents_that_change_places_are_seen(tmp_path):
    """A file counts with its name in the package."""
    package = a_package(tmp_path)
    before = code_of(tmp_path, "their_plugin.hooks")
    (package / "kernels" / "late.py").rename(package / "kernels" / "later.py")
    assert code_of(tmp_path, "their_plugin.hooks") != before


def test_where_a_package_lies_and_what_tools_leave_in_it_do_not_matter(tmp_path):
    """Another folder, byte code, an editor's copies and data give the same fingerprint."""
    here, there = a_package(tmp_path / "here"), a_package(tmp_path / "far" / "there")
    for folder in ("__pycache__", "kernels/.ipynb_checkpoints"):
        (there / folder).mkdir()
    (there / "__pycache__" / "hooks.cpython-311.pyc").write_bytes(b"x")
    (there / "kernels" / ".ipynb_checkpoints" / "scan-checkpoint.py").write_text("x = 1")
    (there / "README.md").write_text("x")
    codes = {code_of(package.parent, "their_plugin.hooks") for package in (here, there)}
    assert len(codes) == 1


def test_a_neighbour_in_a_namespace_package_does_not_count(tmp_path):
    """`company/attention` and `company/other` are two distributions."""
    ours, other = tmp_path / "their_namespace" / "ours", tmp_path / "their_namespace" / "other"
    for package in (ours, other):
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(PLUGIN.format(code=OWN, build="build"))
    before = code_of(tmp_path, "their_namespace.ours")
    edit(other / "__init__.py")
    assert code_of(tmp_path, "their_namespace.ours") == before
    edit(ours / "__init__.py")
    assert code_of(tmp_path, "their_namespace.ours") != before


def test_a_package_without_init_counts_with_the_files_beside_its_module(tmp_path):
    """A beginner's package lacks `__init__.py`; its second file is in the key all the same."""
    folder = tmp_path / "their_namespace"
    folder.mkdir()
    (folder / "plugin.py").write_text(PLUGIN.format(code=OWN, build="build"))
    (folder / "kernels.py").write_text("SCALE = 1\n")
    before = code_of(tmp_path, "their_namespace.plugin")
    edit(folder / "kernels.py")
    assert code_of(tmp_path, "their_namespace.plugin") != before


def test_a_plugin_without_source_counts_with_its_binary(tmp_path):
    """Byte code alone, as a compiled extension, is hashed as it is."""
    source = written(tmp_path / "source", "function") / "their_plugin.py"
    codes = []
    for _ in range(2):
        binary = tmp_path / "binary" / "their_plugin.pyc"
        py_compile.compile(
            str(source), str(binary), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
        )
        codes.append(code_of(tmp_path / "binary"))
        assert codes[-1] == hashlib.sha256(binary.read_bytes()).hexdigest()[:16]
        edit(source)
    assert codes[0] != codes[1]


def test_a_compiled_class_counts_with_its_extension():
    """What has no Python code belongs to the file of its module."""
    from pydantic_core import _pydantic_core

    found = fingerprints.plugin_fingerprint(
        types.ModuleType("stranger"), functools.partial(_pydantic_core.SchemaValidator)
    )
    assert found == hashlib.sha256(Path(_pydantic_core.__file__).read_bytes()).hexdigest()[:16]


def test_code_that_cannot_be_found_is_refused(tmp_path):
    """From a zip archive no file can be hashed: a broken row, not the same fingerprint for ever."""
    folder = written(tmp_path, "function")
    archive = tmp_path / "theirs.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "their_plugin.py", "their_plugin.py")
    (row,) = loaded(archive).rows
    assert row.status == "broken"
    assert "no file of its code can be found" in row.reason


def test_built_ins_rewritten_without_a_change_of_results_keep_their_fingerprint():
    """Every entry of the table is a present file as it stands; its results are found under the former hash.

    After an edit that changes results, remove the file's entry.
    """
    table = json.loads(fingerprints.SAME_RESULTS.read_bytes())
    now = {name: meaning_of(fingerprints.PACKAGE / name) for name in table}
    assert {name: entry["code"] for name, entry in table.items()} == now
    provided = {
        f"{p.plugin.removeprefix('attnbench.').replace('.', '/')}.py": p.code
        for p in (*registry().backends.values(), *registry().extractors.values())
    }
    assert {name: provided[name] for name in table} == {name: e["results"] for name, e in table.items()}


def test_built_in_networks_have_the_fingerprints_of_their_stored_features():
    """Features, references and classifiers of earlier runs lie under these; change one with its results."""
    codes = {name: found.code for name, found in registry().extractors.items()}
    assert {name: codes[name] for name in FEATURES_SINCE} == FEATURES_SINCE


def test_an_edited_built_in_falls_out_of_the_table(tmp_path, monkeypatch):
    """One statement more, and the fingerprint is the file's own; a comment changes nothing."""
    file, table = tmp_path / "agent.py", tmp_path / "same_results.json"
    file.write_text("x = 1\n")
    table.write_text(json.dumps({"agent.py": {"code": meaning_of(file), "results": "0123456789abcdef"}}))
    monkeypatch.setattr(fingerprints, "SAME_RESULTS", table)
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path)
    module = types.ModuleType("agent")
    module.__file__ = str(file)
    file.write_text("# a remark\nx = 1\n")
    assert fingerprints.builtin_fingerprint(module) == "0123456789abcdef"
    edit(file)
    assert fingerprints.builtin_fingerprint(module) == meaning_of(file)
