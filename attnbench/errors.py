"""Every error attnbench raises on purpose.

    AttnbenchError               anything a user can read and act on
    |- UserInputError            what the user wrote is wrong: exit code 2
    |  |- SuiteError             ... in a suite file (carries file and line)
    |  |- UnknownNameError       ... a backend, model, dataset or extractor nobody provides
    |  `- DataError              ... a folder, an image, a weights file
    |- PluginError               a plugin broke the contract
    |  |- NameClashError         two providers claim one name
    |  `- PluginOutputError      wrong shape, dtype or device out of an attention module
    |- UnsupportedError          a combination that cannot run here: a skipped row with its reason
    |- NonFiniteError            NaN or infinity; names the layer
    |- CheckpointError           a checkpoint that cannot be read
    |- StorageError              no space left, or a file that cannot be written
    `- UncountedOpError          an operation no MAC formula knows

An error says what happened, what was got, what is allowed, and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttnbenchError(Exception):
    """Root of every deliberate error."""


class UserInputError(AttnbenchError):
    """The user's input is wrong; the command line exits with code 2."""


class SuiteError(UserInputError):
    """A suite file (or an override of it) is wrong; the message holds file and line."""


class UnknownNameError(UserInputError):
    """A name nobody provides; the message holds the nearest spelling and all that exist."""

    def __init__(self, kind: str, got: str, allowed: Iterable[str]) -> None:
        self.kind, self.got, self.allowed = kind, got, sorted(allowed)
        super().__init__(
            f"unknown {kind} {got!r}{did_you_mean(got, self.allowed)}; "
            f"available: {', '.join(self.allowed) or '(none)'}"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.got, self.allowed)


class DataError(UserInputError):
    """A dataset, an image or a weights file cannot be used."""


class PluginError(AttnbenchError):
    """A plugin broke the contract; the message names it."""


class NameClashError(PluginError):
    """Two plugins provide the same name; the message names both."""


class PluginOutputError(PluginError):
    """An attention module returned something other than the [B, N, C] it was given."""


class UnsupportedError(AttnbenchError):
    """This combination cannot run here; becomes a skipped row with this reason."""


class NonFiniteError(AttnbenchError):
    """NaN or infinity in the forward or backward pass; the message names the layer."""


class CheckpointError(AttnbenchError):
    """A checkpoint is missing, truncated or belongs to another model."""


class StorageError(AttnbenchError):
    """The disk is full or a file cannot be written; what is already stored stays."""


class UncountedOpError(AttnbenchError):
    """A counter met an operation without a formula: an error, never a zero."""


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest allowed spelling, or an empty string."""
    near = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
