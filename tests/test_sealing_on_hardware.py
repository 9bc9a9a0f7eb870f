"""Sealing on a server of SEV-SNP enclaves: the chip and its driver are stand-ins; all else is real, the server's restarts among it."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from fake_amd import MEASUREMENT, Amd, Firmware
from fake_devices import SevGuest
from fake_devices import served as served_device
from fake_tsm import Tsm, served
from hardware_server import CONFIGFS, needs_root, server
from parties import descendants
from test_sealed_values import found_in_memory

import adyton
from adyton.attestation.claims import digest_of_measured
from adyton.attestation.sealing.header import decode
from adyton.attestation.sev_snp import verify as sev_snp
from adyton.attestation.sev_snp.sealing_key import DEVICE, GuestDeviceRoot
from adyton.errors import EnclaveError

pytestmark = [pytest.mark.sandbox, needs_root]
RUNTIME = digest_of_measured("sev-snp", {"measurement": MEASUREMENT})
EXPECT = {"platforms": ["sev-snp"], "runtime": [RUNTIME], "debug": True}
PROGRAM = """
import os
import adyton.trusted as trusted

def keep(data: bytes) -> bytes:
    return trusted.seal(data)

def give(sealed: bytes) -> bytes:
    return trusted.unseal(sealed)

def write(data: bytes) -> None:
    with open("/sealed/kept", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())

def read() -> bytes:
    with open("/sealed/kept", "rb") as file:
        return file.read()
"""
OLDER, NEWER = b"\3\0\0\0\0\0\x08\x70", b"\3\0\0\0\0\0\x09\x73"


@pytest.fixture(scope="module")
def amd():
    return Amd()


@pytest.fixture
def start(amd, monkeypatch):
    """Starts a server on a machine with such firmware: the process and its URL. Another one ends it."""
    monkeypatch.setattr(sev_snp, "roots", lambda: amd.roots)
    tsm = Tsm("sev_guest", lambda data: (amd.report(data), amd.table), has_aux=True)
    with ExitStack() as stack:

        def start(firmware, *arguments):
            stack.pop_all().close()
            places = {
                CONFIGFS: stack.enter_context(served(tsm)),
                DEVICE: stack.enter_context(served_device(SevGuest(firmware))),
            }
            return stack.enter_context(server(places, *arguments))

        yield start


@pytest.fixture
def program(workplace):
    path = workplace / "prog.py"
    path.write_text(PROGRAM)
    return str(path)


def load(program, url):
    return adyton.load(program, on=url, expect=EXPECT)


def test_what_was_sealed_opens_after_the_server_was_started_again(start, program):
    _, url = start(Firmware())
    with load(program, url) as enclave:
        sealed = enclave.call("keep", b"the state")
    assert decode(sealed)[0].platform == "sev-snp"
    _, url = start(Firmware())
    with load(program, url) as first, load(program, url) as second:
        assert first.call("give", sealed) == second.call("give", sealed) == b"the state"


def test_it_does_not_open_where_the_chip_has_measured_something_else(start, program):
    _, url = start(Firmware())
    with load(program, url) as enclave:
        sealed = enclave.call("keep", b"the state")
    _, url = start(Firmware(measured=bytes(48)))
    with load(program, url) as enclave, pytest.raises(EnclaveError, match="does not open"):
        enclave.call("give", sealed)


def test_after_an_update_of_the_firmware_older_data_opens_and_on_older_firmware_newer_does_not(start, program):
    sealed = {}
    for firmware in (OLDER, NEWER):
        _, url = start(Firmware(committed=firmware))
        with load(program, url) as enclave:
            sealed[firmware] = enclave.call("keep", firmware)
            assert enclave.call("give", sealed[OLDER]) == OLDER
    _, url = start(Firmware(committed=OLDER))
    with load(program, url) as enclave:
        with pytest.raises(EnclaveError, match=f"under TCB {NEWER.hex()}.*update its firmware"):
            enclave.call("give", sealed[NEWER])
        assert enclave.call("give", sealed[OLDER]) == OLDER


def test_another_image_on_the_machine_does_not_open_it(start, program, workplace):
    _, url = start(Firmware())
    (workplace / "other.py").write_text(PROGRAM + "# another one\n")
    with load(program, url) as enclave, load(str(workplace / "other.py"), url) as other:
        sealed = enclave.call("keep", b"the state")
        with pytest.raises(EnclaveError, match="only that image opens it"):
            other.call("give", sealed)


def test_sealed_files_are_there_again(start, program, tmp_path):
    folder = ("--sealed-directory", str(tmp_path / "sealed"))
    _, url = start(Firmware(), *folder)
    with load(program, url) as enclave:
        enclave.call("write", b"in a file")
    _, url = start(Firmware(), *folder)
    with load(program, url) as enclave:
        assert enclave.call("read") == b"in a file"


def test_supervisors_have_neither_the_device_nor_the_root_key(start, program):
    process, url = start(Firmware())
    root = GuestDeviceRoot(42, Firmware())
    with load(program, url) as enclave:
        sealed = enclave.call("keep", b"the state")
        assert enclave.call("give", sealed) == b"the state"
        processes = descendants(process.pid)
        has_device, has_root = (
            {name for pid, name in processes.items() if has(pid)}
            for has in (
                lambda pid: DEVICE in {os.readlink(each.path) for each in os.scandir(f"/proc/{pid}/fd")},
                lambda pid: found_in_memory(pid, root=root.key(root.tcb)),
            )
        )
    assert "adyton-super" in processes.values()
    assert has_device == has_root == {"adyton-attest"}
