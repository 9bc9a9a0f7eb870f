"""An SGX enclave's life, from Gramine's start of Python to its end: be handed the image, verify it, run it beside its supervisor.

    main thread          the program, as guest.run has it
    adyton-supervisor    Supervisor.run, as in a process of its own: session, channel, sealing
    adyton-door          see door.py

The two halves speak over the same links as two processes do, descriptors being passed within the process (passing.py). Nothing keeps the
program from the supervisor's memory, nor from Gramine's files, where it has the enclave's sealing key, and quotes made over anything. So each enclave is
for one image, which its manifest names (application.py): all that a program can pretend to be is itself. What it prints goes to pipes of
the enclave's own, and to the client: the standard streams that it was started with are the host's.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import threading
from collections.abc import Callable
from typing import NoReturn

import msgspec

from adyton.allocator import keep_freed_memory
from adyton.attestation.dcap.attest import Sgx
from adyton.attestation.evidence import HardwareBody, ImageClaims, seal
from adyton.attestation.hardware import Attester
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.header import To
from adyton.attestation.sealing.keys import RootKeys, Sealing
from adyton.attestation.sealing.roots import open_root
from adyton.channel.events import EvidenceRequested
from adyton.crypto.digest import digest_of
from adyton.errors import AdytonError, ImageError, PlatformError
from adyton.image.layers import PACKAGES, unpack_layer
from adyton.image.oci import DEPENDENCY_LAYER, Image
from adyton.runtime.process import root
from adyton.runtime.process.guest import sealing as guest_sealing
from adyton.runtime.process.guest.run import main as guest_main
from adyton.runtime.process.guest_start import READY
from adyton.runtime.process.supervisor.guest_process import GuestWithin, Program
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.main import check_image, identity_of
from adyton.runtime.process.supervisor.proving import Prove
from adyton.runtime.process.supervisor.sealed_loading import SealedSettings
from adyton.runtime.process.supervisor.sealing import Conversation
from adyton.runtime.process.supervisor.serve import Supervisor
from adyton.runtime.process.zygote import READY as ENCLAVE_READY
from adyton.runtime.process.zygote import failure
from adyton.runtime.sgx import refusals
from adyton.runtime.sgx.door import Door
from adyton.runtime.sgx.order import MAX_ORDER, TOKEN_SIZE, Order, exactly, hear, say
from adyton.runtime.sgx.passing import Passing

LOOPBACK = "127.0.0.1"
_LAUNCHER_SECONDS = 60.0  # for the launcher to come
_TOKEN_SECONDS = 5.0  # for who dials to show it
_BACKLOG = 64


def main(measurement: str) -> NoReturn:
    """Serve one enclave, of the image that the manifest names, and exit."""
    keep_freed_memory()
    token = _standard_input(TOKEN_SIZE)
    listener = socket.create_server((LOOPBACK, 0), backlog=_BACKLOG)
    os.write(1, b"%d\n" % listener.getsockname()[1])
    control = _launcher(listener, token) if len(token) == TOKEN_SIZE else None
    if control is None:
        os._exit(1)  # it is gone
    try:
        order = msgspec.msgpack.decode(hear(control, MAX_ORDER), type=Order)
        serve(listener, control, order, measurement)
    except (AdytonError, OSError, msgspec.MsgspecError) as error:
        say(control, failure(error))
    os._exit(1)


def _standard_input(size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := os.read(0, size - len(data))):
        data += piece
    return data


def _launcher(listener: socket.socket, token: bytes) -> socket.socket | None:
    """Its connection; others that come are closed. None: it does not come."""
    listener.settimeout(_LAUNCHER_SECONDS)
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return None
        sock.settimeout(_TOKEN_SECONDS)
        try:
            if hmac.compare_digest(exactly(sock, len(token)), token):
                sock.settimeout(None)
                return sock
        except OSError:
            pass
        sock.close()


def serve(listener: socket.socket, control: socket.socket, order: Order, measurement: str) -> None:
    """See the module; only what fails before the program is there comes back. AdytonError, OSError."""
    image = Image.from_parts(order.manifest, {digest_of(each): each for each in order.blobs}, order.signatures)
    if image.measurement != measurement:
        raise ImageError(f"this enclave is for the image {measurement}, and was handed {image.measurement}")
    check_image(image)
    identity = identity_of(image, "sgx")
    prove = _by(Sgx(), identity, os.dup(2))
    sealing = Sealing(identity, RootKeys(identity, open_root("sgx")))
    _unpack(image)
    entries = [each.name for each in image.manifest.entries]
    program = Program(image.manifest.entry, entries, identity.debug, image.manifest.names_broker)
    guest, guest_end = _guest()
    handed, door_end = Passing.pair()

    def ready() -> None:
        say(control, ENCLAVE_READY)
        door = Door(listener, control, door_end)
        threading.Thread(target=door.run, name="adyton-door", daemon=True).start()

    supervisor = Supervisor(
        handed, guest, program, identity, prove, None, ready, sealed=SealedSettings(sealing), grace=order.grace
    )
    supervisor.output.start(apart=False)

    def run() -> None:
        try:
            supervisor.run()
        finally:
            os._exit(0)

    guest_end.send(READY)
    supervising = threading.Thread(target=run, name="adyton-supervisor", daemon=True)
    supervising.start()
    guest_main(guest_end, _finish, _Sealer(sealing))
    supervising.join()


def _unpack(image: Image) -> None:
    """Into the enclave's memory: the manifest has a tmpfs there."""
    for each in image.layer_descriptors:
        folder = f"{root.IMAGE}/{PACKAGES}" if each.media_type == DEPENDENCY_LAYER else root.IMAGE
        os.makedirs(folder, exist_ok=True)
        unpack_layer(image.blobs[each.digest].read(), folder, image.manifest.programs)


def _guest() -> tuple[GuestWithin, Passing]:
    """What the supervisor holds of the program, and the program's end. The standard streams are the host's no more."""
    control, other = Passing.pair()
    (stdout, out), (stderr, err) = os.pipe(), os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((null, 0), (out, 1), (err, 2)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    return GuestWithin(control, stdout, stderr), other


def _by(attester: Attester, identity: EnclaveIdentity, log: int) -> Prove:
    """Evidence is made on the supervisor's thread: a quote is a matter of milliseconds, and Gramine has one at a time made. `log`: a descriptor
    of the host's standard error, for why there is none."""
    image = ImageClaims.of(identity)

    def prove(_: Loop, wanted: EvidenceRequested, take: Callable[[bytes | None], None]) -> None:
        try:
            report = attester.report(wanted.report_data)
        except PlatformError as error:
            with contextlib.suppress(OSError):
                os.write(log, f"adyton: no evidence for an enclave: {error.message}\n".encode())
            take(None)
            return
        take(seal("sgx", HardwareBody(report.report, image, list(report.certificates))))

    return prove


def _finish(_mount_tmp: bool, _working_directory: str, _host_name: str) -> list[str]:
    refusals.put_up()
    return []


class _Sealer:
    """A trusted.sealing.Sealer, without the sockets that are between two processes."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing

    def seal(self, data: memoryview, to: To, additional: bytes) -> bytes:
        if to == "signer":
            raise PlatformError(
                "nothing can be sealed to a signer in an SGX enclave: its key is of this very image. Seal to='measurement', and what later versions"
                " are to have, under a key that is released to them"
            )
        return guest_sealing.seal(Conversation(self._sealing).receive, data, to, additional)

    def unseal(self, sealed: memoryview, additional: bytes) -> bytes:
        return guest_sealing.unseal(Conversation(self._sealing).receive, sealed, additional)
