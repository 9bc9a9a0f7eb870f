"""System calls that Python has no function for, by number through libc's syscall(2). Errors are OSError with the call's name."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

from adyton.runtime.process.table import number

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_numbers: dict[str, int] = {}


def system_call(name: str, *arguments: int | bytes | Any | None) -> int:
    """Make the call; its result. Arguments: integers, bytes (a pointer to them, NUL-terminated), None, or ctypes pointers."""
    found = _numbers.get(name)
    if found is None:
        found = _numbers[name] = number(name)
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = _libc.syscall(ctypes.c_long(found), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def prctl(option: int, *arguments: int | bytes) -> int:
    """Get or set one of the process's options, PR_* in its man page. What is left out is 0, as newer ones demand."""
    return system_call("prctl", option, *arguments, *(0,) * (4 - len(arguments)))


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1 << 0
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3


def install_filter(program: bytes, *, listened: bool = False, every_thread: bool = False) -> int:
    """Put this thread, and all that it starts, under a seccomp filter for good. Needs no_new_privs. See seccomp(2).

    `program`: struct sock_filter, 8 bytes each. `listened`: what is returned is a descriptor on which another process is asked.
    `every_thread`: the process's other threads come under it too.
    """
    argument = _Program(len(program) // 8, program)
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER if listened else 0
    flags |= _SECCOMP_FILTER_FLAG_TSYNC if every_thread else 0
    result = system_call("seccomp", _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(argument))
    if every_thread and result:
        raise OSError(errno.EBUSY, f"seccomp: thread {result} cannot come under the filter")
    return result
