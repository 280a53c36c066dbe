"""Exported folders: the sampler's very model comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
import resource
import signal
import warnings

import pytest
import torch
from exchange_cases import (
    call,
    digits_case,
    inputs,
    model_config,
    note_case,
    random_export,
    train_case,
    workspace_of,
)

from attnbench import load_model, plugins
from attnbench.errors import DataError, StorageError, UnknownNameError, UserInputError
from attnbench.exchange import find_case, open_model, read_exported, trained_model, write_exported
from attnbench.stages.sample import load_sampler

CASES = {
    "softmax": {"name": "softmax"},
    "dydila": {"name": "dydila"},
    "rala": {"name": "rala"},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with three trained cases."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "small"
    for label, attention in CASES.items():
        train_case(folder, digits_case(label, attention))
    return folder


@pytest.mark.parametrize("label", CASES)
def test_exported_model_is_the_samplers_bit_for_bit(run_dir, tmp_path, label):
    """From the run and from the exported folder come the bits that the sampler's model computes."""
    case = find_case(run_dir, label)
    write_exported(open_model(run_dir, label), tmp_path / "out")
    sampled = load_sampler(case, workspace_of(run_dir)).model
    x, t, y = inputs(open_model(run_dir, label))
    with torch.inference_mode():
        wanted = sampled(x, t, y)
        assert wanted.abs().max() > 0
        for model in (load_model(run_dir, label), load_model(tmp_path / "out")):
            assert not model.training
            assert torch.equal(model(x, t, y), wanted)


def test_config_tells_what_a_stranger_needs(run_dir, tmp_path):
    """config.json and the card hold input, classes, objective, seed, settings and where attention is from."""
    write_exported(open_model(run_dir, "dydila"), tmp_path / "out")
    config = load_model(tmp_path / "out").attnbench_config
    assert config.input.shape == (1, 8, 8)
    assert config.class_names == [str(digit) for digit in range(10)]
    assert (config.objective, config.seed, config.training["steps"]) == ("ddpm", 3, 2)
    origin = config.backends["dydila"]
    assert (origin.provider, origin.code) == ("built-in", plugins.registry().backends["dydila"].code)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "attnbench.load_model" in card
    assert 'attnbench.sample("path/to/this/folder", labels=[0, 1])' in card
    assert "steps 2, batch_size 8" in card


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _flip_one_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _change(**update):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | update))

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_cut, "SHA-256 differs"),
        (_flip_one_bit, "SHA-256 differs"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot read"),
        (_change(format="other"), "was not written by"),
        (_change(seed="x"), "seed"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not JSON"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, told):
    """A cut or changed weights file, and a config that is foreign or broken, are errors that say so."""
    write_exported(random_export(model_config()), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(DataError, match=told):
        load_model(tmp_path / "out")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    """A config of another depth than the weights' is refused, naming tensors."""
    exported = random_export(model_config())
    deeper = exported.config.model_copy(update={"model": model_config(depth=3)})
    write_exported(type(exported)(config=deeper, weights=exported.weights), tmp_path / "out")
    with pytest.raises(DataError, match=r"blocks\.2\.attn"):
        load_model(tmp_path / "out")


def test_missing_plugin_is_named(tmp_path):
    """A backend nobody provides is named with the package that did and how to install it."""
    exported = random_export(model_config())
    spec = exported.config.model.model_copy(update={"attention": {"name": "my-own"}})
    origin = {"my-own": {"provider": "attnbench-mine 1.2", "code": "0"}}
    write_exported(exported, tmp_path / "out")
    _change(model=json.loads(spec.model_dump_json(warnings=False)), backends=origin)(tmp_path / "out")
    with pytest.raises(DataError, match=r"'my-own'.*pip install 'attnbench-mine==1\.2'"):
        load_model(tmp_path / "out")


def test_changed_backend_warns(tmp_path):
    """A backend whose source is another than in training is used with a warning, the same without."""
    write_exported(random_export(model_config()), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(tmp_path / "out")
    _change(backends={"softmax": {"provider": "built-in", "code": "0" * 16}})(tmp_path / "out")
    with pytest.warns(UserWarning, match="'softmax' has changed"):
        load_model(tmp_path / "out")


def test_choosing_a_case(run_dir, tmp_path):
    """Several cases are listed, an unknown one is answered with the nearest, an id will do."""
    with pytest.raises(UserInputError, match=r"3 cases; choose one: --case 'softmax', --case 'dydila'"):
        find_case(run_dir)
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        find_case(run_dir, "softmx")
    case = find_case(run_dir, "rala")
    assert find_case(run_dir, case.id) == case
    again = tmp_path / "again"
    for steps in (2, 3):
        note_case(again, digits_case("softmax", CASES["softmax"], steps=steps))
    with pytest.raises(
        UserInputError, match=r"2 cases called 'softmax'.*--case [0-9a-f]{16} \(softmax, 2026"
    ):
        find_case(again, "softmax")


def test_not_a_run_and_unfinished_training(run_dir, tmp_path):
    """A folder that is no run and a training without its end are told apart, with the next step."""
    with pytest.raises(UserInputError, match=r"neither an exported model .* nor the folder of a run"):
        open_model(tmp_path)
    case = digits_case("unfinished", CASES["softmax"], steps=50)
    with pytest.raises(UserInputError, match=r"is not in the store.*run the suite small again"):
        trained_model(case, tmp_path / "store")
    (tmp_path / "store" / "train" / case.key("train")).mkdir(parents=True)
    with pytest.raises(UserInputError, match="is not finished"):
        trained_model(case, tmp_path / "store")


def test_places_that_are_taken(tmp_path):
    """Only an empty folder is filled, an earlier export is replaced on request, strangers' files never."""
    exported, out = random_export(model_config()), tmp_path / "out"
    out.mkdir()
    write_exported(exported, out)
    with pytest.raises(UserInputError, match="--force"):
        write_exported(exported, out)
    other = random_export(model_config(dim=16))
    write_exported(other, out, force=True)
    assert read_exported(out).config.model.dim == 16
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(UserInputError, match="no export of attnbench"):
        write_exported(exported, foreign, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]
    assert (foreign / "thesis.tex").read_text() == "mine"


def test_full_disk_leaves_nothing(tmp_path):
    """Where files may not grow beyond 4 KiB, writing is one StorageError and no folder appears."""
    exported = random_export(model_config())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            write_exported(exported, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_command_line(run_dir, tmp_path, monkeypatch, capsys):
    """`attnbench export` writes a folder that opens, and exits with 2 where a case must be chosen."""
    assert call(monkeypatch, "export", run_dir, "--case", "softmax", "--to", tmp_path / "out") == 0
    assert "load_model" in capsys.readouterr().out
    load_model(tmp_path / "out")
    assert call(monkeypatch, "export", "small", "--runs", run_dir.parent, "--to", tmp_path / "other") == 2
    assert "--case 'dydila'" in capsys.readouterr().err


def test_command_line_for_diffusers(run_dir, tmp_path, monkeypatch, capsys):
    """`--diffusers` says what it could not write, and `attnbench import` brings the same weights back."""
    where = ("--case", "softmax", "--to", tmp_path / "there")
    assert call(monkeypatch, "export", run_dir, "--diffusers", *where) == 0
    assert "no whole pipeline: the model makes pixels" in capsys.readouterr().out
    assert call(monkeypatch, "import", tmp_path / "there", "--to", tmp_path / "back") == 0
    wanted, found = open_model(run_dir, "softmax"), read_exported(tmp_path / "back")
    assert found.config.model == wanted.config.model
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in wanted.weights.items())
    where = ("--case", "dydila", "--to", tmp_path / "other")
    assert call(monkeypatch, "export", run_dir, "--diffusers", *where) == 1
    assert "its attention is dydila, not softmax" in capsys.readouterr().err
