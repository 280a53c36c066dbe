"""Where images come from before they are prepared: folders and tar archives, as one list of files.

`layout` says which folders are classes and parts; an archive may also be a tar of one tar per class, as
ImageNet's training images come. A compressed archive is unpacked to a plain one first, because images are
read in the order of their names. Nothing of an archive is ever written under a name that it chooses.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from attnbench.data.decoding import starts_as_image
from attnbench.data.layout import Entry, is_passed_over, printable
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
        """Yield every file below the folder; links are followed, names that `is_passed_over` are not.

        A link to a folder around it is left out: it leads to files that are there already. Raises
        DataError for a folder that cannot be listed.
        """
        for folder, inner, files in os.walk(self.root, followlinks=True, onerror=_refuse):
            inner[:] = [
                name
                for name in inner
                if not is_passed_over(name) and not self._leads_back(Path(folder, name))
            ]
            for name in files:
                if not is_passed_over(name):
                    yield self.entry(Path(folder, name))

    def entry(self, path: Path) -> Entry:
        """Return a file below the folder, with what keeps it from being read, if anything does."""
        parts = path.relative_to(self.root).parts
        try:
            state = path.stat()
        except OSError as error:
            return Entry(parts, 0, fault="a link to nothing" if path.is_symlink() else str(error.strerror))
        if not stat.S_ISREG(state.st_mode):  # reading a pipe would wait for its other end
            return Entry(parts, 0, fault="neither a file nor a folder")
        return Entry(parts, state.st_size, changed_ns=state.st_mtime_ns)

    def _leads_back(self, path: Path) -> bool:
        if not path.is_symlink():
            return False
        around = path.relative_to(self.root).parents  # on the way here, links of their own included
        return any((self.root / above).resolve().is_relative_to(path.resolve()) for above in around)

    def read(self, entry: Entry, most: int = -1) -> bytes:
        """Return a file's content, or its first `most` bytes; raises OSError."""
        if entry.fault:
            raise OSError(entry.fault)
        with self.root.joinpath(*entry.parts).open("rb") as file:
            return file.read(most)

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
        """Yield every file, those of inner class archives as `<archive's stem>/<file>`; raises DataError.

        A link stands for the file, or for all files of the folder, that it names inside its archive.
        """
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as archive:
                yield from self._walk(archive, (), 0, self.path.stat().st_mtime_ns)
        except tarfile.TarError as error:
            raise DataError(
                f"{self.path} cannot be read as a tar archive ({error}); it is probably cut: get it again"
            ) from error

    def read(self, entry: Entry, most: int = -1) -> bytes:
        """Return a file's content, or its first `most` bytes; safe from several threads; raises OSError."""
        if entry.fault:
            raise OSError(entry.fault)
        size = entry.size if most < 0 else min(entry.size, most)
        content = os.pread(self.file.fileno(), size, entry.offset)
        if len(content) < size:
            raise OSError("the archive ends inside this file")
        return content

    def locations(self, entries: Iterable[Entry]) -> Iterator[str]:
        """Yield the archive's place and each file's name in it."""
        archive = os.path.realpath(self.path)
        return (os.path.join(archive, *entry.parts) for entry in entries)

    def _walk(
        self, archive: tarfile.TarFile, above: tuple[str, ...], start: int, changed_ns: int
    ) -> Iterator[Entry]:
        """Yield the files of an archive whose first byte lies at `start`."""
        files: dict[tuple[str, ...], Entry] = {}
        links: dict[tuple[str, ...], tuple[str, ...] | None] = {}
        for member in archive:
            parts = self._parts(member.name)
            if not parts or member.isdir() or any(map(is_passed_over, parts)):
                continue
            files.pop(parts, None)  # of a name that comes twice the last is meant
            links.pop(parts, None)
            place = start + member.offset_data
            if not above and member.isreg() and parts[-1].endswith(".tar"):
                inside = archive.extractfile(member)
                with tarfile.open(fileobj=inside, mode="r:") as inner:
                    stem = parts[-1].removesuffix(".tar")
                    yield from self._walk(inner, (*parts[:-1], stem), place, changed_ns)
            elif member.issym() or member.islnk():
                links[parts] = _target(member, parts)
            elif not member.isreg() or member.issparse():
                what = "a sparse file; pack the archive without --sparse" if member.issparse() else "no file"
                files[parts] = Entry((*above, *parts), 0, place, changed_ns, fault=what)
            else:
                files[parts] = Entry((*above, *parts), member.size, place, changed_ns)
        yield from files.values()
        for parts in links:
            yield from _behind(parts, above, files, links)
        # tarfile stops without a word where a header is damaged or missing
        closing = os.pread(self.file.fileno(), tarfile.BLOCKSIZE, start + archive.offset)
        if len(closing) < tarfile.BLOCKSIZE or any(closing):
            raise tarfile.ReadError(f"no end of archive at byte {start + archive.offset}")

    def _parts(self, name: str) -> tuple[str, ...]:
        """Return a member's path; a / in front means nothing here, as for tar itself."""
        parts = tuple(part for part in PurePosixPath(name).parts if part not in (".", "/", "//"))
        if ".." in parts:
            raise DataError(
                f"{self.path} holds the name {printable(name)}, which leads out of the archive; pack it "
                "again without such names"
            )
        return parts


def _target(member: tarfile.TarInfo, parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the path that a link names inside its archive, or None where it leads out of it."""
    name = member.linkname if member.islnk() else os.path.join(*parts[:-1], member.linkname)
    path = PurePosixPath(os.path.normpath(name))
    outside = ".." in path.parts or (member.issym() and path.is_absolute())
    return None if outside else tuple(part for part in path.parts if part not in (".", "/", "//"))


def _behind(
    link: tuple[str, ...],
    above: tuple[str, ...],
    files: dict[tuple[str, ...], Entry],
    links: dict[tuple[str, ...], tuple[str, ...] | None],
) -> Iterator[Entry]:
    """Yield the file that a link stands for, or those of its folder, or the link with its fault."""
    target, passed = links[link], {link}
    while target in links and target not in passed:
        passed.add(target)
        target = links[target]
    name = (*above, *link)
    if target in files:
        yield replace(files[target], parts=name)
        return
    inside = [path for path in files if target is not None and path[: len(target)] == target]
    if inside and target is not None and link[: len(target)] != target:  # not of a folder around the link
        yield from (replace(files[path], parts=(*name, *path[len(target) :])) for path in inside)
        return
    where = "/".join(target) if target else "a place outside"
    yield Entry(name, 0, fault=f"a link to {where}, which is no file of the archive")


def _refuse(error: OSError) -> None:
    step = next_step(error, "name another source")
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}; {step}") from error


Source = FolderSource | TarSource
_START = 2**20  # bytes of a file without an image's name that are looked at


def is_image(source: Source, entry: Entry) -> bool:
    """Return whether a file whose name does not say so begins as an image does."""
    try:
        return starts_as_image(io.BytesIO(source.read(entry, _START)))
    except OSError:
        return False


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
