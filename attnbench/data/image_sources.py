"""Where images come from before they are prepared: folders and tar archives, as one list of files.

Layouts: `<class>/<image>`, or `<part>/<class>/<image>` with parts train, val, validation and test; in an
archive also a tar of one tar per class, as ImageNet's training images come. A compressed archive is
unpacked to a plain one first, because images are read in the order of their names.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from attnbench.data.layout import Entry
from attnbench.errors import DataError, cannot_read, next_step
from attnbench.specs import content_hash
from attnbench.storage.atomic import atomic_path

COMPRESSED: dict[bytes, Any] = {
    b"\xfd7zXZ\x00": lzma.open,
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
}
"""How compressed files start, and what opens them."""


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder."""

    root: Path

    def entries(self) -> Iterator[Entry]:
        """Yield every file below the folder; links are followed, names that start with a dot are not.

        A link to a folder around it is left out: it leads to files that are there already. Raises
        DataError for a folder that cannot be listed.
        """
        for folder, inner, files in os.walk(self.root, followlinks=True, onerror=_refuse):
            inner[:] = [
                name
                for name in inner
                if not name.startswith(".") and not self._leads_back(Path(folder, name))
            ]
            for name in files:
                path = Path(folder, name)
                if not name.startswith("."):
                    size = path.stat().st_size if path.exists() else 0  # a broken link fails when decoded
                    yield Entry(path.relative_to(self.root).parts, size)

    def _leads_back(self, path: Path) -> bool:
        if not path.is_symlink():
            return False
        around = path.relative_to(self.root).parents  # on the way here, links of their own included
        return any((self.root / above).resolve().is_relative_to(path.resolve()) for above in around)

    def read(self, entry: Entry) -> bytes:
        """Return a file's content; raises OSError."""
        return self.root.joinpath(*entry.parts).read_bytes()

    def locations(self, entries: Iterable[Entry]) -> Iterator[str]:
        """Yield where on the disk each file lies, behind all links, the same for sources that share it."""
        behind = functools.cache(os.path.realpath)  # of folders: there are few
        for entry in entries:
            path = os.path.join(behind(os.path.join(self.root, *entry.parts[:-1])), entry.parts[-1])
            yield os.path.realpath(path) if os.path.islink(path) else path


@dataclass(frozen=True)
class TarSource:
    """Image files in a plain tar archive, read at their places."""

    path: Path
    file: IO[bytes]

    def entries(self) -> Iterator[Entry]:
        """Yield every file, those of inner class archives as `<archive's stem>/<file>`; raises DataError."""
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as archive:
                yield from self._walk(archive, (), 0)
        except tarfile.TarError as error:
            raise DataError(
                f"{self.path} cannot be read as a tar archive ({error}); it is probably cut: get it again"
            ) from error

    def read(self, entry: Entry) -> bytes:
        """Return a file's content; safe from several threads."""
        content = os.pread(self.file.fileno(), entry.size, entry.offset)
        if len(content) < entry.size:
            raise OSError("the archive ends inside this file")
        return content

    def locations(self, entries: Iterable[Entry]) -> Iterator[str]:
        """Yield the archive's place and each file's name in it."""
        archive = os.path.realpath(self.path)
        return (os.path.join(archive, *entry.parts) for entry in entries)

    def _walk(self, archive: tarfile.TarFile, above: tuple[str, ...], start: int) -> Iterator[Entry]:
        """Yield the files of an archive whose first byte lies at `start`."""
        for member in archive:
            parts = tuple(part for part in PurePosixPath(member.name).parts if part not in (".", "/"))
            if not parts or member.isdir() or any(part.startswith(".") for part in parts):
                continue
            if not above and member.isreg() and parts[-1].endswith(".tar"):
                inside = archive.extractfile(member)
                with tarfile.open(fileobj=inside, mode="r:") as inner:
                    stem = parts[-1].removesuffix(".tar")
                    yield from self._walk(inner, (*parts[:-1], stem), start + member.offset_data)
            else:  # a link or a sparse file has no content of its own and fails when it is decoded
                size = member.size if member.isreg() and not member.issparse() else 0
                yield Entry((*above, *parts), size, start + member.offset_data)
        # tarfile stops without a word where a header is damaged or missing
        closing = os.pread(self.file.fileno(), tarfile.BLOCKSIZE, start + archive.offset)
        if len(closing) < tarfile.BLOCKSIZE or any(closing):
            raise tarfile.ReadError(f"no end of archive at byte {start + archive.offset}")


def _refuse(error: OSError) -> None:
    step = next_step(error, "name another source")
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}; {step}") from error


Source = FolderSource | TarSource


@contextmanager
def open_source(path: Path, scratch: Path) -> Iterator[Source]:
    """Open a folder or a tar archive; a compressed one is unpacked into the folder `scratch` once.

    Raises DataError for a file that is no tar archive, a damaged one, or one that cannot be read.
    """
    if path.is_dir():
        yield FolderSource(path)
        return
    try:
        file = _plain(path, scratch).open("rb")
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    with file:
        yield TarSource(path, file)


def name_of(path: Path) -> str:
    """Return the name of a file or folder, also of `.`; a link keeps its own."""
    return Path(os.path.abspath(path)).name


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive or compressed; raises OSError."""
    return _opener(path) is not None or tarfile.is_tarfile(path)


def _opener(path: Path) -> Any:
    """Return what opens a compressed file, None for a plain one."""
    with path.open("rb") as file:
        magic = file.read(6)
    return next((opener for start, opener in COMPRESSED.items() if magic.startswith(start)), None)


def _plain(path: Path, scratch: Path) -> Path:
    """Return an uncompressed archive: the given one, or its content in `scratch`."""
    opener = _opener(path)
    if opener is None:
        if not tarfile.is_tarfile(path):
            raise DataError(
                f"{path} is neither a folder nor a tar archive (plain, .xz, .gz or .bz2); "
                "unpack it and give the folder with one sub-folder per class"
            )
        return path
    state = path.stat()  # so that what another archive left behind is not taken for this one's content
    unpacked = scratch / f"{content_hash([path.name, state.st_size, state.st_mtime_ns])}.tar"
    if not unpacked.exists():
        with opener(path) as packed, atomic_path(unpacked) as temporary, temporary.open("wb") as plain:
            while chunk := _read_packed(packed, path):
                plain.write(chunk)
    return unpacked


def _read_packed(packed: IO[bytes], path: Path) -> bytes:
    """Return the next unpacked MiB; raises DataError where the archive is damaged."""
    try:
        return packed.read(2**20)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's and bz2's own have no number
            raise DataError(cannot_read(path, error)) from error
        raise DataError(f"{path} cannot be unpacked: {error}; it is probably cut: get it again") from error
