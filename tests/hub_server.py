"""A small Hugging Face hub on 127.0.0.1: the routes that huggingface_hub uses to download single files."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """Commits of a repository, oldest first, each a folder; `main` is the last."""

    commits: dict[str, Path]
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch or a commit's own hash names."""
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


@dataclass
class Hub:
    """What the server has, what it was asked for, and how it fails."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Files sent, and those sent in part: `GET NAME/FILE` or `GET NAME/FILE from BYTE`."""
    cut_after: int | None = None
    """Close the connection after so many bytes of a file, once."""
    hang_after: int | None = None
    """Send so many bytes of a file, then nothing."""
    endpoint: str = ""

    def add(self, name: str, folder: Path, *, gated: bool = False) -> str:
        """Commit a folder's files to a repository, made where it is missing; return the commit."""
        repository = self.repositories.setdefault(name, Repository({}, gated))
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = folder
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        asked = FILE.fullmatch(self.path)
        repository = self.hub.repositories.get(asked[1]) if asked else None
        if asked is None or repository is None:
            return self._refuse(404, "RepoNotFound")
        if repository.gated and self.headers.get("authorization") != "Bearer right":
            return self._refuse(401, "GatedRepo")
        commit = repository.commit_of(asked[2])
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        path = repository.commits[commit] / asked[3]
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", commit)
        return self._send(f"{asked[1]}/{asked[3]}", path.read_bytes(), commit, with_body=with_body)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, content: bytes, commit: str, *, with_body: bool) -> None:
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if begin:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self.hub.asked.append(f"GET {name}" + (f" from {start}" if start else ""))
            self._body(content[start:])

    def _body(self, content: bytes) -> None:
        cut, hang = self.hub.cut_after, self.hub.hang_after
        if hang is not None and len(content) > hang:
            self.wfile.write(content[:hang])
            self.wfile.flush()
            time.sleep(30)  # longer than any test waits before it kills the client
        elif cut is not None and len(content) > cut:
            self.hub.cut_after = None
            self.wfile.write(content[:cut])
            self.close_connection = True
        else:
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub without repositories on a free port of 127.0.0.1."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
        thread.join()


def settings_of(hub: Hub, home: Path) -> dict[str, str]:
    """Return the environment in which a new process uses this hub, with its cache below `home`."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}


def use_here(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process use the hub: huggingface_hub reads the environment once, when it is imported."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
