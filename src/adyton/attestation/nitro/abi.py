"""An attestation document: bytes to fields, and nothing else."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import cbor2

from adyton.attestation.findings import refuse

MAX_SIZE = 1 << 15  # bytes; a document has about 5000
_ES384 = -35  # RFC 9053
_SIGNATURE = 96  # bytes: r and s
_TAG = 18  # COSE_Sign1; AWS leaves it out
_PCRS, _PCR_SIZES = range(32), (32, 48, 64)


class Document(NamedTuple):
    """`chain`: the certificate of the key that signed, and then up to the root, in DER. `milliseconds`: since 1970."""

    signed: bytes
    signature: bytes
    module: str
    milliseconds: int
    pcrs: dict[int, bytes]
    chain: tuple[bytes, ...]
    public_key: bytes
    user_data: bytes
    nonce: bytes


def parse(data: bytes) -> Document:
    """Of hostile bytes. Only EvidenceMalformedError leaves."""
    if len(data) > MAX_SIZE:
        raise refuse("malformed", "size of the document", f"at most {MAX_SIZE} bytes", str(len(data)))
    found = _decoded(data, "the document")
    if isinstance(found, cbor2.CBORTag) and found.tag == _TAG:
        found = found.value
    if not isinstance(found, list | tuple) or len(found) != 4:  # what is tagged comes as a tuple
        raise refuse("malformed", "the document", "a COSE_Sign1 object", type(found).__name__)
    protected, unprotected, payload, signature = found
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or unprotected not in ({}, None):
        raise refuse("malformed", "the document", "protected and unprotected headers, and a payload", "others")
    header = _decoded(protected, "the protected header")
    if header != {1: _ES384}:
        raise refuse("malformed", "signature's algorithm", "ES384 alone", repr(header)[:64])
    if not isinstance(signature, bytes) or len(signature) != _SIGNATURE:
        raise refuse("malformed", "signature", f"{_SIGNATURE} bytes", "others")
    fields = _decoded(payload, "the payload")
    if not isinstance(fields, dict):
        raise refuse("malformed", "the payload", "a map", type(fields).__name__)
    if fields.get("digest") != "SHA384":
        raise refuse("malformed", "digest", "SHA384", repr(fields.get("digest"))[:64])
    return Document(
        signed=cbor2.dumps(["Signature1", protected, b"", payload]),
        signature=signature,
        module=_field(fields, "module_id", str),
        milliseconds=_milliseconds(fields),
        pcrs=_pcrs(fields.get("pcrs")),
        chain=(_field(fields, "certificate", bytes), *reversed(_bundle(fields.get("cabundle")))),
        public_key=_optional(fields, "public_key"),
        user_data=_optional(fields, "user_data"),
        nonce=_optional(fields, "nonce"),
    )


def _decoded(data: bytes, what: str) -> Any:
    """One CBOR object, and nothing behind it."""
    stream = io.BytesIO(data)
    try:
        found = cbor2.CBORDecoder(stream).decode()
    except Exception as error:  # cbor2 documents CBORDecodeError, and lets others out for some inputs
        raise refuse("malformed", what, "CBOR", f"what cannot be read: {error}"[:200]) from error
    if stream.tell() != len(data):
        raise refuse("malformed", what, "CBOR alone", f"{len(data) - stream.tell()} bytes behind it")
    return found


def _field(fields: dict[Any, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:
        raise refuse("malformed", name, kind.__name__, type(value).__name__)
    return value


def _milliseconds(fields: dict[Any, Any]) -> int:
    found: int = _field(fields, "timestamp", int)
    if not 0 <= found < 1 << 48:
        raise refuse("malformed", "timestamp", "milliseconds since 1970", str(found)[:64])
    return found


def _optional(fields: dict[Any, Any], name: str) -> bytes:
    value = fields.get(name)
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise refuse("malformed", name, "bytes", type(value).__name__)
    return value


def _pcrs(found: Any) -> dict[int, bytes]:
    good = isinstance(found, dict) and all(
        type(number) is int and number in _PCRS and isinstance(value, bytes) and len(value) in _PCR_SIZES
        for number, value in found.items()
    )
    if not good or not {0, 1, 2} <= found.keys():
        raise refuse("malformed", "pcrs", "digests by number, 0 to 2 among them", "others")
    return dict(sorted(found.items()))


def _bundle(found: Any) -> list[bytes]:
    if not isinstance(found, list) or not 0 < len(found) <= 16 or not all(isinstance(each, bytes) for each in found):
        raise refuse("malformed", "cabundle", "one to 16 certificates", "others")
    return found
