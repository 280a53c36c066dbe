"""torchvision imports beside a torch it was not compiled for; where it works by itself nothing is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(code):
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


def test_torchvision_and_timm_import():
    """After the call, torchvision and timm import in a fresh process."""
    code = (
        "from attnbench.torchvision_ops import define_missing_ops as d; d(); import torchvision, timm.layers"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr[-500:]


def test_diffusers_models_are_read_in_a_fresh_process():
    """What needs diffusers' models defines the operations itself: nothing else has in a fresh process."""
    code = (
        "from pathlib import Path; from attnbench.exchange import diffusers_config as d\n"
        "print(d._with_defaults({'_class_name': 'DiTTransformer2DModel'}, Path())['norm_type'])"
    )
    done = run(code)
    assert done.stdout.strip() == "ada_norm_zero", done.stderr[-500:]


def test_a_strangers_plugin_may_import_timm(tmp_path):
    """The operations are there before an entry point is imported."""
    (tmp_path / "with_timm.py").write_text("import timm\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from importlib.metadata import EntryPoint; from attnbench.plugins import load_plugins\n"
        "point = EntryPoint('with-timm', 'with_timm', 'attnbench')\n"
        "print([(row.status, row.reason) for row in load_plugins((), lambda: [point]).rows])"
    )
    done = run(code)
    assert done.stdout.strip() == "[('ok', '')]", done.stderr[-500:]


def test_calling_twice_defines_once():
    """The second call returns the same and defines nothing again."""
    done = run("from attnbench.torchvision_ops import define_missing_ops as d; assert d() == d()")
    assert done.returncode == 0, done.stderr[-500:]


def test_where_torchvision_loads_nothing_is_defined():
    """On a machine whose torchvision has its own ops, the module does nothing."""
    if run("import torchvision").returncode:
        pytest.skip("torchvision's own ops do not load beside this torch")
    done = run("from attnbench.torchvision_ops import define_missing_ops as d; print(d())")
    assert done.stdout.strip() == "()"


def test_own_ops_win(monkeypatch):
    """If torchvision's ops load, no schema is defined."""
    from attnbench import torchvision_ops

    monkeypatch.setattr(torchvision_ops, "_own_ops_load", lambda: True)
    assert torchvision_ops.define_missing_ops.__wrapped__() == ()
