"""`attnbench.sample`: the suite's own pictures from a run, and pictures of an exported model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exchange_cases import digits_case, model_config, random_export, train_case, workspace_of

import attnbench
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.exchange import open_model, write_exported
from attnbench.stages import sample as stage
from attnbench.stages.sampling.shards import read_images


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with one trained case of digits, and its samples."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "small"
    case = digits_case("linear", {"name": "linear"})
    train_case(folder, case)
    stage.run(case, workspace_of(folder))
    return folder


def test_a_runs_samples_are_those_of_its_suite(run_dir):
    """The same images and classes, from the run's own settings and seed."""
    case = digits_case("linear", {"name": "linear"})
    drawn = attnbench.sample(run_dir, "linear", count=20, device="cpu", quiet=True)
    kept = read_images(workspace_of(run_dir).folder("sample", case), list(range(20)))
    assert np.array_equal(drawn.images, np.stack(list(kept)))
    assert drawn.labels.tolist() == [*range(10)] * 2
    assert drawn.class_names[3] == "3"
    assert drawn.image(0).size == (8, 8)


def test_settings_labels_and_seed_are_ones_own(run_dir):
    """Classes by number and by name, another seed and another number of steps change the pictures."""
    asked = {"count": 3, "device": "cpu", "quiet": True}
    plain = attnbench.sample(run_dir, **asked).images
    assert not np.array_equal(plain, attnbench.sample(run_dir, seed=8, **asked).images)
    assert not np.array_equal(plain, attnbench.sample(run_dir, num_steps=3, **asked).images)
    named = attnbench.sample(run_dir, labels=["7", 7, 1], device="cpu", quiet=True)
    assert named.labels.tolist() == [7, 7, 1]
    assert len(named) == 3


def test_an_exported_model_draws_without_its_run(run_dir, tmp_path):
    """By the objective's sampler; with the run's settings and seed they are the run's pictures."""
    write_exported(open_model(run_dir, "linear"), tmp_path / "out")
    asked = {"count": 4, "num_steps": 2, "device": "cpu", "quiet": True}
    ours = attnbench.sample(tmp_path / "out", seed=3, noise="ziggurat", **asked)
    assert np.array_equal(ours.images, attnbench.sample(run_dir, **asked).images)


def test_latents_need_the_autoencoder_they_are_of(tmp_path):
    """An export says which one is missing."""
    write_exported(random_export(model_config()), tmp_path / "out")
    with pytest.raises(UserInputError, match="makes latents; name the folder of the autoencoder"):
        attnbench.sample(tmp_path / "out", count=1, num_steps=2, device="cpu", quiet=True)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"labels": [10]}, UserInputError, "classes 0 to 9"),
        ({"labels": ["ten"]}, UnknownNameError, "unknown class 'ten'"),
        ({"labels": []}, UserInputError, "nothing to draw"),
        ({"count": 0}, UserInputError, "from 1 on, got 0; give one"),
        ({"count": 2.5}, UserInputError, "a whole number from 1 on, got 2.5"),
        ({"count": True}, UserInputError, "a whole number from 1 on, got True"),
        ({"labels": 3}, UserInputError, r"a list of classes .*, got 3; .* labels=\[3\]"),
        ({"labels": "37"}, UserInputError, r"a list of classes .*, got '37'"),
        ({"seed": -1}, UserInputError, r"0 to 2\^63 - 1, got -1"),
        ({"seed": 2**63}, UserInputError, r"0 to 2\^63 - 1, got 9223372036854775808"),
        ({"seed": 0.5}, UserInputError, r"0 to 2\^63 - 1, got 0\.5"),
        ({"sampler": "euler"}, UserInputError, "cannot sample a model trained with objective 'ddpm'"),
        ({"num_step": 2}, UserInputError, "unknown key 'num_step'.*did you mean 'num_steps'"),
        ({"autoencoder": "vae"}, UserInputError, "makes pixels"),
        ({"case": "softmax"}, UnknownNameError, "unknown case"),
    ],
)
def test_what_cannot_be_drawn(run_dir, asked, error, told):
    """What was got, and what there is."""
    with pytest.raises(error, match=told):
        attnbench.sample(run_dir, **({"device": "cpu", "quiet": True} | asked))


def test_a_folder_is_named():
    """An empty path would be the working directory."""
    with pytest.raises(UserInputError, match="folder of a run or of an exported model, got ''; name one"):
        attnbench.sample("")
