"""Opening a set of images, wherever it comes from: PNG files, an npz file, a run of ours."""

from __future__ import annotations

from pathlib import Path

from attnbench.data.card import CARD, PARTS, REQUEST, UNFINISHED
from attnbench.data.layout import printable
from attnbench.errors import DataError
from attnbench.evaluation.collection import (
    SHARD_SIZE,
    ImageCollection,
    ImageShard,
    listed,
    refuse_dead_sets,
)
from attnbench.evaluation.dataset_images import prepared_images
from attnbench.evaluation.image_files import open_image_folder
from attnbench.evaluation.npz_files import open_npz_images, open_npz_shards
from attnbench.evaluation.run_samples import sample_folder
from attnbench.storage.names import DONE, RESULTS, SAMPLE_SHARDS

__all__ = ["SHARD_SIZE", "ImageCollection", "ImageShard", "open_images"]

ACCEPTED = (
    "a folder of PNG files (one sub-folder per class where classes are known), an .npz file with arr_0 uint8 "
    "[N, H, W, 3], a folder that `attnbench data prepare` has written, or the folder of a suite's run"
)


def open_images(
    path: Path, *, case: str | None = None, allow_jpeg: bool = False, image_size: int | None = None
) -> ImageCollection:
    """Open a set of images without decoding more than its headers and (usually) two images.

    `case` is a label or id of a case, for a run folder with several. `allow_jpeg` is for real images that
    never were anything else; `image_size` for those of mixed sizes, see `open_image_folder`. Raises DataError
    for what cannot be scored, UnknownNameError for `case`.
    """
    if case is not None and not (path / RESULTS).is_file():
        raise DataError(
            f"{path} is no folder of a suite's run, so there is no case {case!r} in it; leave case out"
        )
    collection = _open(path, case, allow_jpeg, image_size)
    if image_size is not None and (collection.height, collection.width) != (image_size, image_size):
        raise DataError(
            f"{path} holds images of {collection.width} x {collection.height} pixels that are cut already, "
            f"--image-size is {image_size}; leave it out, or name the folder of the original image files"
        )
    refuse_dead_sets(collection)
    return collection


def _open(path: Path, case: str | None, allow_jpeg: bool, image_size: int | None) -> ImageCollection:
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise DataError(f"{path} is a {path.suffix or 'nameless'} file; name {ACCEPTED}")
        return open_npz_images(path)
    if not path.is_dir():
        raise DataError(f"{path} does not exist; name {ACCEPTED}")
    if (path / RESULTS).is_file():
        result, folder = sample_folder(path, case)
        return open_npz_shards(folder, name=result.label)
    if (path / CARD).is_file() or (path / UNFINISHED / REQUEST).is_file():
        return prepared_images(path, "train")
    for part in PARTS:  # FOLDER/train or FOLDER/held-out
        if path.name == part and (path.parent / CARD).is_file():
            return prepared_images(path.parent, part)
    if any(path.glob(SAMPLE_SHARDS)):
        collection = open_npz_shards(path, name=printable(str(path)))
        if not (path / DONE).is_file():
            collection.warn(f"{path} has no {DONE}: the sampling that wrote it may not be finished")
        return collection
    runs = sorted(entry.name for entry in path.iterdir() if (entry / RESULTS).is_file())
    if runs:
        raise DataError(f"{path} holds runs ({listed(runs)}); name one of them, e.g. {path / runs[0]}")
    return open_image_folder(path, allow_jpeg=allow_jpeg, image_size=image_size)
