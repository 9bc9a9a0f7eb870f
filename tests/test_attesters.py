"""Which platform is here, by what can be opened; and why another is not."""

from __future__ import annotations

import os

import pytest

from adyton.attestation import attesters
from adyton.attestation.attesters import ROWS, Row, chosen, look, open_attester
from adyton.attestation.identity import PLATFORMS
from adyton.errors import PlatformError


class Opened:
    """An attester that says when it is closed."""

    open = 0

    def __init__(self):
        Opened.open += 1

    def close(self):
        Opened.open -= 1


class Closed:
    def __init__(self):
        raise PlatformError("the kernel says no")


@pytest.fixture(autouse=True)
def _nobody_remembers():
    attesters._automatic.cache_clear()
    yield
    attesters._automatic.cache_clear()
    Opened.open = 0


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Sets what there is: name → (class, whether its device is there, whether it is chosen by itself)."""
    device = tmp_path / "device"
    device.touch()

    def rows(**found):
        made = {}
        for name, (kind, is_there, automatic) in found.items():
            path = str(device) if is_there else str(tmp_path / "none")
            made[name.replace("_", "-")] = Row(f"fake:{kind.__name__}", path, "such a guest", "met", "x", automatic)
        monkeypatch.setattr(attesters, "ROWS", made)
        import sys
        import types

        fake = types.ModuleType("adyton.attestation.fake")
        fake.Opened, fake.Closed = Opened, Closed
        monkeypatch.setitem(sys.modules, "adyton.attestation.fake", fake)

    return rows


def test_every_platform_but_the_simulation_has_a_row():
    assert set(ROWS) | {"sim"} == set(PLATFORMS)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_look_says_a_sentence_and_never_raises(platform):
    found = look(platform)
    assert found.detail
    assert "\n" not in found.detail


@pytest.mark.parametrize("platform", [each for each in PLATFORMS if each != "sim"])
def test_where_there_is_no_device_that_is_the_reason(platform):
    if os.path.exists(ROWS[platform].device):
        pytest.skip(f"this machine has {ROWS[platform].device}")
    with pytest.raises(PlatformError, match=f"there is no {ROWS[platform].device}"):
        open_attester(platform)


def test_where_there_is_one_the_reason_is_what_opening_it_said(rows):
    rows(tdx=(Closed, True, True))
    assert look("tdx") == (False, "the kernel says no")
    with pytest.raises(PlatformError, match="platform tdx is not to be had here: the kernel says no"):
        chosen("tdx")


def test_a_look_leaves_nothing_open(rows):
    rows(tdx=(Opened, True, True))
    assert look("tdx").here
    assert Opened.open == 0


def test_auto_is_the_first_hardware_that_is_here(rows):
    rows(sev_snp=(Closed, True, True), tdx=(Opened, True, True), nitro=(Opened, True, True))
    assert chosen("auto") == "tdx"


def test_auto_is_never_what_does_not_keep_the_machines_owner_out(rows):
    rows(tpm=(Opened, True, False))
    assert chosen("auto") == "sim"
    assert chosen("tpm") == "tpm"


def test_auto_is_the_simulation_where_there_is_no_hardware(rows):
    rows(tdx=(Closed, False, True))
    assert chosen("auto") == "sim"


def test_a_platform_whose_library_is_missing_says_what_to_install(rows, monkeypatch):
    rows(nitro=(Opened, True, True))
    monkeypatch.setattr(attesters, "ROWS", {"nitro": ROWS["nitro"]._replace(attester="nowhere:Nitro")} | {})
    monkeypatch.setattr(attesters.os.path, "exists", lambda _path: True)
    assert "nowhere is missing: install adyton[" in look("nitro").detail


def test_what_is_met_inside_of_enclaves_only_is_looked_for_where_it_says(monkeypatch):
    asked = []
    monkeypatch.setattr(attesters.os.path, "exists", lambda _path: True)
    monkeypatch.setattr("adyton.attestation.dcap.gramine.check", lambda: asked.append(1))
    assert look("sgx").here
    assert asked
    with pytest.raises(PlatformError, match="is this an SGX enclave under Gramine"):
        open_attester("sgx")
