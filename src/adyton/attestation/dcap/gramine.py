"""Gramine, under which SGX enclaves run: its pseudo files, as they are inside of one; and what a machine must have outside for one to be started.

Documentation/attestation.rst and libos/src/fs/dev/attestation.c of Gramine. What is written to a file counts when it is closed, and the files are the
process's, so one thread at a time may use them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from adyton.errors import PlatformError

FOLDER = "/dev/attestation"
MAX_FILE = 1 << 14  # bytes; a quote has 8 KiB at most

Read = Callable[[str], bytes]  # below FOLDER; OSError
Write = Callable[[str, bytes], None]

PROGRAMS = ("gramine-sgx", "gramine-sgx-sign", "gramine-manifest")
DEVICE = "/dev/sgx_enclave"
QUOTING = "/var/run/aesmd/aesm.socket"  # of Intel's service with the quoting enclave, by which Gramine has quotes made


def read(name: str) -> bytes:
    """The whole file. OSError."""
    with open(os.path.join(FOLDER, name), "rb") as file:
        return file.read(MAX_FILE)


def write(name: str, data: bytes) -> None:
    """In one piece. OSError."""
    with open(os.path.join(FOLDER, name), "wb") as file:
        file.write(data)


def check() -> None:
    """PlatformError: no enclave can be started on this machine, since this is missing."""
    missing = [path for path in (DEVICE, QUOTING) if not os.path.exists(path)]
    if DEVICE in missing:
        missing[0] = f"{DEVICE} (a processor with SGX that the firmware has turned on, and Linux 5.11)"
    missing += [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise PlatformError(f"SGX enclaves run under Gramine, and on this machine there is no {', no '.join(missing)}")
