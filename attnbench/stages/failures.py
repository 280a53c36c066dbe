"""Errors nobody expected, in words: what happened, whose code it was, where the traceback is, what helps."""

from __future__ import annotations

import contextlib
import sysconfig
import traceback
from pathlib import Path

import torch

from attnbench.errors import AttnbenchError
from attnbench.fingerprints import PACKAGE
from attnbench.plugins import registry
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.names import ERROR
from attnbench.storage.store import Stage

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
_LESS_MEMORY: dict[Stage, str] = {
    "prepare": "free memory, or take a machine with more",
    "train": "set train.activation_checkpointing: true or train.grad_accumulation higher, which change "
    "numbers by rounding alone, or take a machine with more memory",
    "sample": "set sample.batch_size lower, which changes no picture, or take a machine with more memory",
    "evaluate": "free memory, or set evaluate.reference_images lower",
    "diagnose": "set diagnose.images and diagnose.map_images lower, or take a machine with more memory",
}
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def in_words(error: BaseException, stage: Stage, folder: Path) -> str:
    """Return why a stage failed; the traceback of an error that nobody raised on purpose is kept in `folder`.

    Such an error is named after the plugin whose code raised it or called what raised it, else it is ours.
    """
    if isinstance(error, AttnbenchError):
        return f"{stage}: {error}"
    kind, text = type(error).__name__, " ".join(str(error).split())
    said = f"{stage}: {kind}: {text}" if text else f"{stage}: {kind}"
    return f"{said}; {_next_step(error, stage)}; {keep_traceback(error, folder)}"


def keep_traceback(error: BaseException, folder: Path, rank: int = 0) -> str:
    """Write a traceback of one of a stage's processes into its folder; say where it is, or why it is not."""
    text = "".join(traceback.format_exception(error))
    path = folder / (f"{rank}-{ERROR}" if rank else ERROR)
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode("utf-8", "replace"))
    except AttnbenchError as fault:
        return f"its traceback could not be kept ({fault}): run again with --inline to see it"
    return f"traceback: {path}"


def forget(folder: Path) -> None:
    """Remove the tracebacks of earlier attempts at a stage that has succeeded now."""
    with contextlib.suppress(OSError):  # a finished store may lie where this user cannot write
        for path in folder.glob(f"*{ERROR}"):
            path.unlink()


def _next_step(error: BaseException, stage: Stage) -> str:
    """Return whose code failed and what to do: the innermost frame that is no library's tells."""
    if _lacks_memory(error):
        return _LESS_MEMORY[stage]
    strangers = {
        path: provided
        for table in (registry().backends, registry().extractors)
        for provided in table.values()
        for path in provided.files
    }
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path in strangers:
            plugin = strangers[path]
            return (
                f"raised in the plugin {plugin.plugin} ({plugin.origin}) at {path}:{frame.lineno}: mend it "
                "there or tell its author, then run the same command again"
            )
        if path.is_relative_to(PACKAGE):
            return (
                f"an error in attnbench, at {path.relative_to(PACKAGE.parent)}:{frame.lineno}: please report "
                "it with the traceback; the same command goes on after what is finished"
            )
        if not any(path.is_relative_to(library) for library in _LIBRARIES):
            return f"raised at {path}:{frame.lineno}: mend it there, then run the same command again"
    return "run the same command again with --inline to see where"


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
