"""Image files, folders and archives of every kind that a training set may be made of."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import PIL.Image

from attnbench.data.preparing import prepare
from attnbench.data.request import PreparationRequest
from attnbench.data.selection import Selection

SIDE = 16  # pixels of the sets that `make` makes


def picture(seed=0, size=(40, 30), mode="RGB", kind="png"):
    """Return the bytes of a noise image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def deep_picture():
    """Return the bytes of a 16-bit grey PNG."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(file, "png")
    return file.getvalue()


def class_files(classes=("cat", "dog", "eel"), per_class=5, kind="png"):
    """Return `<class>/<image>` -> bytes, every image of another size and content."""
    return {
        f"{name}/{index:02d}.{kind}": picture(100 * label + index, (24 + index % 9, 20 + label), kind=kind)
        for label, name in enumerate(classes)
        for index in range(per_class)
    }


def write_files(root, files):
    """Write files below a folder; returns the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def tar_bytes(files, mode="w"):
    """Return an archive of files, in the order given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tar_of_tars(files):
    """Return an archive with one archive per class, as ILSVRC2012_img_train.tar."""
    classes = sorted({name.split("/")[0] for name in files})
    inner = {c: {n.split("/")[1]: b for n, b in files.items() if n.startswith(f"{c}/")} for c in classes}
    return tar_bytes({f"{name}.tar": tar_bytes(content) for name, content in inner.items()})


def folder_bytes(folder):
    """Return every file below a folder: relative name -> bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def make(source, folder, *, progress=lambda done, total, note: None, notice=lambda text: None, **settings):
    """Prepare a training set; settings are those of PreparationRequest and of Selection together."""
    choice = {key: settings.pop(key) for key in ("count", "seed", "listed", "held_out") if key in settings}
    request = {"image_size": SIDE, "selection": Selection(**choice), "workers": 2} | settings
    return prepare(PreparationRequest(source=source, folder=folder, **request), progress, notice)
