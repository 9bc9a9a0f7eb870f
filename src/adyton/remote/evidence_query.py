"""Evidence of an enclave that runs, fresh: a connection to it that never joins its session, and so moves nothing but this.

    transport ──► handshake ──► a nonce ──► evidence, with what it is bound to ──► hung up

It is not said to be over in good order: that could end an enclave whose client has not come yet.
"""

from __future__ import annotations

import contextlib
import threading

from adyton.attestation.evidence import with_bound
from adyton.channel.client import ClientChannel, EvidenceReceived
from adyton.errors import ConnectionLostError, DeadlineError
from adyton.remote.transport import Transport


class _Handshake:
    """What is sent (see `transport.Source`), and what came. The channel is one thread's at a time."""

    def __init__(self) -> None:
        self._channel = ClientChannel()
        self._lock = threading.Lock()
        self.evidence = b""

    @property
    def due(self) -> bool:
        return bool(self.evidence) or self._channel.due

    def pull(self) -> bytes | None:
        with self._lock:
            return None if self.evidence else self._channel.data_to_send()

    def receive(self, data: bytes | memoryview) -> None:
        """RemoteProtocolError, EvidenceMalformedError."""
        with self._lock:
            for event in self._channel.receive(data):
                if isinstance(event, EvidenceReceived):
                    self.evidence = with_bound(event.evidence, self._channel.bound)


def evidence_of(transport: Transport, timeout: float) -> bytes:
    """The evidence, as `adyton verify` reads it; nothing of it is believed here. `timeout` in seconds. Closes the transport.

    DeadlineError, ConnectionLostError, UnreachableError, UnauthenticatedError, RemoteProtocolError, EvidenceMalformedError.
    """
    handshake, late = _Handshake(), threading.Event()

    def give_up() -> None:
        late.set()
        transport.hang_up()

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.closing(transport.run(handshake)) as incoming:
            for data in incoming:
                handshake.receive(data)
                if handshake.evidence:
                    return handshake.evidence
                transport.wake()
    except ConnectionLostError:
        if not late.is_set():
            raise
    finally:
        timer.cancel()
        transport.close()
    if late.is_set():
        raise DeadlineError(f"the enclave showed no evidence within {timeout:g} s")
    raise ConnectionLostError(
        "the connection to the enclave ended without evidence: it has ended, or its platform gave none (its server's standard error says so)"
    )
