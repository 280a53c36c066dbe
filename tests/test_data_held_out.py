"""Held-out images of a second source: ImageNet's archives, Kaggle's folders, equal names, interruption."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import ROOT, attnbench, attnbench_here
from image_files import SIDE, class_files, folder_bytes, make, picture, tar_bytes, tar_of_tars, write_files
from imagenet_files import (
    CLASS_OF,
    DEVKIT,
    NAMES,
    TRAIN_TAR,
    VAL_TAR,
    WNIDS,
    devkit,
    imagenet_archives,
    sorted_validation_files,
    training_files,
    validation_files,
)

from attnbench.data.card import read_card
from attnbench.errors import DataError, UserInputError


@pytest.fixture
def imagenet(tmp_path):
    """A folder with ImageNet's three archives, of three classes."""
    return imagenet_archives(tmp_path / "in")


def held_out(folder):
    """Return the held-out files of a set: name -> bytes."""
    return folder_bytes(folder / "held-out")


def test_imagenets_archives_become_a_set(imagenet, tmp_path):
    """Each validation image has the class its number in the devkit names; the card says all three files."""
    words = [TRAIN_TAR, "--to", tmp_path / "set", "--held-out-from", VAL_TAR, "--labels", DEVKIT]
    made = attnbench("data", "prepare", *words, "--image-size", SIDE, cwd=imagenet)
    assert (made.returncode, made.stderr) == (0, "")
    card = read_card(tmp_path / "set")
    assert card.classes == sorted(WNIDS)
    assert card.parts["held-out"].per_class == {"n01440764": 2, "n02111889": 3, "n07697313": 2}
    assert (card.source, card.held_out_source) == (TRAIN_TAR, VAL_TAR)
    assert card.held_out_labels.name == DEVKIT
    digest = hashlib.sha256((imagenet / DEVKIT).read_bytes()).hexdigest()
    assert card.held_out_labels.sha256 == digest
    assert (card.num_outside, card.num_unreadable, card.unused_parts) == (0, 0, {})
    shown = attnbench_here("data", "show", tmp_path / "set").stdout
    assert all(text in shown for text in (VAL_TAR, DEVKIT, digest[:16]))
    labels = np.load(tmp_path / "set/held-out/labels.npy").tolist()
    assert labels == sorted(sorted(WNIDS).index(wnid) for wnid in CLASS_OF.values())
    alone = make(write_files(tmp_path / "val", sorted_validation_files()), tmp_path / "alone")
    assert alone.parts["train"].num_images == len(NAMES)
    found, expected = (
        np.load(tmp_path / name) for name in ("set/held-out/images-00000.npy", "alone/train/images-00000.npy")
    )
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "kind", ["folders", "in-val", "tar-of-val", "tar-of-tars", "flat-in-folders", "kaggle"]
)
def test_every_way_the_validation_images_come_gives_the_same_set(kind, imagenet, tmp_path):
    """Sorted into classes or flat, folder or archive, with any labels: the same images, labels and names."""
    make(
        imagenet / TRAIN_TAR,
        tmp_path / "a",
        held_out_from=imagenet / VAL_TAR,
        labels=imagenet / DEVKIT,
    )
    source, other, labels = imagenet / TRAIN_TAR, tmp_path / "other", None
    files = sorted_validation_files()
    if kind == "folders":
        write_files(other, files)
    elif kind == "in-val":
        write_files(other, {f"deep/val/{name}": content for name, content in files.items()})
    elif kind == "tar-of-val":
        other.write_bytes(tar_bytes({f"val/{name}": content for name, content in files.items()}, "w:gz"))
    elif kind == "tar-of-tars":
        other.write_bytes(tar_of_tars(files))
    elif kind == "flat-in-folders":
        write_files(other, {f"some/where/{name}": content for name, content in validation_files().items()})
        labels = imagenet / DEVKIT
    else:
        source, labels = tmp_path / "ILSVRC/Data/CLS-LOC", tmp_path / "LOC_val_solution.csv"
        other = source / "val"
        write_files(source / "train", training_files())
        write_files(source / "val", validation_files())
        write_files(source / "test", {"ILSVRC2012_test_00000001.JPEG": picture()})
        labels.write_text(kaggle_lines())
    card = make(source, tmp_path / "b", held_out_from=other, labels=labels)
    assert held_out(tmp_path / "b") == held_out(tmp_path / "a")
    assert folder_bytes(tmp_path / "b/train") == folder_bytes(tmp_path / "a/train")
    assert card.num_outside == (len(NAMES) + 1 if kind == "kaggle" else 0)


def kaggle_lines():
    rows = [f"{name[:-5]},{wnid} 85 1 499 272 {wnid} 1 2 3 4 " for name, wnid in reversed(CLASS_OF.items())]
    return "ImageId,PredictionString\n" + "\n".join(rows)


def test_two_files_of_one_label_are_refused(imagenet, tmp_path):
    """A label without ending that fits a JPEG and a PNG says nothing about either."""
    (tmp_path / "labels").write_text("a,n02111889\n")
    other = write_files(tmp_path / "other", {"a.png": picture(), "a.JPEG": picture(1)})
    with pytest.raises(DataError, match=r"the label of a fits a\.JPEG and a\.png"):
        make(imagenet / TRAIN_TAR, tmp_path / "set", held_out_from=other, labels=tmp_path / "labels")


def test_classes_that_are_not_taken_are_left_out(imagenet, tmp_path):
    """With a list of classes the held-out images are those of the list; a list without any is refused."""
    taken = sorted(WNIDS)[:2]
    settings = {"held_out_from": imagenet / VAL_TAR, "labels": imagenet / DEVKIT}
    card = make(imagenet / TRAIN_TAR, tmp_path / "set", listed=tuple(taken), **settings)
    assert card.parts["held-out"].per_class == {"n01440764": 2, "n02111889": 3}
    other = write_files(tmp_path / "other", {f"{WNIDS[2]}/a.png": picture()})
    with pytest.raises(DataError, match="has no image of the chosen classes"):
        make(imagenet / TRAIN_TAR, tmp_path / "none", listed=tuple(taken), held_out_from=other)


def test_flat_images_without_labels_say_what_to_give(imagenet, tmp_path):
    """As the source and as held-out images, the validation tar alone leads to --labels."""
    with pytest.raises(DataError, match=r"give it with --held-out-from and --labels, beside the training"):
        make(imagenet / VAL_TAR, tmp_path / "set")
    with pytest.raises(DataError, match=r"held-out-from .*val\.tar has no images in class .* with --labels"):
        make(imagenet / TRAIN_TAR, tmp_path / "set", held_out_from=imagenet / VAL_TAR)
    parts = {
        f"{part}/{name}": b for part in ("train", "val") for name, b in sorted_validation_files().items()
    }
    with pytest.raises(DataError, match="name the folder that holds the class folders"):
        make(imagenet / TRAIN_TAR, tmp_path / "set", held_out_from=write_files(tmp_path / "parts", parts))


def test_unknown_class_folders_are_refused_and_files_beside_them_counted(tmp_path):
    """A folder that training lacks is an error; a file in none is in the card with its source's name."""
    source = write_files(tmp_path / "photos", class_files())
    other = write_files(tmp_path / "other", {"cat/a.png": picture(), "dgo/a.png": picture(1)})
    with pytest.raises(DataError, match=r"\(images of other\), such as 'dgo' \(did you mean 'dog'\?\)"):
        make(source, tmp_path / "set", held_out_from=other)
    (other / "dgo").rename(other / "dog")
    write_files(other, {"README": b"x"})
    card = make(source, tmp_path / "set", held_out_from=other)
    assert card.parts["held-out"].per_class == {"cat": 1, "dog": 1, "eel": 0}
    assert (card.outside, card.num_outside, card.held_out_labels) == (["other/README"], 1, None)


def test_equal_names_in_both_sources_stay_apart(tmp_path):
    """A name of either source takes no image from the other; unreadable ones are counted and told apart."""
    files = class_files() | {"cat/bad.png": b"no"}
    source = write_files(tmp_path / "photos", {f"train/{n}": b for n, b in files.items()})
    write_files(source, {"val/cat/00.png": picture(5)})
    other = tmp_path / "other"
    write_files(other / "val", files | {"cat/00.png": b"damaged"})
    card = make(source, tmp_path / "set", held_out_from=other, max_unreadable=0.1)
    assert (card.parts["train"].num_images, card.parts["held-out"].num_images) == (15, 14)
    assert (card.num_unreadable, card.unused_parts) == (3, {"val": 1})
    assert [line.split(":")[0] for line in card.unreadable()] == [
        "train/cat/bad.png",
        "other/val/cat/00.png",
        "other/val/cat/bad.png",
    ]
    plain = write_files(tmp_path / "plain", files)
    assert (
        make(plain, tmp_path / "b", held_out_from=other / "val", max_unreadable=0.1).parts["train"].num_images
        == 15
    )
    with pytest.raises(DataError, match=r"3 of 32 files .* 0\.08 allows: .*; other/val/cat/00\.png: not"):
        make(plain, tmp_path / "c", held_out_from=other, max_unreadable=0.08)


def test_training_images_are_never_held_out(tmp_path):
    """The same folder, one around it, a link to it, or the same archive as both sources is refused."""
    source = write_files(tmp_path / "around/photos", class_files())
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "photos.tar").write_bytes(tar_bytes(class_files()))
    for first, second in (
        (source, source),
        (source, tmp_path / "around"),
        (source, tmp_path / "link"),
        (tmp_path / "photos.tar", tmp_path / "photos.tar"),
    ):
        with pytest.raises(UserInputError, match=r"cat/00\.png is a training image, and --held-out-from"):
            make(first, tmp_path / "set", held_out_from=second)


def test_other_labels_are_other_settings(imagenet, tmp_path):
    """A set is not finished with labels changed in between, even to the same classes in another file."""
    labels, text = tmp_path / "labels", [f"{name},{wnid}\n" for name, wnid in CLASS_OF.items()]
    labels.write_text("".join(text))
    settings = {"held_out_from": imagenet / VAL_TAR, "labels": labels}
    card = make(imagenet / TRAIN_TAR, tmp_path / "set", **settings)
    assert make(imagenet / TRAIN_TAR, tmp_path / "set", **settings) == card
    labels.write_text("".join(text[::-1]))
    with pytest.raises(DataError, match="made with other settings"):
        make(imagenet / TRAIN_TAR, tmp_path / "set", **settings)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--labels", DEVKIT], "--labels says the classes of --held-out-from's images"),
        (["--held-out-from", VAL_TAR, "--held-out", "1"], "--held-out and --held-out-from both choose"),
        (["--held-out-from", "nowhere.tar"], "--held-out-from nowhere.tar does not exist"),
        (["--held-out-from", VAL_TAR, "--labels", "nowhere.csv"], "--labels nowhere.csv is no file"),
        (["--held-out-from", VAL_TAR, "--labels", "."], "--labels . is no file"),
        (["--held-out-from", ".", "--labels", DEVKIT], "lie in each other"),
    ],
)
def test_options_that_do_not_go_together(words, says, imagenet):
    """Exit code 2, one sentence, and no folder is made."""
    wrong = attnbench_here("data", "prepare", TRAIN_TAR, "--to", "set", *words, cwd=imagenet)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert says in wrong.stderr
    assert not (imagenet / "set").exists()


def test_a_run_killed_among_the_held_out_images_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL in a real process; finished with another number of threads, equal to an uninterrupted run."""
    numbers = random.Random(0).choices((1, 2, 3), k=1800)
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": picture(i, (48, 48), kind="jpeg") for i in range(1, 1801)}
    val[NAMES[3]] = b"damaged"
    content = {
        TRAIN_TAR: tar_of_tars(training_files()),
        "val.tar.gz": tar_bytes(val, "w:gz"),
        DEVKIT: devkit(numbers),
    }
    folder = write_files(tmp_path / "in", content)
    words = ["prepare", TRAIN_TAR, "--held-out-from", "val.tar.gz", "--labels", DEVKIT, "--image-size", SIDE]
    command = [sys.executable, "-m", "attnbench.cli", "data", *map(str, words), "--workers", "1"]
    killed = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--to", str(killed)], env=environment, cwd=folder)
    while not (killed / "unfinished" / "held-out-00000.json").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "card.json").exists(), "killed too late to show anything"
    first = killed / "held-out/images-00000.npy"
    before = first.stat().st_mtime_ns
    for to, workers in ((killed, 3), (tmp_path / "whole", 1)):
        assert attnbench_here("data", *words, "--to", to, "--workers", workers, cwd=folder).returncode == 0
    assert first.stat().st_mtime_ns == before, "a finished shard was made again"
    assert folder_bytes(killed) == folder_bytes(tmp_path / "whole")
    card = read_card(killed)
    assert card.unreadable() == [f"val.tar.gz/{NAMES[3]}: not an image that pillow knows"]
    counts = {wnid: numbers.count(i) - (numbers[3] == i) for i, wnid in enumerate(WNIDS, 1)}
    assert card.parts["held-out"].per_class == counts


@pytest.mark.parametrize("linked", ["files", "class folders"])
def test_links_to_training_images_are_not_held_out(tmp_path, linked):
    """Sets made of links are common: what lies behind them on the disk counts."""
    source = write_files(tmp_path / "photos", class_files())
    for folder in source.iterdir():
        if linked == "class folders":
            (tmp_path / "links").mkdir(exist_ok=True)
            (tmp_path / "links" / folder.name).symlink_to(folder)
            continue
        (tmp_path / "links" / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (tmp_path / "links" / folder.name / file.name).symlink_to(file)
    with pytest.raises(UserInputError, match="is a training image, and --held-out-from holds it out"):
        make(source, tmp_path / "set", held_out_from=tmp_path / "links")
