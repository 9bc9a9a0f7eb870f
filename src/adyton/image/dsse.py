"""DSSE envelopes (secure-systems-lab/dsse, protocol and envelope v1): bytes of a stated type, signed.

    PAE(type, payload) = "DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload           LEN: decimal, of the bytes

An envelope holds one signature, and beside it the public key it was made with ("public_key", base64 of the DER), since adyton's
signers are named by their key's digest ("keyid") and no directory of keys exists. Who the signer *is* is for a policy to say.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from adyton.crypto.keys import PublicKey, SigningKey
from adyton.errors import SignatureError
from adyton.image.manifest import canonical_json

MAX_ENVELOPE = 1 << 16  # bytes


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    public_key: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815 - the name in the format
    signatures: list[_Signature]


class Opened(msgspec.Struct, frozen=True):
    """What an envelope says: `valid` tells whether the signature holds for the payload under the key of that signer."""

    payload_type: str
    payload: bytes
    signer: str
    valid: bool


# Made at import: msgspec's first look at a type must not be two threads' at once, of which one would see it half done.
_ENVELOPE = msgspec.json.Decoder(_Envelope)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: SigningKey) -> bytes:
    """The envelope's bytes, canonical JSON; equal input gives equal bytes."""
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    signed = _Signature(key.signer, _base64(key.public.der), _base64(signature))
    return canonical_json(_Envelope(_base64(payload), payload_type, [signed]))


def open_envelope(data: bytes) -> Opened:
    """What the envelope says; SignatureError if it is none. A signature that does not hold is no error here, but not `valid`."""
    if len(data) > MAX_ENVELOPE:
        raise SignatureError(f"a signature of {len(data)} bytes is longer than {MAX_ENVELOPE}")
    try:
        envelope = _ENVELOPE.decode(data)
        if len(envelope.signatures) != 1:
            raise SignatureError(f"a DSSE envelope with {len(envelope.signatures)} signatures; exactly one is expected")
        signature = envelope.signatures[0]
        payload, sig = _bytes(envelope.payload), _bytes(signature.sig)
        key = PublicKey.from_der(_bytes(signature.public_key))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SignatureError(f"the signature is not a DSSE envelope: {error}") from error
    if signature.keyid != key.signer:
        raise SignatureError(f"the signature names the signer {signature.keyid[:80]!r}, but its key is {key.signer}")
    valid = key.verifies(sig, pre_authentication_encoding(envelope.payloadType, payload))
    return Opened(envelope.payloadType, payload, key.signer, valid)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    data = base64.b64decode(text.encode(), validate=True)
    if _base64(data) != text:
        raise binascii.Error("base64 in another spelling than the canonical one")
    return data
