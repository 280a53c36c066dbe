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
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

NEAREST = 10  # names, where there are too many
MOST_LISTED = 1500  # characters of names in a message: all recipes, but not a thousand cases


class AttnbenchError(Exception):
    """Root of every deliberate error."""


class UserInputError(AttnbenchError):
    """The user's input is wrong; the command line exits with code 2."""


class SuiteError(UserInputError):
    """A suite file (or an override of it) is wrong; the message holds file and line."""


class UnknownNameError(UserInputError):
    """A name nobody provides; the message holds the nearest spelling and all (or the ten nearest) names."""

    def __init__(self, kind: str, got: str, allowed: Iterable[str]) -> None:
        self.kind, self.got, self.allowed = kind, got, sorted(set(allowed))
        listed = all_or_nearest(got, self.allowed) or "(none)"
        super().__init__(f"unknown {kind} {got!r}{did_you_mean(got, self.allowed)}; available: {listed}")

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
    """The disk is full or a file of ours cannot be written or read; what is already stored stays."""


class UncountedOpError(AttnbenchError):
    """A counter met an operation without a formula: an error, never a zero."""


def all_or_nearest(got: str, allowed: Sequence[str], separator: str = ", ") -> str:
    """Return all names for a message, or the ten most like `got` and how many more there are."""
    listed = separator.join(allowed)
    if len(listed) <= MOST_LISTED or len(allowed) <= NEAREST:
        return listed
    nearest = set(difflib.get_close_matches(got, allowed, n=NEAREST, cutoff=0.0))
    shown = [name for name in allowed if name in nearest]
    return f"{separator.join(shown)}{separator}and {len(allowed) - len(shown)} more"


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest allowed spelling, or an empty string."""
    near = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


_NO_ROOM = "free some space (`df -h` counts bytes, `df -i` files) or {otherwise}"
_BROKEN = "look at the disk or the file server, or {otherwise}"
_IN_THE_WAY = "move away what stands in its place, or {otherwise}"
_NEXT_STEPS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: "free some of your quota or {otherwise}",
    errno.EFBIG: "allow larger files (`ulimit -f`) or {otherwise}",
    errno.EACCES: "permit it or {otherwise}",
    errno.EPERM: "permit it or {otherwise}",
    errno.EROFS: "permit it or {otherwise}",
    errno.ENOENT: "{otherwise}",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ENAMETOOLONG: "{otherwise} with a shorter name",
    errno.ELOOP: "mend its links, which lead in a circle, or {otherwise}",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "allow this machine more open files, or close some",
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
    errno.ETIMEDOUT: _BROKEN,
    errno.ENODEV: _BROKEN,
}
_WRITING_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def next_step(error: OSError, otherwise: str) -> str:
    """Return what helps against a failed file operation; `otherwise` is an order, such as "name another"."""
    return _NEXT_STEPS.get(error.errno or 0, "{otherwise}").format(otherwise=otherwise)


def cannot_read(path: Path, error: OSError, otherwise: str = "name another file") -> str:
    """Say which file cannot be read, why, and what helps against that cause."""
    return f"cannot read {path}: {error.strerror or error}; {next_step(error, otherwise)}"


def cannot_write(path: Path, error: OSError, otherwise: str = "choose another place") -> str:
    """Say which file cannot be written, why, and what helps against that cause.

    Where the error names a file that has nothing to do with `path`, such as one that was to be copied
    there, it is that one which failed, and the words are about it.
    """
    other = _other_file(path, error)
    if other is not None:
        verb = "write" if error.errno in _WRITING_ONLY else "read"
        helps = next_step(error, "put a good one in its place")
        return f"cannot {verb} {other}, which {path} needs: {error.strerror}; {helps}"
    reason, helps = error.strerror or str(error), next_step(error, otherwise)
    if error.errno is None and not isinstance(error, TimeoutError | ConnectionError):
        helps = _NO_ROOM.format(otherwise=otherwise)  # numpy's and pillow's words about a part of a file
    elif error.errno == errno.ENOENT:
        gone = [folder for folder in path.absolute().parents if not os.path.isdir(folder)]
        helps = f"make the folder {gone[-1]} or {otherwise}" if gone else otherwise
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        files = [place for place in (path, *path.parents) if os.path.isfile(place)]
        helps = f"{files[0]} is a file: move it away or {otherwise}" if files else helps
    return f"cannot write {path}: {reason}; {helps}"


def _other_file(path: Path, error: OSError) -> Path | None:
    """Return the file that an error is about, unless it is `path` or lies above, below or beside it."""
    name, second = error.filename, error.filename2
    if second is not None and (error.errno != errno.ENOENT or os.path.lexists(name)):
        name = second  # of two names, the one that was to be made, unless the one to be moved is missing
    if not isinstance(name, str | bytes | os.PathLike):  # none, or the number of an open file
        return None
    target, other = path.absolute(), Path(os.fsdecode(name)).absolute()
    unfinished = str(target.with_name(f".{target.name}."))  # how names begin that are to become `path`
    ours = other.is_relative_to(target) or str(other).startswith(unfinished)
    if ours or target.is_relative_to(other):
        return None
    real, real_other = Path(os.path.realpath(target)), Path(os.path.realpath(other))  # through links
    ours = real_other.is_relative_to(real) or real.is_relative_to(real_other)
    return None if ours else Path(os.fsdecode(name))
