"""What a program writes waits a moment for more of it, and no longer, whatever made it wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from adyton.attestation.identity import EnclaveIdentity
from adyton.hostcall import abi
from adyton.runtime.process.supervisor import serve
from adyton.runtime.process.supervisor.proving import simulated
from adyton.runtime.process.supervisor.waits import Waits

DIGEST = "sha256:" + "0" * 64
TICKET = 7
PATIENCE = 5.0  # seconds


class Files:
    """A file server of which a write that waited for room goes on when the client has confirmed another, and is held back then."""

    def __init__(self) -> None:
        self.waits = Waits()
        self.watching = None
        self.patience = None
        self.holds = False
        self.pushed = 0

    def resume(self, ticket: int, result: abi.Result) -> list[object]:
        assert (ticket, result) == (TICKET, abi.Written(9))
        self.holds = True
        return []

    def push(self) -> list[object]:
        self.holds = False
        self.pushed += 1
        return []

    def told(self) -> None:
        pass


class Guest:
    stdout = stderr = pidfd = shared = None
    pid = 0

    def __init__(self) -> None:
        self.control, self.mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fuse, self.kernel = os.pipe()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    with guest.control, guest.mine:
        yield guest
    os.close(guest.fuse)
    os.close(guest.kernel)


def test_a_write_that_had_to_wait_for_room_is_sent_though_nothing_follows_it(guest: Guest) -> None:
    identity, files = EnclaveIdentity("sim", DIGEST, "", 0, 0, True, DIGEST, ""), Files()
    client, relay = socket.socketpair()
    with client, relay:
        program = serve.Program("application", [], debug=True)
        supervisor = serve.Supervisor(relay, guest, program, identity, simulated(identity), files, lambda: None)  # type: ignore[arg-type]
        assert supervisor._requests is not None
        supervisor._requests._waiting[1] = TICKET, abi.Write(1, 0, bytes(9))
        supervisor._requests.replied(1, msgspec.msgpack.encode(abi.Written(9)), ok=True)
        supervisor._loop.later(PATIENCE, supervisor._loop.stop)
        while not files.pushed and supervisor._loop.turn():
            pass
        supervisor._loop.close()
    assert files.pushed == 1
