"""The root of sealing keys of a TPM, against an emulated one: the same machine in the same state has it, and nobody else."""

from __future__ import annotations

import os
import struct

import pytest
from swtpm import emulated, needs_swtpm

from adyton.attestation.tpm import commands, sealing_key
from adyton.attestation.tpm.attest import ATTEMPTS, PCRS
from adyton.attestation.tpm.commands import TpmError
from adyton.attestation.tpm.sealing_key import TpmRoot
from adyton.errors import IntegrityError, PlatformError

pytestmark = needs_swtpm
PASSWORD = 0x40000009


@pytest.fixture
def tpm(tmp_path):
    with emulated(tmp_path / "tpm") as tpm:
        yield tpm


def key_of(tpm):
    root = TpmRoot(tpm)
    return root.key(root.tcb)


def test_it_is_the_same_each_time_and_after_each_start(tmp_path):
    keys = []
    for _ in range(2):
        with emulated(tmp_path / "tpm") as tpm:
            tpm.extend(0, b"firmware")
            keys += [key_of(tpm), key_of(tpm)]
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32


@pytest.mark.parametrize("pcr", PCRS)
def test_another_value_of_any_register_gives_another(tpm, pcr):
    before = TpmRoot(tpm)
    tpm.extend(pcr, b"changed")
    after = TpmRoot(tpm)
    assert after.key(after.tcb) != before.key(before.tcb)
    with pytest.raises(IntegrityError, match=f"had the digest {before.tcb.hex()}, and now they have {after.tcb.hex()}"):
        after.key(before.tcb)


def test_registers_that_are_not_quoted_do_not_matter(tpm):
    before = key_of(tpm)
    tpm.extend(16, b"debugging")
    assert key_of(tpm) == before


def test_another_machine_has_another_and_so_has_another_owner(tpm, tmp_path):
    keys = [key_of(tpm)]
    with emulated(tmp_path / "other") as other:
        keys.append(key_of(other))
    tpm.clear()
    keys.append(key_of(tpm))
    assert len(set(keys)) == 3


def test_in_another_state_the_key_of_this_one_is_not_to_be_used(tpm):
    """Not by its policy, nor without it, nor by one that is true now."""
    then = TpmRoot(tpm).tcb
    tpm.extend(4, b"another loader")
    now = TpmRoot(tpm).tcb
    with pytest.raises(TpmError, match="PolicyPCR"):
        sealing_key._derived(tpm, then)
    template = commands.keyed_hash(commands.policy_of_pcrs(then, PCRS))
    with tpm.loaded(template, commands.OWNER) as (handle, _):
        sessions = [PASSWORD, *(tpm.ask(commands.start_policy_session(os.urandom(16))) for _ in range(2))]
        tpm.ask(commands.policy_pcr(sessions[2], now, PCRS))
        for session in sessions:
            with pytest.raises(TpmError, match="HMAC"):
                tpm.ask(commands.hmac_of(handle, session, sealing_key._LABEL))


def test_a_key_without_the_policy_or_with_another_use_is_another_key(tpm):
    """Whoever runs another system on the machine can make any but this."""
    root = TpmRoot(tpm)
    template = commands.keyed_hash(commands.policy_of_pcrs(root.tcb, PCRS))
    with_password = bytearray(template)
    with_password[4:8] = (int.from_bytes(template[4:8], "big") | 1 << 6).to_bytes(4, "big")
    with tpm.loaded(bytes(with_password), commands.OWNER) as (handle, _):
        found = tpm.ask(commands.hmac_of(handle, PASSWORD, sealing_key._LABEL))
    assert found != root.key(root.tcb)


def test_registers_that_are_extended_meanwhile_are_read_again(tpm, monkeypatch):
    read, left = tpm.pcr_values, iter(range(3))

    def values():
        found = read()
        if next(left, None) is not None:
            tpm.extend(10, b"a file")
        return found

    monkeypatch.setattr(tpm, "pcr_values", values)
    root = TpmRoot(tpm)
    assert next(left, None) is None
    assert root.key(root.tcb) == key_of(tpm)


def test_registers_that_are_extended_all_the_time_are_given_up(tpm, monkeypatch):
    read, asked = tpm.pcr_values, []

    def values():
        asked.append(read())
        tpm.extend(10, b"a file")
        return asked[-1]

    monkeypatch.setattr(tpm, "pcr_values", values)
    with pytest.raises(PlatformError, match="PolicyPCR"):
        TpmRoot(tpm)
    assert len(asked) == ATTEMPTS


def test_nothing_stays_loaded_whether_it_succeeds_or_not(tpm):
    """The TPM has room for three objects and three sessions."""
    then = TpmRoot(tpm).tcb
    for number in range(8):
        tpm.extend(4, struct.pack("<I", number))
        with pytest.raises(TpmError, match="0x1c4"):
            sealing_key._derived(tpm, then)
        TpmRoot(tpm)


def test_an_owner_with_a_password_keeps_it(tpm):
    tpm.tell(0x129, commands.OWNER, parameters=b"\0\4word")
    with pytest.raises(PlatformError, match="TPM2_CreatePrimary with TPM_RC 0x9a2"):
        TpmRoot(tpm)


def test_a_machine_without_one_says_so(tmp_path):
    with pytest.raises(PlatformError, match="has this machine a TPM"):
        TpmRoot.open(str(tmp_path / "none"))
