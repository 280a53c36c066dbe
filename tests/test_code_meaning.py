"""The hash of what code computes: words and counts of a plugin may change, arithmetic may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.errors import DataError
from attnbench.storage.code_meaning import code_sha256

PLUGIN = '''\
"""A module."""
import attnbench
from torch import nn


class Options(attnbench.BackendOptions):
    """Options."""

    keys: int = 4
    """Keys."""


def side(site, options):
    return site.grid[0] // options.keys


def tokens(site):
    return site.num_tokens


def macs(site, options):
    """Count."""
    return attnbench.MacCount(linear=4 * tokens(site) * side(site, options))


class Theirs(nn.Module):
    def __init__(self, site, options):
        """Build."""
        super().__init__()
        self.side = side(site, options)


@attnbench.hookimpl
def attnbench_backends():
    yield attnbench.AttentionBackend(
        name="theirs", summary="words", source="paper", build=Theirs, macs=macs, options=Options
    )
'''


def meaning(folder: Path, *, plugin: str = PLUGIN, **others: str) -> tuple[str, ...]:
    """Hash a plugin's files; the first is the plugin."""
    files = {}
    for name, text in {"plugin": plugin, **others}.items():
        files[name] = folder / f"{name}.py"
        files[name].write_text(text)
    return tuple(code_sha256(files).values())


def edited(old: str, new: str) -> str:
    assert PLUGIN.count(old) == 1
    return PLUGIN.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import attnbench\n", "import attnbench  # the contract\n\n"),
        ('"""A module."""\n', ""),
        ('"""Keys."""', '"""How many keys an image has."""'),
        ('"""Build."""', "'''Build it.'''"),
        ('summary="words"', "summary='other words'"),
        ('source="paper"', 'source="another", complexity="linear", family="linear"'),
        ("macs=macs", "macs=lambda site, options: macs(site, options) + attnbench.MacCount()"),
        ("linear=4 *", "linear=3 *"),
        ("return site.num_tokens", "return site.num_tokens + 1"),  # `macs` alone uses it
        ("options=Options\n", "options=Options,\n"),
    ],
)
def test_words_and_counts_change_nothing(old, new, tmp_path):
    """Comments, docstrings, layout, what a record says, `macs` and what only `macs` uses."""
    assert meaning(tmp_path, plugin=edited(old, new)) == meaning(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keys: int = 4", "keys: int = 5"),
        ("keys: int = 4", "keys: int = 4.0"),
        ("site.grid[0] //", "site.grid[1] //"),  # the module uses it, too
        ("self.side = side(site, options)", "self.side = -side(site, options)"),
        ('name="theirs"', 'name="mine"'),
        ("build=Theirs", "build=lambda site, options: Theirs(site, options)"),
    ],
)
def test_arithmetic_is_seen(old, new, tmp_path):
    """Whatever can change a weight or an output changes the hash."""
    assert meaning(tmp_path, plugin=edited(old, new)) != meaning(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        "from plugin import tokens\n",
        "import plugin\nX = plugin.tokens\n",
        "from plugin import *\n",
        'import plugin\nX = getattr(plugin, "tokens")\n',
        "print 'another Python, or a template'\n",
    ],
)
def test_a_function_that_another_file_may_use_counts(other, tmp_path):
    """`tokens` is more than a count where a second file of the plugin can have it."""
    changed = edited("return site.num_tokens", "return site.num_tokens + 1")
    assert meaning(tmp_path, plugin=changed, other=other) != meaning(tmp_path, other=other)
    assert meaning(tmp_path, plugin=changed, other="X = 1\n") == meaning(tmp_path, other="X = 1\n")


@pytest.mark.parametrize(
    "kept",
    [
        "@kept\ndef tokens(site):\n    return {}\n",
        "def tokens(site, size=size_of({})):\n    return size\n",
        "tokens = len\ndef tokens(site):\n    return {}\n",
        "def tokens(site):\n    return {}\nNUM_TOKENS = tokens(3)\n",
    ],
)
def test_a_function_that_runs_or_is_kept_at_import_counts(kept, tmp_path):
    """A decorator, a default that is computed, a second meaning of the name, a call in the module."""
    old = "def tokens(site):\n    return site.num_tokens\n"
    first, second = (edited(old, kept.format(number)) for number in (1, 2))
    assert meaning(tmp_path, plugin=first) != meaning(tmp_path, plugin=second)


@pytest.mark.parametrize("reader", ["print(__doc__)", "import inspect\ninspect.getsource(print)", "def f(:"])
def test_code_that_reads_itself_or_cannot_be_read_counts_letter_by_letter(reader, tmp_path):
    """Such a file's words may be arithmetic."""
    assert meaning(tmp_path, plugin=f"# a\n{reader}\n") != meaning(tmp_path, plugin=f"# b\n{reader}\n")


def test_what_differs_in_kind_differs_in_hash(tmp_path):
    """1 and 1.0 and True, a name and a string, an argument and a keyword are not the same."""
    texts = ["x = 1", "x = 1.0", "x = True", "x = None", "x = '1'", "x = b'1'", "x = f(1)", "x = f(a=1)"]
    texts += ["x = ''", "x: int = 1", "x = -1", "x = 1\ny = 2", "y = 2\nx = 1", "if x:\n    y = 2\nx = 1"]
    assert len({meaning(tmp_path, plugin=text) for text in texts}) == len(texts)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A file that went away is an error of the data, not a fingerprint."""
    with pytest.raises(DataError, match=r"gone\.py"):
        code_sha256({"gone": tmp_path / "gone.py"})


@pytest.mark.parametrize(
    ("reader", "counts"),
    [
        ("X = globals()['tok' + 'ens']", True),
        ("X = vars(Options)", True),
        ("X = eval('tok' + 'ens')", True),
        ("import importlib\nX = importlib.import_module('plug' + 'in')", True),
        ("X = Options.__dict__", True),
        ("import importlib\nX = importlib.import_module('torch')", False),  # an import like any other
        ("X = nn.Linear(1, 1).eval()", False),
    ],
)
def test_where_a_function_may_be_used_unseen_all_count(reader, counts, tmp_path):
    """A name that is put together while it runs cannot be found by looking for it."""
    hashes = {
        meaning(tmp_path, plugin=edited("return site.num_tokens", f"return {text}") + f"\n\n{reader}\n")
        for text in ("site.num_tokens", "site.num_tokens + 1")
    }
    assert len(hashes) == (2 if counts else 1)


@pytest.mark.parametrize(
    "own",
    [
        "from torch.nn import Linear as AttentionBackend\nX = AttentionBackend(source={})\n",
        "class AttentionBackend(nn.Linear):\n    pass\n\n\nX = AttentionBackend(source={})\n",
    ],
)
def test_a_record_of_ones_own_is_no_description(own, tmp_path):
    """What a class of the same name as the contract's does with `source` nobody knows."""
    assert len({meaning(tmp_path, plugin=PLUGIN + own.format(number)) for number in (1, 2)}) == 2


def test_a_count_that_changes_the_module_counts(tmp_path):
    """A function that sets a name of its module computes more than a count."""
    kept = "def tokens(site):\n    global SCALE\n    SCALE = {}\n    return site.num_tokens\n"
    old = "def tokens(site):\n    return site.num_tokens\n"
    first, second = (edited(old, kept.format(number)) for number in (1, 2))
    assert meaning(tmp_path, plugin=first) != meaning(tmp_path, plugin=second)


def test_the_hash_is_pinned(tmp_path):
    """Trainings lie in stores under it: it must not move with our code, or Python's version."""
    assert meaning(tmp_path)[0][:16] == "98308c2c5672893e"
