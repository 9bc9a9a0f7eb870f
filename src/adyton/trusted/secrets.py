"""Secrets that a broker gives to this enclave, and to no other program: `docs/broker.md`.

    key = trusted.secret("database")                                           # of the broker that the image names
    key = trusted.secret("database", broker="broker.example:4322", key="sha256:…")

The program connects to the broker as to any server, so the client must allow that (`allow_net`). Evidence is made, and the connection ends, in the
enclave's supervisor; the client sees ciphertext.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adyton.crypto.digest import is_digest
from adyton.errors import ClosedError, UsageError
from adyton.trusted.addresses import host_and_port
from adyton.trusted.connection import Connection

TIMEOUT = 30.0  # seconds


class Asker(Protocol):
    """How a secret is asked for. `image`: what the image says: the broker's address and keys, if it names one."""

    @property
    def image(self) -> tuple[str, Sequence[str]] | None: ...
    def ask(self, name: str, host: str, port: int, keys: Sequence[str], timeout: float) -> bytes: ...


connection: Connection[Asker] = Connection()


def secret(
    name: str, *, broker: str | None = None, key: str | Sequence[str] | None = None, timeout: float = TIMEOUT
) -> bytes:
    """The secret of that name. `broker` ("HOST:PORT") and `key` (the digest of the broker's key, or some of which it has one): what the image says.

    The address may come from anywhere, the key must not: whoever chooses it can give the enclave secrets of his own. `timeout`: seconds.

    PermissionError: the broker does not give it to this enclave, or the client does not allow the connection. NotGenuineError: another than that
    broker answers. UnauthenticatedError: it accepts no evidence of this enclave. OSError: it cannot be reached. UsageError: no broker is named.
    """
    asker = connection.made
    if asker is None:
        raise ClosedError(
            "secret() works in an enclave, and this is none (a process that an enclave forked is none either): load it and call it there"
        )
    of_image = asker.image
    address = broker or (of_image[0] if of_image else None)
    keys = [key] if isinstance(key, str) else list(key or (of_image[1] if of_image else ()))
    if address is None or not keys:
        raise UsageError(
            f'secret({name!r}): the image names no broker: say broker="HOST:PORT" and key="sha256:…", or build it with '
            'broker = { address = "HOST:PORT", key = ["sha256:…"] }'
        )
    for each in keys:
        if not isinstance(each, str) or not is_digest(each):
            raise UsageError(
                f"secret(key={each!r}): it is sha256: and 64 hex digits, as `adyton broker` says at its start"
            )
    host, port = host_and_port(address, f"secret(broker={address!r})")
    return asker.ask(name, host, port, keys, timeout)
