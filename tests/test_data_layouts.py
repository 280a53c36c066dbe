"""Which layouts of folders are recognised, which are refused, and what is said of files that are left out."""

import io
import os
import tarfile

import numpy as np
import pytest
from command_line import attnbench_here
from image_files import SIDE, class_files, make, picture, tar_bytes, write_files
from image_sets import refused

from attnbench.data import class_names, load_dataset
from attnbench.data.card import read_card
from attnbench.errors import DataError
from attnbench.specs import ImageFolderData

OTHERS = {
    "cat/Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "cat/desktop.ini": b"[.ShellClassInfo]",
    "cat/boxes.txt": b"00.png\t0\t0\t62\t62\n",
    "cat/00.xml": b"<annotation/>",
    "cat/README": b"cats",
    "dog/features.h5": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "classes.csv": b"cat,dog,eel\n",
}


def folder(path, **settings):
    return load_dataset(
        ImageFolderData(path=path, **{"image_size": SIDE, "held_out_fraction": 0.0} | settings)
    )


def flat(*parts):
    return {f"{part}/{index}.png": picture(index) for part in parts for index in range(3)}


@pytest.mark.parametrize(
    "files",
    [
        flat("train", "test", "val"),
        flat("Train", "Test"),
        flat("training", "validation"),
        flat("train"),
        flat("test"),
        flat("train", "test", "unlabeled"),
        {f"all/{name}": content for name, content in flat("train", "val").items()},
        {f"{part}/images/{index}.png": picture(index) for part in ("train", "val") for index in range(3)},
        {f"images/{name}": content for name, content in flat("train", "val").items()},
    ],
    ids=["three", "capitals", "long", "train", "test", "more", "wrapped", "yolo", "coco"],
)
def test_parts_without_classes_are_no_classes(files, tmp_path):
    """Nobody trains on test images by mistake: `prepare` refuses, of a folder and of its archive."""
    source = write_files(tmp_path / "photos", files)
    (tmp_path / "photos.tar").write_bytes(tar_bytes(files))
    for place in (source, tmp_path / "photos.tar"):
        with pytest.raises(DataError, match="names of parts of a set, not of classes"):
            make(place, tmp_path / "set")
    if not any(name.startswith(("all/", "images/")) for name in files):
        with pytest.raises(DataError, match="names of parts of a set, not of classes"):
            folder(source)
        with pytest.raises(DataError, match="names of parts of a set, not of classes"):
            class_names(ImageFolderData(path=source))


@pytest.mark.parametrize("special", ["test", "train", "val"])
def test_a_class_may_be_called_like_a_part(special, tmp_path):
    """Beside other classes, and inside train/; it is said."""
    files = class_files(("cat", "dog", special))
    said = []
    card = make(write_files(tmp_path / "photos", files), tmp_path / "a", notice=said.append)
    assert card.classes == sorted(("cat", "dog", special))
    assert said == [f"taken for classes, not for parts of the set: {special}"]
    assert any(special in remark for remark in folder(tmp_path / "photos").remarks)
    inside = write_files(tmp_path / "parts", {f"train/{name}": content for name, content in files.items()})
    assert make(inside, tmp_path / "b").classes == card.classes


def test_a_folder_called_train_does_not_swallow_the_classes_beside_it(tmp_path):
    """Classes at the top and train/<class>/<image> are two sets: which one is asked."""
    files = class_files() | {f"train/{name}": content for name, content in class_files(("fox",)).items()}
    source = write_files(tmp_path / "photos", files)
    with pytest.raises(DataError, match=r"train/<class>/<image> and 15 images in folders beside train"):
        make(source, tmp_path / "set")
    with pytest.raises(DataError, match=r"photos/train holds no readable image \(train/fox/ with 5 images\)"):
        folder(source)


def tiny_imagenet():
    """Return Tiny-ImageNet's files: three classes, boxes beside images, flat val and test."""
    wnids = ("n01443537", "n01629819", "n01641577")
    files = {}
    for label, wnid in enumerate(wnids):
        for index in range(4):
            files[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = picture(10 * label + index, kind="jpeg")
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x\t0\t10\t63\t58\n"
    lines = []
    for index in range(6):
        files[f"val/images/val_{index}.JPEG"] = picture(100 + index, kind="jpeg")
        files[f"test/images/test_{index}.JPEG"] = picture(200 + index, kind="jpeg")
        lines.append(f"val_{index}.JPEG\t{wnids[index % 3]}\t0\t32\t44\t62\n")
    return files | {
        "val/val_annotations.txt": "".join(lines).encode(),
        "wnids.txt": "\n".join(wnids).encode(),
    }


def test_tiny_imagenet(tmp_path):
    """Classes are the folders above `images`, val's classes stand in its annotations; the rest is counted."""
    source = write_files(tmp_path / "tiny", tiny_imagenet())
    said = []
    card = make(
        source / "train",
        tmp_path / "set",
        held_out_from=source / "val",
        labels=source / "val/val_annotations.txt",
        notice=said.append,
    )
    assert card.parts["train"].per_class == {"n01443537": 4, "n01629819": 4, "n01641577": 4}
    assert card.parts["held-out"].per_class == {"n01443537": 2, "n01629819": 2, "n01641577": 2}
    assert np.load(tmp_path / "set/held-out/labels.npy").tolist() == [0, 0, 1, 1, 2, 2]
    assert said == [
        "left out of train: 3 files are no images, such as n01443537/n01443537_boxes.txt",
        "left out of val: 1 file is no image, such as val_annotations.txt",
    ]
    assert (card.num_unreadable, card.num_outside) == (0, 4)
    dataset = folder(source / "train")
    assert dataset.class_names == ("n01443537", "n01629819", "n01641577")
    assert (len(dataset.train), dataset.unreadable) == (12, ())
    said.clear()
    whole = make(source, tmp_path / "whole", notice=said.append)
    assert whole.parts["train"].num_images == 12
    assert said == [
        "left out of tiny: 6 images in no class folder, such as test/images/test_0.JPEG",
        "left out of tiny: 6 images in no class folder, such as val/images/val_0.JPEG",
        "left out of tiny: 5 files are no images, such as train/n01443537/n01443537_boxes.txt",
    ]
    alone = write_files(tmp_path / "alone", {f"cat/images/{i}.png": picture(i) for i in range(3)})
    assert make(alone, tmp_path / "one").classes == list(folder(alone).class_names) == ["cat"]


def test_files_that_are_no_images_are_not_damaged_ones(tmp_path):
    """Thumbnails, lists and notes count against nothing; `prepare` names them before it writes an image."""
    source = write_files(
        tmp_path / "photos", class_files() | OTHERS | {"cat/bad.png": b"x", "dog/00": picture(8)}
    )
    seen = []

    def notice(text):
        assert not list((tmp_path / "set").rglob("*.npy"))
        seen.append(text)

    with pytest.raises(DataError, match=r"1 of 17 files .*: cat/bad\.png: not an image that pillow knows"):
        make(source, tmp_path / "set", notice=notice)
    assert seen == [f"left out of photos: {len(OTHERS)} files are no images, such as cat/00.xml"]
    card = make(source, tmp_path / "set", max_unreadable=0.1)
    assert (card.num_unreadable, card.num_outside) == (1, len(OTHERS))
    assert card.parts["train"].per_class == {"cat": 5, "dog": 6, "eel": 5}  # an image without an ending, too
    dataset = folder(source)
    assert dataset.unreadable == ("cat/bad.png: not an image that pillow knows",)
    assert len(dataset.train) == 16
    assert "6 files and folders in class folders that are no images" in dataset.remarks[0]


def test_folders_of_systems_are_no_classes(tmp_path):
    """What macOS, Jupyter and file servers leave behind is passed over everywhere."""
    junk = {
        "__MACOSX/cat/._00.png": b"\0\5\x16\7", "__MACOSX/x.png": picture(9),
        ".ipynb_checkpoints/a.png": picture(1),
        "cat/.ipynb_checkpoints/00-checkpoint.png": picture(2), "@eaDir/cat/00.png": picture(3),
        "cat/@eaDir/00.png": picture(3), ".DS_Store": b"x", "cat/.DS_Store": b"x",
    }  # fmt: skip
    source = write_files(tmp_path / "photos", class_files() | junk)
    for card in (
        make(source, tmp_path / "a"),
        make(_archive(tmp_path / "photos.tar", tar_bytes(class_files() | junk)), tmp_path / "b"),
    ):
        assert (card.classes, card.num_outside) == (["cat", "dog", "eel"], 0)
    assert folder(source).class_names == ("cat", "dog", "eel")
    assert folder(source).remarks == ()
    scored = {f"{name}/{i}.png": picture(i) for name in ("cat", "dog") for i in range(3)}
    assert open_names(write_files(tmp_path / "scored", scored | junk)) == ("cat", "dog")


def open_names(path):
    from attnbench.evaluation.images import open_images

    return open_images(path).class_names


def test_images_beside_class_folders_are_refused_or_counted(tmp_path):
    """`image-folder` and `evaluate` refuse them, `prepare` says how many it leaves out."""
    files = class_files() | {
        "cover.png": picture(),
        "cat/more/x.png": picture(1),
        "cat/more/y.png": picture(2),
    }
    source = write_files(tmp_path / "photos", files)
    said = []
    make(source, tmp_path / "set", notice=said.append)
    assert said == [
        "left out of photos: 2 images in no class folder, such as cat/more/x.png",
        "left out of photos: 1 image in no class folder, such as cover.png",
    ]
    with pytest.raises(DataError, match=r"holds 1 images beside its class folders, such as cover\.png"):
        folder(source)
    (source / "cover.png").unlink()
    assert folder(source).remarks == (
        f"left out of {source}: 1 files and folders in class folders that are no images "
        "(cat/more/ with 2 images)",
    )
    refused(write_files(tmp_path / "scored", flat("train", "test")), "names of parts")


def test_class_folders_in_folders_are_refused(tmp_path):
    """Two levels of folders are no classes; one class alone is a set."""
    deep = write_files(
        tmp_path / "deep", {f"{a}/{b}/{i}.png": picture(i) for a in "pq" for b in "xy" for i in range(2)}
    )
    with pytest.raises(DataError, match="has no images in class folders"):
        make(deep, tmp_path / "set")
    with pytest.raises(DataError, match=r"deep/p holds no readable image \(p/x/ with 2 images"):
        folder(deep)
    one = write_files(tmp_path / "one", class_files(("cat",)))
    assert make(one, tmp_path / "b").classes == list(folder(one).class_names) == ["cat"]


@pytest.mark.skipif(os.name != "posix", reason="file names that are no UTF-8 exist on POSIX systems alone")
def test_names_that_are_no_utf8(tmp_path):
    """A file and a class with Latin-1 names are used; what is written shows their bytes escaped."""
    source = write_files(tmp_path / "photos", class_files() | {"cat/cut.png": b"no"})
    os.rename(os.fsencode(source / "cat/cut.png"), os.fsencode(source / "cat") + b"/caf\xe9.png")
    os.rename(os.fsencode(source / "eel"), os.fsencode(source) + b"/\xe9el")
    card = make(source, tmp_path / "set", max_unreadable=0.1, held_out="1")
    assert card.classes == [r"\xe9el", "cat", "dog"]
    assert card.unreadable() == [r"cat/caf\xe9.png: not an image that pillow knows"]
    dataset = folder(source)
    assert dataset.class_names == (r"\xe9el", "cat", "dog")
    assert dataset.unreadable == (r"cat/caf\xe9.png: not an image that pillow knows",)
    assert len(dataset.train.get(__import__("torch").arange(15))) == 15
    words = ("data", "prepare", source, "--to", tmp_path / "c", "--max-unreadable", 0.1)
    made = attnbench_here(*words, cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert r"caf\xe9.png" in made.stdout


def _archive(path, content):
    path.write_bytes(content)
    return path


def linked_tar(links, kind=tarfile.SYMTYPE, files=None):
    """Return an archive of the class files and of links: name -> target."""
    file = io.BytesIO(tar_bytes(class_files() if files is None else files))
    with tarfile.open(fileobj=file, mode="a") as archive:
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "links"),
    [
        (tarfile.SYMTYPE, {"fox/a.png": "../cat/00.png"}),
        (tarfile.LNKTYPE, {"fox/a.png": "cat/00.png"}),
        (tarfile.LNKTYPE, {"fox/a.png": "./cat/00.png"}),
        (tarfile.SYMTYPE, {"fox/a.png": "b.png", "fox/b.png": "../cat/00.png"}),
    ],
    ids=["symlink", "hardlink", "dot", "chain"],
)
def test_a_link_in_an_archive_is_the_file_it_names(kind, links, tmp_path):
    """Its pixels are those of the member; nothing is empty."""
    card = make(_archive(tmp_path / "t.tar", linked_tar(links, kind)), tmp_path / "set")
    assert (card.num_unreadable, card.parts["train"].per_class["fox"]) == (0, len(links))
    images = np.load(tmp_path / "set/train/images-00000.npy")
    assert np.array_equal(images[0], images[-1])


def test_a_link_to_a_folder_in_an_archive_is_its_files(tmp_path):
    """As in a folder on the disk; one to a folder around itself ends."""
    links = {"fox": "cat", "cat/loop": "../cat"}
    card = make(_archive(tmp_path / "t.tar", linked_tar(links)), tmp_path / "set")
    assert card.parts["train"].per_class == {"cat": 5, "dog": 5, "eel": 5, "fox": 5}


@pytest.mark.parametrize("target", ["../gone.png", "/etc/hostname", "../../../etc/hostname", "loop.png"])
def test_a_link_that_leads_nowhere_is_named(target, tmp_path):
    """Missing, outside, or in a circle: unreadable with the reason, and nothing outside is read."""
    path = _archive(tmp_path / "t.tar", linked_tar({"cat/loop.png": target}))
    card = make(path, tmp_path / "set", max_unreadable=0.1)
    (line,) = card.unreadable()
    assert line.startswith("cat/loop.png: a link to ")
    assert card.parts["train"].per_class["cat"] == 5


def test_names_that_lead_out_of_an_archive(tmp_path):
    """`..` is refused; a / in front means nothing, as for tar; neither is ever written."""
    for name in ("../cat/x.png", "cat/../../x.png"):
        path = _archive(tmp_path / "t.tar", tar_bytes(class_files() | {name: picture()}))
        with pytest.raises(DataError, match="which leads out of the archive"):
            make(path, tmp_path / "set")
    path = _archive(tmp_path / "u.tar", tar_bytes({f"/{name}": b for name, b in class_files().items()}))
    assert make(path, tmp_path / "other").classes == ["cat", "dog", "eel"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "set", "t.tar", "u.tar"]


def test_other_members_of_an_archive(tmp_path):
    """A folder called like an image, a pipe, a sparse file: left alone, named with the reason."""
    file = io.BytesIO(tar_bytes(class_files()))
    with tarfile.open(fileobj=file, mode="a") as archive:
        for name, kind in (("cat/dir.png", tarfile.DIRTYPE), ("cat/pipe.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    card = make(_archive(tmp_path / "t.tar", file.getvalue()), tmp_path / "set", max_unreadable=0.1)
    assert card.unreadable() == ["cat/pipe.png: no file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_in_a_folder_is_named_and_not_waited_for(tmp_path):
    """Opening it would wait for its other end; a link to nothing is named as well."""
    source = write_files(tmp_path / "photos", class_files())
    os.mkfifo(source / "cat/pipe.png")
    (source / "cat/gone.png").symlink_to(source / "nowhere.png")
    expected = ["cat/gone.png: a link to nothing", "cat/pipe.png: neither a file nor a folder"]
    assert make(source, tmp_path / "set", max_unreadable=0.2).unreadable() == expected
    assert list(folder(source).unreadable) == expected


def test_a_tar_of_tars_of_tars_is_refused_in_numbers(tmp_path):
    """Class archives are read one level deep."""
    inner = tar_bytes({f"{i}.tar": tar_bytes({"a.png": picture(i)}) for i in range(3)})
    path = _archive(tmp_path / "t.tar", tar_bytes({"cat.tar": inner, "dog.tar": inner}))
    with pytest.raises(
        DataError, match=r"no images in class folders \(6 files that are no images, such as cat/0\.tar"
    ):
        make(path, tmp_path / "set")


def overwrite(path, content):
    """Write another image of as many bytes; the time of writing differs by more than any clock's tick."""
    size = path.stat().st_size
    path.write_bytes(content + bytes(size - len(content)))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def same_size_pair():
    """Return two different images as BMP files of equal size."""
    return picture(1, kind="bmp"), picture(2, kind="bmp")


@pytest.mark.parametrize("packed", [False, True])
def test_a_set_of_files_overwritten_since_is_noticed(packed, tmp_path):
    """At equal size; a copy with other times but equal bytes is the same set, and is not read again."""
    first, second = same_size_pair()
    files = class_files() | {"cat/x.bmp": first}
    source = write_files(tmp_path / "photos", files)
    if packed:
        source = _archive(tmp_path / "photos.tar", tar_bytes(files))
    card = make(source, tmp_path / "set")
    assert make(source, tmp_path / "set") == card
    for path in [source] if packed else list(source.rglob("*.*")):
        os.utime(path, ns=(1, 10**18))
    touched = make(source, tmp_path / "set")
    assert touched.parts == card.parts
    assert touched.source_files != card.source_files
    assert make(source, tmp_path / "set") == touched == read_card(tmp_path / "set")
    if packed:
        overwrite(source, tar_bytes(files | {"cat/x.bmp": second}))
    else:
        overwrite(source / "cat/x.bmp", second)
    with pytest.raises(
        DataError, match=r"files of photos.* have changed since .* between cat/00\.png and eel/04"
    ):
        make(source, tmp_path / "set")


def test_a_set_that_says_nothing_of_its_files_still_counts(tmp_path):
    """As an earlier attnbench made it: nothing is known of the times, and nothing claimed."""
    source = write_files(tmp_path / "photos", class_files())
    card = make(source, tmp_path / "set").model_copy(update={"source_files": {}})
    (tmp_path / "set/card.json").write_text(card.model_dump_json())
    os.utime(source / "cat/00.png", ns=(1, 10**18))
    assert make(source, tmp_path / "set") == card


def test_an_unfinished_set_takes_a_file_as_it_is_now(tmp_path):
    """A file overwritten between two runs: its shard is made again."""
    first, second = same_size_pair()
    source = write_files(tmp_path / "photos", class_files() | {"cat/x.bmp": first, "eel/z.png": b"no"})
    with pytest.raises(DataError, match="run again into this one"):
        make(source, tmp_path / "set")
    overwrite(source / "cat/x.bmp", second)
    make(source, tmp_path / "set", max_unreadable=0.1)
    make(source, tmp_path / "whole", max_unreadable=0.1)
    mine, whole = ((tmp_path / n / "train/images-00000.npy").read_bytes() for n in ("set", "whole"))
    assert mine == whole
