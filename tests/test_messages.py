"""What messages tell a user to type exists: every option, command and setting that a text names.

A text is a literal of the package's source, documentation strings left out; what `cli` says is read as click
has it. An option alone is one of every command that says the text. Where commands share code, a text names
the command (`attnbench evaluate --weights`) or, beside the option, the suite's setting:
`--kd-subset-size; in a suite: evaluate.kd_subset_size`.
"""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer
from command_line import ROOT
from pydantic import BaseModel

from attnbench.cli import app
from attnbench.specs import Case

PACKAGE = ROOT / "attnbench"
OPTION = re.compile(r"(?<![\w-])--[a-z](?:[\w-]*\w)?")
NAMED = re.compile(
    r"(?:attnbench |`(?!attnbench ))([a-z][a-z-]*)(?![\w.-])(?: ([a-z][a-z-]*))?((?: [^;`]*)?)"
)
ALSO_SETTING = re.compile(r"(--[\w-]+)[^;`()]{0,20}(?:; | \()in a suite: `?[a-z]+\.[a-z_]+")
SETTING = re.compile(
    r"(?<![\w./-])((?:model|data|train|sample|evaluate|profile|diagnose)(?:\.[a-z]\w*)+)(?!\w|\()"
)

# Who says the texts of a file, or of a folder: the longest match wins.
SUITES = ("run", "plan", "validate")
SAID_BY: dict[str, tuple[str, ...]] = {
    "commands/check.py": ("check",),
    "commands/claims.py": ("claims",),
    "commands/compare.py": ("compare",),
    "commands/data.py": ("data prepare",),
    "cli/evaluate.py": ("evaluate",),
    "cli/suites.py": ("run",),
    "cli/weights.py": ("weights fetch",),
    "commands/evaluate.py": ("evaluate", "reference build"),
    "commands/evaluate_inputs.py": ("evaluate",),
    "commands/exchange.py": ("export", "import", "transfer"),
    "commands/figure": ("figures",),
    "commands/profile.py": ("profile",),
    "commands/samples.py": ("samples export",),
    "commands/schema.py": ("schema",),
    "commands/status.py": ("status",),
    "commands/store.py": ("store list", "store prune"),
    "commands/suites.py": SUITES,
    "commands/tables.py": ("report",),
    "commands/weights.py": ("weights list", "weights fetch"),
    "console/plan_view.py": ("run",),
    "console/profile_view.py": ("profile",),
    "data/": ("data prepare",),
    "data/prepared.py": (*SUITES, "evaluate", "figures"),
    "evaluation/": ("evaluate",),
    "evaluation/image_files.py": ("evaluate", "reference build"),
    "evaluation/images.py": ("evaluate", "reference build"),
    "evaluation/requirements.py": (*SUITES, "evaluate", "figures"),
    "evaluation/scores.py": ("run", "evaluate"),
    "exchange/": ("export", "import", "transfer"),
    "exchange/diffusers_format.py": ("export",),
    "exchange/original_dit.py": ("import",),
    "exchange/transfer.py": ("transfer",),
    "metrics/": ("run", "evaluate", "reference build", "figures"),
    "metrics/classifier.py": ("evaluate", "reference build", "figures"),  # a suite has its images
    "problems.py": ("check", "transfer"),
    "profiling/": ("run", "profile"),
    "profiling/profile.py": ("profile",),
    "profiling/session.py": ("profile",),  # a run's session has no limit
    "report/compare/": ("compare",),
    "report/formats/": ("report",),
    "report/paper_figures/": ("figures",),
    "report/profile_tables.py": ("profile",),
    "report/sections.py": ("run",),  # the command that made a run
    "running/": ("run",),
    "running/machines.py": ("plan",),
    "scaffold/": ("new-plugin",),
    "stages/": ("run",),
    "stages/sampling/export.py": ("samples export",),
    "stages/training/initial_weights.py": ("transfer",),  # pieces of its command
    "storage/inventory.py": ("store list", "store prune"),
    "storage/run_folders.py": ("evaluate", "export", "samples export", "figures"),
    "suite/": (*SUITES, "status"),
    "suite/distinct.py": SUITES,
}
ONE_OF_SEVERAL = "commands/", "exchange/folders.py"  # functions of several commands, each saying its own
OF_OTHER_PROGRAMS = {
    "commands/suites.py": {"--nnodes"},  # torchrun
    "data/image_sources.py": {"--sparse"},  # tar
    "report/page/__init__.py": {"--line", "--series"},  # style sheets
    "results.py": {"--error-unmatch", "--porcelain"},  # git
    "running/executors/gathering.py": {"--max-restarts"},  # torchrun
    "running/executors/ray_cluster.py": {"--head"},  # ray
    "running/executors/slurm.py": {"--signal", "--state"},  # scancel
    "running/executors/slurm_queue.py": {"--array", "--signal", "--state", "--test-only"},  # scancel, sbatch
    "storage/hub.py": {"--include", "--local-dir", "--revision"},  # hf
}


def leaves(group: Any, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
OPTIONS = {
    name: {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    | {"--help"}
    for name, command in COMMANDS.items()
}


def texts(file: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of every literal, an f-string whole with {} for its values.

    Of `cli` those inside functions: the others are help.
    """
    tree = ast.parse((PACKAGE / file).read_text())
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    if file.startswith("cli/"):
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        tree = ast.Module(body=[line for one in functions for line in one.body], type_ignores=[])
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def is_setting(path: str) -> bool:
    """Whether a case has a setting of this name, in any of the kinds that a part of it may be."""
    kinds: list[Any] = [Case]
    for name in path.split("."):
        found: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
                found += list(parts_of(kind.model_fields[name].annotation))
        kinds = found
    return bool(kinds)


def parts_of(annotation: Any) -> Iterator[Any]:
    arguments = typing.get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from parts_of(argument)


def faults(file: str, text: str, saying: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield what a text of a file names and is not there; `saying` in place of what SAID_BY has of it."""
    rest = text
    for found in NAMED.finditer(text):
        first, second, more = found.groups()
        name = f"{first} {second}" if f"{first} {second}" in COMMANDS else first
        if name in COMMANDS:
            if name == first:
                more = f" {second or ''}{more}"
            yield from (
                f"{word}: no option of {name}" for word in OPTION.findall(more) if word not in OPTIONS[name]
            )
            rest = rest.replace(found.group(0), "")
        elif "`" + found.group(0) in text and "attnbench" in found.group(0):
            yield f"`attnbench {first}`: no such command"
    if saying is None:
        places = [place for place in SAID_BY if file.startswith(place)]
        saying = SAID_BY[max(places, key=len)] if places else ()
    with_setting = set(ALSO_SETTING.findall(rest))
    for word in OPTION.findall(rest):
        have = [word in OPTIONS[name] for name in saying]
        enough = any if file.startswith(ONE_OF_SEVERAL) or word in with_setting else all
        if word not in OF_OTHER_PROGRAMS.get(file, ()) and not (have and enough(have)):
            yield f"{word}: not of {', '.join(saying) or 'any command that SAID_BY knows of'}"
    for path in SETTING.findall(text):
        if not path.endswith(
            (".py", ".json", ".jsonl", ".yaml", ".npz", ".md", ".safetensors")
        ) and not is_setting(path):
            yield f"{path}: no setting of a suite"


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def test_every_text_names_what_there_is():
    """Options, commands and settings in every literal of the package."""
    found = [
        f"{file}:{line}: {fault}"
        for file in files()
        for line, text in texts(file)
        for fault in faults(file, text)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_names_what_there_is(name):
    """Options that a command's help names are its own, or stand behind the command that has them."""
    command = COMMANDS[name]
    told = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    assert not [fault for text in told for fault in faults("cli/", text, (name,))]


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("commands/profile.py", "--batch_size takes numbers", "--batch_size: not of profile"),
        ("evaluation/requirements.py", "set it (--kd-subset-size)", "--kd-subset-size: not of run"),
        ("stages/train.py", "lower train.batchsize", "train.batchsize: no setting"),
        ("plugins.py", "see `attnbench list-plugins`", "no such command"),
        ("data/card.py", "`attnbench data prepare SOURCE --into X`", "--into: no option of data prepare"),
        ("layers/precision.py", "try --precision", "not of any command"),
    ],
)
def test_what_is_not_there_would_be_found(file, text, fault):
    """The test is one: each kind of wrong name is seen."""
    (found,) = faults(file, text)
    assert fault in found


def test_who_says_what_is_up_to_date():
    """Every place of the table exists, and every command in it."""
    assert [place for place in SAID_BY if not any(file.startswith(place) for file in files())] == []
    assert {name for names in SAID_BY.values() for name in names} <= COMMANDS.keys()
