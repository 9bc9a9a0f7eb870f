"""The realtime clock of the process as another one: the vDSO's functions give the monotonic clock and an offset. See vdso(7).

    before    [vvar][vdso]                                  at V, where the C library has found the functions
    after     [offset][stubs][vvar][vdso] moved together,   and at V a copy of the vDSO, whose functions lead to the stubs

The kernel's own code goes on to do the work, in one piece with its data: nothing of it is changed or understood here, but its table of
symbols. A realtime function asks it for the monotonic clock and adds the offset; so realtime cannot run backwards when somebody
sets the machine's clock. While the offset is 0, and for all other functions and clocks, calls are only passed on.

The offset is a signed 64-bit number of nanoseconds at the start of a page, which is the process's own until `follow` puts a file in its
place. Both last through fork, and neither through exec. A system call made past the vDSO gives the machine's clock. x86-64 only. Where a
kernel seals its mappings (CONFIG_MSEAL_SYSTEM_MAPPINGS) there is no `install`.

See mremap(2), and arch/x86/entry/vdso of Linux. CET: each place that is jumped to begins with endbr64, calls and returns are in pairs.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct

from adyton.runtime.process.vdso_stubs import CODE, ENTRIES, HEAD, MOVE

PAGE = 4096

_JUMP = struct.Struct("<4s6sQ")  # endbr64; jmp *0(%rip); the address
_ENDBR64 = bytes.fromhex("f30f1efa")
_JMP = bytes.fromhex("ff2500000000")

# Of ELF64 and its dynamic section (elf.h)
_PT_DYNAMIC = 2
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB = 0, 4, 5, 6
_STT_FUNC = 2

# linux/mman.h, asm-generic/mman-common.h
_PROT_NONE = 0
_MAP_FIXED = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_FAILED = ctypes.c_void_p(-1).value

_offset_pages: list[int] = []  # the address of the one, once the stubs are there


class VdsoError(Exception):
    """The vDSO is not as it is known here, or cannot be moved; nothing was changed."""


def installed() -> bool:
    """Whether the stubs are there."""
    return bool(_offset_pages)


def install() -> None:
    """Put the stubs in the vDSO's place. Called once, without other threads. VdsoError."""
    if os.uname().machine != "x86_64":
        raise VdsoError(f"on {os.uname().machine} the vDSO is not known")
    areas = _areas()
    start, end = areas[-1]
    image = bytearray(ctypes.string_at(start, end - start))
    functions = _functions(bytes(image))
    lowest = areas[0][0]
    block = _mmap(None, 2 * PAGE + end - lowest, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    moved = block + 2 * PAGE - lowest  # what an address of the kernel's functions grows by
    stubs = block + PAGE
    for name, value in functions.items():
        entry = ENTRIES.get(name)
        _JUMP.pack_into(image, value, _ENDBR64, _JMP, start + value + moved if entry is None else stubs + entry)
    head = HEAD.pack(*(start + functions[name] + moved for name in ENTRIES))
    copy = _mmap(None, len(image), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    _mmap(block, 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, fixed)
    ctypes.memmove(stubs, head + CODE, len(head) + len(CODE))
    ctypes.memmove(copy, bytes(image), len(image))
    for address, size, protection in (
        (block, PAGE, mmap.PROT_READ),
        (stubs, PAGE, mmap.PROT_READ | mmap.PROT_EXEC),
        (copy, len(image), mmap.PROT_READ | mmap.PROT_EXEC),
    ):
        if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection):
            raise VdsoError(f"mprotect: {os.strerror(ctypes.get_errno())}")
    _move(stubs + MOVE, [*((low, high - low, low + moved) for low, high in areas), (copy, len(image), start)])
    _offset_pages.append(block)


def follow(file: int) -> None:
    """Take the offset from the first page of an open file, whoever writes it. `install` comes before."""
    _mmap(_offset_pages[0], PAGE, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file)


def _areas() -> list[tuple[int, int]]:
    """Where the vDSO's data and, last, its code are: adjacent."""
    found = []
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            if line.rstrip().endswith(("[vvar]", "[vvar_vclock]", "[vdso]")):
                low, _, high = line.split()[0].partition("-")
                found.append((int(low, 16), int(high, 16)))
    if len(found) < 2 or any(high != low for (_, high), (low, _) in itertools.pairwise(found)):
        raise VdsoError("the vDSO and its data are not beside each other")
    return found


def _functions(image: bytes) -> dict[str, int]:
    """The functions by name, without __vdso_ where they have that, with their places. A foreign image is a VdsoError."""
    try:
        found = _read_symbols(image)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise VdsoError(f"the vDSO cannot be read: {error}") from error
    if not found.keys() >= ENTRIES.keys():
        raise VdsoError(f"the vDSO lacks a function: it has {', '.join(sorted(found))}")
    places = sorted(set(found.values()))
    if any(following - place < _JUMP.size for place, following in zip(places, [*places[1:], len(image)], strict=True)):
        raise VdsoError("a function of the vDSO is too short to be replaced")
    return found


def _read_symbols(image: bytes) -> dict[str, int]:
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no ELF file of 64 bits")
    (headers,) = struct.unpack_from("<Q", image, 0x20)
    (count,) = struct.unpack_from("<H", image, 0x38)
    dynamic = None
    for number in range(count):
        kind, _, offset = struct.unpack_from("<IIQ", image, headers + 56 * number)
        if kind == _PT_DYNAMIC:
            dynamic = offset
    if dynamic is None:
        raise ValueError("no dynamic section")
    tags: dict[int, int] = {}
    while (entry := struct.unpack_from("<qQ", image, dynamic))[0] != _DT_NULL:
        tags[entry[0]] = entry[1]
        dynamic += 16
    (symbols,) = struct.unpack_from("<I", image, tags[_DT_HASH] + 4)
    found = {}
    for number in range(symbols):
        name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", image, tags[_DT_SYMTAB] + 24 * number)
        if info & 0xF == _STT_FUNC and section:
            at = tags[_DT_STRTAB] + name
            found[image[at : image.index(b"\0", at)].decode("ascii").removeprefix("__vdso_")] = value
    return found


def _mmap(address: int | None, size: int, protection: int, flags: int, file: int = -1) -> int:
    got = _libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(size), protection, flags, file, ctypes.c_long(0))
    if got == _FAILED:
        raise VdsoError(f"mmap: {os.strerror(ctypes.get_errno())}")
    return int(got)


def _move(function: int, moves: list[tuple[int, int, int]]) -> None:
    """(from, size, to), one after the other, without Python: it may ask for the time whenever it runs. On failure all is as it was."""
    table = (ctypes.c_uint64 * (3 * len(moves)))(*itertools.chain.from_iterable(moves))
    failure = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t)(function)(table, len(moves))
    if failure:
        raise VdsoError(f"mremap: {os.strerror(-failure)}")
