"""The header of sealed data: to whom it is sealed, on which platform, and what its key is derived from. In the clear, and authenticated.

    "adyton sealed" ‖ format (1 byte) ‖ size of the rest (2 bytes, big-endian) ‖ a MessagePack array: `Header`

There is one encoding of each header: another one of the same fields is refused.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

import msgspec

from adyton.attestation.identity import Digest, Number, Platform
from adyton.errors import IntegrityError

MAGIC = b"adyton sealed"
FORMAT = 1
KEY_ID_SIZE = 32  # bytes
MAX_TCB = 64  # bytes
_HEAD = struct.Struct(f">{len(MAGIC)}sBH")
MAX_SIZE = 512  # bytes of all of it

To = Literal["measurement", "signer"]
Purpose = Literal["data", "files"]  # of trusted.seal; of /sealed


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`to`: what `owner` is the digest of. `product_id`, `security_version`: of the image that sealed, where it is sealed to its signer, else 0.

    `tcb`: the state of the platform's firmware whose root key it is, as the platform writes it. `key_id`: random, so that each header has a key of its own.
    """

    platform: Platform
    to: To
    owner: Digest
    product_id: Number
    security_version: Number
    debug: bool
    purpose: Purpose
    tcb: Annotated[bytes, msgspec.Meta(max_length=MAX_TCB)]
    key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_SIZE, max_length=KEY_ID_SIZE)]


_DECODER = msgspec.msgpack.Decoder(Header)


def encode(header: Header) -> bytes:
    """As it stands before what is sealed."""
    body = msgspec.msgpack.encode(header)
    return _HEAD.pack(MAGIC, FORMAT, len(body)) + body


def decode(sealed: bytes) -> tuple[Header, int]:
    """The header of hostile bytes, of which nothing is believed yet, and its size: what is sealed follows. Only IntegrityError leaves."""
    if len(sealed) < _HEAD.size or not sealed.startswith(MAGIC):
        raise IntegrityError(
            "this is nothing that an enclave has sealed: it was cut off or changed, or is something else"
        )
    _, version, length = _HEAD.unpack_from(sealed)
    if version != FORMAT:
        raise IntegrityError(
            f"the sealed data has format {version}, and this adyton reads format {FORMAT}: it was changed, or sealed by another release. Open it with that"
        )
    size = _HEAD.size + length
    if size > min(MAX_SIZE, len(sealed)):
        raise _damaged()
    try:
        header = _DECODER.decode(sealed[_HEAD.size : size])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _damaged() from None
    if encode(header) != sealed[:size] or (
        header.to == "measurement" and (header.product_id or header.security_version)
    ):
        raise _damaged()
    return header, size


def decode_whole(header: bytes) -> Header:
    """The same of bytes that nothing may follow."""
    found, size = decode(header)
    if size != len(header):
        raise IntegrityError(f"{len(header) - size} bytes follow the header of sealed data")
    return found


def _damaged() -> IntegrityError:
    return IntegrityError("the sealed data does not open: its header was cut off or changed. Take another copy of it")
