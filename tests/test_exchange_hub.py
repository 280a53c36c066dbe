"""Imports from the Hugging Face hub, and exports that say which of its autoencoders they belong to."""

from __future__ import annotations

import json
import re

import pytest
import torch
from exchange_cases import call, latent_case, model_config, random_export, train_case
from hub_server import serving, use_here
from stand_ins import write_photo_folder
from test_stages_prepare import save_codec

from attnbench.exchange import read_exported, write_diffusers
from attnbench.specs import CodecSpec


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub without repositories, used by this process with an empty cache."""
    with serving() as running:
        use_here(running, tmp_path / "home", monkeypatch)
        yield running


def test_a_dit_is_imported_from_the_hub(server, tmp_path, monkeypatch, capsys):
    """`import hub:OWNER/NAME` takes a pipeline's transformer and its schedule, and notes the commit."""
    exported = random_export(model_config(), num_classes=1000)  # no rows to fill up
    write_diffusers(exported, tmp_path / "pipeline")
    commit = server.add("some/dit", tmp_path / "pipeline")
    assert call(monkeypatch, "import", "hub:some/dit", "--to", tmp_path / "xl") == 0
    told = capsys.readouterr()
    assert "fetching config.json of some/dit/transformer (0 of 2)" in told.err
    assert "a DiT of 2 blocks, width 32" in told.out
    assert {line.split("/", 2)[2] for line in server.asked} == {
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }
    found = read_exported(tmp_path / "xl")
    assert found.config.imported_from == f"hub:some/dit (commit {commit})"
    for name, tensor in exported.weights.items():
        assert torch.equal(tensor, found.weights[name])
    assert call(monkeypatch, "import", f"hub:some/dit@{commit}", "--to", tmp_path / "again") == 0


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("some/dit", "some/dit does not exist; .* or hub:some/dit for the repository on the hub"),
        ("hub:dit", "hub:dit names no repository on the hub; write hub:OWNER/NAME"),
        ("hub:some/di--t", "hub:some/di--t names no repository on the hub"),
        ("hub:some/dit.git", "names no repository on the hub"),
        ("hub:some/dit.", "names no repository on the hub"),
        (f"hub:some/{'d' * 99}", "names no repository on the hub"),
        ("hub:some/dit", "there is no repository some/dit on the hub"),
        ("hub:some/vae", r"some/vae on the hub has no config\.json in the folder transformer"),
    ],
)
def test_what_cannot_be_imported(server, tmp_path, monkeypatch, capsys, source, told):
    """A name that is no folder is not taken for a repository; nothing is written, the exit code is 2."""
    save_codec(tmp_path / "vae")
    server.add("some/vae", tmp_path / "vae")
    assert call(monkeypatch, "import", source, "--to", tmp_path / "xl") == 2
    assert re.search(told, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "xl").exists()


def test_a_run_with_an_autoencoder_from_the_hub_is_exported(server, tmp_path, monkeypatch, capsys):
    """The export names repository and commit; `--diffusers` takes the autoencoder out of the cache."""
    from huggingface_hub import hf_hub_download

    save_codec(tmp_path / "vae", shift_factor=0.0)
    (tmp_path / "vae" / "model_index.json").write_text("{}")
    commit = server.add("some/vae", tmp_path / "vae")
    images = write_photo_folder(tmp_path / "images", classes=2)
    case = latent_case("only", images, tmp_path / "unused")
    codec = CodecSpec(kind="autoencoder-kl", hub="some/vae")
    data = case.data.model_copy(update={"codec": codec, "image_size": 16})
    train_case(tmp_path / "runs/small", case.model_copy(update={"data": data}))
    hf_hub_download("some/vae", "model_index.json")  # another program fetches more of it
    command = ("export", tmp_path / "runs/small", "--to")
    assert call(monkeypatch, *command, tmp_path / "plain") == 0
    assert read_exported(tmp_path / "plain").config.codec.hub == f"some/vae@{commit}"
    assert f"on the hub: some/vae@{commit}" in (tmp_path / "plain/README.md").read_text()
    assert call(monkeypatch, *command, tmp_path / "pipeline", "--diffusers") == 0
    assert "a whole pipeline" in capsys.readouterr().out
    assert json.loads((tmp_path / "pipeline/vae/config.json").read_text())["_class_name"] == "AutoencoderKL"
