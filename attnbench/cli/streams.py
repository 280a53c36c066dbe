"""Standard output and error that take any text, and what to say where they cannot be written."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

from attnbench.errors import next_step

IN_ASCII = {
    "─": "-",
    "│": "|",
    "−": "-",
    "±": "~",
    "·": ".",
    "×": "x",
    "…": ".",
    "→": ">",
    "↑": "^",
    "↓": "v",
}
"""One character for one, so that columns stay columns; what is not here becomes a question mark."""


def take_any_text() -> None:
    """Let what a terminal's encoding lacks be replaced: hours of work must not end in a traceback.

    A stream that is closed takes everything and keeps nothing.
    """
    codecs.register_error("attnbench", _replaced)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="attnbench")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(IN_ASCII.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def output_fault(more: str = "") -> OSError | None:
    """Write what standard output still holds, and `more`; return why not, and write nothing any more."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter tries again as it ends, and complains
        os.close(nowhere)
        return error
    return None


def output_error(fault: OSError) -> str:
    """Return what to say of it; nothing where the reader has gone, such as `head`."""
    if fault.errno == errno.EPIPE:
        return ""
    helps = next_step(fault, "write it elsewhere")
    return f"cannot write to standard output: {fault.strerror}; {helps}, then run the same command again"
