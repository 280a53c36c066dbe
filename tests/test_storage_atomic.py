"""Files written whole or not at all, and errors that name the file that failed, the cause and what helps."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from attnbench.errors import StorageError, cannot_read, cannot_write
from attnbench.storage.atomic import atomic_path, atomic_write, storage_errors
from attnbench.storage.tensor_files import open_tensors, tensors_in, write_tensors

AGAIN = ", then run the same command again: what is finished is kept"


@contextmanager
def no_more_files():
    """Let this process open no further file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def small_files(num_bytes):
    """Let files grow no further than that; Python ignores the signal, so that writing fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fails(told):
    """Expect a StorageError that says this."""
    return pytest.raises(StorageError, match=told)


def refusing(number):
    """Return a function that fails as the kernel would at the first of its arguments."""

    def refuse(source, *others, **options):
        raise OSError(number, os.strerror(number), str(source), None, *map(str, others))

    return refuse


def test_a_missing_source_is_the_file_that_is_named(tmp_path):
    """A file that was to be copied and is gone is not told as a target without space."""
    with pytest.raises(StorageError) as caught, atomic_path(tmp_path / "target") as temporary:
        shutil.copyfile(tmp_path / "gone", temporary)
    assert str(caught.value) == (
        f"cannot read {tmp_path}/gone, which {tmp_path}/target needs: No such file or directory; "
        f"put a good one in its place{AGAIN}"
    )
    assert list(tmp_path.iterdir()) == []


def test_of_two_names_the_one_that_failed_is_told(tmp_path):
    """A rename names two files: the missing one is that to be moved, or else the place is at fault."""
    (tmp_path / "here").write_text("")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with (
        fails(f"cannot read {tmp_path}/gone, which {tmp_path}/target needs"),
        storage_errors(tmp_path / "target"),
    ):
        os.rename(tmp_path / "gone", tmp_path / "target")
    with (
        fails(f"cannot write {tmp_path}/no/target: .*make the folder {tmp_path}/no"),
        storage_errors(tmp_path / "no" / "target"),
    ):
        os.rename(tmp_path / "here", tmp_path / "no" / "target")
    with (
        fails(f"cannot write {tmp_path}/folder: Is a directory; move away what"),
        storage_errors(tmp_path / "folder"),
    ):
        os.rename(tmp_path / "here", tmp_path / "folder")


@pytest.mark.parametrize("name", ["file/new", "file/deep/new"])
def test_a_file_in_a_folders_place_is_named(tmp_path, name):
    """Neither space nor permission helps; the file in the way is named, and its error is not lost later."""
    (tmp_path / "file").write_text("")
    told = (
        f"cannot write {tmp_path}/{name}: Not a directory; {tmp_path}/file is a file: move it away or choose"
    )
    with fails(told):
        atomic_write(tmp_path / name, b"")
    with fails(told), storage_errors(tmp_path / name):
        (tmp_path / name).mkdir(parents=True)
    with (
        fails(f"file: File exists; {tmp_path}/file is a file: move it away"),
        storage_errors(tmp_path / "file"),
    ):
        (tmp_path / "file").mkdir()


def test_a_folder_in_a_files_place(tmp_path):
    """A folder cannot be replaced by a file: it stays, and the advice is to move it away."""
    (tmp_path / "target" / "mine").mkdir(parents=True)
    with fails(r"target: Is a directory; move away what stands in its place"):
        atomic_write(tmp_path / "target", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_missing_folder_and_a_long_name(tmp_path):
    """The folder to be made is the first that is missing; a long name wants a shorter one."""
    with fails(f"such file or directory; make the folder {tmp_path}/a or choose"):
        atomic_write(tmp_path / "a" / "b" / "c", b"")
    with fails("File name too long; choose another place with a shorter name"):
        atomic_write(tmp_path / ("n" * 250), b"")


def test_too_many_open_files_is_no_full_disk(tmp_path):
    """The limit of the process is told, and how to raise it."""
    with no_more_files(), pytest.raises(StorageError) as caught:
        atomic_write(tmp_path / "target", b"")
    assert str(caught.value) == (
        f"cannot write {tmp_path}/target: Too many open files; allow more open files (`ulimit -n`){AGAIN}"
    )


def test_a_full_device(tmp_path):
    """No space left is told of the target, which the error does not name; free space is the advice."""
    with (
        fails(r"target: No space left on device; free some space \(`df -h`"),
        storage_errors(tmp_path / "target"),
        open("/dev/full", "wb", buffering=0) as device,
    ):
        device.write(b"x")


def test_a_limit_on_files_is_no_full_disk(tmp_path):
    """Where files may not grow, free space does not help; numpy has no number for what it met."""
    with small_files(1000):
        with fails(r"a: File too large; allow larger files \(`ulimit -f`\)"):
            atomic_write(tmp_path / "a", bytes(2000))
        with fails(r"b: File too large; allow larger files"), atomic_path(tmp_path / "b") as temporary:
            write_tensors(temporary, {"x": torch.zeros(1000)})
        with (
            fails(r"c: .*; (free some space|allow larger files)"),
            atomic_path(tmp_path / "c") as temporary,
            temporary.open("wb") as file,
        ):
            np.save(file, np.zeros(1000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "permit it or choose another place"),
        (errno.EROFS, "permit it or choose another place"),
        (errno.EDQUOT, "free some of your quota or choose another place"),
        (errno.ENOSPC, r"free some space \(`df -h` counts bytes, `df -i` files\) or choose another place"),
        (errno.ESTALE, "look at the disk or the file server, or choose another place"),
        (errno.EIO, "look at the disk or the file server, or choose another place"),
    ],
)
def test_the_advice_follows_the_cause(tmp_path, monkeypatch, number, told):
    """A rename that the kernel refuses is told of the target, with what helps; nothing is left over."""
    monkeypatch.setattr(Path, "replace", refusing(number))
    with fails(f"cannot write {tmp_path}/target: {os.strerror(number)}; {told}"):
        atomic_write(tmp_path / "target", b"")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_files_writing(tmp_path):
    """A cache that some library keeps elsewhere and cannot write is what is named."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/cache")
    assert cannot_write(tmp_path / "a.png", full).startswith(
        f"cannot write /elsewhere/cache, which {tmp_path}"
    )


def test_relative_names_are_the_same_files(tmp_path, monkeypatch):
    """A target named from the working folder is recognised in an error that has its whole path."""
    monkeypatch.chdir(tmp_path)
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / ".a.1-2.part"))
    assert (
        cannot_write(Path("a"), error)
        == "cannot write a: Permission denied; permit it or choose another place"
    )


def test_what_cannot_be_read(tmp_path):
    """A folder, a missing file and too many open files are told apart; nobody is sent to free space."""
    for path, number, told in [
        (tmp_path, errno.EISDIR, "Is a directory; move away what stands in its place, or name another file"),
        (tmp_path / "gone", errno.ENOENT, "No such file or directory; name another file"),
    ]:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            path.read_bytes()
        assert cannot_read(path, caught.value) == f"cannot read {path}: {told}"


def test_safetensors_errors_keep_their_cause(tmp_path):
    """A file that is there and cannot be opened is not missing, as safetensors would say."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(2)})
    assert torch.equal(tensors_in(path)["x"], torch.ones(2))
    with no_more_files(), pytest.raises(OSError, match=re.escape(str(path))) as caught, open_tensors(path):
        raise AssertionError("opened")
    assert caught.value.errno == errno.EMFILE
    with pytest.raises(IsADirectoryError):
        tensors_in(tmp_path)
    with pytest.raises(NotADirectoryError) as told:
        write_tensors(path / "y", {"x": torch.ones(2)})
    assert told.value.filename == str(path / "y")
