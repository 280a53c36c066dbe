"""`attnbench evaluate RUN --case CELL` without a reference: the run's own data, as its suite scored it."""

import json

import numpy as np
import pytest
import torch
from command_line import attnbench_here

from attnbench.data import load_dataset
from attnbench.results import Result, append_result, environment
from attnbench.stages import evaluate
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

PHOTOS = ("coffee", "cat", "rocket")
SCORE = ("evaluate", "samples", "--reference", "real")
SMALL = ("--kd-subset-size", "20", "--kd-subsets", "5", "--device", "cpu", "--quiet")


def values(path):
    scored = json.loads(path.read_text())["scored"]
    return {m["name"]: m["values"][0] for m in next(iter(scored.values()))}


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A finished run of two cases of the digits suite whose samples are digits with noise, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    words = ("sample.per_class=6", "evaluate.kd_subset_size=40", "evaluate.kd_subsets=5")
    suite = load_suite("quick", [*words, "evaluate.class_accuracy=false"])
    real = load_dataset(suite.cases[0].data).train
    for number, case in enumerate(suite.cases[:2]):
        images = real.get(torch.arange(number, 60 + number)).numpy()
        noise = np.random.default_rng(number).integers(0, 60, images.shape)
        samples = folder / "runs" / "store" / "sample" / case.key("sample")
        samples.mkdir(parents=True)
        labels = real.labels[number : 60 + number].numpy()
        noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
        np.savez(samples / "samples-00000.npz", arr_0=noisy, labels=labels, seconds=np.float64(1))
        (samples / "done.json").write_text("{}")
        result = Result(
            case_id=case.id, suite="quick", label=case.label, status="ok", environment=environment(),
            case=case.model_dump(mode="json"),
        )  # fmt: skip
        append_result(folder / "runs" / "quick" / "results.jsonl", result)
    return folder, suite.cases[:2]


def test_a_case_is_scored_as_its_suite_did(digits_run):
    """Without a reference: the run's data, network and settings; the stage's numbers, to the last bit."""
    folder, (case, _) = digits_run
    done = attnbench_here(
        "evaluate", "quick", "--case", case.label, "--json", "x.json", "-q", "--device", "cpu", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "FD-digits-cnn" in done.stdout
    workspace = Workspace(root=folder / "runs" / "store", device=torch.device("cpu"))
    found = evaluate.run(case, workspace).measurements
    stage = {m.name: m.values[0] for m in found if m.values}  # 60 images are too few to separate classes
    found = values(folder / "x.json")
    assert {"FD-digits-cnn", "KD-digits-cnn", "P-digits-cnn"} <= set(found)
    assert found == {name: stage[name] for name in found}


def test_digits_cnn_scores_other_images_of_a_run_against_a_folder(digits_run):
    """Named with a reference of the user's, too: the network is the one trained on the run's data."""
    folder, (case, other) = digits_run
    real = load_dataset(case.data).held_out.get(torch.arange(50)).numpy()
    np.savez(folder / "real.npz", arr_0=real)
    done = attnbench_here(
        "evaluate", "quick", "--case", case.label, "--also", f"quick:{other.label}",
        "--reference", "real.npz",
        "--extractor", "digits-cnn", "--metrics", "fd", "--json", "y.json", "-q", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(json.loads((folder / "y.json").read_text())["scored"]) == [case.label, other.label]


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("quick", "this run has 2 cases (softmax, linear); name one, such as --also 'quick:softmax'"),
        ("quick:lineer", "did you mean 'linear'"),
        ("nowhere:linear", "nowhere is no folder of a suite's run"),
    ],
)
def test_also_names_a_case_or_says_how(digits_run, also, said):
    """A run of several cases needs RUN:CASE; what is wrong with it is one sentence."""
    folder, (case, _) = digits_run
    words = ("evaluate", "quick", "--case", case.label, "--also", also, "-q", "--device", "cpu")
    done = attnbench_here(*words, cwd=folder)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_user_names_comes_before_the_suite(digits_run):
    """Metrics and numbers of the command line replace the suite's; the rest is the suite's."""
    folder, (case, _) = digits_run
    words = ("--metrics", "kd", "--kd-subset-size", "30", "--json", "z.json", "-q", "--device", "cpu")
    done = attnbench_here("evaluate", "quick", "--case", case.label, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    settings = json.loads((folder / "z.json").read_text())["settings"]
    assert (settings["metrics"], settings["kd_subset_size"], settings["kd_subsets"]) == (["kd"], 30, 5)
    assert settings["extractor"] == "digits-cnn"
