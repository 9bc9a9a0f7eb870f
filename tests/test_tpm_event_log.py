"""Event logs: replayed to the registers that they lead to, held against those that were quoted; hostile ones are malformed."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpms import NOW, PCRS, event, extended, report, spec_id
from vectors import needs_vectors, read

from adyton.attestation.collateral import Collateral
from adyton.attestation.tpm.event_log import MAX_EVENTS, MAX_LOG, explain, is_agile, parse, replay
from adyton.attestation.tpm.verify import verify
from adyton.errors import EvidenceMalformedError, NotGenuineError

BOOTED = [(0, b"firmware"), (7, b"keys"), (4, b"loader"), (0, b"more of it"), (9, b"initrd")]
LOG = spec_id() + b"".join(event(pcr, data) for pcr, data in BOOTED)


def booted(**further):
    """Registers of a machine that started so; `further`: what was extended later, by number."""
    values = {}
    for number in range(16):
        data = [data for pcr, data in BOOTED if pcr == number] + further.get(f"pcr{number}", [])
        values["sha256", number] = extended(*data)
    return values


def test_events_are_read():
    assert [(each.pcr, each.kind, each.data) for each in parse(LOG).events] == [(pcr, 4, data) for pcr, data in BOOTED]
    assert is_agile(LOG)
    assert not is_agile(event(0, b"of SHA-1 only"))


def test_a_log_leads_to_the_registers():
    values = replay(parse(LOG).events, "sha256")
    assert values == {number: booted()["sha256", number] for number in (0, 4, 7, 9)}
    assert parse(LOG).banks == {"sha1", "sha256"}


@needs_vectors
def test_a_real_log_leads_to_what_its_machine_quoted():
    # Of Intel TDX, in the same format: register 0 is MRTD, which nothing extends, and 1 to 4 are RTMR 0 to 3, of SHA-384.
    log = read("tdx-go-tdx-guest/testing/testdata/ccel/ccel_data.dat").rstrip(b"\xff")
    quoted = read("tdx-go-tdx-guest/testing/testdata/ccel/cos-113-tdx-quote.dat")[48 + 328 :]
    values = replay(parse(log).events, "sha384")
    assert len(parse(log).events) > 20
    assert set(values) >= {1, 2, 3}
    for number, value in values.items():
        assert value == quoted[48 * (number - 1) :][:48]


def test_what_extends_nothing_is_left_out():
    log = LOG + event(0, b"a note", kind=3)
    assert replay(parse(log).events, "sha256") == replay(parse(LOG).events, "sha256")


def test_the_locality_at_which_firmware_started_is_what_pcr_0_begins_with():
    log = spec_id() + event(0, b"StartupLocality\0\3", kind=3) + event(0, b"firmware")
    assert replay(parse(log).events, "sha256")[0] == extended(b"firmware", since=bytes(31) + b"\3")


# -- against what was quoted ----------------------------------------------------------------------------------------------


def judged(values, log):
    return verify(report(values=values, event_log=log), Collateral(), NOW)


def test_a_true_log_explains_every_register():
    claims = judged(booted(), LOG)
    assert claims.more["explained_by_event_log"] == " ".join(f"sha256:{number}" for number in range(16))
    assert claims.more["not_explained"] == "none"


def test_an_operating_system_extends_its_own_registers_further():
    claims = judged(booted(pcr9=[b"a module"], pcr10=[b"a file"]), LOG)
    assert claims.more["not_explained"] == "sha256:9 sha256:10"
    assert "sha256:0 " in claims.more["explained_by_event_log"]


@pytest.mark.parametrize(
    "log",
    [
        LOG.replace(event(4, b"loader"), event(4, b"a better one")),
        LOG.replace(event(4, b"loader"), b""),
        LOG + event(4, b"another"),
        spec_id() + b"".join(event(pcr, data) for pcr, data in reversed(BOOTED)),
        spec_id(),
    ],
    ids=["changed", "left out", "put in", "another order", "all left out"],
)
def test_a_forged_log_is_refused(log):
    with pytest.raises(NotGenuineError, match=r"event log of sha256:[04]"):
        judged(booted(), log)


def test_a_log_of_another_bank_explains_nothing():
    log = spec_id(["sha384"]) + event(0, b"firmware", banks=["sha384"])
    claims = judged(booted(), log)
    assert claims.more["explained_by_event_log"] == "none"
    assert claims.runtime == judged(booted(), b"").runtime


def test_without_a_log_nothing_is_explained():
    assert judged(PCRS, b"").more["not_explained"] == "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"


# -- hostile bytes --------------------------------------------------------------------------------------------------------

HEAD = struct.pack("<II20s", 0, 3, b"")


def head(data):
    return HEAD + struct.pack("<I", len(data)) + data


SPEC = spec_id()[32:]
ONE = event(0, b"firmware")


@pytest.mark.parametrize(
    "log",
    [
        b"",
        LOG[:-1],
        LOG[:40],
        LOG + b"\0",
        event(0, b"firmware"),
        head(SPEC.replace(b"Event03", b"Event02")),
        head(SPEC + b"\0"),
        head(SPEC[:-1] + b"\5"),
        head(SPEC[:24] + struct.pack("<I", 0) + b"\0"),
        head(SPEC[:24] + struct.pack("<I", 1 << 31) + SPEC[28:]),
        head(SPEC[:24] + struct.pack("<IHHHH", 2, 0x0B, 32, 0x0B, 32) + b"\0"),
        head(SPEC[:24] + struct.pack("<IHH", 1, 0x0B, 16) + b"\0"),
        spec_id() + struct.pack("<III", 0, 4, 1 << 31) + ONE[12:],
        spec_id() + struct.pack("<III", 0, 4, 1) + ONE[12 : 12 + 22] + struct.pack("<I", 0),
        spec_id() + ONE.replace(struct.pack("<H", 0x0B), struct.pack("<H", 0x04), 1),
        spec_id() + ONE.replace(struct.pack("<H", 0x0B), struct.pack("<H", 0x0C), 1),
        spec_id() + event(24, b"of no register"),
        spec_id() + ONE[: -len(b"firmware") - 4] + struct.pack("<I", 1 << 31) + b"firmware",
        spec_id(["sha256"]) + event(0, b"", banks=["sha256"]) * (MAX_EVENTS + 1),
        spec_id() + event(0, bytes(MAX_LOG)),
    ],
    ids=[
        *("empty", "cut", "cut in its head", "extended", "without a head", "an older format", "a longer head"),
        *("a longer vendor's part", "no hashes", "too many hashes", "a hash twice", "a hash of another size"),
        *("too many digests", "too few digests", "a digest twice", "another digest", "another register"),
        *("more data than there is", "too many events", "too long"),
    ],
)
def test_what_is_no_log_is_malformed(log):
    with pytest.raises(EvidenceMalformedError):
        parse(log)


@given(st.integers(0, len(LOG)), st.integers(0, 40), st.binary(max_size=40))
def test_only_malformed_leaves_a_log_that_was_changed(at, taken, put):
    with contextlib.suppress(EvidenceMalformedError):
        explained = explain(LOG[:at] + put + LOG[at + taken :], booted())
        assert len(explained.whole) + len(explained.further) + len(explained.failures) == 16


@given(st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=20)), max_size=12))
def test_any_log_of_what_was_extended_explains_all(events):
    log = spec_id() + b"".join(event(pcr, data) for pcr, data in events)
    values = {("sha256", pcr): extended(*(data for of, data in events if of == pcr)) for pcr in range(16)}
    explained = explain(log, values)
    assert (len(explained.whole), explained.further, explained.failures) == (16, (), ())
