"""Trainings that start from exported, imported or transferred weights."""

import pytest
import torch
from exchange_cases import digits_case, random_export, workspace_of

from attnbench.errors import DataError, UserInputError
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
    first = exported(tmp_path / "a", digits_case("softmax", SOFTMAX))
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
