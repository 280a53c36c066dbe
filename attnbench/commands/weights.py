"""What `attnbench weights` does: show where weights files were looked for, and fetch one after asking."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import typer

from attnbench import console
from attnbench.errors import DataError, UnknownNameError, UserInputError
from attnbench.metrics.published_weights import published
from attnbench.metrics.weights_files import WeightsFile, cache_folder, places
from attnbench.stages.interrupts import keeping
from attnbench.storage.atomic import atomic_path, storage_errors
from attnbench.storage.hashing import file_sha256

CHUNK = 1 << 20  # bytes: one step of the progress bar, a mebibyte
TIMEOUT_S = 60


def print_list() -> None:
    """Print every place where weights files are looked for, and whether the right file is there."""
    rows = [
        (file.extractor, _state(file, path), _short(path))
        for file in published().values()
        for path in places(file)
    ]
    notes = []
    for file in published().values():
        if not any(path.is_file() for path in places(file)):
            notes += [
                f"{file.extractor}: not found; {file.source}; or keep it anywhere and name it "
                "(`attnbench evaluate --weights FILE`; in a suite: evaluate.weights) or in the environment "
                f"variable {file.variable}",
                "",
            ]
    notes.append(
        "make a .safetensors file of your own with safetensors.torch: safetensors.numpy (0.8.0) writes "
        "transposed arrays as other numbers, without an error"
    )
    notes.append("the first file of an extractor is taken; the other built-in extractors need none")
    console.print_table(console.listing("weights files", ("extractor", "there", "looked at"), rows, notes))


def _short(path: Path) -> str:
    """Return a path with ~ for the user's home folder, as a shell takes it."""
    home = os.path.expanduser("~")
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _state(file: WeightsFile, path: Path) -> str:
    if not path.is_file():
        return "no"
    found = file_sha256(path)
    if not file.sha256:
        return f"yes, SHA-256 {found[:8]}... (none is published)"
    if found == file.sha256:
        return f"yes, SHA-256 {found[:8]}... as expected"
    return f"WRONG FILE: SHA-256 {found[:8]}..., expected {file.sha256[:8]}..."


def fetch(name: str, folder: Path | None, *, yes: bool) -> Path:
    """Download the weights file of an extractor into a folder (by default the cache), unless it is there.

    Raises UserInputError where nobody agreed, DataError when the network fails or another file arrives; then
    nothing is left behind.
    """
    if name not in published():
        raise UnknownNameError("extractor with a weights file", name, published())
    file = published()[name]
    if not file.url:
        raise UserInputError(f"attnbench does not fetch the weights of {name}; {file.source}")
    folder = folder or cache_folder()
    if folder.parts[0] == "~":
        raise UserInputError(
            f"nothing says where to keep the weights of {name}: HOME is not set and this user has no "
            "entry in /etc/passwd; set HOME or XDG_CACHE_HOME, or name a folder with --to"
        )
    target = folder / file.url.rpartition("/")[2]
    if target.is_file() and file_sha256(target) == file.sha256:
        return target
    _ask(file, target, yes=yes)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with (
        keeping(f"nothing is kept of {target}; run the same command again"),
        console.progress_bar(f"fetch {target.name}", quiet=False) as progress,
        atomic_path(target) as path,
    ):
        with path.open("wb") as sink:
            for number, (chunk, total) in enumerate(_chunks(file.url), start=1):
                sink.write(chunk)
                progress(number, -(-total // CHUNK), "MiB")
        _check_fetched(file, file_sha256(path))
    return target


def _ask(file: WeightsFile, target: Path, *, yes: bool) -> None:
    """Return if the user agrees; without a terminal only --yes is agreement."""
    if yes:
        return
    what = f"{target.name} ({file.size_bytes / CHUNK:.0f} MiB) from {file.url} to {target.parent}"
    if not sys.stdin.isatty():
        raise UserInputError(
            f"nothing is fetched without consent: add --yes to fetch {what}; or fetch it yourself and name "
            "it (`attnbench evaluate --weights FILE`; in a suite: evaluate.weights) or in the environment "
            f"variable {file.variable}"
        )
    typer.confirm(f"Fetch {what}?", abort=True)


def _chunks(url: str) -> Iterator[tuple[bytes, int]]:
    """Yield what an address holds, piece by piece, each with the size of all in bytes (0: not stated)."""
    received = total = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK):
                received += len(chunk)
                yield chunk, total
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"cannot fetch {url}: {error}; nothing is kept: check the network and run the same command "
            "again, or fetch the file on another machine"
        ) from error
    if received < total:
        raise DataError(
            f"the connection was cut after {received:,} of {total:,} bytes of {url}; nothing is kept: run "
            "the same command again"
        )


def _check_fetched(file: WeightsFile, found: str) -> None:
    if found != file.sha256:
        raise DataError(
            f"{file.url} gave another file: its SHA-256 is {found}, expected {file.sha256}; nothing is kept: "
            "something on the way (a proxy, a login page) may have answered instead"
        )
