"""An enclave's evidence: made here if it is simulated, else around a report that another process asks the hardware for.

Nothing here waits: a report may take seconds.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from adyton.attestation import sim
from adyton.attestation.evidence import MAX_EVIDENCE, HardwareBody, ImageClaims, seal
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.identity import EnclaveIdentity
from adyton.runtime.process import attesting
from adyton.runtime.process.supervisor.loop import Loop

_decode: Callable[[bytes], HardwareReport] = msgspec.msgpack.Decoder(HardwareReport).decode

# Evidence over 64 bytes of report data is given to the last argument, at once or later; None: there is none.
Prove = Callable[[Loop, bytes, Callable[[bytes | None], None]], None]


def simulated(identity: EnclaveIdentity) -> Prove:
    """Of an enclave on the platform sim."""

    def prove(_: Loop, report_data: bytes, take: Callable[[bytes | None], None]) -> None:
        take(sim.attest(identity, report_data))

    return prove


def by_hardware(identity: EnclaveIdentity, asking: socket.socket) -> Prove:
    """Of one on any other. `asking`: see `attesting.ask`."""
    image = ImageClaims.of(identity)

    def prove(loop: Loop, report_data: bytes, take: Callable[[bytes | None], None]) -> None:
        try:
            answer = attesting.ask(asking, report_data)
        except OSError:
            take(None)
            return

        def answered() -> None:
            loop.forget(answer)
            with answer:
                report = _received(answer)
            if report is None:
                take(None)
                return
            evidence = seal(identity.platform, HardwareBody(report.report, image, list(report.certificates)))
            take(evidence if len(evidence) <= MAX_EVIDENCE else None)

        loop.read(answer, answered)

    return prove


def _received(answer: socket.socket) -> HardwareReport | None:
    """None: there is no report; why, the attester has said on the server's standard error."""
    try:
        message = answer.recv(attesting.MAX_ANSWER)
        return _decode(message) if message else None
    except (OSError, msgspec.MsgspecError):
        return None
