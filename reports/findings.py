"""Say whether every sentence of FINDINGS.md still prints its number: run its command and look for the lines.

    python reports/findings.py

A sentence is a heading `### 3. ...`; below it stand, indented, the command and after `> ` what its output
holds, spaces aside. Exit code 1 where a command fails or a line is not there.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FINDINGS = HERE / "FINDINGS.md"
_HEADING = re.compile(r"^### (\d+)\. ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One command of a sentence and what it prints."""

    number: int
    command: str
    holds: tuple[str, ...]

    def missing(self, printed: str) -> list[str]:
        """Return the lines that the output does not hold, spaces aside."""
        found = squeezed(printed)
        return [line for line in self.holds if squeezed(line) not in found]


def squeezed(text: str) -> str:
    """Return a text with every run of spaces and line ends as one space."""
    return " ".join(text.split())


def checks(text: str) -> list[Check]:
    """Return every command of a page with its lines; raises ValueError of a sentence without one."""
    found: list[Check] = []
    _, *parts = _HEADING.split(text)
    for number, body in zip(map(int, parts[::2]), parts[1::2], strict=True):
        own: list[Check] = []
        for line in body.splitlines():
            said = line.removeprefix("    ")
            if said == line:
                continue
            if said.startswith("> ") and own:
                own[-1] = Check(number=number, command=own[-1].command, holds=(*own[-1].holds, said[2:]))
            elif said.startswith(("attnbench ", "python ", "grep ")):
                own.append(Check(number=number, command=said.partition("  #")[0].strip(), holds=()))
        if not own or not all(check.holds for check in own):
            raise ValueError(f"finding {number}: needs a command, and `> ` lines that it prints")
        found += own
    return found


def main() -> int:
    """Run every command from the repository's root and print what is not there."""
    wrong = 0
    for check in checks(FINDINGS.read_text(encoding="utf-8")):
        words = shlex.split(check.command)
        if words[0] == "attnbench":
            words[:1] = [sys.executable, "-m", "attnbench.cli"]
        run = subprocess.run(words, cwd=HERE.parent, capture_output=True, text=True, check=False)
        absent = check.missing(run.stdout)
        wrong += bool(absent)
        print(f"{check.number}: {'NOT as said' if absent else 'as said'}: {check.command}")
        for line in absent:
            print(f"   not printed: {line}")
        if absent and run.stderr:
            print(run.stderr, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
