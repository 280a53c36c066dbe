"""Pretrained models of diffusers on the Hugging Face hub: found in the hub's cache, fetched into it.

Nothing else in this package talks to the hub. huggingface_hub reads HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and
HF_TOKEN as everywhere; its cache is shared with every other program that uses it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from attnbench.errors import DataError, StorageError, next_step
from attnbench.progress import Progress

CONFIG = "config.json"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)  # of no connection
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the first that is there


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """Where on the hub a model lies: a repository, a folder in it, and a branch, tag or commit."""

    name: str
    subfolder: str | None = None
    revision: str | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        place = "/".join(filter(None, (self.name, self.subfolder)))
        return f"{place}@{self.revision}" if self.revision else place

    @property
    def command(self) -> str:
        """What fetches the same files on another machine."""
        where = f"--include '{self.subfolder}/*'" if self.subfolder else ""
        when = f"--revision {self.revision}" if self.revision else ""
        return " ".join(filter(None, ("hf download", self.name, where, when)))


@dataclass(frozen=True)
class Snapshot:
    """A model in the hub's cache: the folder that holds its files, and the commit they are of."""

    folder: Path
    commit: str


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make a model of diffusers: config.json and one file of weights.

    Of two files of weights it is the one that diffusers loads; what else lies there does not matter.
    """
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    return [path for path in (folder / CONFIG, *weights[:1]) if path.is_file()]


def cached_config(model: HubModel) -> Path | None:
    """Return a model's config.json in the hub's cache, else None; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model.name, _inside(model, CONFIG), revision=model.revision)
    return Path(config) if isinstance(config, str) else None


def cached(model: HubModel) -> Snapshot | None:
    """Return a model whose files are all in the hub's cache, else None; touches no network."""
    config = cached_config(model)
    if config is None:
        return None
    found = _snapshot(model, config)
    return found if len(model_files(found.folder)) == 2 else None


def open_cached(model: HubModel) -> Snapshot:
    """Return a model that `fetch` has left in the hub's cache; raises DataError where it is not there."""
    found = cached(model)
    if found is None:
        raise DataError(
            f"{model.title} is not in the hub's cache ({_cache()}), where the stage `prepare` leaves it; run "
            "the suite again with a network, or set HF_HOME to what it was then"
        )
    return found


def fetch(model: HubModel, report: Progress) -> Snapshot:
    """Return a model from the hub's cache, fetched into it where it is not there whole.

    Fetched are config.json and one file of weights, .safetensors before .bin, of one commit. A file is
    in the cache whole or not at all. Raises DataError that says what to do, StorageError for a full disk.
    """
    found = cached(model)
    if found is not None:
        return found
    config = _download(model, CONFIG, model.revision, 0, report)
    if config is None:
        _refuse_missing(model, CONFIG)
    found = _snapshot(model, Path(config))
    for name in WEIGHTS:
        # by the commit: a branch may move between two files
        if _download(model, name, found.commit, 1, report) is not None:
            report(2, 2, f"{model.title} is in the hub's cache")
            return found
    _refuse_missing(model, " or ".join(WEIGHTS))


def fetch_file(model: HubModel, name: str, report: Progress) -> Path | None:
    """Return one further file of a repository, fetched where it is not cached; None where there is none.

    Raises what `fetch` raises.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.name, _inside(model, name), revision=model.revision)
    if found is None:
        found = _download(model, name, model.revision, 1, report)
    return Path(found) if isinstance(found, str) else None  # the cache remembers files that are not there


def _download(model: HubModel, name: str, revision: str | None, done: int, report: Progress) -> str | None:
    """Return a file's path in the cache, or None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    report(done, 2, f"fetching {name} of {model.title}")
    try:
        return hf_hub_download(model.name, _inside(model, name), revision=revision)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # no connection: nobody knows
            _refuse(model, error)
        return None
    except Exception as error:  # requests' or httpx's errors, by huggingface_hub's version
        if isinstance(error, OSError) and _is_of_disk(error):
            step = next_step(error, "choose another place with HF_HOME")
            raise StorageError(
                f"cannot write {model.title} to the hub's cache ({_cache()}): {_reason(error)}; {step}, then "
                "run the same command again"
            ) from error
        _refuse(model, error)


def _is_of_disk(error: OSError) -> bool:
    """Tell a failed file operation from a failed connection, which is an OSError, too."""
    return error.filename is not None or error.errno in _DISK


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)


def _inside(model: HubModel, name: str) -> str:
    return f"{model.subfolder}/{name}" if model.subfolder else name


def _snapshot(model: HubModel, config: Path) -> Snapshot:
    """Read the commit off the cache's layout: snapshots/<commit>/<subfolder>/config.json."""
    depth = len(Path(_inside(model, CONFIG)).parts)
    return Snapshot(config.parent, config.parts[-depth - 1])


def _refuse_missing(model: HubModel, name: str) -> NoReturn:
    where = f"the folder {model.subfolder}" if model.subfolder else "the top folder"
    raise DataError(
        f"{model.name} on the hub has no {name} in {where} of {model.revision or 'main'}; look at its files "
        "there: a pipeline keeps its autoencoder in the subfolder vae, its DiT in transformer"
    )


def _refuse(model: HubModel, error: Exception) -> NoReturn:
    """Raise what a failed download means to the user, and the next step."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        problem = f"{model.name} is gated"
        advice = "accept its terms on the hub and set HF_TOKEN, or name another repository"
    elif isinstance(error, errors.RevisionNotFoundError):
        problem = f"{model.name} on the hub has no revision {model.revision or 'main'}"
        advice = "name a branch, tag or commit of it"
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = f"there is no repository {model.name} on the hub, or it is private"
        advice = "correct the name (OWNER/NAME), or set HF_TOKEN if it is private"
    else:
        reason = _first_line(error.__cause__ or error)
        problem = f"{model.title} is not in the hub's cache ({_cache()}) and cannot be fetched ({reason})"
        advice = (
            "run the same command again with a network, or fetch it on another machine "
            f"(`{model.command} --local-dir FOLDER`) and name the folder with its config.json in place of "
            "the repository"
        )
    raise DataError(f"{problem}; {advice}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
