"""Weights files: where they are looked for, in which order, and what is refused."""

import copy
import dataclasses
import hashlib

import pytest
import torch
from extractor_cases import empty_caches, inputs, load, record

from attnbench.errors import DataError, UserInputError
from attnbench.metrics import inception_tf, weights_files

PT_NAME, FIDELITY_NAME = inception_tf.WEIGHTS.names


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    empty_caches(tmp_path, monkeypatch)


@pytest.fixture
def anything(monkeypatch):
    """Accept any file as Inception's: its hash is not asked for."""
    file = dataclasses.replace(inception_tf.WEIGHTS, sha256="")
    monkeypatch.setattr(inception_tf, "WEIGHTS", file)
    return file


def test_every_place_is_named_when_no_weights_are_found(tmp_path, monkeypatch):
    """Without weights the error lists all places, both names, the variable and the command that fetches."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserInputError) as error:
        load(inception_tf)
    for folder in (tmp_path / "cache" / "attnbench" / "weights", tmp_path / "torch" / "hub" / "checkpoints"):
        for name in (PT_NAME, FIDELITY_NAME):
            assert str(folder / name) in str(error.value)
    for said in ("ATTNBENCH_INCEPTION_WEIGHTS", "evaluate.weights", "attnbench weights fetch inception-tf"):
        assert said in str(error.value)


@pytest.mark.parametrize("name", [PT_NAME, FIDELITY_NAME])
@pytest.mark.parametrize(
    "folder", ["cache/attnbench/weights", "cache/torch/hub/checkpoints", "torch/hub/checkpoints"]
)
def test_inception_weights_are_found_in_the_usual_places(anything, monkeypatch, tmp_path, name, folder):
    """Both published names in our cache, in torch's, and below TORCH_HOME."""
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"w")
    if folder.startswith("torch"):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert weights_files.find(anything) == path


def test_the_settings_come_before_the_environment_and_that_before_caches(anything, monkeypatch, tmp_path):
    """Who names a file gets that file or an error, never another one."""
    cached = weights_files.cache_folder() / PT_NAME
    cached.parent.mkdir(parents=True)
    named, chosen = tmp_path / "named.pth", tmp_path / "chosen.pth"
    for path in (cached, named, chosen):
        path.write_bytes(b"w")
    monkeypatch.setenv("ATTNBENCH_INCEPTION_WEIGHTS", str(named))
    assert weights_files.find(anything, chosen) == chosen
    assert weights_files.find(anything) == named
    named.unlink()
    with pytest.raises(DataError, match=r"named\.pth, which the .* variable ATTNBENCH_INCEPTION_WEIGHTS"):
        weights_files.find(anything)
    chosen.unlink()
    with pytest.raises(DataError, match=r"no weights file at .*chosen\.pth"):
        weights_files.find(anything, chosen)
    monkeypatch.delenv("ATTNBENCH_INCEPTION_WEIGHTS")
    assert weights_files.find(anything) == cached


def test_inception_weights_must_be_the_right_ones(tmp_path):
    """Another file is refused by its hash, whether named or found."""
    path = tmp_path / PT_NAME
    path.write_bytes(b"something else")
    for ask in (record(inception_tf).load, record(inception_tf).identity):
        with pytest.raises(DataError, match=r"its SHA-256 is [0-9a-f]{64}, expected 6726825d0af"):
            ask(inputs(weights=path))


def test_weights_that_would_run_code_are_refused(tmp_path):
    """A pickle that calls a function is not loaded."""
    path = tmp_path / "evil.pth"
    torch.save({"weight": copy.copy}, path)
    with pytest.raises(DataError, match=r"evil\.pth is no file of tensors"):
        weights_files.read_tensors(path)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_damaged_weights_are_one_clear_error(tmp_path, name):
    """A file that is cut or no weights at all is named, with the next step."""
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(DataError, match=r"no file of tensors .*fetch the file again"):
        weights_files.read_tensors(path)


def test_weights_are_more_than_tensors(tmp_path):
    """A training checkpoint with counters is refused with what is wanted."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"step": 3, "model": {}}, path)
    with pytest.raises(DataError, match="more than named tensors"):
        weights_files.read_tensors(path)


def test_identity_is_the_hash_and_a_file_is_hashed_once(anything, monkeypatch, tmp_path):
    """The identity is the file's SHA-256; the second question does not read 90 MB again."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: (reads.append(1), digest(*args))[1])
    first, second = (record(inception_tf).identity(inputs(weights=path)) for _ in range(2))
    assert first == second == hashlib.sha256(b"weights").hexdigest()
    assert len(reads) == 1


def test_a_replaced_file_is_hashed_again(tmp_path):
    """A file of the same name with other content has another hash."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"first")
    first = weights_files.file_sha256(path)
    path.write_bytes(b"second")
    assert weights_files.file_sha256(path) != first == hashlib.sha256(b"first").hexdigest()
