"""What an enclave says that its client does not take waits in the enclave, beyond what its supervisor may hold."""

from __future__ import annotations

import socket

import pytest

from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sim import attest
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.supervisor import serve
from adyton.runtime.process.supervisor.guest_process import Program

DIGEST = "sha256:" + "0" * 64


class Guest:
    fuse = stdout = stderr = pidfd = shared = None
    pid = 0

    def __init__(self) -> None:
        self.control, self.mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_links_are_read_again_when_the_client_has_taken_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_UNSENT", 1 << 16)
    identity, guest = EnclaveIdentity("sim", DIGEST, "", 0, 0, True, DIGEST, ""), Guest()
    client, relay = socket.socketpair()
    mine, other = socket.socketpair()
    gone, its_other = socket.socketpair()
    with client, relay, mine, other, its_other, guest.control, guest.mine:
        supervisor = serve.Supervisor(
            relay, guest, Program("application", [], debug=True), identity, attest, None, lambda: None
        )
        session, loop = supervisor._session, supervisor._loop
        link, closed = supervisor._watch_link(mine, 1), supervisor._watch_link(gone, 2)
        session.notify("output", bytes(1 << 17))
        for each in (other, its_other):
            each.sendall(protocol.encode(protocol.Return(ok=True, body=b"")))
        while len(supervisor._paused) < 2:
            loop.turn()
        assert link.reader.held == closed.reader.held == 0
        gone.close()
        supervisor._flush()
        assert len(supervisor._paused) == 2
        while session.pending_bytes > serve.MAX_UNSENT:
            session.data_to_send()
        supervisor._flush()
        assert not supervisor._paused
        loop.turn()
        assert supervisor._reason == "the enclave was ended: its guest returned from a call that nobody made"
        loop.close()
