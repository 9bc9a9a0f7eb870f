"""An enclave's evidence: made here if it is simulated, else around a report that another process asks the hardware for.

Nothing here waits: a report may take seconds.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

import msgspec

from adyton.attestation import sim
from adyton.attestation.evidence import MAX_EVIDENCE, HardwareBody, ImageClaims, seal
from adyton.attestation.hardware import HardwareReport
from adyton.attestation.identity import EnclaveIdentity
from adyton.channel.events import EvidenceRequested
from adyton.runtime.process import attesting
from adyton.runtime.process.supervisor.loop import Loop

_decode: Callable[[bytes], HardwareReport] = msgspec.msgpack.Decoder(HardwareReport).decode

# The evidence that a channel wants is given to the last argument, at once or later; None: there is none.
Prove = Callable[[Loop, EvidenceRequested, Callable[[bytes | None], None]], None]


def simulated(identity: EnclaveIdentity) -> Prove:
    """Of an enclave on the platform sim."""

    def prove(_: Loop, wanted: EvidenceRequested, take: Callable[[bytes | None], None]) -> None:
        take(sim.attest(identity, wanted.report_data))

    return prove


def by_hardware(identity: EnclaveIdentity, enrolled: socket.socket) -> Prove:
    """Of one on any other. `enrolled`: for that identity, see `attesting.enrol`."""
    image = ImageClaims.of(identity)

    def prove(loop: Loop, wanted: EvidenceRequested, take: Callable[[bytes | None], None]) -> None:
        try:
            answer = attesting.ask(enrolled, wanted.connection)
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


def in_turn(most: int, prove: Prove) -> Prove:
    """One at a time, so that who does not stand in this line, as the enclave's own client, waits for one of its proofs at most.

    `most`: in the line; of more, the newest is not made. Who asked may be gone: what the hardware was asked for is still made.
    """
    line: deque[Callable[[], None]] = deque()  # the first of them is under way

    def bounded(loop: Loop, wanted: EvidenceRequested, take: Callable[[bytes | None], None]) -> None:
        if len(line) >= most:
            take(None)
            return

        def taken(evidence: bytes | None) -> None:
            line.popleft()
            if line:
                line[0]()
            take(evidence)

        line.append(lambda: prove(loop, wanted, taken))
        if len(line) == 1:
            line[0]()

    return bounded


def _received(answer: socket.socket) -> HardwareReport | None:
    """None: there is no report; why, the attester has said on the server's standard error."""
    try:
        message = answer.recv(attesting.MAX_ANSWER)
        return _decode(message) if message else None
    except (OSError, msgspec.MsgspecError):
        return None
