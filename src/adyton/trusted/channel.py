"""Attested connections between enclaves: each proves what it is, and each says whom it accepts. `docs/enclave-to-enclave.md`.

    ours = adyton.Expectation(platforms=["tdx"], runtime=["sha256:…"], signer=["sha256:…"], product_id=7)
    with trusted.channel.wrap(socket.create_connection(address), expect=ours) as sock:      # in one enclave
        sock.sendall(b"…")
    with trusted.channel.wrap(accepted, server_side=True, expect=theirs) as sock:           # in the other

Of what speaks over sockets of its own, as grpcio does, the connections go through a door: a unix socket inside the enclave.

    with trusted.channel.dial("peer.example:50051", expect=theirs) as door:
        stub = Stub(grpc.insecure_channel(door.target))
    with trusted.channel.serve("0.0.0.0:50051", to="unix-abstract:greeter", expect=theirs):  # where grpc's server listens
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from adyton.errors import ClosedError, UsageError
from adyton.trusted.proving import Prover, connection

if TYPE_CHECKING:
    from adyton.attestation.acl import Acl
    from adyton.attestation.identity import EnclaveIdentity
    from adyton.trusted.attested import AttestedSocket
    from adyton.trusted.doors import Dialled, Meet, Served

TIMEOUT = 30.0  # seconds


def own_identity() -> EnclaveIdentity:
    """What this enclave's evidence says that it is, as far as its runtime knows: of hardware, `runtime` and `machine` are "".

    So that an image, which cannot contain its own measurement, can expect its like.
    """
    return _prover("own_identity").identity


def wrap(
    sock: socket.socket,
    *,
    server_side: bool = False,
    expect: Acl,
    collateral: str | os.PathLike[str] | None = None,
    timeout: float = TIMEOUT,
) -> AttestedSocket:
    """A connected stream socket, attested at both ends; `server_side`: this end has accepted it. `sock` is its from now on, and closed on any error.

    `expect`: what the other enclave must be (Expectation, AllOf, AnyOf, Not). `collateral`: a folder of what vendors publish, as for `adyton verify`, but that no root in it is
    believed: a peer's TPM is one that `expect` names (machines).
    `timeout`: seconds until both have proven what they are.

    AttestationError: the other end is not what is expected, with every finding; it is told that, and nothing was sent to it. UnauthenticatedError: it does not
    accept this enclave. UsageError: an expectation that names too little. ConnectionError, TimeoutError, OSError: the connection. RemoteProtocolError: the
    other end speaks something else. PlatformError: this enclave has no evidence.
    """
    try:
        meet = _meet(_prover("wrap"), expect, collateral, timeout)
    except BaseException:
        sock.close()
        raise
    return meet(sock, server_side=server_side)


def dial(
    address: str, *, expect: Acl, collateral: str | os.PathLike[str] | None = None, timeout: float = TIMEOUT
) -> Dialled:
    """A door to an enclave at HOST:PORT, for what speaks to a unix socket: `door.target` is gRPC's name of it.

    The first connection is made at once, with the errors of `wrap`, and is for who comes first; a further one is made for each further one that comes.
    """
    from adyton.trusted.doors import Dialled

    meet = _meet(_prover("dial"), expect, collateral, timeout)
    return Dialled(address, meet, timeout)


def serve(
    address: str, *, to: str, expect: Acl, collateral: str | os.PathLike[str] | None = None, timeout: float = TIMEOUT
) -> Served:
    """Listen at HOST:PORT for enclaves, and lead each that is accepted to `to`, "unix:PATH" or "unix-abstract:NAME" in this enclave.

    What listens there must do so already. Port 0: any; `served.address` says which. Who is refused is told of by `logging`, as "adyton.trusted.channel".
    """
    from adyton.trusted.doors import Served

    meet = _meet(_prover("serve"), expect, collateral, timeout)
    return Served(address, to, meet, timeout)


def _prover(function: str) -> Prover:
    prover = connection.made
    if prover is None:
        raise ClosedError(
            f"channel.{function}() works in an enclave, and this is none (a process that an enclave forked is none either): load it and call it there"
        )
    return prover


def _meet(prover: Prover, expect: Acl, collateral: str | os.PathLike[str] | None, timeout: float) -> Meet:
    """What makes an attested connection of a connection."""
    from adyton.attestation.acl import Acl
    from adyton.attestation.collateral import Collateral, Folder
    from adyton.trusted.attested import attested

    if not isinstance(expect, Acl):
        raise UsageError(f"expect={expect!r} is no expectation: give Expectation(…), AllOf, AnyOf or Not of some")
    expect.check()
    # Who provides the folder may be the client, which is trusted with nothing: no root in it is believed.
    folder = None if collateral is None else Folder(os.fspath(collateral), trusted=False)

    def meet(sock: socket.socket, *, server_side: bool) -> AttestedSocket:
        known = Collateral() if folder is None else folder.collateral()
        return attested(sock, prover, expect, known, timeout, server_side=server_side)

    return meet
