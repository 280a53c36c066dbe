"""ImageNet's archives in small: three classes, seven validation images, and a devkit as scipy writes it."""

from __future__ import annotations

import io

import numpy as np
import scipy.io
from image_files import class_files, picture, tar_bytes, tar_of_tars, write_files

WNIDS = ("n02111889", "n01440764", "n07697313")  # by their numbers, an order that is not that of names
TRUTH = (3, 1, 1, 2, 3, 2, 1)
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(TRUTH) + 1)]
CLASS_OF = {name: WNIDS[number - 1] for name, number in zip(NAMES, TRUTH, strict=True)}


def training_files():
    """Return `<wnid>/<wnid>_<number>.JPEG` -> bytes, four of a class."""
    files = class_files(WNIDS, per_class=4, kind="jpeg")
    return {name.replace("/", f"/{name[:9]}_").replace("jpeg", "JPEG"): b for name, b in files.items()}


def validation_files():
    """Return `ILSVRC2012_val_<number>.JPEG` -> bytes."""
    return {name: picture(900 + i, (30 + i, 26), kind="jpeg") for i, name in enumerate(NAMES)}


def sorted_validation_files():
    """Return `<wnid>/ILSVRC2012_val_<number>.JPEG` -> bytes."""
    return {f"{CLASS_OF[name]}/{name}": content for name, content in validation_files().items()}


def imagenet_archives(root):
    """Write training, validation and devkit archives into a folder; returns the folder."""
    train, val = tar_of_tars(training_files()), tar_bytes(validation_files())
    return write_files(root, {TRAIN_TAR: train, VAL_TAR: val, DEVKIT: devkit()})


SYNSET_FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)


def meta_mat(wnids=WNIDS):
    """Return a meta.mat whose classes are numbered from 1, and one synset above them that is no class."""
    none, ids = np.zeros((1, 0), np.uint16), np.arange(1, len(wnids) + 1, dtype=np.uint16)[None]
    rows = [
        (np.uint16(i), w, f"{w}, its synonym", "a gloss", np.uint8(0), none, np.uint8(0), np.uint16(1300))
        for i, w in enumerate(wnids, 1)
    ]
    above = (
        np.uint16(len(wnids) + 1),
        "n00001740",
        "entity",
        "all",
        np.uint16(len(wnids)),
        ids,
        np.uint8(19),
    )
    rows.append((*above, np.uint16(0)))
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in SYNSET_FIELDS])
    synsets[:, 0] = rows
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def devkit(truth=TRUTH, wnids=WNIDS, meta=None):
    """Return an archive as ILSVRC2012_devkit_t12.tar.gz: classes numbered from 1, one number per image."""
    files = {
        "readme.txt": b"the development kit",
        "data/meta.mat": meta_mat(wnids) if meta is None else meta,
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in truth).encode(),
    }
    return tar_bytes({f"ILSVRC2012_devkit_t12/{name}": content for name, content in files.items()}, "w:gz")
