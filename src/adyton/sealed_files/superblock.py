r"""The root of a store: sealed, in the container's first two slots, and with the number of the commit that it is.

    offset  bytes
    0       16     b"adyton sealed 1\n"
    16      2      size of the sealing key's header (little-endian)
    18      766    that header, then zeros              so much is in the clear, and authenticated
    784     12     nonce
    796     3284   sealed: counter ‖ epoch ‖ blocks sealed ever ‖ slots ‖ size and depth of the table ‖ pointer to it ‖ the
                   store's secret ‖ zeros
    4080    16     tag

A commit overwrites the first, and has it durable before the second is overwritten; so after a crash one of the two is whole. The second is the same, or
the one before where the first is not whole.

What nobody can see from the container alone is whether it is the last state of it, or an earlier one, wholly (a rollback): see `memory`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from adyton.crypto.aead import OVERHEAD
from adyton.errors import IntegrityError
from adyton.sealed_files.cipher import BLOCK, KEY_SIZE, POINTER, Keys, superblock_cipher
from adyton.sealed_files.memory import EPOCH_SIZE

MAGIC = b"adyton sealed 1\n"
_CLEAR = struct.Struct(f"<{len(MAGIC)}sH766s")
_FIELDS = struct.Struct(f"<Q{EPOCH_SIZE}sQIQB{POINTER}s{KEY_SIZE}s")
_ROOM = BLOCK - _CLEAR.size - OVERHEAD


@dataclass(frozen=True, slots=True)
class Superblock:
    """`counter`: how many commits there were; `epoch`: in which, see `memory`. `sealed`: blocks, ever.

    `secret`: what the keys of the store's blocks are made of. `slots`: what is in use lies in so many of the container's first; `size`, `depth`, `root`: of the table of objects.
    """

    counter: int
    epoch: bytes
    sealed: int
    slots: int
    size: int
    depth: int
    root: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"<Superblock {self.counter}>"

    def seal(self, header: bytes, key: bytes) -> bytes:
        """The slot's 4096 bytes, under a sealing key with that header."""
        fields = (self.counter, self.epoch, self.sealed, self.slots, self.size, self.depth, self.root, self.secret)
        clear = _CLEAR.pack(MAGIC, len(header), header)
        return clear + superblock_cipher(key).seal(_FIELDS.pack(*fields).ljust(_ROOM, b"\0"), clear)


def open_superblock(keys: Keys, sealed: bytes) -> Superblock:
    """IntegrityError if it is not whole, or not this enclave's. PlatformError: it cannot be told here."""
    if len(sealed) != BLOCK or not sealed.startswith(MAGIC):
        raise IntegrityError("it is none")
    clear = sealed[: _CLEAR.size]
    _, size, header = _CLEAR.unpack(clear)
    cipher = superblock_cipher(keys.key(header[:size]))
    try:
        plain = cipher.open(sealed[_CLEAR.size :], clear)
    except IntegrityError:
        raise IntegrityError("it was changed, or is another enclave's") from None
    return Superblock(*_FIELDS.unpack_from(plain))
