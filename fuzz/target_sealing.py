"""Fuzz targets of sealing: sealed data of hostile origin, a guest's requests to have it opened, and a supervisor's for keys."""

from __future__ import annotations

import contextlib

import msgspec
from draw import Draw, packed
from msgspec import structs

from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.header import MAGIC, MAX_SIZE, Header, decode, encode
from adyton.attestation.sealing.keys import KEY_SIZE, RootKeys, Sealing
from adyton.attestation.sealing.roots import SimulatedRoot
from adyton.errors import IntegrityError, PlatformError, UsageError
from adyton.runtime.process.guest import sealing as guest
from adyton.runtime.process.supervisor.sealing import Conversation

IMAGE, SIGNER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
OWN = EnclaveIdentity("sim", IMAGE, SIGNER, 1, 2, debug=False, runtime=IMAGE, machine="")
WORDS = ("", IMAGE, SIGNER, "signer", "measurement", "data", "files", "sim")


def _sealed(draw: Draw) -> bytes:
    """Raw, or a header, mostly one of this enclave's, and something behind it."""
    if not draw.often():
        return draw.pick((b"", MAGIC, MAGIC + b"\1")) + draw.rest()
    header = draw.struct(Header)
    header = structs.replace(header, owner=header.owner[:200], tcb=header.tcb[:100], key_id=header.key_id[:100])
    if draw.often():
        to, owner, numbers = draw.pick((("measurement", IMAGE, (0, 0)), ("signer", SIGNER, (1, draw.below(4)))))
        product, version = numbers
        header = structs.replace(
            header, platform="sim", to=to, owner=owner, product_id=product, security_version=version, debug=False
        )
    if draw.often():
        header = structs.replace(header, purpose="data", tcb=b"", key_id=draw.take(32).ljust(32, b"\0"))
    return draw.spoilt(encode(header)) + draw.rest()


def sealed_data(data: bytes) -> None:
    """What is no sealed data of this enclave's is refused with an IntegrityError; nothing that a fuzzer makes opens."""
    sealed = _sealed(Draw(data, WORDS))
    with contextlib.suppress(IntegrityError):
        header, size = decode(sealed)
        assert size <= MAX_SIZE
        assert encode(header) == sealed[:size]
    guest.unseal(Conversation(Sealing(OWN, RootKeys(OWN, SimulatedRoot()))).receive, memoryview(sealed), bytes(32))
    raise AssertionError(f"this was sealed by nobody, and opens: {sealed.hex()}")


def key_question(data: bytes) -> None:
    """What a supervisor that was taken over asks of who has the root: no key but of its own enclave's headers."""
    sealed = _sealed(Draw(data, WORDS))
    keys = RootKeys(OWN, SimulatedRoot())
    with contextlib.suppress(IntegrityError):
        found, size = decode(sealed)
        assert len(keys.key(sealed[:size])) == KEY_SIZE
        assert found.owner == (IMAGE if found.to == "measurement" else SIGNER)
        assert (found.platform, found.debug, found.security_version <= 2) == ("sim", False, True)
        assert found.to == "measurement" or found.product_id == 1
    assert keys.key(sealed) == keys.key(sealed[: decode(sealed)[1]])


def seal_requests(data: bytes) -> None:
    """A guest's messages about one value, in any order: each has an answer, until one is none."""
    draw, conversation = Draw(data, WORDS), Conversation(Sealing(OWN, RootKeys(OWN, SimulatedRoot())))
    while draw:
        match draw.below(5):
            case 0:
                message = draw.blob()
            case 1:
                message = packed(draw.struct(guest.Seal))
            case 2:
                message = msgspec.msgpack.encode(guest.Unseal(_sealed(draw)[: guest.MAX_HEAD], bytes(32)))
            case 3:
                message = b"\0" + bytes(guest.SEGMENT)
            case _:
                message = bytes([draw.below(3)]) + draw.take(40)
        answer = conversation.receive(draw.spoilt(message))
        assert answer[:1] in (guest.OK, guest.REFUSED)
        assert len(answer) <= guest.MAX_PACKET
        if answer[:1] == guest.REFUSED:
            refusal = msgspec.msgpack.decode(answer[1:], type=guest.Refusal)
            assert refusal.kind in {each.__name__ for each in (IntegrityError, PlatformError, UsageError)}
