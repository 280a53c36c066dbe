"""How the files of a source form classes and parts: `<class>/<image>` or `<part>/<class>/<image>`.

A folder `images` between a class and its images, as in Tiny-ImageNet, is looked through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from attnbench.errors import DataError

TRAIN = "train"
TRAIN_NAMES = (TRAIN, "training")
HELD_OUT_NAMES = ("val", "valid", "validation", "test", "testing", "held-out", "eval", "dev")
IMAGES = "images"  # the folder between class and image
SHOWN = 5  # files outside the layout that a card names; the rest are counted
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".avif", ".avifs", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".j2c", ".jpf", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pfm", ".tga", ".ico", ".icns", ".pcx", ".dds", ".psd", ".sgi", ".rgb", ".rgba", ".bw",
    ".qoi", ".xbm", ".exr",
)  # fmt: skip
"""How image files' names end; of a file with another name its content decides."""
SYSTEM_FOLDERS = (
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
    "__pycache__",
)  # fmt: skip
"""What systems and servers keep beside the user's files; passed over like names that start with a dot."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source: its path in parts, its bytes, and where it starts in an archive."""

    parts: tuple[str, ...]
    size: int
    offset: int = 0
    changed_ns: int = field(default=0, compare=False)
    """When the file, or the archive around it, was written last."""
    fault: str = ""
    """Why the file has no content to be read, such as a link to nothing."""

    @property
    def name(self) -> str:
        """The path with slashes."""
        return "/".join(self.parts)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files by part and class, in order of name, and those that belong to no class."""

    parts: dict[str, dict[str, list[Entry]]]
    num_outside: int
    outside: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """What is not taken, in words and numbers."""


def is_passed_over(name: str) -> bool:
    """Return whether a file or folder of this name is no part of anybody's images."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_part(name: str) -> bool:
    """Return whether a folder of this name usually holds a part of a set, such as train or val."""
    return name.lower() in (*TRAIN_NAMES, *HELD_OUT_NAMES)


def has_image_ending(name: str) -> bool:
    """Return whether a file's name says that it is an image."""
    return name.lower().endswith(IMAGE_ENDINGS)


def printable(name: str) -> str:
    r"""Return a file's name as text that can be written anywhere: bytes that are no UTF-8 become \xe9.

    >>> printable("caf\udce9")
    'caf\\xe9'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def arrange(entries: Iterable[Entry], source: str, is_image: Callable[[Entry], bool] | None = None) -> Layout:
    """Sort files into parts and classes; a single folder around everything is looked through.

    Files at other depths, and those that are no images, are counted as outside. Of a name that an archive
    holds twice the last file is meant, as when it is unpacked. Raises DataError when there is no class at
    all, for parts with images in no class folders, and where classes stand beside parts.
    """
    images, others = images_and_others(last_of_each_name(entries), is_image)
    inner = _without_images_folder(images)
    skip = _depth_of_wrapping(list(inner.values()), stop=is_part)
    named = any(len(parts) == skip + 3 and parts[skip].lower() in TRAIN_NAMES for parts in inner.values())
    parts: dict[str, dict[str, list[Entry]]] = {}
    outside = []
    for file, path in inner.items():
        part = path[skip] if named and len(path) > skip else TRAIN
        in_part = path[skip + named :]
        if len(in_part) == 2 and (not named or is_part(part)):
            part = TRAIN if part.lower() in TRAIN_NAMES else part
            parts.setdefault(part, {}).setdefault(printable(in_part[0]), []).append(file)
        else:
            outside.append(file)
    if TRAIN not in parts:
        raise DataError(
            f"{source} has no images in class folders ({_first(outside, others)}); expected <class>/<image> "
            "or train/<class>/<image>: name the folder that holds them. ImageNet's validation tar has no "
            "classes in it: give it with --held-out-from and --labels, beside the training images"
        )
    if named:
        _refuse_classes_beside_parts(inner.values(), skip, source)
    else:
        refuse_parts_as_classes(parts[TRAIN], source)
    return _layout(parts, outside, others, skip)


def arrange_one_part(
    entries: Iterable[Entry], source: str, is_image: Callable[[Entry], bool] | None = None
) -> Layout:
    """Sort the files of a source that is one part as a whole into classes; that part is called train here.

    Folders around everything are looked through, val/ as well. Raises DataError when there is no class.
    """
    images, others = images_and_others(last_of_each_name(entries), is_image)
    inner = _without_images_folder(images)
    skip = _depth_of_wrapping(list(inner.values()), stop=lambda name: False)
    classes: dict[str, list[Entry]] = {}
    for file, path in inner.items():
        if len(path) == skip + 2:
            classes.setdefault(printable(path[skip]), []).append(file)
    outside = [file for file, path in inner.items() if len(path) != skip + 2]
    if not classes:
        raise DataError(
            f"{source} has no images in class folders ({_first(outside, others)}); name the folder that "
            "holds the class folders, or give the classes of images in no folder with --labels"
        )
    refuse_parts_as_classes(classes, source)
    return _layout({TRAIN: classes}, outside, others, skip)


def refuse_parts_as_classes(classes: Iterable[str], source: str) -> None:
    """Raise DataError where class folders of these names are the parts of a set.

    A class may be called `test` or `train`, but not all of them, and no set has both beside other classes.
    """
    names = list(classes)
    parts = [name for name in names if is_part(name)]
    both = {name.lower() in TRAIN_NAMES for name in parts} == {True, False}
    if parts and (both or len(parts) == len(names)):
        raise DataError(
            f"{source}: {' and '.join(parts)} are names of parts of a set, not of classes; where they hold "
            f"class folders, name one of them (such as {parts[-1]}), else put each image into the folder of "
            "its class, as train/<class>/<image>, or rename folders that are classes"
        )


def last_of_each_name(entries: Iterable[Entry]) -> list[Entry]:
    """Return files in order of name; of a name that comes twice the last one."""
    return sorted({entry.parts: entry for entry in entries}.values(), key=lambda entry: entry.parts)


def images_and_others(
    files: Iterable[Entry], is_image: Callable[[Entry], bool] | None
) -> tuple[list[Entry], list[Entry]]:
    """Return the files that are images by name, or by content where the name says nothing, and the others."""
    images: list[Entry] = []
    others: list[Entry] = []
    for file in files:
        known = has_image_ending(file.parts[-1]) or (is_image is not None and is_image(file))
        (images if known else others).append(file)
    return images, others


def others_in_words(others: Sequence[Entry]) -> list[str]:
    """Return a sentence about files that are no images, or nothing."""
    if not others:
        return []
    files = "1 file is no image" if len(others) == 1 else f"{len(others):,} files are no images"
    return [f"{files}, such as {printable(others[0].name)}"]


def _refuse_classes_beside_parts(paths: Iterable[tuple[str, ...]], skip: int, source: str) -> None:
    strange = [path for path in paths if len(path) == skip + 2 and not is_part(path[skip])]
    if strange:
        folders = sorted({printable(path[skip]) for path in strange})
        raise DataError(
            f"{source} has {TRAIN}/<class>/<image> and {len(strange):,} images in folders beside {TRAIN}, "
            f"such as {folders[0]}/{printable(strange[0][-1])}: the classes can be one or the other; name "
            f"the folder {TRAIN} itself, or move what does not belong to the set elsewhere"
        )


def _without_images_folder(files: Sequence[Entry]) -> dict[Entry, tuple[str, ...]]:
    """Return the path of every file, without a folder `images` that is all there is in the one around it."""
    holding = {file.parts[:-1] for file in files}
    folders_in = Counter(folder[:-1] for folder in holding)

    def path_of(file: Entry) -> tuple[str, ...]:
        *above, folder, name = ("", *file.parts)
        around = tuple(above[1:])
        alone = folder.lower() == IMAGES and around not in holding and folders_in[around] == 1
        return (*around, name) if around and alone else file.parts

    return {file: path_of(file) for file in files}


def _depth_of_wrapping(paths: Sequence[tuple[str, ...]], stop: Callable[[str], bool]) -> int:
    """Return how many folders lie around everything; one whose name `stop` knows is not looked through."""
    skip = 0
    while paths:
        around = {path[skip] for path in paths if len(path) > skip + 1}
        deeper = sum(len(path) > skip + 2 for path in paths)
        if len(around) != 1 or any(map(stop, around)) or 2 * deeper <= len(paths):
            break
        skip += 1
    return skip


def _layout(
    parts: dict[str, dict[str, list[Entry]]], outside: Sequence[Entry], others: Sequence[Entry], skip: int
) -> Layout:
    """Describe what was found, and in words what is not taken."""
    by_folder: dict[str, list[Entry]] = {}
    for file in outside:
        by_folder.setdefault("/".join(file.parts[: skip + 1][: len(file.parts) - 1]), []).append(file)
    words = [
        f"{len(files):,} image{'s' * (len(files) > 1)} in no class folder, such as {printable(files[0].name)}"
        for files in by_folder.values()
    ]
    left = sorted((*outside, *others), key=lambda entry: entry.parts)
    return Layout(
        parts=parts,
        num_outside=len(left),
        outside=tuple(printable(file.name) for file in left[:SHOWN]),
        left_out=(*words, *others_in_words(others)),
    )


def _first(outside: Sequence[Entry], others: Sequence[Entry]) -> str:
    if not outside and not others:
        return "no files at all"
    if not outside:
        return f"{len(others)} files that are no images, such as {printable(others[0].name)}"
    return f"{len(outside)} images elsewhere, such as {printable(outside[0].name)}"
