"""What runs on the nodes of a Ray cluster: a case beside its worker, what it says, and what a node lacks.

Nothing here imports Ray at the top: it is imported by Ray's workers, which have it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.errors import AttnbenchError
from attnbench.processes import ChildProcess
from attnbench.results import Record
from attnbench.running.executors.conversation import Conversation, Request
from attnbench.running.executors.cradle import KEEP_MEMORY_MAPPED, MODULE, NAME
from attnbench.running.executors.interface import Finished
from attnbench.running.needs import missing_inputs
from attnbench.specs import Case
from attnbench.storage.store import NOTICE, STAGE_ENDED

POSTS_A_SECOND = 100.0  # of all cases together: what an actor takes with ease
LEAST_S = 0.1  # between two posts of a case
ANSWER_S = 30.0  # the mailbox may be on a machine that is slow, or cut off for a while
KEPT = 200  # notices and ended stages of a case that nobody has fetched yet
PACKAGE = Path(__file__).parents[2]

Words = tuple[str, int, int, str]
"""Stage, done, total, note."""


class Asking(Record):
    """One case as a task is asked for it: plain values, whatever is at the other end."""

    case: str
    """JSON."""
    store: Path
    log: Path
    device: str
    processes: int
    threads: int
    note: str
    beside_others: bool


class Mailbox:
    """An actor beside the driver: what cases say until it is fetched, and what they are told.

    Bounded: of a case's progress the last is kept, of its notices and ended stages KEPT.
    """

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._begun: set[str] = set()
        self._progress: dict[str, Words] = {}
        self._said: dict[str, deque[Words]] = {}

    def begin(self, key: str) -> bool:
        """Note that a task begins, unless it has been told to stop: then it must not."""
        if not self._signals:
            self._begun.add(key)
        return not self._signals

    def post(self, key: str, progress: Words | None, said: Sequence[Words]) -> tuple[list[int], float]:
        """Keep what a case says; return the signals so far, and after how many seconds to post again."""
        self._begun.add(key)  # a mailbox that was lost and made anew has not heard of it
        if progress is not None:
            self._progress[key] = progress
        if said:
            self._said.setdefault(key, deque(maxlen=KEPT)).extend(said)
        return self._signals, max(LEAST_S, len(self._begun) / POSTS_A_SECOND)

    def fetch(self, signals: Sequence[int], forget: Sequence[str]) -> tuple[set[str], dict[str, list[Words]]]:
        """Take the driver's signals in; return which tasks have begun and what was said since the last time.

        `forget` names tasks that have ended.
        """
        self._signals = list(signals)
        self._begun -= set(forget)
        news = {key: list(said) for key, said in self._said.items()}
        for key, words in self._progress.items():
            news.setdefault(key, []).append(words)
        self._said, self._progress = {}, {}
        return self._begun, news


class _Post:
    """Carries what a case says to the mailbox, and the signals back; a thread beside the conversation."""

    def __init__(self, mailbox: Any, key: str) -> None:
        self._mailbox, self._key = mailbox, key
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._progress: Words | None = None
        self._said: deque[Words] = deque(maxlen=KEPT)

    def hear(self, stage: str, done: int, total: int, note: str) -> None:
        """Keep for the next post what the case's process says."""
        with self._lock:
            if stage in (NOTICE, STAGE_ENDED):
                self._said.append((stage, done, total, note))
            else:
                self._progress = (stage, done, total, note)

    @contextlib.contextmanager
    def carrying(self, talk: Conversation) -> Iterator[None]:
        """Post now and then while the block runs, and once after it."""
        thread = threading.Thread(target=self._carry, args=(talk,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _carry(self, talk: Conversation) -> None:
        import ray

        pause_s, is_last = LEAST_S, False
        while not is_last:
            is_last = self._ended.wait(pause_s)
            with self._lock:
                progress, said = self._progress, list(self._said)
                self._progress = None
                self._said.clear()
            try:
                posted = self._mailbox.post.remote(self._key, progress, said)
                signals, pause_s = ray.get(posted, timeout=ANSWER_S)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:  # the driver's machine is gone: what is trained is worth saving
                signals = [signal.SIGTERM]
            for times, number in enumerate(signals[:2], start=1):
                talk.stop(number, times)


def run_order(asking: dict[str, Any], key: str, mailbox: Any) -> dict[str, Any]:
    """Run a case's process beside this Ray worker and hear it out; the body of a task.

    Returns {"result": ...}, or {"interrupted": ...} where it was told to stop.
    """
    import ray

    if not ray.get(mailbox.begin.remote(key)):
        return {"interrupted": ""}
    asked = Asking.model_validate(asking)
    request = Request(
        case=Case.model_validate_json(asked.case),
        store=asked.store,
        device=asked.device,
        processes=asked.processes,
        threads=asked.threads,
        note=asked.note,
        beside_others=asked.beside_others,
    )
    # Ray sets OMP_NUM_THREADS in a worker to the CPUs of the first task that it runs there, where nobody has
    # set it: what the case computes with is said here, before a library reads it
    environment = {**KEEP_MEMORY_MAPPED, **os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    post = _Post(mailbox, key)
    with ChildProcess(MODULE, NAME, environment=environment, log=asked.log) as child:
        talk = Conversation(child, request, post.hear)
        with post.carrying(talk):
            outcome = talk.hear_out()
    if isinstance(outcome, Finished):
        return {"result": outcome.result.model_dump(mode="json")}
    return {"interrupted": outcome.message}


def source_digest() -> str:
    """Return 16 hex digits of the SHA-256 of every Python file of this attnbench."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def lacking(cases: Sequence[str], store: Path, mark: str, code: str) -> list[str]:
    """Return what keeps this node from running some cases, one sentence each.

    `cases` are JSON, `mark` the name of a file in the store that the driver has made and holds locked, `code`
    the driver's `source_digest`.
    """
    if source_digest() != code:
        return [
            "its attnbench is of the driver's version, but of other code, which may have other results; "
            f"install the same one there ({PACKAGE})"
        ]
    found = _lacking_store(store, mark)
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
                case.evaluate.model_dump(mode="json", include={"extractor", "weights"}),
            ],
            sort_keys=True,
        ): case
        for case in cases
    }
    return [plain(case) for case in found.values()]
