"""Where a container's user has no name and no home, or a home that nobody can write to, a word says so."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from command_line import ROOT, attnbench
from stored_runs import STILL_FINISHED

NOBODY = """
import pwd
def unknown(*_):
    raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = pwd.getpwnam = unknown
"""  # what Python asks where HOME is not set
OF_A_USER = ("USER", "LOGNAME", "USERNAME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "MPLCONFIGDIR")


@pytest.fixture(params=["no home", "home that cannot be written to"])
def attnbench_there(request, monkeypatch, tmp_path):
    """Run `attnbench WORDS` as such a user; returns the process."""
    for name in (*OF_A_USER, "ATTNBENCH_INCEPTION_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "no home":
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", "/dev/null/nobody")
    (tmp_path / "sitecustomize.py").write_text(NOBODY)

    def call(*words):
        done = attnbench(*words, cwd=tmp_path, path=[tmp_path])
        assert "Traceback" not in done.stderr, done.stderr
        return done

    call.has_home = request.param != "no home"
    return call


def test_lists_are_printed(attnbench_there):
    """Neither the backends nor the places of weights need a home."""
    assert attnbench_there("list", "backends").returncode == 0
    done = attnbench_there("weights", "list")
    assert done.returncode == 0, done.stderr
    assert "~/.cache/attnbench/weights" in done.stdout


def test_weights_are_not_fetched_to_nowhere(attnbench_there, tmp_path):
    """One error with the way out; no folder called ~ is made."""
    done = attnbench_there("weights", "fetch", "inception-tf", "--yes")
    assert done.returncode != 0
    told = "cannot write /dev/null" if attnbench_there.has_home else "set HOME or XDG_CACHE_HOME, or name"
    assert told in done.stderr
    assert not (tmp_path / "~").exists()


def test_evaluate_says_which_weights_are_missing(attnbench_there, tmp_path):
    """The usual places are looked at as far as there are any."""
    images = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images)
    words = ("images.npz", "--reference", "images.npz", "--extractor", "inception-tf", "--kd-subset-size", 10)
    done = attnbench_there("evaluate", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "attnbench weights fetch inception-tf" in done.stderr


@pytest.mark.slow
def test_a_suite_is_run_and_reported(attnbench_there, tmp_path):
    """Cases, plots and the profile need no home; what is finished here is read, its cost is measured."""
    shutil.copytree(ROOT / "tests" / "stored", tmp_path / "runs")
    finished = [word for override in STILL_FINISHED for word in ("-o", override)]
    done = attnbench_there("run", "runs/stored.yaml", "--runs", "runs", "--quiet", *finished)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "stored" / "report.html").is_file()
