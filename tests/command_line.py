"""The command line as a user calls it: in a process of its own, or (quicker) in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent


def attnbench(*words, cwd=None, path=()):
    """Run `attnbench WORDS` from this tree, with further folders on the path; return the process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "attnbench.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


def attnbench_here(*words, cwd=None):
    """Run `attnbench WORDS` inside this process, from `cwd`; return what a process would."""
    from attnbench.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "argv", ["attnbench", *map(str, words)]),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
