"""A case as a node of a cluster is asked for it, and what a node lacks for it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attnbench.errors import AttnbenchError
from attnbench.results import Record
from attnbench.running.executors.conversation import Request
from attnbench.running.needs import missing_inputs
from attnbench.specs import Case
from attnbench.storage.atomic import storage_errors
from attnbench.storage.locks import alone_in
from attnbench.storage.store import Host

PACKAGE = Path(__file__).parents[2]


class Asking(Record):
    """One case as a task is asked for it: plain values, whatever is at the other end."""

    case: str
    """JSON."""
    store: Path
    log: Path
    device: str
    processes: int
    """On all nodes."""
    nodes: int = 1
    threads: int
    """On each node."""
    note: str
    beside_others: bool

    @property
    def processes_here(self) -> int:
        """How many of the processes each node has."""
        return self.processes // self.nodes

    def request(self, hosts: tuple[Host, ...] = ()) -> Request:
        """Return what the case's process is asked for; `hosts` are its further nodes."""
        return Request(
            case=Case.model_validate_json(self.case),
            store=self.store,
            device=self.device,
            processes=self.processes,
            hosts=hosts,
            threads=self.threads,
            note=self.note,
            beside_others=self.beside_others,
        )


def source_digest() -> str:
    """Return 16 hex digits of the SHA-256 of every Python file of this attnbench."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def held_mark(folder: Path) -> Iterator[None]:
    """Hold a folder of the store for the block, by which nodes know the store, and see the lock; it goes."""
    try:
        with storage_errors(folder), alone_in(folder, lambda text: None):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lacking(cases: Sequence[str], store: Path, mark: str, code: str) -> list[str]:
    """Return what keeps this node from running some cases, one sentence each.

    `cases` are JSON, `mark` the name of a file in the store that the driver has made and holds locked, `code`
    the driver's `source_digest`.
    """
    return other_code(code) or [*_lacking_store(store, mark), *lacking_for(cases)]


def other_code(code: str) -> list[str]:
    """Return what is wrong where this attnbench is not the driver's, whose `source_digest` is given."""
    if source_digest() == code:
        return []
    return [
        "its attnbench is of the driver's version, but of other code, which may have other results; "
        f"install the same one there ({PACKAGE})"
    ]


def lacking_for(cases: Sequence[str]) -> list[str]:
    """Return what of plugins, data and weights is not here for some cases, one sentence each."""
    found = []
    for case in map(Case.model_validate_json, cases):
        found += _lacking_plugins(case)
        found += missing_inputs(case)
    return list(dict.fromkeys(found))


def _lacking_store(store: Path, mark: str) -> list[str]:
    """Return what is wrong with the store as this node sees it."""
    advice = "choose with --runs a folder on a file system that all nodes share under the same path"
    try:
        with (store / mark).open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return []
    except FileNotFoundError:
        return [f"it has no folder {store} or another one than the driver; {advice}"]
    except OSError as error:
        return [f"{store}: {error.strerror}; {advice}"]
    return [
        f"it does not see the file locks (flock) that the driver holds in {store}, so that nothing keeps two "
        "cases apart that write there; mount it with locks (Lustre: -o flock; NFS: not -o nolock)"
    ]


def _lacking_plugins(case: Case) -> list[str]:
    from attnbench.plugins import registry

    found = []
    try:
        registry().extractor(case.evaluate.extractor)
        for name, code in case.code.items():
            registry().backend(name)
            if registry().backends[name].code != code:
                found.append(
                    f"its plugin of {name!r} is of other code than the driver's; install the same one"
                )
    except AttnbenchError as error:
        found.append(f"{error}; install there what the driver has")
    return found


def plain(case: Case) -> str:
    """Return a case as tasks are handed it."""
    return json.dumps(case.model_dump(mode="json"))


def distinct(cases: Sequence[Case]) -> list[str]:
    """Return of the cases that need the same things from a node one each."""
    found: Mapping[str, Case] = {
        json.dumps(
            [
                case.code,
                case.data.model_dump(mode="json"),
                str(case.train.init_from),
                None if case.train.teacher is None else str(case.train.teacher.model),
                case.evaluate.model_dump(mode="json", include={"extractor", "weights"}),
            ],
            sort_keys=True,
        ): case
        for case in cases
    }
    return [plain(case) for case in found.values()]
