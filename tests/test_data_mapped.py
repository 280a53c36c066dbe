"""Memory maps of .npy files: equal to what was saved, without an open file, and strict."""

import os
import resource

import numpy as np
import pytest

from attnbench.data.mapped import map_array


@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (0, 2, 2, 3), (5,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int64])
def test_a_map_is_what_was_saved(tmp_path, shape, dtype):
    """Values, shape and type of arrays, empty ones too, also from a file that nobody may write."""
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    np.save(tmp_path / "array.npy", array)
    (tmp_path / "array.npy").chmod(0o444)
    found = map_array(tmp_path / "array.npy")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


def test_maps_are_not_limited_by_open_files(tmp_path):
    """A process that may open 64 files maps a hundred arrays: ImageNet's shards outnumber the usual 1,024."""
    np.save(tmp_path / "array.npy", np.arange(6))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 64, before[1]))
    try:
        maps = [map_array(tmp_path / "array.npy") for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert all(found[-1] == 5 for found in maps)


def test_writing_into_a_map_leaves_the_file_alone(tmp_path):
    """A page that is written to is a copy."""
    np.save(tmp_path / "array.npy", np.zeros(4))
    map_array(tmp_path / "array.npy")[0] = 1
    assert np.array_equal(np.load(tmp_path / "array.npy"), np.zeros(4))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b[:20], lambda b: b""])
def test_a_file_that_is_no_whole_array_is_refused(tmp_path, change):
    """Cut anywhere or too long: ValueError, never a bus error at the first read."""
    np.save(tmp_path / "array.npy", np.arange(6))
    content = (tmp_path / "array.npy").read_bytes()
    (tmp_path / "array.npy").write_bytes(change(content))
    with pytest.raises(ValueError, match=r"."):
        map_array(tmp_path / "array.npy")
