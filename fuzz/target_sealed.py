"""The fuzz target of sealed files: a container as whoever keeps it may change it, and as no store would write it."""

from __future__ import annotations

from typing import Any

from draw import Draw

from adyton.errors import IntegrityError
from adyton.sealed_files.cipher import BLOCK, HOLE, BlockCipher
from adyton.sealed_files.contents import FAN_OUT
from adyton.sealed_files.memory import ENTRY, NOTE_SIZE, Commit, Notes
from adyton.sealed_files.storage import Read, Recall, Request, Resize, Size, Write, run
from adyton.sealed_files.store import ATTRIBUTES_SIZE, RECORD, Store
from adyton.sealed_files.superblock import Superblock

SECRET = bytes(32)
CAPACITY = 1 << 26
SLOTS = 12
TRIED = 5  # objects


class _Keys:
    """Of an enclave; a header is what its key is."""

    def new(self) -> tuple[bytes, bytes]:
        return SECRET, SECRET

    def key(self, header: bytes) -> bytes:
        if len(header) != len(SECRET):
            raise IntegrityError("no header")
        return header


KEYS = _Keys()


class _Disk:
    def __init__(self, data: bytes, note: bytes = b"") -> None:
        self.data = bytearray(data)
        self.note = note

    def serve(self, request: Request) -> Any:
        match request:
            case Size():
                return len(self.data)
            case Read(ranges):
                return [bytes(self.data[offset : offset + size]) for offset, size in ranges]
            case Write(parts):
                for offset, part in parts:
                    self.data.extend(bytes(max(0, offset - len(self.data))))
                    self.data[offset : offset + len(part)] = part
            case Resize(size):
                del self.data[size:]
            case Recall():
                return self.note
            case _:
                pass
        return None


def sealed_store(data: bytes) -> None:
    """Bytes; or a container of blocks that are sealed with the key, whatever they say."""
    draw = Draw(data)
    remembers, note = draw.often(), _note(draw)
    disk = _Disk(draw.rest() if draw.below(4) == 0 else _container(draw), note)
    store = Store(KEYS, CAPACITY, remembers=remembers)
    run(store.open(), disk)
    for stored in list(store.objects.values())[:TRIED]:
        size = stored.size
        assert len(run(store.read(stored, 0, 3 * BLOCK), disk)) == min(size, 3 * BLOCK)
        run(store.write(stored, draw.below(256) * BLOCK // 2, b"x" * BLOCK), disk)
        run(store.resize(stored, draw.below(256) * BLOCK // 2), disk)
        start = draw.below(256) * BLOCK // 2
        run(store.punch(stored, start, start + draw.below(256) * BLOCK // 2), disk)
    run(store.commit(), disk)
    again = Store(KEYS, CAPACITY)
    run(again.open(), disk)
    assert {number: each.size for number, each in again.objects.items()} == {
        number: each.size for number, each in store.objects.items()
    }


def _note(draw: Draw) -> bytes:
    """Mostly one of the store's; of the epoch of the container, or of another one."""
    match draw.below(4):
        case 0:
            return b""
        case 1:
            return draw.take(NOTE_SIZE)
        case _:
            return Notes(SECRET).of(Commit(bytes([draw.below(2)]) * 16, draw.below(4)))


def _container(draw: Draw) -> bytes:
    """Blocks that lead to those before them: content, nodes, tables."""
    cipher = BlockCipher(SECRET)
    slots: dict[int, bytes] = {}
    pointers = [HOLE]
    for slot in range(2, 2 + draw.below(SLOTS)):
        kind = draw.below(4)
        if kind == 0:
            block = draw.take(draw.below(64))
        elif kind == 1:
            block = b"".join(draw.pick(pointers) for _ in range(draw.pick((1, 2, FAN_OUT))))
        elif kind == 2:
            block = ENTRY.pack(bytes([draw.below(2)]) * 16, draw.below(4)) * draw.below(100)
        else:
            records = (_record(draw, pointers) for _ in range(draw.below(4)))
            block = b"".join(records)
        pointer, slots[slot] = cipher.seal(slot, block.ljust(BLOCK, b"\0"))
        pointers.append(pointer)
    size = draw.number() % (1 << 64) if draw.below(4) == 0 else RECORD.size * draw.below(64)
    number = draw.number() % (1 << 32) if draw.below(4) == 0 else SLOTS + 2
    superblock = Superblock(
        *(draw.below(4), bytes(16), draw.below(4), number, size, draw.below(7), draw.pick(pointers[-3:]), SECRET)
    ).seal(*KEYS.new())
    container = b"".join(slots.get(slot, bytes(BLOCK)) for slot in range(2, 2 + SLOTS))
    return superblock + superblock + container


def _record(draw: Draw, pointers: list[bytes]) -> bytes:
    size = draw.number() % (1 << 64) if draw.below(4) == 0 else draw.pick((100, ENTRY.size)) * draw.below(256)
    return RECORD.pack(draw.often(), draw.below(7), size, draw.pick(pointers), draw.take(ATTRIBUTES_SIZE))
