"""The command line: parse, call, print. Heavy imports happen inside the commands.

One module per group of commands, called after it; importing one registers its commands, in the order of
`attnbench --help`.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NoReturn

import typer

from attnbench.cli.app import app
from attnbench.cli.streams import output_error, output_fault, take_any_text
from attnbench.errors import AttnbenchError, UserInputError, next_step

__all__ = ["app", "main"]

INTERRUPTED = 130
NOT_THE_USERS = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT)
COMMANDS = (  # in the order of --help
    "suites", "status", "compare", "claims", "figures", "profile", "evaluate", "exchange", "catalogue",
    "plugins", "data", "samples", "weights", "store",
)  # fmt: skip

for _module in COMMANDS:
    importlib.import_module(f"attnbench.cli.{_module}")


def main() -> NoReturn:
    """Run the command line; exit codes 0 fine, 1 a case failed or output was lost, 2 the input was wrong."""
    take_any_text()
    try:
        os.getcwd()
    except OSError:  # some libraries end the process where there is none, with words about their own files
        sys.exit(_tell("the working directory has been removed; change into one that exists", 2))
    code = _run()
    fault = output_fault()
    sys.exit(code if fault is None else _tell(output_error(fault), 1))


def _run() -> int | str | None:
    """Run the command that the words name; return its exit code."""
    try:
        app(prog_name="attnbench")
    except UserInputError as error:
        return _tell(str(error), 2)
    except AttnbenchError as error:
        return _tell(str(error), 1)
    except OSError as error:  # a name that is too long, a folder that may not be read, a full disk behind `>`
        if error.filename is None:
            if (fault := output_fault("\n")) is None:  # a failed write keeps nothing: try one more
                raise
            return _tell(output_error(fault), 1)
        step = next_step(error, "name another path")
        code = 1 if error.errno in NOT_THE_USERS else 2
        return _tell(f"{error.filename}: {error.strerror}; {step}", code)
    except KeyboardInterrupt:  # before typer takes care of it
        return _interrupted()
    except SystemExit as stop:  # typer turns Ctrl-C into exit code 130 without a word
        if hasattr(stop, "message"):  # a training that was stopped in good order
            typer.echo(stop.message, err=True)
        elif stop.code == INTERRUPTED:
            return _interrupted()
        return stop.code
    return 0


def _interrupted() -> int:
    typer.echo("interrupted; run the same command again to go on from the last checkpoint", err=True)
    return INTERRUPTED


def _tell(error: str, code: int) -> int:
    if error:
        typer.echo(f"error: {error}", err=True)
    return code
