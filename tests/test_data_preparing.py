"""Making training sets out of real folders and archives: layouts, choices, damage, and interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import ROOT, attnbench, attnbench_here
from image_files import (
    SIDE,
    class_files,
    deep_picture,
    folder_bytes,
    make,
    picture,
    tar_bytes,
    tar_of_tars,
    write_files,
)

from attnbench.data.card import read_card, verify
from attnbench.data.decoding import centre_crop
from attnbench.errors import DataError, StorageError, UserInputError


def images_of(folder, part="train"):
    return np.concatenate([np.load(path) for path in sorted((folder / part).glob("images-*.npy"))])


def test_images_are_centre_crops_in_order_of_class_and_name(tmp_path):
    """Pixels equal ADM's crop of each file, labels number the sorted classes, the card says all of it."""
    source = write_files(tmp_path / "photos", class_files())
    card = make(source, tmp_path / "set", licence="CC0")
    paths = sorted(source.glob("*/*"))
    expected = [np.asarray(centre_crop(PIL.Image.open(path).convert("RGB"), SIDE)) for path in paths]
    assert np.array_equal(images_of(tmp_path / "set"), np.stack(expected))
    assert np.load(tmp_path / "set/train/labels.npy").tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert card == read_card(tmp_path / "set")
    assert card.parts["train"].per_class == {"cat": 5, "dog": 5, "eel": 5}
    assert (card.source, card.licence, card.classes) == ("photos", "CC0", ["cat", "dog", "eel"])
    assert not (tmp_path / "set/unfinished").exists()


def shuffled(files):
    return dict(sorted(files.items(), key=lambda item: item[1]))


@pytest.mark.parametrize(
    "archive",
    [
        lambda files: tar_bytes(shuffled(files)),
        lambda files: tar_bytes(files, "w:xz"),
        lambda files: tar_bytes(files, "w:gz"),
        lambda files: tar_bytes(files, "w:bz2"),
        lambda files: tar_bytes({f"./{name}": content for name, content in files.items()}),
        lambda files: tar_bytes({f"all/of/{name}": c for name, c in files.items()} | {"all/README": b"x"}),
        lambda files: tar_bytes({f"train/{name}": content for name, content in files.items()}),
        tar_of_tars,
    ],
    ids=["plain", "xz", "gz", "bz2", "dot", "wrapped", "train", "imagenet"],
)
def test_every_archive_gives_the_images_of_the_folder(archive, tmp_path):
    """Packing, order in the archive and folders around the classes change no pixel and no label."""
    files = class_files()
    make(write_files(tmp_path / "photos", files), tmp_path / "a")
    (tmp_path / "photos.tar").write_bytes(archive(files))
    make(tmp_path / "photos.tar", tmp_path / "b")
    first, second = folder_bytes(tmp_path / "a"), folder_bytes(tmp_path / "b")
    assert {n: b for n, b in first.items() if n != "card.json"} == {
        n: b for n, b in second.items() if n != "card.json"
    }


@pytest.mark.parametrize("second", [picture(7), b"no image"], ids=["readable", "damaged"])
def test_a_name_twice_in_an_archive_means_its_last_file(tmp_path, second):
    """As when the archive is unpacked; counts and labels agree with the images."""
    files = class_files()
    one, other = tar_bytes(files), tar_bytes({"cat/00.png": second})
    (tmp_path / "photos.tar").write_bytes(one.rstrip(b"\0") + b"\0" * (-len(one.rstrip(b"\0")) % 512) + other)
    make(tmp_path / "photos.tar", tmp_path / "b", max_unreadable=0.1)
    make(write_files(tmp_path / "photos", files | {"cat/00.png": second}), tmp_path / "a", max_unreadable=0.1)
    assert read_card(tmp_path / "b").parts == read_card(tmp_path / "a").parts


def test_links_that_lead_back_end(tmp_path):
    """Linked files and folders count; a link to a folder around it does not, also by way of another link."""
    source = write_files(tmp_path / "photos", class_files())
    elsewhere = write_files(tmp_path / "elsewhere", {"fox/a.png": picture(5)})
    (source / "fox").symlink_to(elsewhere / "fox")
    for name in ("cat", "dog", "eel"):
        (source / name / "up").symlink_to(source)
    (source / "cat/side").symlink_to(source / "dog")
    (source / "dog/side").symlink_to(source / "cat")
    card = make(source, tmp_path / "set")
    assert card.parts["train"].per_class == {"cat": 5, "dog": 5, "eel": 5, "fox": 1}
    assert card.num_outside < 100  # cat/side/00.png and the like


def test_the_present_folder_has_a_name(tmp_path, monkeypatch):
    """A set of `.` says whose it is."""
    monkeypatch.chdir(write_files(tmp_path / "photos", class_files()))
    assert make(Path(), tmp_path / "set").source == "photos"


def test_the_sources_own_test_part_is_held_out(tmp_path):
    """train/ and test/ become training and held-out images; a number takes from train instead."""
    files = {f"train/{n}": b for n, b in class_files().items()}
    files |= {f"test/{n}": b for n, b in class_files(per_class=2).items()} | {"LICENSE": b"free"}
    source = write_files(tmp_path / "photos", files)
    card = make(source, tmp_path / "set")
    assert (card.parts["train"].num_images, card.parts["held-out"].num_images) == (15, 6)
    assert (card.held_out_rule, card.outside, card.num_outside) == ("the source's part test", ["LICENSE"], 1)
    other = make(source, tmp_path / "other", held_out="1")
    assert other.parts["held-out"].per_class == {"cat": 1, "dog": 1, "eel": 1}
    assert (other.parts["train"].num_images, other.unused_parts) == (12, {"test": 6})


def test_two_parts_to_hold_out_want_a_choice(tmp_path):
    """With val/ and test/ the user says which; the other one is counted as not used."""
    files = {f"{part}/{n}": b for part in ("train", "val", "test") for n, b in class_files().items()}
    source = write_files(tmp_path / "photos", files)
    with pytest.raises(UserInputError, match="the source has test and val; choose with --held-out test"):
        make(source, tmp_path / "set")
    card = make(source, tmp_path / "set", held_out="val")
    assert (card.parts["held-out"].num_images, card.unused_parts) == (15, {"test": 15})


def test_a_part_with_a_class_that_train_lacks_is_refused(tmp_path):
    """Its images have no label; a class that merely is not taken is left out."""
    files = {f"{part}/{n}": b for part in ("train", "val") for n, b in class_files().items()}
    source = write_files(tmp_path / "photos", files)
    assert make(source, tmp_path / "set", listed=("cat", "eel")).parts["held-out"].num_images == 10
    write_files(source, {"val/fox/a.png": picture()})
    with pytest.raises(
        DataError, match=r"no training images for 1 of 4 .* \(the source's part val\), such as 'fox'"
    ):
        make(source, tmp_path / "other")


def test_held_out_images_depend_on_names_alone(tmp_path):
    """The same names are held out of a folder and of an archive, none of them is trained on."""
    files = class_files()
    make(write_files(tmp_path / "photos", files), tmp_path / "a", held_out="0.4")
    (tmp_path / "t.tar").write_bytes(tar_bytes(shuffled(files)))
    make(tmp_path / "t.tar", tmp_path / "b", held_out="0.4")
    assert np.array_equal(images_of(tmp_path / "a", "held-out"), images_of(tmp_path / "b", "held-out"))
    kept, out = (images_of(tmp_path / "a", part) for part in ("train", "held-out"))
    assert (len(kept), len(out)) == (9, 6)
    assert not {image.tobytes() for image in kept} & {image.tobytes() for image in out}


@pytest.mark.parametrize("wanted", ["-1", "1.5", "nan", "inf", "tset", ""])
def test_wrong_held_out_says_what_is_allowed(wanted, tmp_path):
    """What is neither a number of images, a fraction nor a part is refused."""
    source = write_files(tmp_path / "photos", class_files())
    with pytest.raises(UserInputError, match=r"--held-out takes images of each class"):
        make(source, tmp_path / "set", held_out=wanted)


def test_drawn_classes_follow_the_seed_and_stand_in_the_card(tmp_path):
    """The same seed draws the same classes wherever they lie, another seed others; all is in the card."""
    names = tuple(f"n{index:04d}" for index in range(12))
    source = write_files(tmp_path / "photos", class_files(names, per_class=1))
    (tmp_path / "t.tar").write_bytes(tar_bytes(class_files(names, per_class=1)))
    drawn = make(source, tmp_path / "a", count=4, seed=3)
    again = make(tmp_path / "t.tar", tmp_path / "b", count=4, seed=3)
    other = make(source, tmp_path / "c", count=4, seed=4)
    assert drawn.classes == again.classes == sorted(drawn.classes)
    assert set(drawn.classes) < set(names)
    assert drawn.classes != other.classes
    assert drawn.class_seed == 3
    assert "4 of 12 drawn by seed 3" in drawn.class_rule
    assert "not published" in drawn.class_rule


def test_listed_classes_must_exist(tmp_path):
    """A list takes its classes in order of name; a misspelt one is named with the nearest."""
    source = write_files(tmp_path / "photos", class_files())
    assert make(source, tmp_path / "set", listed=("eel", "cat")).classes == ["cat", "eel"]
    with pytest.raises(DataError, match=r"'cta', which is no class of the source \(did you mean 'cat'\?\)"):
        make(source, tmp_path / "other", listed=("cta",))
    with pytest.raises(DataError, match="--classes 4 is more than the source has; choose at most 3"):
        make(source, tmp_path / "other", count=4)


DAMAGED = {
    "cat/cut.jpg": picture(7, (64, 64), kind="jpeg")[:1500],
    "cat/cut.png": picture(8, (64, 64))[:1500],
    "cat/deep.png": deep_picture(),
    "cat/zero.jpg": b"",
    "dog/text.png": b"not an image",
}
UNUSUAL = {
    "dog/cmyk.jpg": picture(9, mode="CMYK", kind="jpeg"),
    "dog/grey.jpg": picture(10, mode="L", kind="jpeg"),
    "dog/palette.png": picture(11, mode="P"),
    "dog/alpha.png": picture(12, mode="RGBA"),
    "dog/png-named.JPEG": picture(13),
}


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_listed_and_the_others_stay_in_order(packed, tmp_path):
    """Cut, deep, empty and foreign files are named with reasons; CMYK, grey, palette and alpha are used."""
    source = write_files(tmp_path / "photos", class_files() | DAMAGED | UNUSUAL | {"cat/.hidden": b"x"})
    if packed:
        source = tmp_path / "photos.tar"
        source.write_bytes(tar_bytes(class_files() | DAMAGED | UNUSUAL | {"cat/.hidden": b"x"}))
    card = make(source, tmp_path / "set", max_unreadable=0.5)
    reasons = dict(line.split(": ", 1) for line in card.unreadable())
    assert (sorted(reasons), card.num_unreadable) == (sorted(DAMAGED), len(DAMAGED))
    assert "truncated" in reasons["cat/cut.jpg"]
    assert reasons["cat/zero.jpg"] == "an empty file"
    assert "I;16" in reasons["cat/deep.png"]
    assert card.parts["train"].per_class == {"cat": 5, "dog": 10, "eel": 5}
    names = sorted(set(class_files()) | set(UNUSUAL))
    files = class_files() | UNUSUAL
    write_files(tmp_path / "good", files)
    expected = [centre_crop(PIL.Image.open(tmp_path / "good" / n).convert("RGB"), SIDE) for n in names]
    assert np.array_equal(images_of(tmp_path / "set"), np.stack([np.asarray(e) for e in expected]))


def test_too_many_unreadable_files_stop_with_their_names(tmp_path):
    """More than the stated share is an error naming the first; allowing more goes on in the same folder."""
    source = write_files(tmp_path / "photos", class_files() | DAMAGED)
    with pytest.raises(DataError, match=r"5 of 20 files .* --max-unreadable 0\.2 allows: cat/cut\.jpg: .*"):
        make(source, tmp_path / "set", max_unreadable=0.2)
    with pytest.raises(DataError, match="is not finished; run the same"):
        read_card(tmp_path / "set")
    assert make(source, tmp_path / "set", max_unreadable=0.25).num_unreadable == 5


def test_a_class_without_readable_images_is_an_error(tmp_path):
    """A label nobody can learn is not made."""
    source = write_files(tmp_path / "photos", class_files() | {"fox/1.png": b"no"})
    with pytest.raises(DataError, match="class fox has no readable image"):
        make(source, tmp_path / "set", max_unreadable=1.0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tar_bytes(class_files())[:9000], "cannot be read as a tar archive"),
        (tar_bytes({"cat/1.png": b"x" * 512})[:1024], "no end of archive"),
        (tar_of_tars(class_files())[:12_000], "cannot be read as a tar archive"),
        (tar_bytes(class_files(), "w:xz")[:-100], "cannot be unpacked: Compressed file ended"),
        (tar_bytes(class_files(), "w:gz")[:-100], "cannot be unpacked: Compressed file ended"),
        (b"PK\x03\x04 a zip", "neither a folder nor a tar archive"),
        (tar_bytes({f"val_{n}.JPEG": b"x" for n in range(3)}), "ImageNet's validation tar has no classes"),
        (tar_bytes({}), "no files at all"),
    ],
    ids=["cut", "cut-between", "cut-inside", "xz", "gz", "zip", "flat", "empty"],
)
def test_archives_that_cannot_be_used_are_refused(content, says, tmp_path):
    """A cut archive is never taken for a small one."""
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(DataError, match=says):
        make(tmp_path / "t.tar", tmp_path / "set", max_unreadable=1.0)
    assert not (tmp_path / "set/card.json").exists()


def test_folders_in_use_are_refused(tmp_path):
    """Neither other people's files nor a set of other settings are overwritten; the source is not eaten."""
    source = write_files(tmp_path / "photos", class_files())
    write_files(tmp_path / "mine", {"thesis.tex": b"x"})
    with pytest.raises(UserInputError, match="mine holds other files"):
        make(source, tmp_path / "mine")
    with pytest.raises(UserInputError, match="lie in each other"):
        make(source, source / "set")
    make(source, tmp_path / "set")
    with pytest.raises(DataError, match="made with other settings"):
        make(source, tmp_path / "set", image_size=8)
    write_files(source, {"cat/new.png": picture()})
    with pytest.raises(DataError, match="of other files"):
        make(source, tmp_path / "set")


def test_a_finished_set_is_not_made_again(tmp_path):
    """The same request returns the card and rewrites no shard."""
    source = write_files(tmp_path / "photos", class_files())
    card = make(source, tmp_path / "set")
    before = (tmp_path / "set/train/images-00000.npy").stat().st_mtime_ns
    assert make(source, tmp_path / "set") == card
    assert (tmp_path / "set/train/images-00000.npy").stat().st_mtime_ns == before


def test_workers_change_no_byte(tmp_path):
    """One thread and five write the same files."""
    source = write_files(tmp_path / "photos", class_files(per_class=30) | DAMAGED)
    for workers in (1, 5):
        make(source, tmp_path / str(workers), workers=workers, max_unreadable=0.1)
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "5")


def test_a_full_disk_is_noticed_before_decoding(tmp_path, monkeypatch):
    """What is free is compared with what the set takes."""
    source = write_files(tmp_path / "photos", class_files())
    usage = __import__("shutil").disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"GiB free; free some space or name another place with --to"):
        make(source, tmp_path / "set")


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    """SIGKILL in the middle of a real process; the same command finishes, equal to an uninterrupted run."""
    files = class_files(per_class=700, kind="jpeg") | DAMAGED
    (tmp_path / "photos.tar.gz").write_bytes(tar_bytes(files, "w:gz"))
    words = ["prepare", tmp_path / "photos.tar.gz", "--image-size", SIDE, "--max-unreadable", 0.01]
    command = [sys.executable, "-m", "attnbench.cli", "data", *map(str, words), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--to", str(killed)], env=environment)
    first = killed / "unfinished" / "train-00000.json"
    while not first.exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "card.json").exists(), "killed too late to show anything"
    with pytest.raises(DataError, match="is not finished"):
        read_card(killed)
    before = (killed / "train/images-00000.npy").stat().st_mtime_ns
    for folder in (killed, tmp_path / "whole"):
        assert attnbench_here("data", *words, "--to", folder).returncode == 0
    assert (killed / "train/images-00000.npy").stat().st_mtime_ns == before, "a finished shard was made again"
    assert folder_bytes(killed) == folder_bytes(tmp_path / "whole")


def test_verify_names_every_damaged_file(tmp_path):
    """A flipped byte, a cut shard and a missing one are all found."""
    make(write_files(tmp_path / "photos", class_files(per_class=600)), tmp_path / "set", held_out="100")
    folder, progress = tmp_path / "set", []
    assert verify(folder, lambda *step: progress.append(step)) == []
    assert progress[-1][:2] == (6, 6)
    with (folder / "train/images-00001.npy").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    (folder / "train/labels.npy").write_bytes(b"x")
    (folder / "held-out/images-00000.npy").unlink()
    faults = verify(folder, lambda *step: None)
    assert [fault.split()[0] for fault in faults] == [
        "train/images-00001.npy",
        "train/labels.npy",
        "held-out/images-00000.npy",
    ]


def test_the_command_line_makes_shows_and_verifies(tmp_path):
    """Exit codes 0, 1 and 2; the class list with remarks; the seed in the card's print."""
    write_files(tmp_path / "photos", class_files())
    (tmp_path / "list").write_text("# mine\ncat\n\neel  # slippery\n")
    made = attnbench("data", "prepare", "photos", "--to", "a", "--class-list", "list", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert "name: prepared" in made.stdout
    assert json.loads((tmp_path / "a/card.json").read_text())["classes"] == ["cat", "eel"]
    shown = attnbench_here("data", "show", "a", cwd=tmp_path)
    assert "listed by the user" in shown.stdout
    assert attnbench_here("data", "verify", "a", cwd=tmp_path).returncode == 0
    with (tmp_path / "a/train/images-00000.npy").open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([byte ^ 128]))
    damaged = attnbench_here("data", "verify", "a", cwd=tmp_path)
    assert damaged.returncode == 1
    assert "train/images-00000.npy has SHA-256" in damaged.stdout
    for words in (
        ["data", "prepare", "nowhere", "--to", "b"],
        ["data", "prepare", "photos", "--to", "b", "--classes", "2", "--class-list", "list"],
        ["data", "prepare", "photos", "--to", "b", "--class-seed", "2"],
        ["data", "show", "photos"],
    ):
        wrong = attnbench_here(*words, cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith("error: ")
    assert not (tmp_path / "b").exists()


def test_two_commands_at_once_make_one_set(tmp_path):
    """The second of two waits for the first, finds its set, and neither disturbs the other."""
    write_files(tmp_path / "photos", class_files())
    words = ("data", "prepare", "photos", "--to", "set", "--image-size", SIDE)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: attnbench(*words, cwd=tmp_path), range(2)))
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    waited = [done.stderr.count("waiting for process") for done in both]
    assert max(waited) <= 1  # said once, if one came while the other was at work
    assert verify(tmp_path / "set", lambda *_: None) == []
    assert make(tmp_path / "photos", tmp_path / "set") == read_card(tmp_path / "set")
    assert not list((tmp_path / "set").rglob(".*"))
