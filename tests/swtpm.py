"""Emulated TPMs: swtpm, each in a process of its own, with its state in a folder."""

from __future__ import annotations

import hashlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tpms import Authority, sized

from adyton.attestation.tpm import commands
from adyton.attestation.tpm.abi import parse_public
from adyton.attestation.tpm.attest import Tpm

SWTPM = shutil.which("swtpm") or ""
needs_swtpm = pytest.mark.skipif(not SWTPM, reason="NO EMULATED TPM HERE: install swtpm")

OWNER = 0x40000001
READABLE = (
    1 << 1 | 1 << 2 | 1 << 17 | 1 << 18 | 1 << 25
)  # owner and authorised write, the same read; no dictionary attacks
RSA_TEMPLATE = struct.pack(">HHIHHHHHIH", 1, 0x0B, 0x00050472, 0, 0x10, 0x14, 0x0B, 2048, 0, 0)


class Emulated(Tpm):
    """One, with the commands by which a machine and its owner bring it into a state."""

    def exchange(self, command: bytes) -> bytes:
        """One command of somebody else's."""
        with self._turn:
            return self._exchange(command)

    def tell(self, code, *handles, parameters=b""):
        self.ask(commands._command("to a test", code, lambda _: None, *handles, parameters=parameters, authorised=True))

    def extend(self, pcr, data):
        digest = hashlib.sha256(data).digest()
        self.tell(0x182, pcr, parameters=struct.pack(">IH", 1, 0x0B) + digest)

    def keep(self, handle, persistent):
        """The key at a handle, at one for ever."""
        self.tell(0x120, OWNER, handle, parameters=struct.pack(">I", persistent))

    def write(self, index, data, attributes=READABLE):
        public = struct.pack(">IHIHH", index, 0x0B, attributes, 0, len(data))
        self.tell(0x12A, OWNER, parameters=sized(b"") + sized(public))
        for at in range(0, len(data), 512):
            self.tell(0x137, OWNER, index, parameters=sized(data[at : at + 512]) + struct.pack(">H", at))

    def clear(self):
        """As before a machine is given away: the owner's seed is another one then."""
        self.tell(0x126, 0x4000000A)


@contextmanager
def emulated(folder: Path, log: bytes = b"") -> Iterator[Emulated]:
    """A machine that was started: its TPM, and the log of that. The folder has the TPM's state, if it was there before."""
    folder.mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                *(SWTPM, "socket", "--tpm2", "--fd", str(theirs.fileno()), "--tpmstate", f"dir={folder}"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.DEVNULL,
        )
    with Emulated(ours.detach(), log) as tpm:
        try:
            yield tpm
        finally:
            tpm.close()
            process.terminate()
            process.wait(20)


def certified(tpm: Tpm, template: bytes, authority: Authority, **how) -> tuple[int, bytes, bytes]:
    """A key that the TPM makes of a template: its handle, its public area, and its certificate in DER."""
    handle, public = tpm.ask(commands.create_primary(template))
    certificate = authority.certified(parse_public(public).key, **how).public_bytes(Encoding.DER)
    return handle, public, certificate
