"""The few commands that a TPM is given for a quote, and for a sealing key: fields to bytes, and back. TPM 2.0 Library, parts 2 (structures) and 3 (commands).

An own codec and not tpm2-pytss: that is compiled against the libtss2 of the machine, brings a stack that opens devices and loads libraries by
name; ten commands over a descriptor that is open need nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from adyton.attestation.tpm.abi import (
    ECC,
    ECDSA,
    FIXED_PARENT,
    FIXED_TPM,
    HMAC,
    KEYED_HASH,
    NO_DA,
    NULL,
    P256,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SIGN,
    USER_WITH_AUTH,
    Reader,
)
from adyton.errors import EvidenceMalformedError, PlatformError

_T = TypeVar("_T")

MAX_RESPONSE = 4096  # bytes
RETRY = 0x922  # the TPM could not begin: to be asked again
HEADER = struct.Struct(">HII")  # tag, size, code
_PLAIN, _AUTHORISED = 0x8001, 0x8002
_PASSWORD = 0x40000009  # TPM_RS_PW
_NOBODY = 0x40000007  # TPM_RH_NULL
OWNER, ENDORSEMENT = 0x40000001, 0x4000000B  # hierarchies
_POLICY_SESSION = 1  # TPM_SE_POLICY
_NV_OWNER_READ, _NV_AUTH_READ = 1 << 17, 1 << 18
_BITMAP = 3  # bytes
MOST_DIGESTS = 8  # in an answer to PCR_Read
MOST_NV = 512  # bytes in an answer to NV_Read: what every TPM can

CREATE_PRIMARY, NV_READ, HMAC_OF, QUOTE, FLUSH_CONTEXT = 0x131, 0x14E, 0x155, 0x158, 0x165
NV_READ_PUBLIC, READ_PUBLIC, START_AUTH_SESSION, PCR_READ, POLICY_PCR = 0x169, 0x173, 0x176, 0x17E, 0x17F

# Made from the TPM's own endorsement seed, so it is the same key each time: there is nothing to keep, and policies can name it.
OWN_KEY = struct.pack(
    ">HHIHHHHHHHH",
    *(ECC, SHA256, FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN),
    *(0, NULL),  # no policy, no symmetric algorithm
    *(ECDSA, SHA256, P256, NULL),
    *(0, 0),  # the point is the TPM's to say
)


class TpmError(PlatformError):
    """`response`: the TPM's code (TPM_RC)."""

    def __init__(self, name: str, response: int) -> None:
        super().__init__(
            f"the TPM refused TPM2_{name} with TPM_RC {response:#x}: `tpm2_rc_decode {response:#x}` says what that is"
        )
        self.response = response


@dataclass(frozen=True)
class Command(Generic[_T]):
    """`name`: in the library's part 3, without TPM2_. `data`: for the TPM. `read`: what its answer says."""

    name: str
    data: bytes
    read: Callable[[Reader], _T]

    def answered(self, response: bytes) -> _T:
        """TpmError: it was refused; PlatformError: it is no answer."""
        try:
            reader = Reader(response, f"the answer to TPM2_{self.name}", most=MAX_RESPONSE)
            _tag, size, code = HEADER.unpack(reader.take(HEADER.size))
            if code:
                raise TpmError(self.name, code)
            if size != len(response):
                raise PlatformError(f"the TPM answered TPM2_{self.name} with {len(response)} bytes of {size}")
            return self.read(reader)
        except EvidenceMalformedError as error:
            raise PlatformError(f"the TPM answered TPM2_{self.name} with what cannot be read: {error}") from error


def _command(
    name: str,
    code: int,
    read: Callable[[Reader], _T],
    *handles: int,
    parameters: bytes = b"",
    authorised: bool = False,
    session: int = _PASSWORD,
) -> Command[_T]:
    """`authorised`: by the session, which has nothing to show but its policy, and ends with this; without one by a password of no bytes."""
    by = struct.pack(">IIHBH", 9, session, 0, 0, 0) if authorised else b""
    body = b"".join(struct.pack(">I", each) for each in handles) + by + parameters
    return Command(name, HEADER.pack(_AUTHORISED if authorised else _PLAIN, HEADER.size + len(body), code) + body, read)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _selection(pcrs: Sequence[int]) -> bytes:
    """A TPML_PCR_SELECTION of the SHA-256 bank."""
    bits = sum(1 << each for each in pcrs)
    return struct.pack(">IHB", 1, SHA256, _BITMAP) + bits.to_bytes(_BITMAP, "little")


def create_primary(template: bytes, hierarchy: int = ENDORSEMENT) -> Command[tuple[int, bytes]]:
    """In a hierarchy, from a template (TPMT_PUBLIC) → a handle, which is to be flushed, and the key's TPMT_PUBLIC."""

    def read(reader: Reader) -> tuple[int, bytes]:
        handle, _size = reader.number(4), reader.number(4)
        return handle, reader.sized()

    parameters = _sized(_sized(b"") + _sized(b"")) + _sized(template) + _sized(b"") + struct.pack(">I", 0)
    return _command("CreatePrimary", CREATE_PRIMARY, read, hierarchy, parameters=parameters, authorised=True)


def flush_context(handle: int) -> Command[None]:
    """The TPM forgets a key that was loaded."""
    return _command("FlushContext", FLUSH_CONTEXT, lambda _: None, handle)


def read_public(handle: int) -> Command[bytes]:
    """A key's TPMT_PUBLIC."""
    return _command("ReadPublic", READ_PUBLIC, Reader.sized, handle)


def quote(handle: int, extra: bytes, pcrs: Sequence[int]) -> Command[tuple[bytes, bytes]]:
    """By a key, in its own scheme → TPMS_ATTEST, TPMT_SIGNATURE."""

    def read(reader: Reader) -> tuple[bytes, bytes]:
        parameters = Reader(reader.take(reader.number(4)), "a quote")
        return parameters.sized(), parameters.rest()

    parameters = _sized(extra) + struct.pack(">H", NULL) + _selection(pcrs)
    return _command("Quote", QUOTE, read, handle, parameters=parameters, authorised=True)


def pcr_read(pcrs: Sequence[int]) -> Command[list[bytes]]:
    """At most MOST_DIGESTS → their values in the order of their numbers; fewer, where the TPM has not all."""

    def read(reader: Reader) -> list[bytes]:
        reader.number(4)  # how often any was changed
        for _ in range(reader.number(4)):
            reader.number(2)
            reader.take(reader.number(1))
        return [reader.sized() for _ in range(min(reader.number(4), MOST_DIGESTS))]

    return _command("PCR_Read", PCR_READ, read, parameters=_selection(pcrs))


def start_policy_session(nonce: bytes) -> Command[int]:
    """Of SHA-256, bound to nothing, in the clear → its handle, which is to be flushed unless it has authorised something."""
    parameters = _sized(nonce) + _sized(b"") + struct.pack(">BHH", _POLICY_SESSION, NULL, SHA256)

    def read(reader: Reader) -> int:
        return reader.number(4)

    return _command("StartAuthSession", START_AUTH_SESSION, read, _NOBODY, _NOBODY, parameters=parameters)


def policy_pcr(session: int, digest: bytes, pcrs: Sequence[int]) -> Command[None]:
    """The session holds while these PCRs have values of that digest (SHA-256, of one after the other); refused if they have others."""
    return _command("PolicyPCR", POLICY_PCR, lambda _: None, session, parameters=_sized(digest) + _selection(pcrs))


def policy_of_pcrs(digest: bytes, pcrs: Sequence[int]) -> bytes:
    """The policy that such a session then has: part 3, PolicyPCR."""
    return hashlib.sha256(bytes(32) + struct.pack(">I", POLICY_PCR) + _selection(pcrs) + digest).digest()


def keyed_hash(policy: bytes) -> bytes:
    """The template of a key for HMAC-SHA-256 that the TPM makes, and uses under that policy only."""
    attributes = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | NO_DA | SIGN
    return struct.pack(">HHI", KEYED_HASH, SHA256, attributes) + _sized(policy) + struct.pack(">HHH", HMAC, SHA256, 0)


def hmac_of(handle: int, session: int, data: bytes) -> Command[bytes]:
    """HMAC-SHA-256 of at most 1024 bytes, by a key whose policy the session fulfils."""

    def read(reader: Reader) -> bytes:
        return Reader(reader.take(reader.number(4)), "an HMAC").sized()

    parameters = _sized(data) + struct.pack(">H", SHA256)
    return _command("HMAC", HMAC_OF, read, handle, parameters=parameters, authorised=True, session=session)


class NvIndex(NamedTuple):
    """`reader`: who may read it without a secret, by handle; 0: nobody."""

    size: int
    reader: int


def nv_read_public(index: int) -> Command[NvIndex]:
    """What is known of an index."""

    def read(reader: Reader) -> NvIndex:
        public = Reader(reader.sized(), "an NV index")
        public.take(4 + 2)  # which it is, and the hash of its name
        attributes = public.number(4)
        public.sized()
        allowed = index if attributes & _NV_AUTH_READ else OWNER if attributes & _NV_OWNER_READ else 0
        return NvIndex(public.number(2), allowed)

    return _command("NV_ReadPublic", NV_READ_PUBLIC, read, index)


def nv_read(index: int, reader: int, size: int, offset: int) -> Command[bytes]:
    """At most MOST_NV bytes."""

    def read(answer: Reader) -> bytes:
        answer.number(4)
        return answer.sized()

    return _command(
        "NV_Read", NV_READ, read, reader, index, parameters=struct.pack(">HH", size, offset), authorised=True
    )
