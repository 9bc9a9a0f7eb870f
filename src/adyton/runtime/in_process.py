"""An enclave on threads of the calling process: supervisor and guest without namespaces, filter or file server. For tests."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import Any

import msgspec

from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.keys import RootKeys, Sealing
from adyton.attestation.sealing.roots import SimulatedRoot
from adyton.handing_over import control_pair
from adyton.runtime.process.guest.link import GuestLoad
from adyton.runtime.process.guest.run import Guest
from adyton.runtime.process.guest_start import READY
from adyton.runtime.process.supervisor.guest_process import Program
from adyton.runtime.process.supervisor.proving import simulated
from adyton.runtime.process.supervisor.sealed_loading import SealedSettings
from adyton.runtime.process.supervisor.serve import Supervisor
from adyton.trusted.application import TrustedApplication

MEASUREMENT = "sha256:" + "0" * 64  # of no image
SIGNER = MEASUREMENT  # nobody


@dataclass
class _GuestThreads:
    control: socket.socket
    fuse: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    pidfd: int | None = None
    pid: int = 0
    shared: int | None = None


def launch(application: TrustedApplication) -> socket.socket:
    """The socket on which it is handed connections; closing it ends the enclave."""
    client, relay = control_pair()
    control, guest_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def prepare(load: GuestLoad) -> list[str]:  # noqa: ARG001 - the process stays as it is
        return []

    def find(entry: str) -> Any:  # noqa: ARG001
        return application

    guest = Guest(guest_control, prepare, find)

    def run_guest() -> None:
        try:
            guest.main()
        except OSError:
            pass  # the supervisor ended first
        finally:
            guest_control.close()

    identity = EnclaveIdentity(
        platform="sim",
        measurement=MEASUREMENT,
        signer="",
        product_id=0,
        security_version=0,
        debug=True,
        runtime=MEASUREMENT,
        machine="",
    )
    program = Program(entry="application", entries=[], debug=True)
    # What is tested may seal to its signer, which there is none of.
    sealed_to = msgspec.structs.replace(identity, signer=SIGNER)
    sealing = Sealing(sealed_to, RootKeys(sealed_to, SimulatedRoot()))
    guest_side = _GuestThreads(control)
    supervisor = Supervisor(
        relay, guest_side, program, identity, simulated(identity), None, lambda: None, sealed=SealedSettings(sealing)
    )
    guest_control.send(READY)  # before the client can say anything: the guest's thread may be slow to begin
    threading.Thread(target=run_guest, name="adyton-in-process-guest", daemon=True).start()
    threading.Thread(target=supervisor.run, name="adyton-in-process-supervisor", daemon=True).start()
    return client
