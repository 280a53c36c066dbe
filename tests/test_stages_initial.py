"""Trainings that start from exported, imported or transferred weights."""

import pytest
import torch
from exchange_cases import call, digits_case, random_export, workspace_of

from attnbench.errors import DataError, SuiteError, UserInputError
from attnbench.exchange import transferred, write_exported
from attnbench.stages import train
from attnbench.stages.training.checkpoint import load_averaged
from attnbench.stages.training.initial_weights import initial_fingerprint, initial_weights
from attnbench.suite.loading import load_suite

STILL = 1e-30  # a learning rate too small to change any float32 weight
SOFTMAX = {"name": "softmax"}


def exported(folder, case):
    """A folder with random weights for the case's model on digits."""
    weights = random_export(case.model, side=8, num_classes=10)
    write_exported(weights, folder)
    return weights


def test_a_training_starts_from_the_weights_it_is_given(tmp_path):
    """With a vanishing learning rate the trained average is the given weights, bit for bit."""
    given = exported(tmp_path / "given", digits_case("softmax", SOFTMAX))
    case = digits_case("softmax", SOFTMAX, init_from=tmp_path / "given", lr=STILL)
    workspace = workspace_of(tmp_path / "runs" / "small")
    train.run(case, workspace)
    averaged, _ = load_averaged(workspace.folder("train", case) / train.AVERAGED, case.key("train"))
    assert averaged.keys() == given.weights.keys()
    assert all(torch.equal(averaged[name], given.weights[name]) for name in averaged)


def test_transferred_weights_train_another_attention(tmp_path):
    """What `attnbench transfer` writes for linear attention is where its training starts."""
    source = exported(tmp_path / "given", digits_case("softmax", SOFTMAX))
    case = digits_case("linear", {"name": "linear"}, init_from=tmp_path / "linear", lr=STILL)
    target, _ = transferred(source, case.model, seed=0)
    write_exported(target, tmp_path / "linear")
    workspace = workspace_of(tmp_path / "runs" / "small")
    train.run(case, workspace)
    averaged, _ = load_averaged(workspace.folder("train", case) / train.AVERAGED, case.key("train"))
    assert torch.equal(averaged["blocks.0.ffn.fc1.weight"], source.weights["blocks.0.ffn.fc1.weight"])


def test_options_at_their_defaults_need_not_be_written(tmp_path):
    """What `attnbench transfer --attention softmax` writes starts a suite's softmax, options written out."""
    given = exported(tmp_path / "given", digits_case("softmax", SOFTMAX))
    full = {"name": "softmax", "options": {"implementation": "sdpa", "qkv_bias": True}}
    found = initial_weights(tmp_path / "given", digits_case("softmax", full).model)
    assert found.keys() == given.weights.keys()


def test_another_model_is_refused(tmp_path):
    """Weights of softmax do not start linear attention; the error names the difference and the way out."""
    exported(tmp_path / "given", digits_case("softmax", SOFTMAX))
    wanted = digits_case("linear", {"name": "linear"}).model
    with pytest.raises(UserInputError, match=r"attention .*'softmax'.*here .*'linear'.*attnbench transfer"):
        initial_weights(tmp_path / "given", wanted)


@pytest.mark.parametrize("damage", ["cut weights", "no config", "another format"])
def test_damaged_or_foreign_folders_are_refused(tmp_path, damage):
    """Nothing is trained from half a file or from a folder of something else."""
    case = digits_case("softmax", SOFTMAX)
    exported(tmp_path / "given", case)
    config, weights = (tmp_path / "given" / name for name in ("config.json", "model.safetensors"))
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "no config":
        config.unlink()
    else:
        config.write_text(config.read_text().replace("attnbench-export-1", "attnbench-export-9"))
    with pytest.raises(DataError, match="export"):
        initial_weights(tmp_path / "given", case.model)


def test_other_weights_are_another_training(tmp_path):
    """The fingerprint of the weights, not their path, is part of the training's key."""
    (case,) = load_suite("quick", ["matrix.model.attention=[softmax]"]).cases
    first = exported(tmp_path / "a", case)
    write_exported(first, tmp_path / "b")
    changed = {name: tensor + 1 for name, tensor in first.weights.items()}
    write_exported(type(first)(config=first.config, weights=changed), tmp_path / "c")
    keys = []
    for name in "abc":
        overrides = [f"train.init_from={tmp_path / name}", "matrix.model.attention=[softmax]"]
        (case,) = load_suite("quick", overrides).cases
        assert case.initial == initial_fingerprint(tmp_path / name)
        keys.append(case.key("train"))
    (without,) = load_suite("quick", ["matrix.model.attention=[softmax]"]).cases
    assert keys[0] == keys[1] != keys[2]
    assert without.key("train") not in keys


def test_a_folder_that_is_no_model_is_refused_with_the_suite(tmp_path):
    """The suite is refused when it is loaded, before anything is trained."""
    with pytest.raises(UserInputError, match="no folder of `attnbench export`"):
        load_suite("quick", [f"train.init_from={tmp_path}"])


SUITE = """\
name: start
question: Where from?
model: {recipe: tiny-dit, depth: 1, dim: 16, num_heads: 2}
data: digits
train: {objective: flow, init_from: given}
sample: {sampler: euler}
evaluate: {kd_subset_size: 300}
"""


def given(folder, *, side=8, num_classes=10, **settings):
    """A folder `given` beside a suite that starts from it; the suite's model with other inputs or classes."""
    (folder / "suite.yaml").write_text(SUITE)
    text = SUITE.replace(", init_from: given", "")
    (folder / "without.yaml").write_text(text)
    (case,) = load_suite(folder / "without.yaml").cases
    model = case.model.model_copy(update=settings)
    write_exported(random_export(model, side=side, num_classes=num_classes), folder / "given")
    return folder / "suite.yaml"


def test_weights_that_fit_are_accepted(tmp_path):
    """Ten classes and 8 x 8: nothing to say."""
    assert load_suite(given(tmp_path)).cases[0].initial


def test_other_classes_and_sizes_are_refused_when_the_suite_is_checked(tmp_path):
    """Both numbers of each, file and line, and the command that makes fitting weights."""
    with pytest.raises(SuiteError) as caught:
        load_suite(given(tmp_path, side=16, num_classes=5))
    said = str(caught.value)
    assert "suite.yaml:5:" in said
    assert "5 classes (here 10) and images of 16 px (here 8 px)" in said
    assert f"`attnbench transfer {tmp_path / 'given'} --classes 10 --image-size 8 --to NEW`" in said


def test_the_command_that_the_refusal_names_makes_weights_that_fit(tmp_path, monkeypatch):
    """The way out is one."""
    suite = given(tmp_path, side=16, num_classes=5)
    words = ("--classes", 10, "--image-size", 8, "--to", tmp_path / "fitting")
    assert call(monkeypatch, "transfer", tmp_path / "given", *words) == 0
    (case,) = load_suite(suite, [f"train.init_from={tmp_path / 'fitting'}"]).cases
    assert initial_weights(tmp_path / "fitting", case.model, side=8, num_classes=10)


def test_another_model_is_refused_when_the_suite_is_checked(tmp_path):
    """Not only when its case is trained."""
    with pytest.raises(SuiteError, match=r"suite.yaml:5:.* depth 2 \(here 1\).*attnbench transfer"):
        load_suite(given(tmp_path, depth=2))


def test_classes_are_compared_in_the_training_too(tmp_path):
    """For callers of the stage; a folder of images may change after the suite was checked."""
    exported(tmp_path / "given", digits_case("softmax", SOFTMAX))
    model = digits_case("softmax", SOFTMAX).model
    with pytest.raises(UserInputError, match=r"10 classes \(here 11\)"):
        initial_weights(tmp_path / "given", model, side=8, num_classes=11)


def test_no_data_is_needed_to_check_a_suite(tmp_path):
    """Where the images are not here yet, their classes are not compared."""
    text = SUITE.replace("data: digits", "data: {name: image-folder, path: nowhere, image_size: 16}")
    suite = given(tmp_path, side=16, num_classes=5, in_channels=3)
    suite.write_text(text.replace("num_heads: 2", "num_heads: 2, in_channels: 3"))
    assert load_suite(suite).cases[0].initial
