"""Files of labels: ImageNet's devkit, Kaggle's CSV and plain lines, whole, damaged or of other images."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import make, tar_bytes
from imagenet_files import (
    CLASS_OF,
    NAMES,
    TRAIN_TAR,
    TRUTH,
    VAL_TAR,
    WNIDS,
    devkit,
    imagenet_archives,
    meta_mat,
)

from attnbench.data.card import read_card
from attnbench.data.labels import read_labels
from attnbench.errors import DataError


@pytest.mark.parametrize(
    "write",
    [
        lambda name, label: f"{name},{label}\n",
        lambda name, label: f'  "{name}" , {label}\r\n\r\n'.replace('" ,', '",'),
        lambda name, label: f"{name}\t{label}\n",
        lambda name, label: f"{name}   {label}\n",
        lambda name, label: f"{name[:-5]},{label}\n",
    ],
    ids=["comma", "quoted-crlf", "tab", "spaces", "no-ending"],
)
def test_lines_of_labels(write, tmp_path):
    """Each usual way to write two columns gives the same pairs, also behind a byte order mark."""
    text = "".join(write(name, wnid) for name, wnid in CLASS_OF.items())
    (tmp_path / "labels").write_bytes(b"\xef\xbb\xbf" + text.encode())
    labels = read_labels(tmp_path / "labels", tmp_path)
    assert {name: labels.classes[labels.key_of(name)] for name in NAMES} == CLASS_OF
    assert labels.key_of("other.JPEG") is None


def test_names_with_commas_and_spaces(tmp_path):
    """Quotes as in CSV, and class folders with spaces."""
    (tmp_path / "labels").write_text('"a, b.png",tabby cat\nc d.png,great dane\n')
    labels = read_labels(tmp_path / "labels", tmp_path)
    assert labels.classes == {"a, b.png": "tabby cat", "c d.png": "great dane"}


def lines(pairs):
    return "".join(f"{name},{label}\n" for name, label in pairs)


GOOD = list(CLASS_OF.items())
BAD_LABELS = {
    "file-without-label": (
        lines(GOOD[1:]),
        r"1 of 7 files of .* no label, such as .*_00000001\.JPEG; --labels .*",
    ),
    "label-without-file": (
        lines([*GOOD, ("x.JPEG", WNIDS[0])]),
        r"1 of 8 labels .* no file .* as x\.JPEG",
    ),
    "unknown-class": (
        lines([*GOOD[:-1], (NAMES[-1], "n02111888")]),
        r"no training images for 1 of 4 .*, such as 'n02111888' \(did you mean 'n02111889'\?\)",
    ),
    "class-numbers": (
        "".join(f"{n} {i}\n" for i, n in enumerate(NAMES)),
        r"training images for 7 of 7 classes .* such as '0'",
    ),
    "twice": (lines([*GOOD, GOOD[2]]), r"names .*_00000003\.JPEG 2 times"),
    "empty": ("\n\n", "has no labels"),
    "one-column": ("n02111889\nn01440764\n", r"line 1: expected `file name,class folder`, got 'n02111889'"),
    "three-columns": ("a.JPEG,n02111889,1\n", r"line 1: .* got 'a\.JPEG, n02111889, 1'"),
    "no-class": (lines(GOOD) + "\nx.JPEG,\n", r"line 9: expected"),
    "open-quote": ('"a.JPEG,n02111889\n', r"line 1: expected"),
    "kaggle-two-classes": (
        f"ImageId,PredictionString\nx,{WNIDS[0]} 1 2 3 4 {WNIDS[1]} 1 2 3 4\n",
        r"line 2: expected ImageId,class and boxes of that one class",
    ),
    "kaggle-empty": ("ImageId,PredictionString\nx,\n", "line 2: expected"),
    "kaggle-header-alone": ("ImageId,PredictionString\n", "has no labels"),
    "binary": (b"PK\x03\x04\xff\xfe", "neither text in UTF-8 nor a tar archive"),
    "cut-gz": (devkit()[:-40], "cannot be unpacked"),
    "other-tar": (tar_bytes({"a/b.txt": b"x"}), r"an archive without data/meta\.mat"),
    "no-truth": (
        tar_bytes({"data/meta.mat": meta_mat()}),
        r"an archive without data/ILSVRC2012_validation_ground_truth\.txt",
    ),
    "inner-synset": (devkit([*TRUTH[:-1], 4]), r"line 7: .* 3 classes, got '4'"),
    "no-number": (devkit([*TRUTH[:-1], "n01"]), r"line 7: .* got 'n01'"),
    "short-truth": (devkit(TRUTH[:-1]), r"1 of 7 files .* such as .*_00000007\.JPEG"),
    "long-truth": (devkit([*TRUTH, 1]), r"1 of 8 labels .* such as ILSVRC2012_val_00000008"),
    "foreign-wnids": (
        devkit(wnids=("n1", "n2", "n3")),
        r"training images for 3 of 3 classes .* such as 'n1'",
    ),
}


@pytest.mark.parametrize(("content", "says"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_do_not_fit_are_refused(content, says, tmp_path):
    """No image gets a class by guessing, none is left out in silence; the right labels then go on."""
    imagenet, labels = imagenet_archives(tmp_path / "in"), tmp_path / "labels"
    labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=says):
        make(imagenet / TRAIN_TAR, tmp_path / "set", held_out_from=imagenet / VAL_TAR, labels=labels)
    with pytest.raises(DataError, match=r"it has no card\.json"):
        read_card(tmp_path / "set")
    labels.write_text(lines(GOOD))
    card = make(imagenet / TRAIN_TAR, tmp_path / "set", held_out_from=imagenet / VAL_TAR, labels=labels)
    assert card.parts["held-out"].num_images == len(NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place for many devkits, one after the other."""
    return tmp_path_factory.mktemp("devkits")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damage_to_the_devkits_table_escapes(data, folder):
    """Bytes of meta.mat changed or cut: a class for each image or a DataError, nothing else."""
    meta = bytearray(meta_mat())
    for _ in range(data.draw(st.integers(1, 4))):
        meta[data.draw(st.integers(0, len(meta) - 1))] = data.draw(st.integers(0, 255))
    meta = meta[: data.draw(st.integers(0, len(meta)))] if data.draw(st.booleans()) else meta
    (folder / "devkit").write_bytes(devkit(meta=bytes(meta)))
    for unpacked in folder.glob("*.tar"):
        unpacked.unlink()
    try:
        labels = read_labels(folder / "devkit", folder)
    except DataError:
        return
    assert [labels.key_of(name) for name in NAMES] == [name.removesuffix(".JPEG") for name in NAMES]
