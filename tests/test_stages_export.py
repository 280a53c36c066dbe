"""`attnbench samples export`: ADM's npz and PNG folders from a finished case, streamed and resumable."""

import sys
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from stage_cases import make_case, make_workspace

from attnbench import cli
from attnbench.commands import samples
from attnbench.results import Measurement, Result, append_result, environment
from attnbench.specs import ImageFolderData
from attnbench.stages.sampling import export, shards
from attnbench.storage.store import StageOutput, write_output

COUNT, SIDE = 10, 6


@pytest.fixture
def attnbench(monkeypatch, capsys):
    """Return the command line as a function, in this process."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["attnbench", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=stop.value.code, stdout=said.out, stderr=said.err)

    return call


@pytest.fixture
def run_dir(monkeypatch, tmp_path):
    """Return a function that leaves a suite's run with finished cases, ten random images each."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    monkeypatch.chdir(tmp_path)

    def make(channels: int = 3, labels: tuple[str, ...] = ("case",), status: str = "ok"):
        workspace = make_workspace(tmp_path / "runs" / "store")
        for seed, label in enumerate(labels):
            case = make_case(seed=seed).model_copy(update={"label": label})
            folder = workspace.folder("sample", case)
            fill(folder, channels, seed)
            size = Measurement(name="sample_time_s", values=[1.0], n=COUNT)
            write_output(folder, StageOutput(measurements=[size]))
            result = Result(
                case_id=case.id,
                suite="test",
                label=label,
                status=status,
                case=case.model_dump(mode="json"),
                environment=environment(),
            )
            append_result(tmp_path / "runs" / "test" / "results.jsonl", result)
        return tmp_path / "runs" / "test"

    return make


def fill(folder, channels: int, seed: int, side: int = SIDE, count: int = COUNT) -> None:
    times = shards.ShardTimes(total_s=1, denoise_s=1, decode_s=0)
    images, labels = content(channels, seed, side, count)
    for number, indices in enumerate(shards.shard_ranges(count)):
        chosen = slice(indices.start, indices.stop)
        shard = shards.Shard(images=images[chosen], labels=labels[chosen], times=times)
        shards.write_shard(shards.shard_path(folder, number), shard)


def content(channels: int = 3, seed: int = 0, side: int = SIDE, count: int = COUNT):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, side, side, channels), generator=generator, dtype=torch.uint8)
    return images.numpy(), torch.arange(count).numpy() % 3


def test_npz_is_what_adms_evaluator_reads(attnbench, run_dir):
    """arr_0 uint8 [N, H, W, 3] and arr_1 int64 [N], stored uncompressed with a version 1.0 header."""
    run_dir()
    done = attnbench("samples", "export", "test", "--npz", "out.npz")
    assert (done.returncode, "10 images of case" in done.stdout) == (0, True), done.stderr
    images, labels = content()
    with np.load("out.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1", "class_names"]
        assert arrays["class_names"].tolist() == [str(digit) for digit in range(10)]
        assert np.array_equal(arrays["arr_0"], images)
        assert np.array_equal(arrays["arr_1"], labels)
        assert (arrays["arr_0"].dtype, arrays["arr_1"].dtype) == (np.uint8, np.int64)
    with zipfile.ZipFile("out.npz") as archive, archive.open("arr_0.npy") as file:
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
        assert np.lib.format.read_magic(file) == (1, 0)


def test_class_names_are_those_of_the_training(attnbench, run_dir, tmp_path):
    """As the stage `prepare` has noted them, whatever the data's folders are called by now."""
    run_dir()
    folder = make_workspace(tmp_path / "runs" / "store").folder("prepare", make_case())
    write_output(folder, StageOutput(class_names=["ant", "bee", "cat"]))
    assert attnbench("samples", "export", "test", "--npz", "out.npz").returncode == 0
    with np.load("out.npz") as arrays:
        assert arrays["class_names"].tolist() == ["ant", "bee", "cat"]


def test_class_names_that_nobody_noted_are_missed_with_a_word(attnbench, run_dir, tmp_path, monkeypatch):
    """A run of an earlier version on a user's folder, which may be another by now."""
    data = ImageFolderData(path=tmp_path / "images", image_size=8)
    monkeypatch.setattr(samples, "case_of", lambda *_: make_case().model_copy(update={"data": data}))
    run_dir()
    done = attnbench("samples", "export", "test", "--npz", "out.npz")
    assert "without class_names: the attnbench that made this run did not note them" in done.stdout
    with np.load("out.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]


def test_grey_images_are_repeated_with_a_note(attnbench, run_dir):
    """One channel becomes three equal ones, and the command says so."""
    run_dir(channels=1)
    done = attnbench("samples", "export", "test", "--npz", "out.npz", "--count", "5")
    assert "grey images: their channel three times" in done.stdout
    with np.load("out.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], content(1)[0][:5].repeat(3, axis=-1))
        assert arrays["arr_1"].tolist() == [0, 1, 2, 0, 1]


def test_npz_is_streamed(monkeypatch, tmp_path):
    """Of ten shards never more than two, and what numpy reads at once, are in memory."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 20)
    fill(tmp_path, 3, 0, side=128, count=200)
    shard_bytes = 20 * 128 * 128 * 3
    tracemalloc.start()
    export.write_npz(tmp_path, tmp_path / "out.npz", 200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * shard_bytes
    assert np.array_equal(np.load(tmp_path / "out.npz")["arr_0"], content(3, 0, 128, 200)[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_name_index_and_class(attnbench, run_dir, channels):
    """Every image is a PNG of its own, lossless; a second call writes what is missing only."""
    run_dir(channels)
    words = ("samples", "export", "test", "--png", "pictures")
    done = attnbench(*words)
    assert "10 images of case, 10 of them new" in done.stdout, done.stderr
    images, labels = content(channels)
    for index in range(COUNT):
        path = Path("pictures") / f"{index:06d}-class{labels[index]}.png"
        assert np.array_equal(np.asarray(Image.open(path)).reshape(SIDE, SIDE, channels), images[index])
    path.unlink()
    assert "10 images of case, 1 of them new" in attnbench(*words).stdout
    assert path.exists()


def test_a_folder_of_other_files_is_refused(attnbench, run_dir, tmp_path):
    """PNG files of another case, or of the user, are never mixed with these."""
    run_dir(labels=("one", "two"))
    words = ("samples", "export", "test", "--png", "pictures", "--case")
    assert attnbench(*words, "one").returncode == 0
    done = attnbench(*words, "two")
    assert done.returncode == 2
    assert "holds other files than an export of these samples; name a new or empty folder" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("test",), "nothing to export; add --npz FILE, --png FOLDER"),
        (("nowhere", "--npz", "a.npz"), "runs/nowhere is not the folder of a run"),
        (("test", "--npz", "a.npz"), "2 cases; choose one: --case 'one', --case 'two'"),
        (
            ("test", "--npz", "a.npz", "--case", "onne"),
            "unknown case of runs/test 'onne' (did you mean 'one'?)",
        ),
        (("test", "--npz", "no/a.npz", "--case", "one"), "does not exist; create it first"),
        (
            ("test", "--npz", "a.npz", "--case", "one", "--count", "11"),
            "has 10 samples, got 11; take 1 to 10",
        ),
        (("test", "--npz", "a.npz", "--case", "one", "--count", "0"), "got 0; take 1 to 10"),
    ],
)
def test_what_cannot_be_exported_is_told(attnbench, run_dir, words, said):
    """Each mistake is one sentence with exit code 2, and leaves no file."""
    where = run_dir(labels=("one", "two")).parent.parent
    done = attnbench("samples", "export", *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not list(where.glob("*.npz"))


def test_samples_of_a_case_that_failed_later_are_exported(attnbench, run_dir):
    """A failed evaluation keeps nobody from the images."""
    run_dir(status="failed")
    assert attnbench("samples", "export", "test", "--npz", "a.npz").returncode == 0


def test_removed_samples_are_told(attnbench, run_dir):
    """A case whose samples are no longer in the store says what to do."""
    folder = run_dir().parent / "store" / "sample"
    folder.rename(folder.with_name("elsewhere"))
    done = attnbench("samples", "export", "test", "--npz", "a.npz")
    assert done.returncode == 2
    assert "no finished samples of 'case'" in done.stderr
    assert "run the suite again" in done.stderr


def test_a_damaged_shard_leaves_no_half_file(attnbench, run_dir):
    """A shard that cannot be read is named; neither the file nor its temporary one stays."""
    where = run_dir().parent
    path = sorted((where / "store" / "sample").glob("*/*.npz"))[1]
    path.write_bytes(path.read_bytes()[:100])
    done = attnbench("samples", "export", "test", "--npz", "a.npz")
    assert (done.returncode, "samples-00001.npz cannot be read" in done.stderr) == (1, True)
    assert not [name for name in where.parent.iterdir() if "npz" in name.name]
