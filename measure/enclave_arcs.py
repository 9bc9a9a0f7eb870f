"""Which lines of the runtime follow which, traced in processes that can write no file and end without notice.

Zygotes, supervisors and guests live in file trees, user ids and filters of their own, and end by _exit or SIGKILL, so coverage.py
cannot run there. This module is laid beside the runtime's libraries instead, and notes each arc the moment it is first seen in a
table of shared memory: one file, mapped before the walls go up, inherited by every fork. Noting is a store into memory, so no filter
is in its way, and nothing has to be saved at an end.

The table is a hash table of 64-bit words, 0 where nothing is. A word is an arc: the file (24 bits of a digest of its name), and the
two line numbers as coverage.py has them (20 bits each; entry and exit of a block of code are its first line, negative). Two
processes that write different arcs into one free slot in the same nanoseconds may lose one of them; the next process to see
it notes it again. Standard library only, and little of it: all that is imported here, an enclave's memory holds.
"""

from __future__ import annotations

import ctypes
import dis
import os
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

SLOTS = 1 << 18
SIZE = 8 * SLOTS  # bytes
LIBRARIES = "/opt/adyton/lib"

_BIAS = 1 << 19
_LINE = 0xFFFFF
_FILE = 0xFFFFFF
_PROT_READ_WRITE, _MAP_SHARED = 3, 1
_GENERATORS = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
_RESUME = dis.opmap["RESUME"]
_PUSH_EXC_INFO = dis.opmap["PUSH_EXC_INFO"]
_PAST_YIELD = 0 if sys.version_info[:2] == (3, 13) else 2  # f_lasti of a suspended generator is at RESUME, or before it


def file_number(name: str) -> int:
    """The number of a file by its name within the package, such as "adyton/client.py"; never 0."""
    return zlib.crc32(name.encode()) & _FILE or 1


def note(table: Any, file: int, first: int, last: int) -> None:
    """Put an arc into the table: SLOTS words that can be indexed."""
    word = file << 40 | (first + _BIAS & _LINE) << 20 | (last + _BIAS & _LINE)
    slot = word * 0x9E3779B97F4A7C15 >> 40 & SLOTS - 1
    while table[slot] != word:
        if table[slot] == 0:
            table[slot] = word
        else:
            slot = slot + 1 & SLOTS - 1


def arcs(table: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """File number, first and second line of each arc."""
    for word in table:
        if word:
            yield word >> 40, (word >> 20 & _LINE) - _BIAS, (word & _LINE) - _BIAS


def prelude(folder: str, descriptor: int, home: str) -> str:
    """Code that starts this in a new Python, before its own; `folder`: where it finds this module."""
    call = f"enclave_arcs.start({descriptor}, {home!r})"
    return f"import sys; sys.path.append({folder!r}); import enclave_arcs; sys.path.pop(); {call}; "


def start(descriptor: int, home: str = LIBRARIES) -> None:
    """Trace what is below `home`/adyton in this process, all its threads and all its forks, into the file `descriptor`.

    Outside of an enclave's file tree it is the first half of a zygote, and what it executes goes on with that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, SIZE, _PROT_READ_WRITE, _MAP_SHARED, descriptor, 0)  # mmap.mmap would keep a descriptor
    table = (ctypes.c_uint64 * SLOTS).from_address(address)
    if home == LIBRARIES:
        os.close(descriptor)
    else:
        _follow(descriptor)
    trace = _tracer(table, home)
    threading.settrace(trace)
    sys.settrace(trace)


def _follow(descriptor: int) -> None:
    """Have the Python that this process executes measure itself too."""
    execute = os.execve

    def execve(path: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        os.set_inheritable(descriptor, True)
        execute(path, [*arguments[:-1], prelude(LIBRARIES, descriptor, LIBRARIES) + arguments[-1]], environment)

    os.execve = execve  # type: ignore[assignment]


def _tracer(table: Any, home: str) -> Any:
    """The function for sys.settrace. What counts as an arc is as in coverage.py's own tracer, pytracer.py."""
    package = f"{home}/adyton/"
    files: dict[str, tuple[int, set[tuple[int, int]]]] = {}

    def call(frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        try:
            file, known = files[code.co_filename]
        except KeyError:
            path = code.co_filename
            number = file_number(path[len(home) + 1 :]) if path.startswith(package) else 0
            file, known = files[path] = number, set()
        if not file:
            return None
        suspends = code.co_flags & _GENERATORS
        resumed = suspends and code.co_code[frame.f_lasti + 1] != 0
        previous = frame.f_lineno if resumed else -code.co_firstlineno

        def within(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal previous
            if event == "line":
                line = frame.f_lineno
                if (previous, line) not in known:
                    if code.co_code[frame.f_lasti] == _PUSH_EXC_INFO:
                        return within
                    known.add((previous, line))
                    note(table, file, previous, line)
                previous = line
            elif event == "return" and not (suspends and _is_suspended(code, frame.f_lasti)):
                line = frame.f_lineno
                if sys.version_info >= (3, 14) and line is not None and line != previous:
                    note(table, file, previous, line)
                    previous = line
                if (previous, -code.co_firstlineno) not in known:
                    known.add((previous, -code.co_firstlineno))
                    note(table, file, previous, -code.co_firstlineno)
            return within

        return within

    return call


def _is_suspended(code: CodeType, last: int) -> bool:
    following = last + _PAST_YIELD
    return following < len(code.co_code) and code.co_code[following] == _RESUME
