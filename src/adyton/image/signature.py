"""What a signature of an image says, and whether it holds for that image.

The signed payload is canonical JSON over measurement, product id, security version and the debug flag. A signature is *valid* when it
holds under its key, names this image's measurement, and repeats the product id and version of this image's manifest. The debug key
is everybody's, so what it signs is a debug signature or none.
"""

from __future__ import annotations

import msgspec

from adyton.crypto.keys import SigningKey, debug_key
from adyton.errors import SignatureError
from adyton.image import dsse
from adyton.image.manifest import Manifest, Number16, canonical_json

PAYLOAD_TYPE = "application/vnd.adyton.signature.v1+json"


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed."""

    measurement: str
    product_id: Number16
    security_version: Number16
    debug: bool


# Made at import: msgspec's first look at a type must not be two threads' at once, of which one would see it half done.
_PAYLOAD = msgspec.json.Decoder(Payload)


class Signature(msgspec.Struct, frozen=True):
    """One signature of an image. `signer`: digest of the public key; `envelope`: the DSSE envelope, byte for byte."""

    signer: str
    debug: bool
    valid: bool
    product_id: int
    security_version: int
    envelope: bytes


def make_signature(measurement: str, manifest: Manifest, key: SigningKey) -> bytes:
    """The DSSE envelope of a signature by `key`; a debug signature exactly if it is the well-known debug key."""
    payload = Payload(
        measurement=measurement,
        product_id=manifest.product_id,
        security_version=manifest.security_version,
        debug=key.signer == debug_key().signer,
    )
    return dsse.sign(PAYLOAD_TYPE, canonical_json(payload), key)


def read_signature(envelope: bytes, measurement: str, manifest: Manifest) -> Signature:
    """What the envelope says about the image; SignatureError if it is no signature of an image at all."""
    opened = dsse.open_envelope(envelope)
    if opened.payload_type != PAYLOAD_TYPE:
        raise SignatureError(f"a signature of {opened.payload_type[:80]!r}, not of an image ({PAYLOAD_TYPE})")
    try:
        payload = _PAYLOAD.decode(opened.payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SignatureError(f"what the signature is over is malformed: {error}") from error
    valid = (
        opened.valid
        and canonical_json(payload) == opened.payload
        and payload.measurement == measurement
        and payload.product_id == manifest.product_id
        and payload.security_version == manifest.security_version
        and (payload.debug or opened.signer != debug_key().signer)
    )
    return Signature(opened.signer, payload.debug, valid, payload.product_id, payload.security_version, envelope)
