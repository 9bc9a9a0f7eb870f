"""Sealed data opens for whom it was sealed to, as it was sealed, and for nobody else: the core, without an enclave."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.header import MAX_SIZE, Header, decode, encode
from adyton.attestation.sealing.keys import RootKeys, Sealing
from adyton.attestation.sealing.roots import Root, SimulatedRoot
from adyton.attestation.sealing.segments import MAX_DATA, RANDOM_SIZE, SEGMENT, TAG_SIZE, Segments
from adyton.crypto.keys import debug_key
from adyton.errors import (
    AdytonError,
    IntegrityError,
    LocalProtocolError,
    PlatformError,
    RemoteProtocolError,
    ResourceLimitError,
    UsageError,
)
from adyton.runtime.process.guest import sealing as guest
from adyton.runtime.process.supervisor.sealing import Conversation

IMAGE, OTHER_IMAGE, SIGNER, OTHER_SIGNER, RUNTIME = (f"sha256:{digit * 64}" for digit in "12345")
OWN = EnclaveIdentity("sim", IMAGE, SIGNER, 7, 3, debug=False, runtime=RUNTIME, machine="")


def with_(**fields: Any) -> EnclaveIdentity:
    return msgspec.structs.replace(OWN, **fields)


class FirmwareRoot:
    """Of a platform whose firmware is updated: it derives keys of its own version and older ones."""

    def __init__(self, version: int, machine: bytes = b"machine") -> None:
        self.tcb = bytes([version])
        self._machine = machine

    def key(self, tcb: bytes) -> bytes:
        if tcb > self.tcb:
            raise IntegrityError(f"sealed under TCB {tcb.hex()}, and this machine has {self.tcb.hex()}")
        return hashlib.sha256(self._machine + tcb).digest()


def seal(
    data: bytes, to: Any = "measurement", aad: bytes = b"", own: EnclaveIdentity = OWN, root: Root | None = None
) -> bytes:
    exchange = Conversation(Sealing(own, RootKeys(own, root or SimulatedRoot()))).receive
    return guest.seal(exchange, memoryview(data), to, hashlib.sha256(aad).digest())


def unseal(sealed: bytes, aad: bytes = b"", own: EnclaveIdentity = OWN, root: Root | None = None) -> bytes:
    exchange = Conversation(Sealing(own, RootKeys(own, root or SimulatedRoot()))).receive
    return guest.unseal(exchange, memoryview(sealed), hashlib.sha256(aad).digest())


def header_of(sealed: bytes) -> tuple[Header, bytes]:
    header, size = decode(sealed)
    return header, sealed[size:]


@given(st.binary(max_size=300), st.binary(max_size=40), st.sampled_from(["measurement", "signer"]))
def test_what_is_sealed_opens(data: bytes, aad: bytes, to: str) -> None:
    assert unseal(seal(data, to, aad), aad) == data


@pytest.mark.parametrize(
    "size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT - 1, 2 * SEGMENT, 2 * SEGMENT + 5]
)
def test_values_of_any_number_of_segments_open(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    sealed = seal(data[:size])
    assert unseal(sealed) == data[:size]
    head = decode(sealed)[1] + RANDOM_SIZE
    assert len(sealed) == head + size + TAG_SIZE * max(1, -(-size // SEGMENT))
    assert head <= MAX_SIZE


def test_no_two_values_have_a_key_or_a_nonce_in_common() -> None:
    sealed = [seal(b"the same") for _ in range(20)]
    assert len(set(sealed)) == 20
    assert len({header_of(each)[0].key_id for each in sealed}) == 20
    assert len({header_of(each)[1] for each in sealed}) == 20


def test_the_header_is_in_the_clear_and_says_to_whom() -> None:
    header, _ = header_of(seal(b"x", "signer"))
    assert (header.platform, header.to, header.owner) == ("sim", "signer", SIGNER)
    assert (header.product_id, header.security_version, header.debug, header.purpose) == (7, 3, False, "data")
    header, _ = header_of(seal(b"x"))
    assert (header.to, header.owner, header.product_id, header.security_version) == ("measurement", IMAGE, 0, 0)


@pytest.mark.parametrize("to", ["measurement", "signer"])
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_no_byte_of_it_can_be_changed(to: str, mask: int) -> None:
    sealed = bytearray(seal(b"some secret", to, b"aad"))
    for place in range(len(sealed)):
        sealed[place] ^= mask
        with pytest.raises(IntegrityError):
            unseal(bytes(sealed), b"aad")
        sealed[place] ^= mask
    assert unseal(bytes(sealed), b"aad") == b"some secret"


def test_nothing_can_be_cut_off_or_added() -> None:
    sealed = seal(b"some secret")
    for size in range(len(sealed)):
        with pytest.raises(IntegrityError):
            unseal(sealed[:size])
    for more in (b"\0", bytes(TAG_SIZE), sealed):
        with pytest.raises(IntegrityError):
            unseal(sealed + more)
    with pytest.raises(IntegrityError):
        unseal(b"\0" + sealed)


def test_segments_cannot_be_left_out_swapped_or_repeated() -> None:
    sealed = seal(b"a" * SEGMENT + b"b" * SEGMENT + b"c" * SEGMENT)
    size = SEGMENT + TAG_SIZE
    head = len(sealed) - 3 * size
    first, second, third = (sealed[head + n * size : head + (n + 1) * size] for n in range(3))
    for pieces in (
        (first, second),
        (first, third),
        (second, first, third),
        (third, second, first),
        (first, second, second, third),
        (first, second, third, third),
    ):
        with pytest.raises(IntegrityError):
            unseal(sealed[:head] + b"".join(pieces))
    assert unseal(sealed[:head] + first + second + third)


def test_segments_of_another_value_do_not_fit() -> None:
    one, other = seal(b"a" * 20), seal(b"a" * 20)
    size = decode(one)[1]
    for cut in (size, size + RANDOM_SIZE):
        with pytest.raises(IntegrityError):
            unseal(one[:cut] + other[cut:])


def test_the_additional_data_must_be_the_same() -> None:
    sealed = seal(b"x", aad=b"accounts")
    for aad in (b"", b"account", b"accounts\0", b"rates"):
        with pytest.raises(IntegrityError, match="additional data"):
            unseal(sealed, aad)


@pytest.mark.parametrize(
    ("to", "changes", "says"),
    [
        ("measurement", {"measurement": OTHER_IMAGE}, "only that image"),
        ("measurement", {"debug": True}, "by one of production, and this enclave is a debug one"),
        ("measurement", {"platform": "tpm"}, "on platform sim, and this enclave is on tpm"),
        ("signer", {"signer": OTHER_SIGNER}, "only images of that signer"),
        ("signer", {"signer": ""}, "signed by nobody"),
        ("signer", {"product_id": 8}, "to product 7, and this enclave is product 8"),
        ("signer", {"security_version": 2}, "by security version 3, and this enclave is of version 2"),
        ("signer", {"security_version": 0}, "an older version opens nothing"),
        ("signer", {"debug": True}, "neither opens what the other has sealed"),
        ("signer", {"platform": "sev-snp"}, "open it there"),
    ],
)
def test_it_opens_for_no_other_enclave(to: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        unseal(seal(b"x", to), own=with_(**changes))


def test_production_opens_nothing_of_a_debug_image() -> None:
    for to in ("measurement", "signer"):
        with pytest.raises(IntegrityError, match="by a debug one"):
            unseal(seal(b"x", to, own=with_(debug=True)))


@pytest.mark.parametrize(
    ("to", "changes"),
    [
        ("signer", {"measurement": OTHER_IMAGE}),
        ("signer", {"security_version": 4}),
        ("signer", {"security_version": (1 << 32) - 1, "measurement": OTHER_IMAGE}),
        ("measurement", {"signer": OTHER_SIGNER, "product_id": 0, "security_version": 0}),
        ("measurement", {"runtime": OTHER_IMAGE}),  # of which the root is the hardware's word
    ],
)
def test_it_opens_for_whom_it_was_sealed_to(to: str, changes: dict[str, Any]) -> None:
    assert unseal(seal(b"x", to), own=with_(**changes)) == b"x"


def test_the_rules_cannot_be_met_by_another_header() -> None:
    """A header that claims what fits has another key than the one that it was sealed with."""
    other = with_(measurement=OTHER_IMAGE, signer=OTHER_SIGNER, product_id=1, security_version=9)
    for to, claims in (
        ("measurement", {"owner": IMAGE}),
        ("signer", {"owner": SIGNER, "product_id": 7, "security_version": 3}),
        ("signer", {"owner": SIGNER, "product_id": 7, "security_version": 0}),
    ):
        header, rest = header_of(seal(b"x", to, own=other))
        with pytest.raises(IntegrityError, match="is not what was sealed"):
            unseal(encode(msgspec.structs.replace(header, **claims)) + rest)


def test_a_version_in_the_header_cannot_be_lowered() -> None:
    header, rest = header_of(seal(b"x", "signer"))
    lowered = encode(msgspec.structs.replace(header, security_version=2)) + rest
    for own in (OWN, with_(security_version=2)):
        with pytest.raises(IntegrityError, match="is not what was sealed"):
            unseal(lowered, own=own)


def test_a_header_has_one_encoding() -> None:
    sealed = seal(b"x")
    _, size = decode(sealed)
    body = sealed[16:size]
    assert body[:1] == b"\x99"  # an array of nine
    long = b"\xdc\x00\x09" + body[1:]
    with pytest.raises(IntegrityError, match="header was cut off or changed"):
        decode(sealed[:14] + len(long).to_bytes(2, "big") + long)
    header, _ = decode(sealed)
    with pytest.raises(IntegrityError, match="header was cut off or changed"):
        decode(encode(msgspec.structs.replace(header, security_version=1)))


@given(st.binary(max_size=MAX_SIZE))
def test_any_bytes_are_refused_with_an_error_that_says_so(data: bytes) -> None:
    for sealed in (data, b"adyton sealed" + data, b"adyton sealed\1" + data, encode(header_of(seal(b""))[0]) + data):
        with pytest.raises(IntegrityError):
            unseal(sealed)


@given(
    st.builds(
        Header,
        platform=st.sampled_from(["sim", "sev-snp", "sgx"]),
        to=st.just("signer"),
        owner=st.sampled_from([IMAGE, SIGNER]),
        product_id=st.integers(0, (1 << 32) - 1),
        security_version=st.integers(0, (1 << 32) - 1),
        debug=st.booleans(),
        purpose=st.sampled_from(["data", "files"]),
        tcb=st.binary(max_size=64),
        key_id=st.binary(min_size=32, max_size=32),
    ),
    st.binary(max_size=20),
)
def test_headers_are_read_as_they_were_written(header: Header, rest: bytes) -> None:
    encoded = encode(header)
    assert len(encoded) <= MAX_SIZE
    assert decode(encoded + rest) == (header, len(encoded))


def test_a_later_format_says_so() -> None:
    sealed = bytearray(seal(b"x"))
    sealed[13] = 2
    with pytest.raises(IntegrityError, match="format 2, and this adyton reads format 1"):
        unseal(bytes(sealed))


def test_data_of_older_firmware_opens_and_is_sealed_under_the_present_one() -> None:
    sealed = seal(b"x", root=FirmwareRoot(1))
    updated = FirmwareRoot(2)
    data = unseal(sealed, root=updated)
    assert data == b"x"
    again = seal(data, root=updated)
    assert header_of(again)[0].tcb == b"\2"
    with pytest.raises(IntegrityError, match="under TCB 02, and this machine has 01"):
        unseal(again, root=FirmwareRoot(1))


def test_firmware_in_the_header_cannot_be_lowered() -> None:
    header, rest = header_of(seal(b"x", root=FirmwareRoot(2)))
    lowered = encode(msgspec.structs.replace(header, tcb=b"\1")) + rest
    for version in (1, 2):
        with pytest.raises(IntegrityError, match="is not what was sealed"):
            unseal(lowered, root=FirmwareRoot(version))


def test_another_machine_opens_nothing() -> None:
    with pytest.raises(IntegrityError, match="on another machine or by another runtime"):
        unseal(seal(b"x", root=FirmwareRoot(1)), root=FirmwareRoot(1, b"another"))


@pytest.mark.parametrize(
    ("signer", "says"), [(debug_key().signer, "the debug key, which everybody has"), ("", "it is not signed")]
)
def test_nothing_is_sealed_to_everybody(signer: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        seal(b"x", "signer", own=with_(signer=signer, debug=True))
    assert unseal(seal(b"x", own=with_(signer=signer)), own=with_(signer=signer)) == b"x"


def test_keys_for_other_purposes_are_other_keys() -> None:
    sealing = Sealing(OWN, RootKeys(OWN, SimulatedRoot()))
    header = sealing.header("signer", "files")
    key = sealing.key(header, "files")
    assert len(key) == 32
    assert (
        Sealing(with_(measurement=OTHER_IMAGE), RootKeys(with_(measurement=OTHER_IMAGE), SimulatedRoot())).key(
            header, "files"
        )
        == key
    )
    with pytest.raises(IntegrityError, match="sealed as files, and is opened as data"):
        sealing.key(header, "data")
    with pytest.raises(IntegrityError, match="sealed as files"):
        unseal(header + bytes(40))
    with pytest.raises(IntegrityError, match="1 bytes follow"):
        sealing.key(header + b"x", "files")
    found = decode(header)[0]
    claimed = encode(msgspec.structs.replace(found, purpose="data"))
    assert sealing.key(claimed, "data") != key
    others = [sealing.key(sealing.header(to, "files"), "files") for to in ("measurement", "signer", "signer")]
    assert len({key, *others}) == 4


def test_a_platform_without_a_key_says_so() -> None:
    class NoKey:
        @property
        def tcb(self) -> bytes:
            raise PlatformError("no key")

        def key(self, tcb: bytes) -> bytes:
            raise PlatformError(f"no key for {tcb!r}")

    sealed = seal(b"x")
    for call in (lambda: seal(b"x", root=NoKey()), lambda: unseal(sealed, root=NoKey())):
        with pytest.raises(PlatformError, match="no key"):
            call()


def test_values_that_are_too_large_are_refused_before_they_are_sent() -> None:
    def exchange(_message: bytes) -> bytes:
        raise AssertionError

    large = memoryview(bytes(MAX_DATA + SEGMENT))
    with pytest.raises(ResourceLimitError, match="at most 67108864"):
        guest.seal(exchange, large[: MAX_DATA + 1], "measurement", bytes(32))
    with pytest.raises(ResourceLimitError, match="it is none"):
        guest.unseal(exchange, large, bytes(32))


def test_the_largest_value_opens_and_no_segment_fits_behind_it() -> None:
    key, size = bytes(32), MAX_DATA // SEGMENT
    segments, piece = Segments(key, b"", bytes(RANDOM_SIZE), b""), bytes(SEGMENT)
    for _ in range(size):
        segments.seal(piece, last=False)
    with pytest.raises(LocalProtocolError, match="there is no such one"):
        segments.seal(b"x", last=True)


# -- a guest that does not keep to the protocol ---------------------------------------------------------------------------


def begun() -> Conversation:
    conversation = Conversation(Sealing(OWN, RootKeys(OWN, SimulatedRoot())))
    conversation.receive(msgspec.msgpack.encode(guest.Seal("measurement", bytes(32))))
    return conversation


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x02x",
        b"\x00short",
        b"\x00" + bytes(SEGMENT + 1),
        b"\x01" + bytes(SEGMENT + 1),
    ],
)
def test_a_segment_that_is_none_ends_the_enclave(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        begun().receive(message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff" * 40,
        msgspec.msgpack.encode(["Seal", "nobody", bytes(32)]),
        msgspec.msgpack.encode(["Seal", "signer", bytes(31)]),
        msgspec.msgpack.encode(["Unseal", bytes(guest.MAX_HEAD + 1), bytes(32)]),
        msgspec.msgpack.encode(["Refusal", "x", "y"]),
    ],
)
def test_a_request_that_is_none_ends_the_enclave(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Conversation(Sealing(OWN, RootKeys(OWN, SimulatedRoot()))).receive(message)


def test_nothing_follows_the_last_segment() -> None:
    conversation = begun()
    conversation.receive(b"\x01last")
    with pytest.raises(RemoteProtocolError, match="goes on"):
        conversation.receive(b"\x01more")


def test_nothing_follows_a_refusal() -> None:
    conversation = Conversation(Sealing(OWN, RootKeys(OWN, SimulatedRoot())))
    refused = conversation.receive(msgspec.msgpack.encode(guest.Unseal(b"nothing", bytes(32))))
    assert refused[:1] == guest.REFUSED
    with pytest.raises(RemoteProtocolError, match="goes on"):
        conversation.receive(b"\x01more")


def test_errors_arrive_as_what_they_were() -> None:
    kinds: list[tuple[type[AdytonError], Callable[[], object]]] = [
        (UsageError, lambda: seal(b"x", "signer", own=with_(signer=""))),
        (IntegrityError, lambda: unseal(b"x")),
    ]
    for kind, call in kinds:
        with pytest.raises(AdytonError) as raised:
            call()
        assert type(raised.value) is kind
