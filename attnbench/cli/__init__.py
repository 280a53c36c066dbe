"""The command line: parse, call, print. Heavy imports happen inside the commands.

One module per group of commands, called after it; importing one registers its commands, in the order of
`attnbench --help`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from attnbench.cli.app import app
from attnbench.cli.streams import output_error, output_fault, take_any_text
from attnbench.errors import AttnbenchError, UserInputError, next_step
from attnbench.stages.interrupts import heard_at_once

__all__ = ["app", "command", "main"]

INTERRUPTED = 130
NOT_THE_USERS = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT)
COMMANDS = (  # in the order of --help
    "suites", "status", "compare", "claims", "figures", "profile", "evaluate", "exchange", "catalogue",
    "plugins", "data", "samples", "weights", "store",
)  # fmt: skip

for _module in COMMANDS:
    importlib.import_module(f"attnbench.cli.{_module}")


def command() -> NoReturn:
    """Be the process of a command: `main`, and then what is registered for the end, but not Python's own.

    That takes torch apart for half a second, and waits for threads in long steps.
    """
    try:
        main()
    except SystemExit as stop:
        code = _tell(stop.code, 1) if isinstance(stop.code, str) else stop.code or 0
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Run the command line; exit codes 0 fine, 1 a case failed or output was lost, 2 the input was wrong."""
    take_any_text()
    try:
        os.getcwd()
    except OSError:  # some libraries end the process where there is none, with words about their own files
        sys.exit(_tell("the working directory has been removed; change into one that exists", 2))
    with heard_at_once(_say) as heard:
        code = _run(heard)
    fault = output_fault()
    code = code if fault is None else _tell(output_error(fault), 1)
    if heard and isinstance(code, int):
        sys.stderr.flush()
        os._exit(
            code
        )  # the interpreter would wait for threads in long steps, and take libraries down for seconds
    sys.exit(code)


def _run(heard: Sequence[int]) -> int | str | None:
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
        return _interrupted(heard)
    except SystemExit as stop:  # typer turns Ctrl-C into exit code 130 without a word
        if hasattr(stop, "message"):  # whoever stopped in good order says what is kept
            typer.echo(stop.message, err=True)
        elif stop.code == INTERRUPTED:
            return _interrupted(heard)
        return stop.code
    except Exception as error:
        if not heard:
            raise
        return _interrupted(heard, error)  # a library's C code makes errors of its own of an interruption
    return 0


def _interrupted(heard: Sequence[int], error: Exception | None = None) -> int:
    """Say no more than is known: a command that keeps something says so itself."""
    why = "" if error is None else f" ({type(error).__name__}: {error})"
    typer.echo(f"interrupted{why}", err=True)
    return 128 + heard[0] if heard else INTERRUPTED


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, or the stream is closed
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _tell(error: str, code: int) -> int:
    if error:
        typer.echo(f"error: {error}", err=True)
    return code
