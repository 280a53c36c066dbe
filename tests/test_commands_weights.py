"""`attnbench weights`: fetching from a real local server, consent, and what is listed."""

import dataclasses
import hashlib
import http.server
import os
import pty
import subprocess
import sys
import threading

import pytest
from command_line import ROOT
from command_line import attnbench as command
from extractor_cases import empty_caches
from typer.testing import CliRunner

from attnbench.cli import app
from attnbench.commands import weights as weights_command
from attnbench.errors import DataError, UserInputError
from attnbench.metrics import inception_tf
from attnbench.metrics.weights_files import find

CONTENT = b"weights" * 500_000  # 3.5 MB: several pieces
NAME = "weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, half of it where the path says cut, an error elsewhere."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path not in (f"/{NAME}", f"/cut/{NAME}"):
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path.startswith("/cut") else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        running.address = f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    empty_caches(tmp_path, monkeypatch)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def published(server, monkeypatch):
    """Make the command believe that the local server publishes the weights; returns a function."""

    def publish(path=f"/{NAME}", content=CONTENT):
        file = dataclasses.replace(
            inception_tf.WEIGHTS,
            names=(NAME,),
            url=server.address + path,
            sha256=hashlib.sha256(content).hexdigest(),
        )
        monkeypatch.setattr(inception_tf, "WEIGHTS", file)
        return file

    return publish


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_fetched_into_the_cache_and_found_there(published, tmp_path, server):
    """The file arrives whole in our cache folder, is found there, and is not fetched twice."""
    file = published()
    path = weights_command.fetch("inception-tf", None, yes=True)
    assert path == tmp_path / "cache" / "attnbench" / "weights" / NAME
    assert path.read_bytes() == CONTENT
    assert find(file) == path
    assert weights_command.fetch("inception-tf", None, yes=False) == path
    assert len(server.requests) == 1


def test_fetched_into_another_folder(published, tmp_path):
    """--to names the folder, which is made."""
    published()
    words = ["weights", "fetch", "inception-tf", "--yes", "--to", str(tmp_path / "mine")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert (tmp_path / "mine" / NAME).read_bytes() == CONTENT
    assert f"--weights {tmp_path / 'mine' / NAME}" in done.stdout
    assert f"-o evaluate.weights={tmp_path / 'mine' / NAME}" in done.stdout


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        (f"/{NAME}", b"another", r"gave another file: its SHA-256 is [0-9a-f]{64}, expected"),
        (f"/cut/{NAME}", CONTENT, r"cut after 1,750,000 of 3,500,000 bytes"),
        ("/gone.pth", CONTENT, "HTTP Error 404"),
    ],
)
def test_a_failed_fetch_leaves_nothing(published, tmp_path, path, content, said):
    """Another file, a cut connection and a missing page are one clear error each; no file stays."""
    published(path, content)
    with pytest.raises(DataError, match=said):
        weights_command.fetch("inception-tf", None, yes=True)
    assert files(tmp_path) == []


def test_no_server(published, tmp_path, server):
    """Without network it says so and leaves nothing."""
    published()
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"cannot fetch http://.*Connection refused.*check the network"):
        weights_command.fetch("inception-tf", None, yes=True)
    assert files(tmp_path) == []


def test_a_wrong_file_in_the_way_is_replaced_only_by_the_right_one(published, tmp_path):
    """A file of that name with another hash stays when fetching fails, and is replaced when it does not."""
    target = tmp_path / NAME
    target.write_bytes(b"old")
    published("/cut/" + NAME)
    with pytest.raises(DataError):
        weights_command.fetch("inception-tf", tmp_path, yes=True)
    assert target.read_bytes() == b"old"
    published()
    weights_command.fetch("inception-tf", tmp_path, yes=True)
    assert target.read_bytes() == CONTENT


def test_without_a_terminal_and_without_yes_nothing_is_fetched(tmp_path):
    """A script without --yes gets exit code 2, the address and the size; nothing is written."""
    done = command("weights", "fetch", "inception-tf", cwd=tmp_path)
    assert done.returncode == 2
    assert inception_tf.WEIGHTS.url in done.stderr
    assert "91 MiB" in done.stderr
    assert not done.stdout
    assert files(tmp_path) == []


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_a_terminal_is_asked(server, tmp_path, answer, code):
    """On a terminal it asks; only yes fetches."""
    program = (
        "import dataclasses, sys; from attnbench.metrics import inception_tf as module; "
        f"module.WEIGHTS = dataclasses.replace(module.WEIGHTS, names=({NAME!r},), "
        f"url='{server.address}/{NAME}', sha256='{hashlib.sha256(CONTENT).hexdigest()}'); "
        "from attnbench.cli import main; main()"
    )
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-c", program, "weights", "fetch", "inception-tf"],
        stdin=theirs,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert "Fetch weights.pth (91 MiB)" in done.stdout + done.stderr
    assert done.returncode == code, done.stderr
    assert len(files(tmp_path)) == len(server.requests) == (answer == "y")


def test_what_cannot_be_fetched():
    """DINOv2's file has no published hash: the error says how to get it; a misspelt name is corrected."""
    with pytest.raises(UserInputError, match="does not fetch the weights of dinov2; get it with `hf"):
        weights_command.fetch("dinov2", None, yes=True)
    with pytest.raises(UserInputError, match="did you mean 'inception-tf'"):
        weights_command.fetch("inception", None, yes=True)


def test_list_shows_every_place(tmp_path):
    """Every place is a row; what is missing is said with how to get it."""
    done = CliRunner().invoke(app, ["weights", "list"])
    assert done.exit_code == 0
    place = tmp_path / "cache" / "attnbench" / "weights" / inception_tf.WEIGHTS.names[0]
    assert str(place) in done.stdout
    assert "attnbench weights fetch inception-tf" in done.stdout
    assert "ATTNBENCH_DINOV2_WEIGHTS" in done.stdout
    assert "--weights" in done.stdout


def test_list_writes_the_home_folder_as_a_shell_does(tmp_path, monkeypatch):
    """Places below the user's home start with ~, so that they fit a terminal; a shell takes them so."""
    monkeypatch.setenv("HOME", str(tmp_path))
    said = CliRunner().invoke(app, ["weights", "list"]).stdout
    assert f"~/cache/attnbench/weights/{inception_tf.WEIGHTS.names[0]}" in said
    assert str(tmp_path) not in said


@pytest.mark.parametrize(("content", "said"), [(CONTENT, "as expected"), (b"other", "WRONG FILE")])
def test_list_checks_hashes(published, tmp_path, content, said):
    """A found file's hash is compared with the published one."""
    published()
    folder = tmp_path / "cache" / "attnbench" / "weights"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(content)
    assert said in CliRunner().invoke(app, ["weights", "list"]).stdout
