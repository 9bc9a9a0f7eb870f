"""Root keys of the platforms, against stand-ins of their kernel interfaces."""

from __future__ import annotations

import errno
import struct

import pytest
from fake_amd import COMMITTED, Firmware

from adyton.attestation.dcap.sealing_key import GramineRoot
from adyton.attestation.identity import PLATFORMS
from adyton.attestation.sealing.roots import SimulatedRoot, open_root
from adyton.attestation.sev_snp.sealing_key import GET_DERIVED_KEY, GET_REPORT, GuestDeviceRoot
from adyton.errors import IntegrityError, PlatformError


def test_there_is_an_answer_for_every_platform() -> None:
    for platform in PLATFORMS:
        open_root(platform)


def test_the_simulations_key_is_everybodys() -> None:
    root = open_root("sim")
    assert isinstance(root, SimulatedRoot)
    assert root.key(root.tcb) == SimulatedRoot().key(b"")
    with pytest.raises(IntegrityError, match="a simulation has no firmware"):
        root.key(b"\1")


@pytest.mark.parametrize("platform", ["tdx", "nitro"])
def test_platforms_without_a_key_say_where_one_comes_from(platform: str) -> None:
    root = open_root(platform)  # type: ignore[arg-type]
    with pytest.raises(PlatformError, match=rf"{platform} has no key of its own.*`adyton broker`, trusted\.secret"):
        _ = root.tcb
    with pytest.raises(PlatformError, match="nothing can be sealed here"):
        root.key(b"")


@pytest.mark.parametrize("platform", ["sgx", "sev-snp", "tpm"])
def test_a_platform_that_is_not_here_hinders_nobody_until_something_is_sealed(platform: str) -> None:
    root = open_root(platform)  # type: ignore[arg-type]
    with pytest.raises(PlatformError, match="nothing can be sealed here"):
        root.key(b"")


# -- SEV-SNP ----------------------------------------------------------------------------------------------------------------


def test_the_key_request_has_these_bytes() -> None:
    assert (GET_REPORT, GET_DERIVED_KEY) == (0xC0205300, 0xC0205301)
    firmware = Firmware()
    root = GuestDeviceRoot(42, firmware)
    assert root.tcb == COMMITTED
    root.key(root.tcb)
    # fmt: off
    assert firmware.asked == [
        (0xC0205300, bytes(96)),
        (0xC0205301, bytes.fromhex(
            "00000000"  # root key: the chip's
            "00000000"
            "2900000000000000"  # guest policy, measurement, TCB version
            "00000000"  # VMPL
            "00000000"  # guest SVN
        ) + COMMITTED),
    ]
    # fmt: on


def test_the_key_is_the_processors_and_asked_for_once() -> None:
    firmware = Firmware()
    root = GuestDeviceRoot(42, firmware)
    key = root.key(COMMITTED)
    assert key == firmware.derived(firmware.asked[-1][1])[32:]
    assert root.key(COMMITTED) == key
    assert [number for number, _ in firmware.asked] == [GET_REPORT, GET_DERIVED_KEY]


def test_a_guest_below_the_highest_level_asks_for_its_own() -> None:
    firmware = Firmware(vmpl=2)
    root = GuestDeviceRoot(42, firmware)
    key = root.key(root.tcb)
    assert struct.unpack_from("<I", firmware.asked[-1][1], 16) == (2,)
    assert key != GuestDeviceRoot(42, Firmware()).key(COMMITTED)


def test_keys_of_older_firmware_stay_and_those_of_newer_are_not_to_be_had() -> None:
    older, newer = b"\3\0\0\0\0\0\x08\x70", b"\3\0\0\0\0\0\x09\x73"
    before, after = GuestDeviceRoot(42, Firmware(committed=older)), GuestDeviceRoot(42, Firmware(committed=newer))
    assert before.tcb == older
    assert after.tcb == newer
    assert after.key(older) == before.key(older) != after.key(newer)
    with pytest.raises(
        IntegrityError, match=f"under TCB {newer.hex()}, and this machine has committed to {older.hex()}"
    ):
        before.key(newer)


@pytest.mark.parametrize("tcb", [b"", b"\0" * 7, b"\0" * 9])
def test_a_tcb_that_is_none_is_not_asked_for(tcb: bytes) -> None:
    firmware = Firmware()
    with pytest.raises(IntegrityError, match="names no TCB of SEV-SNP"):
        GuestDeviceRoot(42, firmware).key(tcb)
    assert len(firmware.asked) == 2  # when it was opened


def test_many_versions_are_asked_for_and_few_are_kept() -> None:
    firmware = Firmware(committed=b"\xff" * 8)
    root = GuestDeviceRoot(42, firmware)
    for _ in range(2):
        assert len({root.key(struct.pack("<Q", n)) for n in range(20)}) == 20
    assert len(root._keys) <= 8
    before = len(firmware.asked)
    root.key(root.tcb)  # which is never let go of
    assert len(firmware.asked) == before


def test_a_processor_that_gives_none_says_its_status() -> None:
    with pytest.raises(PlatformError, match="no key: status 0x27"):
        GuestDeviceRoot(42, Firmware(status=0x27))
    with pytest.raises(PlatformError, match="gives no report: status 0x16"):
        GuestDeviceRoot(42, Firmware(vmpl=4))


def test_an_answer_without_a_key_is_none() -> None:
    class Empty(Firmware):
        def derived(self, asked: bytes) -> bytes:
            return bytes(64)

    with pytest.raises(PlatformError, match="derives no key"):
        GuestDeviceRoot(42, Empty())


def test_a_kernel_that_refuses_says_whose_error_it_is() -> None:
    def refuse(_descriptor: int, _number: int, argument: bytearray) -> int:
        struct.pack_into("<II", argument, 24, 0x1, 0x2)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(PlatformError, match=r"does not answer: Input/output error \(firmware 0x1, hypervisor 0x2\)"):
        GuestDeviceRoot(42, refuse)


def test_without_the_device_it_says_so(tmp_path) -> None:
    with pytest.raises(PlatformError, match="is this an SEV-SNP guest"):
        GuestDeviceRoot.open(str(tmp_path / "sev-guest"))
    (tmp_path / "file").touch()
    with pytest.raises(PlatformError, match="does not answer"):
        GuestDeviceRoot.open(str(tmp_path / "file"))


# -- SGX under Gramine ------------------------------------------------------------------------------------------------------


class Gramine:
    """Its pseudo files: a report is of the target and the user data that were written before."""

    def __init__(self, cpu_svn: bytes = b"\5" * 16, key: bytes = b"k" * 16) -> None:
        self.written: dict[str, bytes] = {}
        self.report = cpu_svn + bytes(242) + b"\7\0" + bytes(172)
        self.files = {"my_target_info": b"t" * 512, "keys/_sgx_mrenclave": key}

    def read(self, name: str) -> bytes:
        if name == "report":
            assert self.written == {"target_info": b"t" * 512, "user_report_data": bytes(64)}
            return self.report
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        self.written[name] = data


def test_the_root_under_gramine_is_the_enclaves_seal_key() -> None:
    gramine = Gramine()
    root = GramineRoot.open(gramine.read, gramine.write)
    assert root.tcb == b"\5" * 16 + b"\7\0"
    assert root.key(root.tcb) == b"k" * 16


def test_another_state_of_the_processor_is_named() -> None:
    before, after = (GramineRoot.open(each.read, each.write) for each in (Gramine(b"\5" * 16), Gramine(b"\6" * 16)))
    with pytest.raises(IntegrityError, match=f"{'05' * 16}0700, and this enclave has {'06' * 16}0700"):
        after.key(before.tcb)


@pytest.mark.parametrize("key", [b"", b"k" * 15, b"k" * 32, bytes(16)])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    gramine = Gramine(key=key)
    with pytest.raises(PlatformError, match="not Gramine's"):
        GramineRoot.open(gramine.read, gramine.write)


def test_outside_of_gramine_it_says_so() -> None:
    gramine = Gramine()
    del gramine.files["keys/_sgx_mrenclave"]
    with pytest.raises(PlatformError, match="is this an SGX enclave under Gramine"):
        GramineRoot.open(gramine.read, gramine.write)
