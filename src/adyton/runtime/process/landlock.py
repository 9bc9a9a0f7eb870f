"""A Landlock domain that keeps enclaves of the same user apart. See landlock(7).

A supervisor enters its domain before it starts its guest, so that both are in it: neither can trace, signal or reach by abstract
unix sockets any process outside. The domain handles no file rights: a process under those cannot mount, as the guest's start
must, nor could its supervisor look into it from a narrower domain. The supervisor's files are narrowed by its root directory.
"""

from __future__ import annotations

import errno
import os
import struct

from adyton.runtime.process.libc import system_call

_CREATE_RULESET_VERSION = 1
_ACCESS_NET_BIND_TCP = 1
_ACCESS_NET_CONNECT_TCP = 2
_SCOPE_ABSTRACT_UNIX_SOCKET = 1
_SCOPE_SIGNAL = 2
NET_ABI = 4  # Linux 6.7
SCOPE_ABI = 6  # Linux 6.12


def abi() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    try:
        return system_call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def enter_domain() -> bool:
    """Put this process, and all that it starts, into a domain of its own. False: the kernel's Landlock is too old for one.

    Needs no_new_privs.
    """
    version = abi()
    if version < NET_ABI:
        return False
    attributes = struct.pack("<QQ", 0, _ACCESS_NET_BIND_TCP | _ACCESS_NET_CONNECT_TCP)
    if version >= SCOPE_ABI:
        attributes += struct.pack("<Q", _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    ruleset = system_call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        system_call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return True
