"""What runs in the enclave for `make soak`: it counts, for each caller, which of its calls have run."""

import random
import struct
import threading
import zlib

MOST_DATA = 1 << 20  # bytes of an argument or a result
DATA = random.Random(0).randbytes(MOST_DATA)  # what both are taken from
HEAD = struct.Struct(">QQI")

_lock = threading.Lock()
_next: dict[int, int] = {}
_wrong: list[str] = []
MOST_WRONG = 100  # that are told


def work(caller: int, number: int, data: bytes, size: int) -> bytes:
    """A caller numbers its calls from 0, and makes one after the other."""
    with _lock:
        expected = _next.get(caller, 0)
        if number == expected:
            _next[caller] = number + 1
        elif len(_wrong) < MOST_WRONG:
            what = "ran twice" if number < expected else f"came when {expected} had not"
            _wrong.append(f"call {number} of caller {caller} {what}")
    return result(caller, number, data, size)


def result(caller: int, number: int, data: bytes, size: int) -> bytes:
    """Of that call, and of no other: it says which one it is, and what came with it."""
    return HEAD.pack(caller, number, zlib.crc32(data)) + DATA[:size]


def ledger() -> tuple[dict[int, int], list[str]]:
    """How many calls of each caller have run, and what went wrong."""
    with _lock:
        return dict(_next), list(_wrong)
