"""Models from the Hugging Face hub: the real client against a small server of its routes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import serving, settings_of, use_here

from attnbench.errors import DataError, StorageError
from attnbench.storage import hub

SAFETENSORS, PICKLED = hub.WEIGHTS
CONTENT = {
    hub.CONFIG: b"{}",
    SAFETENSORS: bytes(range(256)) * 400,
    PICKLED: b"pickled",
    "diffusion_pytorch_model.fp16.safetensors": b"half",
    "README.md": b"text",
}
FETCH = """
import sys
from attnbench.storage.hub import HubModel, fetch
print(fetch(HubModel(name=sys.argv[1]), lambda done, total, note: None).folder)
"""


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def home(tmp_path, server, monkeypatch):
    """The hub's empty home folder, used by this process."""
    use_here(server, tmp_path / "home", monkeypatch)
    return tmp_path / "home"


def write(folder: Path, **changed: bytes | None) -> Path:
    """Write the files of a repository; a name in `changed` (dots as __) has other bytes, or is left out."""
    changed_names = {name.replace("__", "."): value for name, value in changed.items()}
    folder.mkdir(parents=True)
    for name, content in (CONTENT | changed_names).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def fetch(**where):
    """Fetch a model; return it and what was reported."""
    told = []
    return hub.fetch(hub.HubModel(**where), lambda *line: told.append(line)), told


def test_config_and_one_file_of_weights_are_fetched_once(server, home, tmp_path):
    """Of a repository with five files two arrive, .safetensors before .bin, a line for each; then none."""
    commit = server.add("some/vae", write(tmp_path / "files"))
    model = hub.HubModel(name="some/vae")
    assert hub.cached(model) is None
    found, told = fetch(name="some/vae")
    assert server.asked == [f"GET some/vae/{hub.CONFIG}", f"GET some/vae/{SAFETENSORS}"]
    assert (found.commit, found.folder) == (commit, home / f"hub/models--some--vae/snapshots/{commit}")
    assert [path.read_bytes() for path in hub.model_files(found.folder)] == [b"{}", CONTENT[SAFETENSORS]]
    assert told == [
        (0, 2, "fetching config.json of some/vae"),
        (1, 2, f"fetching {SAFETENSORS} of some/vae"),
        (2, 2, "some/vae is in the hub's cache"),
    ]
    assert fetch(name="some/vae") == (found, [])
    assert hub.cached(model) == hub.open_cached(model) == found
    assert len(server.asked) == 2


def test_what_is_in_the_cache_needs_no_server(home, tmp_path, monkeypatch):
    """A model that another process has fetched is found when the server is gone."""
    with serving() as server:
        use_here(server, home, monkeypatch)
        server.add("some/vae", write(tmp_path / "files"))
        found, _ = fetch(name="some/vae")
    assert fetch(name="some/vae") == (found, [])


def test_pickled_weights_where_there_are_no_others(server, home, tmp_path):
    """A repository with a .bin alone, as DiT's, gives that."""
    files = write(tmp_path / "files", diffusion_pytorch_model__safetensors=None)
    server.add("some/dit", files)
    found, _ = fetch(name="some/dit")
    assert [path.name for path in hub.model_files(found.folder)] == [hub.CONFIG, PICKLED]


def test_a_subfolder_and_a_commit(server, home, tmp_path):
    """A pipeline's `vae` at an old commit is that, while `main` is at another."""
    write(tmp_path / "old" / "vae")
    write(tmp_path / "new" / "vae", config__json=b'{"new": 1}')
    old, new = (server.add("some/pipeline", tmp_path / name) for name in ("old", "new"))
    found, _ = fetch(name="some/pipeline", subfolder="vae", revision=old)
    assert (found.commit, found.folder.name) == (old, "vae")
    assert (found.folder / hub.CONFIG).read_bytes() == b"{}"
    newest, _ = fetch(name="some/pipeline", subfolder="vae")
    assert newest.commit == new
    assert (newest.folder / hub.CONFIG).read_bytes() == b'{"new": 1}'


def test_main_stays_what_it_was_when_it_was_fetched(server, home, tmp_path):
    """A new commit on the hub changes nothing here: what is fetched is not looked at again."""
    server.add("some/vae", write(tmp_path / "old"))
    first, _ = fetch(name="some/vae")
    server.add("some/vae", write(tmp_path / "new", config__json=b'{"new": 1}'))
    assert fetch(name="some/vae") == (first, [])


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            {"name": "no/such"},
            r"no repository no/such on the hub, or it is private; correct the name",
        ),
        ({"name": "some/vae", "revision": "v9"}, "some/vae on the hub has no revision v9; name a branch"),
        ({"name": "gated/vae"}, "gated/vae is gated; accept its terms on the hub and set HF_TOKEN"),
        (
            {"name": "some/vae", "subfolder": "vae"},
            r"some/vae on the hub has no config\.json in the folder vae of main; .*in the subfolder vae",
        ),
        (
            {"name": "some/config"},
            r"some/config on the hub has no \S+safetensors or \S+bin in the top folder of main",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(server, home, tmp_path, where, told):
    """A missing repository, revision, file or permission is told with what to do; nothing is kept."""
    server.add("some/vae", write(tmp_path / "files"))
    server.add("gated/vae", tmp_path / "files", gated=True)
    alone = {name.replace(".", "__"): None for name in CONTENT if name.startswith("diff")}
    server.add("some/config", write(tmp_path / "alone", **alone))
    with pytest.raises(DataError, match=told) as caught:
        fetch(**where)
    assert "\n" not in str(caught.value)
    assert hub.cached(hub.HubModel(**where)) is None


def test_a_token_opens_a_gated_repository(server, home, tmp_path, monkeypatch):
    """HF_TOKEN keeps its meaning: with the right one a gated repository is fetched."""
    server.add("gated/vae", write(tmp_path / "files"), gated=True)
    monkeypatch.setenv("HF_TOKEN", "right")
    assert fetch(name="gated/vae")[0].folder.is_dir()


def test_offline_says_how_to_fetch_elsewhere(server, home, tmp_path, monkeypatch):
    """HF_HUB_OFFLINE asks no server; the error has the command for another machine and the cache."""
    server.add("some/pipeline", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        fetch(name="some/pipeline", subfolder="vae", revision="v1")
    for part in (
        "some/pipeline/vae@v1 is not in the hub's cache",
        str(home / "hub"),
        "OfflineModeIsEnabled",
        "`hf download some/pipeline --include 'vae/*' --revision v1 --local-dir FOLDER`",
    ):
        assert part in str(caught.value)
    assert server.asked == []


def test_no_network_says_how_to_fetch_elsewhere(home, monkeypatch):
    """A server that nobody answers at is that error, too, once huggingface_hub has tried often enough."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with serving() as server:
        pass
    use_here(server, home, monkeypatch)
    with pytest.raises(DataError, match=r"cannot be fetched \(ConnectError: .*a network, or fetch it on"):
        fetch(name="some/vae")


def test_later_stages_name_the_stage_that_fetches(home):
    """`open_cached` never fetches: it names `prepare` and the cache it looked at."""
    with pytest.raises(DataError, match="where the stage `prepare` leaves it; run the suite again") as caught:
        hub.open_cached(hub.HubModel(name="some/vae"))
    assert str(home / "hub") in str(caught.value)


def test_a_cut_connection_is_resumed(server, home, tmp_path, monkeypatch):
    """The rest of a file is asked for from where the connection broke, and the whole is right."""
    server.add("some/vae", write(tmp_path / "files"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    server.cut_after = 50_000
    found, _ = fetch(name="some/vae")
    assert server.asked[-2:] == [f"GET some/vae/{SAFETENSORS}", f"GET some/vae/{SAFETENSORS} from 50000"]
    assert (found.folder / SAFETENSORS).read_bytes() == CONTENT[SAFETENSORS]


def test_a_killed_download_leaves_no_half_model(server, home, tmp_path):
    """A process killed within the weights leaves what counts as absent; the next one fetches them alone."""
    server.add("some/vae", write(tmp_path / "files"))
    server.hang_after = 50_000
    child = subprocess.Popen(
        [sys.executable, "-c", FETCH, "some/vae"], env=os.environ | settings_of(server, home)
    )
    while len(server.asked) < 2 and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert hub.cached(hub.HubModel(name="some/vae")) is None
    server.hang_after = None
    server.asked.clear()
    found, _ = fetch(name="some/vae")
    assert server.asked == [f"GET some/vae/{SAFETENSORS}"]
    assert (found.folder / SAFETENSORS).read_bytes() == CONTENT[SAFETENSORS]


def test_a_full_disk_names_the_cache(server, home, tmp_path):
    """A file that cannot be written whole is an error about the place, not about the network."""
    server.add("some/vae", write(tmp_path / "files"))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    environment = os.environ | settings_of(server, home)
    command = [sys.executable, "-c", limit + FETCH, "some/vae"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "StorageError: cannot write some/vae to the hub's cache" in done.stderr
    assert (
        "File too large; allow larger files (`ulimit -f`) or choose another place with HF_HOME" in done.stderr
    )
    assert hub.cached(hub.HubModel(name="some/vae")) is None


def test_a_file_in_the_caches_place_is_no_lost_connection(server, home, tmp_path):
    """What the disk refuses names the file, and nobody is told to look for a network."""
    server.add("some/vae", write(tmp_path / "files"))
    home.mkdir()
    (home / "hub").write_text("")
    told = rf"cannot write some/vae to the hub's cache \({home}/hub\): {home}/hub.*; move away what stands in"
    with pytest.raises(StorageError, match=told):
        fetch(name="some/vae")


def test_files_that_other_programs_leave_beside_make_no_difference(server, home, tmp_path):
    """The files of a model are the config and the weights that are loaded, whatever else is fetched later."""
    from huggingface_hub import hf_hub_download

    server.add("some/vae", write(tmp_path / "files"))
    found, _ = fetch(name="some/vae")
    before = hub.model_files(found.folder)
    for name in ("README.md", PICKLED):
        hf_hub_download("some/vae", name)
        assert (found.folder / name).is_file()
    assert hub.model_files(found.folder) == before
