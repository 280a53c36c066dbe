"""What users and plugin authors may rely on: public names, hooks, and options validated in one place."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import ROOT
from plugin_cases import Point, backend, load

import attnbench as package
from attnbench import hookspecs
from attnbench.contract import (
    AttentionBackend,
    BackendOptions,
    ExtractorInputs,
    FeatureExtractor,
    Features,
    MacCount,
)
from attnbench.errors import UserInputError
from attnbench.hookspecs import hookimpl
from attnbench.models.options import options_of, read_options


def test_public_names_are_these_and_resolve():
    """What `import attnbench` offers is an interface: a name more or less is a decision."""
    assert sorted(package.__all__) == [
        "AttentionBackend",
        "AttentionContext",
        "AttentionSite",
        "BackendOptions",
        "FeatureExtractor",
        "MacCount",
        "__version__",
        "build_attention",
        "build_model",
        "hookimpl",
        "list_backends",
        "load_model",
        "profile",
        "run_suite",
        "sample",
    ]
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert dir(package) == sorted(package.__all__)


def test_import_attnbench_is_torch_free():
    """Also the names a plugin's record is made of."""
    code = (
        "import sys, attnbench; attnbench.AttentionBackend, attnbench.hookimpl; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "False\n"


HOOKS = [name for name in dir(hookspecs) if name.startswith("attnbench_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook):
    """In its own docstring and in the guide."""
    assert getattr(hookspecs, hook).__doc__
    assert f"`{hook}`" in (ROOT / "plugins" / "README.md").read_text()


def test_a_plugin_may_implement_every_hook(tmp_path):
    """One plugin that answers all of them is heard by all of them."""
    heard = []

    class Everything:
        @hookimpl
        def attnbench_backends(self):
            yield backend("everything")

        @hookimpl
        def attnbench_extractors(self):
            yield FeatureExtractor(name="all", suffix="all", summary="", source="", load=self.load)

        @hookimpl
        def attnbench_training_log(self, label, folder, record):
            heard.append((label, folder, record["step"]))

        def load(self, inputs: ExtractorInputs):
            return lambda images: Features(pooled=images.flatten(1).float())

    assert {name for name in dir(Everything) if name.startswith("attnbench_")} == set(HOOKS)
    found = load(Point("everything", Everything))
    assert found.rows[-1].provides == ("everything", "all")
    assert found.backend("everything").name == "everything"
    assert found.extractor("all").suffix == "all"
    found.hook.attnbench_training_log(label="softmax", folder=tmp_path, record={"step": 3})
    assert heard == [("softmax", tmp_path, 3)]


class WindowOptions(BackendOptions):
    """Options with a pair, and one that must be set."""

    window: tuple[int, int] = (1, 1)
    steps: int


def windowed():
    return AttentionBackend(
        name="windowed",
        summary="s",
        source="s",
        options=WindowOptions,
        build=lambda site, options: None,
        macs=lambda site, options: MacCount(),
    )


def test_options_are_validated_in_one_place():
    """JSON's rules, defaults, every wrong key with the nearest spelling; the same list for a suite."""
    options = options_of(windowed(), {"window": [2, 3], "steps": 4})
    assert (options.window, options.steps) == ((2, 3), 4)
    wrong = {"windov": [2, 3], "steps": "4"}
    with pytest.raises(
        UserInputError, match=r"options of backend windowed: .*did you mean 'window'"
    ) as caught:
        options_of(windowed(), wrong)
    checked, problems = read_options(windowed(), wrong)
    assert checked is None
    assert {problem.path for problem in problems} == {("windov",), ("steps",)}
    assert all(problem.message in str(caught.value) for problem in problems)


def test_options_that_are_no_data_are_the_users_error():
    """Such as a function, from Python."""
    with pytest.raises(UserInputError, match="options of backend windowed: must be plain JSON data"):
        options_of(windowed(), {"steps": print})


def test_an_option_without_a_default_is_shown(monkeypatch):
    """`show` says that it must be set, and the kit asks for no default."""
    from attnbench.commands import show

    assert [row[:2] for row in show._options(WindowOptions)] == [
        ("window", "[1, 1]"),
        ("steps", "(must be set)"),
    ]
