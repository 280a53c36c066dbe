"""Every sentence of reports/FINDINGS.md has a command that prints its number."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys

import pytest
from command_line import ROOT, attnbench_here

SPEC = importlib.util.spec_from_file_location("reports_findings", ROOT / "reports" / "findings.py")
assert SPEC is not None
assert SPEC.loader is not None
findings = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = findings  # a dataclass looks its module up
SPEC.loader.exec_module(findings)
CHECKS = findings.checks(findings.FINDINGS.read_text(encoding="utf-8"))


def test_there_are_ten_sentences() -> None:
    """Numbered from one on."""
    assert list(dict.fromkeys(check.number for check in CHECKS)) == list(range(1, 11))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.number))
def test_a_sentence_is_what_its_command_prints(check) -> None:
    """From the committed results alone, with today's code."""
    program, *words = shlex.split(check.command)
    assert program in ("attnbench", "grep")  # quick: no measuring
    if program == "attnbench":
        printed = attnbench_here(*words, cwd=ROOT).stdout
    else:
        printed = subprocess.run([program, *words], cwd=ROOT, capture_output=True, text=True).stdout
    assert check.missing(printed) == []


def test_a_line_that_is_not_printed_is_missed() -> None:
    """Spaces and line ends aside; a sentence without a command or without its lines is refused."""
    (check,) = findings.checks("# F\n\n### 1. It is 3.\n\n    attnbench x\n    > a is 3\n    > b\n\nText.\n")
    assert (check.command, check.holds) == ("attnbench x", ("a is 3", "b"))
    assert check.missing("a  is\n 3 b") == []
    assert check.missing("a is 4") == ["a is 3", "b"]
    for text in ("### 1. It is 3.\n\nText.\n", "### 1. It is 3.\n\n    attnbench x\n"):
        with pytest.raises(ValueError, match="finding 1: needs a command"):
            findings.checks(text)
