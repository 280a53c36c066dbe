"""Several nodes of a cluster for one case: the first has the case's process, the others lend it processes.

They do it as machines under torchrun do (`stages/distributed/machines.py`): how they find each other is the
engine's, what they say to each other, and what becomes of a case whose node is lost, stands here.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from attnbench.errors import AttnbenchError
from attnbench.results import Record
from attnbench.running.executors.agreement import other_versions, versions
from attnbench.running.executors.asking import Asking, lacking_for, other_code
from attnbench.running.executors.conversation import failed_result
from attnbench.running.executors.cradle import KEEP_MEMORY_MAPPED
from attnbench.running.executors.interface import Finished, Interrupted
from attnbench.specs import Case
from attnbench.stages.distributed.machines import Lender, watch
from attnbench.stages.distributed.talk import Talk, open_talk
from attnbench.storage.atomic import storage_errors
from attnbench.storage.store import Host

GATHER_S = 300.0  # for all nodes of a case to start and to look what they have
_ANY_PORT = 9  # nothing is sent there


class Lent(Record):
    """What a further node of a case says to the first one."""

    name: str
    address: str = ""
    port: int = 0
    versions: dict[str, str]
    problems: list[str]
    """What keeps it from lending, one sentence each."""


class CannotJoinError(AttnbenchError):
    """The further nodes of a case do not join it; `answer` is what its task says."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(str(answer))
        self.answer = answer


def new_key() -> str:
    """Return what the nodes of a case know each other by."""
    return secrets.token_hex(32)


def write_key(path: Path, key: str) -> None:
    """Write a key into a new file that nobody else may read; raises StorageError."""
    with storage_errors(path):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(key)


def lend(asked: Asking, name: str, code: str, first: str, key: str) -> tuple[Lent, Lender | None]:
    """Begin to lend processes, unless something is missing here; return what to tell the first node, too.

    `code` is the driver's `source_digest`, `first` the address of the first node.
    """
    told = Lent(name=name, versions=versions(), problems=other_code(code) or lacking_for([asked.case]))
    if told.problems:
        return told, None
    try:
        lender = Lender(_address_towards(first), key, KEEP_MEMORY_MAPPED)
    except OSError as error:
        return told.model_copy(update={"problems": [f"it cannot listen for the first node ({error})"]}), None
    return told.model_copy(update={"address": lender.address, "port": lender.port}), lender


def _address_towards(other: str) -> str:
    """Return the address of this machine that another one sees, on the way to it."""
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((other, _ANY_PORT))  # without a packet
        return str(asking.getsockname()[0])


class Crew:
    """The further nodes of a case, which lend processes to it for the block.

    Raises CannotJoinError where one lacks something, which is the case's failure, or where one is gone.
    """

    def __init__(self, asked: Asking, key: str, lent: Sequence[Lent]) -> None:
        self._asked, self._lent, self._talks = asked, lent, list[Talk]()
        self.hosts = tuple(
            Host(name=one.name, address=one.address, port=one.port, processes=asked.processes_here, key=key)
            for one in lent
        )

    def __enter__(self) -> Crew:
        ours = versions() if self._lent else {}
        lacks = [
            f"node {one.name}: {text}"
            for one in self._lent
            for text in one.problems or other_versions(one.versions, ours)
        ]
        if lacks:
            raise CannotJoinError(failed(self._asked, "; ".join(lacks)))
        try:
            for host in self.hosts:
                self._talks.append(watch(host))
        except AttnbenchError as error:
            self.__exit__(None, None, None)
            raise CannotJoinError(lost(str(error))) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for talk in self._talks:
            talk.forget()

    def answer(self, outcome: Finished | Interrupted | None) -> dict[str, Any]:
        """Return what a task says of a case's end: failed for want of a node, it is lost and not failed."""
        if isinstance(outcome, Finished):
            gone = self._gone() if outcome.result.status == "failed" else ""
            return lost(gone) if gone else {"result": outcome.result.model_dump(mode="json")}
        return {"interrupted": outcome.message if outcome is not None else ""}

    def _gone(self) -> str:
        """Return which node has ended, or cannot be reached; empty: none."""
        for host, talk in zip(self.hosts, self._talks, strict=True):
            try:
                with contextlib.suppress(TimeoutError):  # it lives
                    talk.receive(Lent, 0.0)
                    return f"node {host.name} is lost: it is gone or cannot be reached"
                open_talk(host).forget()  # its power may be off: the kernel asks it only now and then
            except AttnbenchError as error:
                return str(error)
        return ""


def failed(asked: Asking, reason: str) -> dict[str, Any]:
    """Return the answer of a task whose case cannot be run for a reason that would be there again."""
    case = Case.model_validate_json(asked.case)
    result = failed_result(case, reason, asked.device, asked.threads)
    return {"result": result.model_dump(mode="json")}


def lost(how: str) -> dict[str, Any]:
    """Return the answer of a task that has lost a node of its case: it is to be tried again."""
    return {"lost": how}
