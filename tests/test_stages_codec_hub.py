"""Latent autoencoders from the Hugging Face hub: settings, the stage that fetches, the stages after."""

from __future__ import annotations

import json
import os
from unittest.mock import patch

import pytest
import torch
from command_line import attnbench
from hub_server import serving, settings_of, use_here
from pydantic import ValidationError
from stage_cases import make_workspace
from stand_ins import write_autoencoder, write_photo_folder
from test_stages_prepare import ALL, COUNT, KEPT, images, latent_case, save_codec
from test_suite_scale import OF_THE_PAPER, SMALL

from attnbench.data import load_dataset
from attnbench.errors import DataError, SuiteError
from attnbench.results import latest, read_results
from attnbench.running.plan import plan
from attnbench.specs import CodecSpec
from attnbench.stages import prepare
from attnbench.stages.latents import model_space
from attnbench.stages.latents.codec import fingerprint, load_codec
from attnbench.storage import hub
from attnbench.storage.names import MADE_FROM
from attnbench.storage.store import Workspace
from attnbench.suite.loading import load_suite

__all__ = ["images"]  # a fixture

NAME = "some/vae"
CPU = torch.device("cpu")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub without repositories, used by this process with an empty cache."""
    with serving() as running:
        use_here(running, tmp_path / "home", monkeypatch)
        yield running


def hub_case(images, kind="autoencoder-kl", **where):
    """Return a case whose autoencoder is on the hub."""
    case = latent_case(images, "unused", kind)
    codec = CodecSpec(kind=kind, **({"hub": NAME} | where))
    return case.model_copy(update={"data": case.data.model_copy(update={"codec": codec})})


def note_of(case, workspace):
    return json.loads((workspace.folder("prepare", case) / MADE_FROM).read_text())


@pytest.mark.parametrize("kind", ["autoencoder-kl", "autoencoder-tiny"])
def test_prepare_fetches_and_later_stages_need_no_network(images, tmp_path, monkeypatch, kind):
    """Latents and pictures are those of the same files in a folder; after `prepare` the hub may be gone."""
    save_codec(tmp_path / "vae", kind)
    case, workspace = hub_case(images, kind), make_workspace(tmp_path / "runs")
    with serving() as server:
        use_here(server, tmp_path / "home", monkeypatch)
        commit = server.add(NAME, tmp_path / "vae")
        prepare.run(case, workspace)
        prepare.run(case, workspace)
        assert [line.rpartition("/")[2] for line in server.asked] == [hub.CONFIG, hub.WEIGHTS[0]]
    dataset = load_dataset(case.data)
    source = model_space.training_source(case, dataset, workspace)
    decode = model_space.decoder(case, workspace)
    local = latent_case(images, tmp_path / "vae", kind)
    prepare.run(local, workspace)
    expected = model_space.training_source(local, dataset, workspace).batch(ALL, KEPT)
    latents = source.batch(ALL, KEPT)
    assert torch.equal(latents, expected)
    assert torch.equal(decode(latents), model_space.decoder(local, workspace)(latents))
    assert fingerprint(case.data.codec) == fingerprint(local.data.codec)
    assert note_of(case, workspace)["commit"] == commit
    assert len(source) == COUNT


def test_a_subfolder_of_a_pipeline(server, images, tmp_path):
    """The autoencoder of a pipeline's repository is the one in `vae`; progress names it."""
    save_codec(tmp_path / "pipeline" / "vae")
    server.add("some/pipeline", tmp_path / "pipeline")
    told = []
    case = hub_case(images, hub="some/pipeline", subfolder="vae")
    listening = Workspace(root=tmp_path / "runs", device=CPU, progress=lambda *line: told.append(line))
    prepare.run(case, listening)
    assert ("prepare", 0, 2, "fetching config.json of some/pipeline/vae") in told
    assert fingerprint(case.data.codec) == fingerprint(CodecSpec(path=tmp_path / "pipeline" / "vae"))


def test_nothing_but_prepare_fetches(server, images, tmp_path):
    """Opening latents or the decoder without the files in the cache names the stage that was left out."""
    save_codec(tmp_path / "vae")
    server.add(NAME, tmp_path / "vae")
    case, workspace = hub_case(images), make_workspace(tmp_path / "runs")
    for act in (
        lambda: load_codec(case.data.codec, CPU),
        lambda: fingerprint(case.data.codec),
        lambda: model_space.decoder(case, workspace),
    ):
        with pytest.raises(DataError, match=r"some/vae is not in the hub's cache .*stage `prepare`"):
            act()
    assert server.asked == []


def test_a_repository_with_another_kind(server, images, tmp_path):
    """A tiny autoencoder in the place of a KL one is refused by the repository's name."""
    save_codec(tmp_path / "vae", "autoencoder-tiny")
    server.add(NAME, tmp_path / "vae")
    with pytest.raises(DataError, match=r"some/vae holds an AutoencoderTiny, but codec\.kind is"):
        prepare.run(hub_case(images), make_workspace(tmp_path / "runs"))


def test_a_cache_that_moved_on_is_noticed(server, images, tmp_path):
    """Where another program fetched a later `main` with other weights, no stage goes on with those."""
    from huggingface_hub import snapshot_download

    save_codec(tmp_path / "old")
    server.add(NAME, tmp_path / "old")
    case, workspace = hub_case(images), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    assert callable(model_space.decoder(case, workspace))
    save_codec(tmp_path / "new", seed=1)
    fetch_main(server.add(NAME, tmp_path / "new"))
    assert snapshot_download(NAME, local_files_only=True).endswith(list(server.repositories[NAME].commits)[1])
    changed = r"autoencoder in data\.codec\.hub changed since.*another --runs folder"
    with pytest.raises(DataError, match=changed):
        prepare.run(case, workspace)
    with pytest.raises(DataError, match=changed):
        model_space.decoder(case, workspace)
    with pytest.raises(DataError, match=r"have codec .* changed since"):
        model_space.training_source(case, load_dataset(case.data), workspace)


def fetch_main(commit):
    """Fetch what `main` is now, as another program would."""
    from huggingface_hub import hf_hub_download

    for name in (hub.CONFIG, hub.WEIGHTS[0]):
        assert commit in hf_hub_download(NAME, name)


def test_a_later_commit_of_the_same_files_goes_on(server, images, tmp_path):
    """A commit that changed a README is no other autoencoder; the note keeps the commit first used."""
    save_codec(tmp_path / "vae")
    first = server.add(NAME, tmp_path / "vae")
    case, workspace = hub_case(images), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    fetch_main(server.add(NAME, tmp_path / "vae"))
    prepare.run(case, workspace)
    model_space.decoder(case, workspace)
    assert note_of(case, workspace)["commit"] == first


def test_files_altered_in_the_cache_are_noticed(server, images, tmp_path):
    """The content of the cached files is what counts, not their names."""
    save_codec(tmp_path / "vae")
    server.add(NAME, tmp_path / "vae")
    case, workspace = hub_case(images), make_workspace(tmp_path / "runs")
    prepare.run(case, workspace)
    config = hub.open_cached(hub.HubModel(name=NAME)).folder / hub.CONFIG
    config.write_text(config.read_text() + "\n")
    with pytest.raises(DataError, match=r"data\.codec\.hub changed since"):
        model_space.decoder(case, workspace)


def test_where_an_autoencoder_lies_is_part_of_the_key(images):
    """Repository, folder and revision are in the content of every stage; a folder's key is as it ever was."""
    cases = [
        hub_case(images),
        hub_case(images, hub="other/vae"),
        hub_case(images, subfolder="vae"),
        hub_case(images, revision="v1"),
        latent_case(images, "vae"),
    ]
    assert len({case.key("prepare") for case in cases}) == len({case.key("train") for case in cases}) == 5
    assert cases[4].data.model_dump(mode="json")["codec"] == {"kind": "autoencoder-kl", "path": "vae"}
    for case in cases:
        assert type(case).model_validate_json(case.model_dump_json()) == case


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "takes either path .* or hub .*, got neither"),
        ({"path": "x", "hub": NAME}, "takes either path .* or hub .*, got both"),
        ({"hub": "vae"}, "hub must be a repository on the hub, OWNER/NAME, got 'vae'"),
        ({"hub": "../../etc"}, "hub must be a repository on the hub"),
        ({"path": "x", "subfolder": "vae"}, "subfolder is for hub alone"),
        ({"path": "x", "revision": "v1"}, "revision is for hub alone"),
        ({"hub": NAME, "subfolder": "../vae"}, "subfolder must be plain names"),
        ({"hub": NAME, "revision": "/etc"}, "revision must be plain names"),
    ],
)
def test_settings_that_name_no_place_or_two(settings, told):
    """Exactly one place, and names that stay inside a repository."""
    with pytest.raises(ValidationError, match=told):
        CodecSpec(**settings)


SUITE = """\
name: a
question: b
model: dit-s
data:
  name: image-folder
  path: images
  codec: {codec}
evaluate: {{metrics: [fd]}}
"""


def test_planning_and_validating_fetch_nothing(server, images, tmp_path):
    """A suite with an autoencoder on the hub resolves and is planned without one request."""
    save_codec(tmp_path / "vae")
    server.add(NAME, tmp_path / "vae")
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(codec="{hub: some/vae, revision: main}"))
    (case,) = load_suite(path).cases
    assert (case.data.codec.hub, case.data.codec.path) == (NAME, None)
    (cell,) = plan([case], tmp_path / "store")
    assert (cell.problem, server.asked, (tmp_path / "home").exists()) == ("", [], False)


@pytest.mark.slow
def test_a_suite_of_the_paper_runs_on_an_autoencoder_of_the_hub(tmp_path):
    """`run` fetches it in the case's process; a further case of the same data runs with no hub to ask."""
    write_photo_folder(tmp_path / "photos")
    write_autoencoder(tmp_path / "vae")
    words = ("data", "prepare", "photos", "--to", "set", "--image-size", "32", "--held-out", "0")
    settings = SMALL | OF_THE_PAPER | {"data.path": "set", "data.codec.hub": "some/vae"}
    settings |= {"matrix.model.recipe": "[dit-s]", "matrix.sample.guidance_scale": "[1.5]"}
    with serving() as server:
        server.add(NAME, tmp_path / "vae")
        environment = settings_of(server, tmp_path / "home")
        run_here(tmp_path, environment, *words)
        run_here(tmp_path, environment, "run", "imagenet_256", "--quiet", *overriding(settings))
        assert len(server.asked) == 2
    more = settings | {"matrix.sample.guidance_scale": "[1.5, 4.0]"}
    run_here(tmp_path, environment, "run", "imagenet_256", "--quiet", *overriding(more))
    results = latest(read_results(tmp_path / "runs/imagenet_256/results.jsonl"))
    assert [result.status for result in results] == ["ok", "ok"]


def overriding(settings):
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def run_here(folder, environment, *words):
    """Run `attnbench WORDS` in a folder, with further variables of the environment."""
    with patch.dict(os.environ, environment):
        done = attnbench(*words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_suite_may_choose_either_way_and_an_override_the_other(tmp_path):
    """One override replaces the place that the file names; two overrides, or two in a file, are an error."""
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.format(codec="{path: vae}"))
    (case,) = load_suite(path, ["data.codec.hub=some/vae"]).cases
    assert (case.data.codec.hub, case.data.codec.path) == (NAME, None)
    path.write_text(SUITE.format(codec="{hub: some/vae, subfolder: vae}"))
    for override in (f"data.codec.path={tmp_path}", f"data.codec={{path: {tmp_path}}}"):
        (case,) = load_suite(path, [override]).cases
        assert (case.data.codec.hub, case.data.codec.path) == (None, tmp_path)
    with pytest.raises(SuiteError, match=r"data\.codec: takes either path .* got both"):
        load_suite(path, ["data.codec.path=x", "data.codec.hub=some/vae"])
    (case,) = load_suite(path, ["data.codec.hub=other/vae", "data.codec.subfolder=vae"]).cases
    assert (case.data.codec.hub, case.data.codec.subfolder) == ("other/vae", "vae")
    path.write_text(SUITE.format(codec="{kind: autoencoder-kl}"))
    with pytest.raises(SuiteError, match=r"s\.yaml:7:3: data\.codec: takes either path .* got neither"):
        load_suite(path)
