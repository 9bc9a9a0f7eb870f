"""The sealing keys of an enclave on hardware: each is asked for where the platform's root key is, see `attesting`."""

from __future__ import annotations

import select
import socket

from adyton.errors import PlatformError
from adyton.runtime.process import attesting
from adyton.runtime.process.key_answers import understood

PATIENCE = 3.0  # seconds: nothing else goes on meanwhile. Keys of the platform's present state come at once


class AskedKeys:
    """See `attestation.sealing.keys.Keys`. `enrolled`: for this enclave's identity."""

    def __init__(self, enrolled: socket.socket) -> None:
        self._enrolled = enrolled
        self._told = b""

    @property
    def tcb(self) -> bytes:
        """See there."""
        self._told = self._told or _received(self._enrolled)
        return understood(self._told)

    def key(self, header: bytes) -> bytes:
        """See there."""
        try:
            answer = attesting.ask(self._enrolled, header)
        except OSError as error:
            raise _ended() from error
        with answer:
            return understood(_received(answer))


def _received(sock: socket.socket) -> bytes:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if not poller.poll(PATIENCE * 1000):
        raise PlatformError(
            f"nothing could be sealed or opened: the server's hardware did not answer within {PATIENCE:g} s. Try again in a moment"
        )
    try:
        message = sock.recv(attesting.MAX_ANSWER)
    except OSError as error:
        raise _ended() from error
    if not message:
        raise _ended()
    return message


def _ended() -> PlatformError:
    return PlatformError(
        "nothing can be sealed here any more: the process that asks this server's hardware has ended. Load the enclave again"
    )
