"""What stands behind standard output: terminals without letters, readers that go, disks without room."""

import os
import subprocess
import sys

import pytest
from command_line import ROOT

from attnbench import results
from attnbench.results import Result

ASCII = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
)
RUN = f"{sys.executable} -m attnbench.cli"


def shell(command, **environment):
    """Run a line of bash with our command line as $attnbench."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT), "attnbench": RUN, **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=everything, timeout=120)


@pytest.mark.parametrize("environment", ASCII, ids=["ioencoding", "locale"])
def test_a_terminal_of_ascii_gets_ascii(environment, tmp_path):
    """Lines, signs and foreign letters are replaced one by one; nothing ends in a traceback."""
    failed = Result(
        case_id="a",
        suite="mine",
        label="linear · 猫",
        status="failed",
        reason="größer −1",
        environment=results.environment(),
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/results.jsonl").write_text(failed.model_dump_json() + "\n", encoding="utf-8")
    done = shell(f"$attnbench list backends && $attnbench report mine --runs {tmp_path}", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"----" in done.stdout
    assert b"linear . ?: failed: gr??er -1" in done.stdout


@pytest.mark.parametrize("words", ["list backends", "schema", "--help"])
def test_a_reader_that_goes_is_no_error(words):
    """`head -1` closes the pipe: not a word on stderr, however much is still to be written."""
    done = shell(f"$attnbench {words} | head -1; true")
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    done = shell(f"$attnbench {words} | true")  # closed before the first word
    assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full as a full disk")
@pytest.mark.parametrize("words", ["list backends", "schema", "--help", "--version"])
def test_a_full_disk_behind_the_output_is_one_error(words):
    """One line that says what helps, exit code 1."""
    done = shell(f"$attnbench {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().startswith(
        "error: cannot write to standard output: No space left on device; free"
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("words", ["list backends", "schema"])
def test_a_closed_output_is_no_traceback(words):
    """`>&-`, as some schedulers start programs."""
    done = shell(f"$attnbench {words} >&-")
    assert (done.returncode, done.stderr) == (0, b"")
