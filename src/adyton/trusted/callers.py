"""Who calls the enclave, as far as the enclave knows.

A client that loads with `adyton.load(caller=…)` shows a key to the enclave itself, in the handshake of the attested channel, so nobody on
the way can pretend to hold it. The runtime knows that the client holds that key, and no more: which keys, or whose certificates, may do what is
for the enclave's code to decide.
"""

from __future__ import annotations

import threading

import msgspec


class Caller(msgspec.Struct, frozen=True):
    """`key`: "sha256:…" of its public key (DER SubjectPublicKeyInfo), of which it has proven to hold the private one. `certificate`: DER.

    `chain`: further certificates (DER), as it showed them. Nothing that any of them says has been checked, not even its dates.
    """

    key: str
    certificate: bytes
    chain: tuple[bytes, ...] = ()


class _Known(threading.local):
    """Of the calling thread, else of the process."""

    process: Caller | None = None
    thread: Caller | None = None


_known = _Known()


def caller() -> Caller | None:
    """The client that has loaded this enclave, and that makes its calls; None if it has shown no key, and outside of an enclave.

    It is the same for as long as the enclave lives. Programs that the enclave executes do not know it.
    """
    return _known.thread or _known.process


def tell(caller: Caller | None, *, whole_process: bool) -> None:
    """Tell this thread, or every thread, who calls; the runtime does this."""
    if whole_process:
        _Known.process = caller
    else:
        _known.thread = caller
