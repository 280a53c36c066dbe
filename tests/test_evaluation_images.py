"""Sets of images as users bring them: PNG folders, npz files, runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from image_sets import all_images, npz_shards, pictures, png_folder, refused, save
from stage_cases import make_case

from attnbench.data import load_dataset
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.evaluation.images import open_images
from attnbench.results import Result, append_result, environment
from attnbench.specs import ImageFolderData

# ---- what is accepted


def test_png_files_come_in_natural_order(tmp_path):
    """2.png stands before 10.png, and pixels are those of the files."""
    images = pictures(12)
    collection = open_images(png_folder(tmp_path / "samples", images))
    assert (len(collection), collection.height, collection.width, collection.channels) == (12, 5, 4, 3)
    assert torch.equal(all_images(tmp_path / "samples"), torch.from_numpy(images))
    assert torch.equal(collection.image(10), torch.from_numpy(images[10]))
    assert collection.labels is None
    assert collection.num_classes == 0
    assert collection.warnings == []


def test_class_folders_become_labels(tmp_path):
    """Classes have the numbers that a training set in these folders has; batches bring the labels along."""
    images = pictures(5)
    for index, name in enumerate(["class 10", "class 2", "class 2", "class 10", "class 10"]):
        save(tmp_path / name / f"{index}.PNG", images[index])
    collection = open_images(tmp_path)
    assert collection.class_names == ("class 10", "class 2")
    trained_on = load_dataset(ImageFolderData(path=tmp_path, image_size=4, held_out_fraction=0))
    assert collection.class_names == trained_on.class_names
    assert collection.num_classes == 2
    assert collection.labels.tolist() == [0, 0, 0, 1, 1]
    assert [labels.tolist() for _, labels in collection.batches(2)] == [[0, 0], [0, 1], [1]]
    assert torch.equal(all_images(tmp_path), torch.from_numpy(images[[0, 3, 4, 1, 2]]))


def test_a_wholly_grey_folder_has_one_channel(tmp_path):
    """Digits are grey; extractors repeat the channel."""
    images = pictures(3, channels=1)
    assert torch.equal(all_images(png_folder(tmp_path, images)), torch.from_numpy(images))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_in_adms_layout(tmp_path, write):
    """arr_0 with labels in arr_1, read in shards of a thousand, whether compressed or not."""
    images, labels = pictures(2300, height=3, width=2), np.arange(2300) % 7
    write(tmp_path / "samples.npz", images, labels)
    collection = open_images(tmp_path / "samples.npz")
    assert [shard.count for shard in collection.shards] == [1000, 1000, 300]
    assert collection.labels.tolist() == labels.tolist()
    assert collection.num_classes == 7
    assert torch.equal(all_images(tmp_path / "samples.npz"), torch.from_numpy(images))
    for index in (2299, 5, 1000, 999, -1):  # forth and back again
        assert torch.equal(collection.image(index), torch.from_numpy(images[index]))
    assert torch.equal(collection.shards[1].load(), torch.from_numpy(images[1000:2000]))
    assert torch.equal(collection.shards[0].load(), torch.from_numpy(images[:1000]))


def test_an_index_beyond_the_last_image_is_an_error(tmp_path):
    """No index wraps around to another image."""
    collection = open_images(png_folder(tmp_path, pictures(2)))
    for index in (2, -3):
        with pytest.raises(IndexError, match="2 images"):
            collection.image(index)


def test_a_folder_of_shards_keeps_its_order(tmp_path):
    """Shards follow their numbers; the grid beside them is no sample; an unfinished one is reported."""
    images = pictures(10)
    folder = npz_shards(tmp_path / "samples", images, 4)
    save(folder / "grid.png", pictures(1)[0])
    collection = open_images(folder)
    assert torch.equal(all_images(folder), torch.from_numpy(images))
    assert collection.labels.tolist() == [i % 3 for i in range(10)]
    assert "done.json" in collection.warnings[0]
    (folder / "done.json").write_text("{}")
    assert open_images(folder).warnings == []


def test_real_jpegs_are_read_when_asked_for(tmp_path):
    """A reference of photographs may be JPEG; samples may not."""
    for index, pixels in enumerate(pictures(2, height=16, width=16)):
        save(tmp_path / f"{index}.jpg", pixels)
    assert all_images(tmp_path, allow_jpeg=True).shape == (2, 16, 16, 3)
    refused(tmp_path, "JPEG", "PNG")


def test_bytes_behind_the_end_of_a_png_are_no_damage(tmp_path):
    """Some writers append their own data: the file decodes, so it is accepted."""
    png_folder(tmp_path, pictures(2))
    with (tmp_path / "1.png").open("ab") as file:
        file.write(b"x" * 100)
    assert len(open_images(tmp_path)) == 2


def test_files_that_are_no_images_are_reported(tmp_path):
    """A stray text file changes nothing and is not silent either; hidden files are nobody's business."""
    png_folder(tmp_path, pictures(2))
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / ".hidden").write_text("")
    collection = open_images(tmp_path)
    assert len(collection) == 2
    assert len(collection.warnings) == 1
    assert "settings.json" in collection.warnings[0]


# ---- keys


def test_keys_depend_on_content_and_order_alone(tmp_path):
    """Copies under other names share their key; a changed pixel or order makes another."""
    images = pictures(4)
    key = open_images(png_folder(tmp_path / "a", images)).shards[0].key
    for index in range(4):
        save(tmp_path / "b" / f"sample-{index}.png", images[index])
    assert open_images(tmp_path / "b").shards[0].key == key
    assert open_images(png_folder(tmp_path / "c", images[::-1])).shards[0].key != key
    images[3, 0, 0, 0] ^= 1
    assert open_images(png_folder(tmp_path / "d", images)).shards[0].key != key


def test_npz_keys_are_those_of_the_pixels(tmp_path):
    """Compression does not matter, so features are shared; shape does."""
    images = pictures(4)
    np.savez(tmp_path / "a.npz", images)
    np.savez_compressed(tmp_path / "b.npz", images)
    np.savez(tmp_path / "c.npz", images.reshape(4, 4, 5, 3))
    a, b, c = (open_images(tmp_path / f"{name}.npz").shards[0].key for name in "abc")
    assert a == b != c


def test_a_png_key_needs_no_decoding(tmp_path, monkeypatch):
    """The key comes from the files' bytes."""
    collection = open_images(png_folder(tmp_path, pictures(3)))
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("decoded"))
    assert len(collection.shards[0].key) == 64


# ---- runs


def run_of(tmp_path: Path, *cells: tuple[str, int], recorded: bool = False) -> Path:
    """A run folder with one case per (label, seed), their samples in the store."""
    for label, seed in cells:
        case = make_case(seed=seed).model_copy(update={"label": label})
        key = f"elsewhere{seed}" if recorded else case.key("sample")
        folder = npz_shards(tmp_path / "store" / "sample" / key, pictures(6, seed=seed), 4)
        (folder / "done.json").write_text("{}")
        result = Result(
            case_id=f"id{seed}",
            suite="test",
            label=label,
            status="ok",
            artefacts={"grid": f"sample/{key}/grid.png"} if recorded else {},
            case=case.model_dump(mode="json"),
            environment=environment(),
        )
        append_result(tmp_path / "test" / "results.jsonl", result)
        after = result.model_copy(update={"artefacts": {"grid": f"pictures/id{seed}-grid.png"}})
        append_result(tmp_path / "test" / "results.jsonl", after)
    return tmp_path / "test"


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_of_one_case_needs_no_choice(tmp_path, recorded):
    """Samples are found through the case's settings, or through what its results say of an older version."""
    run_dir = run_of(tmp_path, ("softmax", 0), recorded=recorded)
    assert torch.equal(all_images(run_dir), torch.from_numpy(pictures(6, seed=0)))
    assert open_images(run_dir).name == "softmax"


def test_a_case_is_chosen_by_label_or_id(tmp_path):
    """With several cases the choice is the user's; the error lists the labels."""
    run_dir = run_of(tmp_path, ("softmax", 0), ("linear", 1))
    with pytest.raises(UserInputError, match="choose one: --case 'softmax', --case 'linear'"):
        open_images(run_dir)
    assert torch.equal(all_images(run_dir, case="linear"), torch.from_numpy(pictures(6, seed=1)))
    assert torch.equal(all_images(run_dir, case="id0"), torch.from_numpy(pictures(6, seed=0)))
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        open_images(run_dir, case="linaer")


def test_one_label_of_two_seeds_is_chosen_by_id(tmp_path):
    """A label that fits two cases is refused with their ids."""
    run_dir = run_of(tmp_path, ("softmax", 0), ("softmax", 1))
    with pytest.raises(UserInputError, match=r"2 cases called 'softmax'.*--case id0 .*--case id1 "):
        open_images(run_dir, case="softmax")


def test_a_run_without_its_store_says_so(tmp_path):
    """A copied run folder has no samples; neither has one whose sampling never finished."""
    run_dir = run_of(tmp_path, ("softmax", 0))
    for done in (tmp_path / "store").rglob("done.json"):
        done.unlink()
    refused(run_dir, "softmax", "run the suite again")
    shutil.rmtree(tmp_path / "store")
    refused(run_dir, "no finished samples of 'softmax'", "run the suite again")


def test_a_folder_of_runs_names_them(tmp_path):
    """Naming the runs folder instead of a run is a near miss."""
    run_of(tmp_path, ("softmax", 0))
    refused(tmp_path, "holds runs (test)")


def test_a_case_of_a_plain_folder_is_refused(tmp_path):
    """`case` means nothing outside a run, and is not ignored."""
    refused(png_folder(tmp_path, pictures(2)), "no case 'softmax'", case="softmax")
