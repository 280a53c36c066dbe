"""The commands that README and the plugin guide show are commands that there are."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import typer
from command_line import ROOT

from attnbench.cli import app

DOCUMENTS = ("README.md", "plugins/README.md", "plugins/attnbench-fla/README.md", "CONTRIBUTING.md")
CLI = typer.main.get_command(app)


def shown_commands(document: str) -> list[str]:
    """Return every `attnbench ...` line of a document's code, whole, without its remark."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^(?:    |\$ )(attnbench .*)$", text, re.MULTILINE)
    inline = re.findall(r"`(attnbench [^`]+)`", text)
    return [*blocks, *inline]


def parse(line: str) -> None:
    """Parse a command line as the tool would, up to its first shell operator, without running it."""
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = CLI
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    if not words or words == ["--help"] or "..." in words:
        return  # prose that names a command
    with command.make_context("attnbench", words):
        pass


def lines_of_all() -> list[tuple[str, str]]:
    return [(document, line) for document in DOCUMENTS for line in shown_commands(document)]


@pytest.mark.parametrize(("document", "line"), lines_of_all())
def test_every_command_shown_is_understood(document, line):
    """Commands, their arguments and options exist and take what is written."""
    for part in re.split(r"\s+(?:&&|\|\|?|>)\s+", line):
        if part.startswith("attnbench "):
            parse(part)


def test_an_unknown_option_would_be_found():
    """The check is one: a wrong option and a wrong command are refused."""
    with pytest.raises(Exception, match="No such option"):
        parse("attnbench run quick --no-such-option 1")
    with pytest.raises(AssertionError, match="no command 'frobnicate'"):
        parse("attnbench frobnicate quick")


def test_readme_names_every_command():
    """A command nobody can read about does not exist."""
    text = (ROOT / "README.md").read_text()
    missing = [name for name in CLI.commands if not re.search(rf"attnbench(?: \w+)? {name}\b", text)]
    assert missing == []
