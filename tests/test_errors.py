"""A file that cannot be read is told with the cause and what helps against it, not as missing or damaged."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from command_line import attnbench_here

from attnbench.data.image_sources import open_source
from attnbench.data.labels import read_labels
from attnbench.data.selection import read_class_list
from attnbench.errors import CheckpointError, DataError, StorageError, SuiteError, UnknownNameError
from attnbench.evaluation.image_files import files_key
from attnbench.evaluation.reference import load_reference
from attnbench.exchange.diffusers_format import _copy_vae
from attnbench.exchange.folders import read_bytes, writing
from attnbench.exchange.weight_files import unpickle
from attnbench.metrics.weights_files import read_tensors
from attnbench.results import Record
from attnbench.stages.latents.taesd import _numbered
from attnbench.stages.sampling.shards import is_whole, iterate_shards
from attnbench.stages.training.checkpoint import load_tensors
from attnbench.storage.arrays import read_arrays
from attnbench.storage.hashing import file_sha256
from attnbench.storage.records import read_record
from attnbench.yaml_source import read_settings

NAME = "samples-00000.npz"  # what the readers of a whole folder look for, too
READERS = {
    "checkpoint": (lambda path: load_tensors(path, "key"), CheckpointError),
    "shard": (lambda path: is_whole(path, 1), StorageError),
    "shards": (lambda path: list(iterate_shards(path.parent)), CheckpointError),
    "features": (lambda path: read_arrays(path, 1), StorageError),
    "record": (lambda path: read_record(path, Record), StorageError),
    "reference": (load_reference, DataError),
    "class list": (read_class_list, DataError),
    "labels": (lambda path: read_labels(path, path.parent), DataError),
    "images": (lambda path: files_key([path]), DataError),
    "pickled weights": (unpickle, DataError),
    "weights": (read_tensors, DataError),
    "taesd": (_numbered, DataError),
    "hash": (file_sha256, DataError),
    "bytes": (read_bytes, DataError),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_in_a_files_place_is_not_damage(tmp_path, reader):
    """Nobody is told to fetch, draw or make a file again that was never looked into."""
    read, kind = READERS[reader]
    (tmp_path / NAME).mkdir()
    told = rf"cannot read {tmp_path}/{NAME}: Is a directory; move away what stands in its place, or \w+"
    with pytest.raises(kind, match=told):
        read(tmp_path / NAME)


def test_a_suite_that_cannot_be_read(tmp_path):
    """The error of a suite file has the cause and what helps."""
    with pytest.raises(SuiteError, match="cannot be read: No such file or directory; name another file"):
        read_settings(tmp_path / "gone.yaml")
    with pytest.raises(
        SuiteError, match="cannot be read: Is a directory; move away what stands in its place"
    ):
        read_settings(tmp_path)


def test_a_source_that_cannot_be_opened(tmp_path):
    """A missing archive is the user's mistake; an error of what is done with the source stays what it is."""
    told = rf"cannot read {tmp_path}/gone\.tar: No such file"
    with pytest.raises(DataError, match=told), open_source(tmp_path / "gone.tar", tmp_path):
        raise AssertionError("opened")
    (tmp_path / "images.tar").write_bytes(bytes(10240))
    mine = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "elsewhere")
    with pytest.raises(PermissionError, match="elsewhere"), open_source(tmp_path / "images.tar", tmp_path):
        raise mine


def test_a_file_of_the_autoencoder_that_is_gone(tmp_path):
    """An export that cannot read the user's autoencoder names its file, not the folder it writes."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "gone")
    told = rf"cannot read {tmp_path}/vae/diffusion_pytorch_model\.safetensors: No such file"
    with pytest.raises(DataError, match=told), writing(tmp_path / "out"):
        _copy_vae(tmp_path / "vae", tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (errno.ENAMETOOLONG, 2, "File name too long; name another path with a shorter name"),
        (errno.EACCES, 2, "Permission denied; permit it or name another path"),
        (errno.EMFILE, 1, r"Too many open files; allow more open files (`ulimit -n`)"),
        (errno.EIO, 1, "Input/output error; look at the disk or the file server, or name another path"),
    ],
)
def test_what_no_command_expected(monkeypatch, number, code, told):
    """Exit code 2 blames the user's words only where another name or a permission helps."""

    def fail(*args, **options):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(Path, "is_dir", fail)
    done = attnbench_here("report", "some")
    assert (done.returncode, done.stderr) == (code, f"error: some/file: {told}\n")


def test_a_thousand_names_are_not_listed():
    """All names where they can be read; else the ten nearest, and how many more there are."""
    labels = [f"linear · steps={steps} · seed={seed}" for steps in range(100) for seed in range(3)]
    said = str(UnknownNameError("case", "linear · steps=42 · seed=7", labels))
    assert "linear · steps=42 · seed=1" in said
    assert said.endswith(", and 290 more")
    assert said.count("steps=") == 12  # what was asked for, the guess, and ten
    assert str(UnknownNameError("case", "x", labels[:30])).endswith(", ".join(sorted(labels[:30])))
