"""Connections between machines of one run: JSON messages, keys, and the interface they go over."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import TypeVar

from pydantic import ValidationError

from attnbench.errors import AttnbenchError
from attnbench.results import Record
from attnbench.storage.store import Host

CONNECT_S = 30.0
SILENT_S = 5  # until the kernel asks whether the other end is there, and between its questions
UNANSWERED = 3  # questions, after which the connection has ended
INTERFACE = "GLOO_SOCKET_IFNAME"  # which gloo looks up the host's name without, often that of the loopback
_SIOCGIFADDR = 0x8915  # netdevice(7)
_Kind = TypeVar("_Kind", bound=Record)


class Talk:
    """One end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(None)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", SILENT_S),
            ("TCP_KEEPINTVL", SILENT_S),
            ("TCP_KEEPCNT", UNANSWERED),
            ("TCP_USER_TIMEOUT", 1000 * SILENT_S * (UNANSWERED + 1)),  # ms, of what was sent
        ):
            if hasattr(socket, name):  # Linux has all of them
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.here: str = end.getsockname()[0]
        self._socket, self._connection = end, Connection(os.dup(end.fileno()))

    def open(self, key: str, *, asks_first: bool) -> bool:
        """Tell whether both ends know the key."""
        steps = (deliver_challenge, answer_challenge) if asks_first else (answer_challenge, deliver_challenge)
        try:
            if not asks_first and not self._connection.poll(CONNECT_S):
                raise EOFError
            for step in steps:
                step(self._connection, bytes.fromhex(key))
        except (AuthenticationError, EOFError, OSError, AssertionError):
            self.close()
            return False
        return True

    def send(self, message: Record) -> None:
        """Send a message; where the other end is gone, `receive` tells."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(message.model_dump_json().encode())

    def receive(self, kind: type[_Kind], timeout_s: float | None = None) -> _Kind | None:
        """Return the next message, or None at the end; raises TimeoutError."""
        try:
            if not self._connection.poll(timeout_s):
                raise TimeoutError
            return kind.model_validate_json(self._connection.recv_bytes())
        except TimeoutError as error:
            if error.errno is None:
                raise
            return None  # ETIMEDOUT: nobody answers there
        except (EOFError, OSError, ValidationError):
            return None

    def close(self) -> None:
        """End the connection, at both ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Close it when nobody reads it any more."""
        self.close()
        self._socket.close()
        self._connection.close()


def open_talk(host: Host) -> Talk:
    """Return a connection to another machine; raises AttnbenchError."""
    lost = f"machine {host.name} ({host.address}:{host.port}) cannot be reached"
    again = "look whether attnbench's processes there live, and whether a firewall is between the machines"
    try:
        talk = Talk(socket.create_connection((host.address, host.port), CONNECT_S))
    except OSError as error:
        raise AttnbenchError(f"{lost}: {error.strerror or error}; {again}") from error
    if not talk.open(host.key, asks_first=False):
        raise AttnbenchError(f"{lost}: what listens there is not of this run; {again}")
    return talk


def interface_setting(address: str) -> dict[str, str]:
    """Return the variable that has gloo use the interface of an address, unless it is set already."""
    if INTERFACE in os.environ:
        return {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no such address
                found = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return {INTERFACE: name}
    return {}
