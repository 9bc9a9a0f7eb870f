"""A process of a provision server that has the relays of several enclaves, or dials the client of one.

    python -m adyton.provision.relay_process DESCRIPTOR GRACE [HOST LOWEST HIGHEST [CERT KEY [CA]]]

DESCRIPTOR: a socket to the spawner, see `relay_messages`, by which it is given enclaves, and with which it ends. GRACE: seconds that they wait
for another connection of their clients'. It listens at the first of those ports that it can have (0: a free one); or, without them, dials.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

import msgspec

from adyton.errors import AdytonError, UsageError
from adyton.provision.lifetime import Stop
from adyton.provision.proxy import dial_for_enclave, drain
from adyton.provision.relay_messages import (
    ENCLAVES,
    Carried,
    Carry,
    Failed,
    Finished,
    Leaving,
    Missed,
    Ready,
    ordered,
    say,
)
from adyton.remote import event_engine
from adyton.remote.address import TLS

if TYPE_CHECKING:
    import grpc

# RPCs at once: as many streams as enclaves may have half of the time, and who is about to be turned away.
RPCS = 8 * ENCLAVES + 256


def main(arguments: list[str]) -> None:
    """Until the spawner ends it."""
    event_engine.keep_off()
    descriptor, grace, *listening = arguments
    spawner = socket.socket(fileno=int(descriptor))
    os.set_inheritable(spawner.fileno(), False)
    with contextlib.suppress(ConnectionError):  # the spawner is gone, and so will we be
        if listening:
            listen(spawner, float(grace), listening[0], range(int(listening[1]), int(listening[2]) + 1), listening[3:])
        else:
            dial(spawner, float(grace))


def listen(spawner: socket.socket, grace: float, host: str, ports: range, files: list[str]) -> None:
    """Relay for whatever enclaves it is given. ConnectionError: the spawner is gone."""
    from adyton.remote.process_reports import ProcessReporters
    from adyton.remote.relay import Relays

    stop = Stop()
    stop.on_signals()
    tls = TLS(ca=files[2] if len(files) > 2 else None, cert=files[0], key=files[1]) if files else None
    relays, reporters = Relays(grace), ProcessReporters()
    started = _server([relays.handler(), reporters.handler()], host, ports, tls, grace)
    if started is None:
        say(spawner, Failed())
        return
    server, port = started
    say(spawner, Ready(port))

    def tell(message: msgspec.Struct) -> None:
        with contextlib.suppress(OSError):  # the spawner is gone
            say(spawner, message)

    def begin(carry: Carry, control: socket.socket) -> None:
        def finished() -> None:
            reporters.detach(carry.session)
            tell(Finished(carry.number))

        reporters.attach(carry.supervisor, carry.session)
        relays.attach(control, carry.session, finished, kept=carry.kept)
        tell(Carried(carry.number))

    def receive() -> None:
        while (given := ordered(spawner)) is not None:
            begin(*given)
        stop.set(b"p")

    threading.Thread(target=receive, name="adyton-orders", daemon=True).start()
    if stop.wait() == b"s":
        tell(Leaving())
        drain(stop)
    relays.close()
    server.stop(1).wait(2)


def _server(
    handlers: list[grpc.GenericRpcHandler], host: str, ports: range, tls: TLS | None, grace: float
) -> tuple[grpc.Server, int] | None:
    """One that serves, and its port; None: none of them can be had."""
    from adyton.remote.connection import open_server
    from adyton.remote.rpc_threads import ThreadEach

    for each in ports:
        with contextlib.suppress(UsageError):
            server, port = open_server(
                handlers, f"{host}:{each}", tls, ThreadEach("adyton-rpc"), rpcs=RPCS, grace=grace
            )
            server.start()
            return server, port
    return None


def dial(spawner: socket.socket, grace: float) -> None:
    """Relay for one enclave, whose client it dials. ConnectionError: the spawner is gone."""
    say(spawner, Ready(0))
    given = ordered(spawner)
    if given is None:
        return
    carry, control = given
    assert carry.dial is not None

    def reached() -> None:
        with contextlib.suppress(OSError):  # the spawner is gone
            say(spawner, Carried(carry.number))

    try:
        dial_for_enclave(
            control,
            carry.supervisor,
            carry.dial,
            os.dup(spawner.fileno()),
            reached,
            grace,
        )
    except AdytonError as error:
        say(spawner, Missed(carry.number, " ".join(error.message.split())))
    say(spawner, Finished(carry.number))


if __name__ == "__main__":
    main(sys.argv[1:])
